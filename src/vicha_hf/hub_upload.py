"""Folders to the Hub: the repository is made before the work starts, and the upload is tried again when the network fails."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from .arguments import one_line


logger = logging.getLogger(__name__)

ATTEMPTS = 4
FIRST_PAUSE_SECONDS = 2.0

T = TypeVar("T")


class HubUploadError(ValueError):
    """A repository that cannot be made or written to; the message says what to do."""


def prepare_repository(repo_id: str, private: bool = True) -> None:
    """
    Makes a repository on the Hub, or finds that it is there.

    Args:
        repo_id: "organisation/name".
        private: whether a new repository is private; one that is there stays as it is.

    Raises:
        HubUploadError: no such organisation, no right to write, no network, an impossible name.
    """
    _retried(
        lambda: HfApi().create_repo(repo_id, private=private, exist_ok=True), f"push_to_hub={repo_id!r} cannot be made"
    )


def upload_folder(folder: str | Path, repo_id: str, message: str, revision: str | None = None) -> str:
    """
    Uploads a folder as one commit. Files that are on the Hub already are not sent again.

    Args:
        folder: what the repository shall hold.
        repo_id: a repository that exists.
        message: of the commit.
        revision: branch of the repository, made where it is not there; None takes the main one.

    Returns:
        The address of the commit.

    Raises:
        HubUploadError: it failed every time. The folder is as it was.
    """
    by_hand = f"hf upload {repo_id} {folder}" + ("" if revision is None else f" --revision {revision}")
    failure = f"{folder} was not uploaded; it is whole, send it with `{by_hand}`"
    if revision is not None:
        _retried(lambda: HfApi().create_branch(repo_id, branch=revision, exist_ok=True), failure)
    commit = _retried(
        lambda: HfApi().upload_folder(folder_path=folder, repo_id=repo_id, commit_message=message, revision=revision),
        failure,
    )
    return str(commit.commit_url)


def _retried(call: Callable[[], T], failure: str) -> T:
    pause = FIRST_PAUSE_SECONDS
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return call()
        except HFValidationError as error:
            raise HubUploadError(f"{failure}: {one_line(error)}") from error
        except Exception as error:
            # Of the client, its HTTP library and the sockets below: whatever may pass is tried again.
            if attempt == ATTEMPTS or not _may_pass(error):
                raise HubUploadError(f"{failure}: {one_line(error)}") from error
            logger.warning("The Hub did not take it (%s): trying again in %g s.", one_line(error), pause)
            time.sleep(pause)
            pause *= 2
    raise AssertionError("the last attempt returns or raises")


def _may_pass(error: Exception) -> bool:
    """Whether an error may be gone in a moment: the network's, or the server's own."""
    if isinstance(error, HfHubHTTPError):
        status = getattr(error.response, "status_code", None)
        return status is None or status >= 500 or status in (408, 429)
    return True
