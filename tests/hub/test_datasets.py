"""Datasets of the Hub as sources: as tables, as streams, from the cache, and names that the Hub does not know."""

import io
import socket
import threading

import datasets
import pytest
from PIL import Image

from vicha_hf.cli import main
from vicha_hf.data.raw_records import AnnotationError
from vicha_hf.data.stream_shards import stream_shards


def jpeg(number):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (number, 0, 0)).save(buffer, "JPEG")
    return buffer.getvalue()


def test_a_dataset_is_read_and_streamed_also_where_the_hub_is_gone(run_client, tmp_path):
    rows = [{"image": {"bytes": jpeg(number), "path": None}, "text": f"pet {number}"} for number in range(5)]
    datasets.Dataset.from_list(rows).cast_column("image", datasets.Image()).to_parquet(str(tmp_path / "pets.parquet"))
    seen = run_client("datasets", tmp_path / "pets.parquet", "org/pets")
    expected = [[f"pet {number}", jpeg(number).hex()] for number in range(5)]
    assert seen["switched"] is False
    for where in ("online", "offline"):
        for name, found in seen[where].items():
            kind, _, _ = name.partition(" ")
            if kind in ("default", "test"):
                assert found == expected, (where, name)
            elif kind == "split":
                assert found == "dataset org/pets: no split 'tset'; choose among ['test', 'train']"
            elif kind == "column":
                assert (
                    found
                    == "dataset org/pets: no column 'title' for the field 'caption'; choose among ['image', 'text']"
                )
    for read in ("table", "stream"):
        assert "BuilderConfig 'large' not found" in seen["online"][f"configuration {read}"]
        assert seen["online"][f"absent {read}"].startswith("org/petsz is no file or folder here, nor a dataset of the")
        for kind in ("configuration", "absent"):
            assert "the Hub cannot be reached, and the cache holds no copy" in seen["offline"][f"{kind} {read}"]


@pytest.fixture
def dead_hub(monkeypatch):
    """A Hub that hangs up on everyone; the calls that it got."""
    calls = []
    listening = socket.create_server(("127.0.0.1", 0))

    def hang_up():
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            calls.append(connection.recv(4096).split(b" ")[1].decode())
            connection.close()

    threading.Thread(target=hang_up, daemon=True).start()
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", f"http://127.0.0.1:{listening.getsockname()[1]}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    # Where the machine is set to be offline nobody is asked.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield calls
    listening.close()


def test_a_name_that_is_nothing_here_is_asked_for_once(dead_hub, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert main(["data", "check", "imagez"]) == 1
    assert dead_hub == ["/api/datasets/imagez"]
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err == (
        "vicha-hf data check: imagez is no file or folder here, and as a dataset of the Hub it cannot be had: the Hub "
        "cannot be reached, and the cache holds no copy; check the path, or the network\n"
    )
    with pytest.raises(AnnotationError, match="the cache holds no copy; check the path, or the network"):
        stream_shards({"path": "org/imagez", "streaming": True})
    assert dead_hub[1:] == ["/api/datasets/org/imagez"]


@pytest.mark.parametrize("name", ["./imagez", "a/b/c", "two words", "parquet", "imagefolder"])
def test_a_name_that_no_dataset_can_have_is_asked_for_nowhere(dead_hub, name, tmp_path, monkeypatch):
    """The last two are readers of the `datasets` library, which would take what lies in the current folder."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AnnotationError, match=f"{name} is no file or folder here, nor a dataset of the Hub"):
        stream_shards({"path": name, "streaming": True})
    assert main(["data", "check", name]) == 1
    assert not dead_hub
