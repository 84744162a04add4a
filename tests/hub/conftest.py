"""A local Hub, a tiny model folder, and processes that use both."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from tiny_model_folder import write_model_folder
from tools.local_hub import LocalHub


class Repositories(NamedTuple):
    """A retrieval model for everybody and a pretraining model for those who have a token."""

    public: str = "org/vicha-tiny"
    private: str = "org/vicha-tiny-pretraining"


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    """A `ViChaForRetrieval` with random weights and its processor."""
    folder = tmp_path_factory.mktemp("vicha-tiny")
    write_model_folder(folder)
    return folder


@pytest.fixture(scope="session")
def hub(tmp_path_factory):
    server = LocalHub(tmp_path_factory.mktemp("hub"), lfs=True)
    with server:
        yield server


@pytest.fixture(scope="session")
def run_client(hub, tmp_path_factory):
    """Runs `hub_client.py` as a user with an empty cache of their own and returns what it printed."""

    def run(*arguments, token: str | None = "hf_local_write") -> dict:
        environment = {name: value for name, value in os.environ.items() if name != "HF_TOKEN"}
        environment |= hub.env(tmp_path_factory.mktemp("home"), token)
        process = subprocess.run(
            [sys.executable, Path(__file__).parent / "hub_client.py", *map(str, arguments)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            cwd=tmp_path_factory.mktemp("elsewhere"),
        )
        assert process.returncode == 0, process.stderr[-6000:]
        return json.loads(process.stdout.splitlines()[-1])

    return run


@pytest.fixture(scope="session")
def repositories() -> Repositories:
    return Repositories()


@pytest.fixture(scope="session")
def pushed(run_client, model_folder, repositories) -> dict:
    """Both repositories exist on the Hub; the numbers are those of the model before it was pushed."""
    return run_client("push", model_folder, *repositories)
