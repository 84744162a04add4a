"""Models of a run's checkpoints on the Hub, each as a revision of its own."""

import logging
import re
from pathlib import Path

from ..hub_upload import HubUploadError, upload_folder
from ..whole_files import delete_folder


logger = logging.getLogger(__name__)

FOLDER = "unsent_revisions"
_NAME = re.compile(r"step-(\d+)")


class CheckpointRevisions:
    """
    The way of models to the branches `step-N` of a repository. A model waits in a folder until it is sent: what the Hub
    did not take goes with the next one, or when the run continues.

    Args:
        output_dir: of the run.
        repository: that exists.
    """

    def __init__(self, output_dir: Path, repository: str):
        self.folder = output_dir / FOLDER
        self.repository = repository

    def place(self, step: int) -> Path:
        """Folder that the model of a step belongs into, to be sent."""
        return self.folder / f"step-{step}"

    def send(self) -> None:
        """
        Sends all that waits, oldest first; what was sent is deleted.

        Raises:
            HubUploadError: the Hub did not take one. It and the later ones wait.
        """
        waiting = [path for path in self.folder.glob("step-*") if _NAME.fullmatch(path.name)]
        for path in sorted(waiting, key=lambda path: int(path.name.removeprefix("step-"))):
            address = upload_folder(path, self.repository, f"Step {path.name.removeprefix('step-')}", path.name)
            logger.info("Uploaded to the Hub as revision %s: %s", path.name, address)
            delete_folder(path)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def try_to_send(self) -> None:
        """Sends all that waits; training goes on where the Hub takes none of it."""
        try:
            self.send()
        except HubUploadError as error:
            logger.warning("%s. It is sent with the next checkpoint.", error)
