"""The way of a run's models to the Hub: the last one to its main branch, those of its checkpoints as revisions."""

import logging
import re
from pathlib import Path

from torch import nn

from ..families import MODEL_FOLDER
from ..hub_upload import HubUploadError, upload_folder
from ..models.modeling_vision_text import VisionTextPreTrainedModel
from ..whole_files import delete_folder


logger = logging.getLogger(__name__)

UNSENT_REVISIONS = "unsent_revisions"
_NAME = re.compile(r"step-(\d+)")


class HubPublication:
    """
    The models of a run on the Hub; those of its checkpoints on branches `step-N`. Such a model waits in a folder until it
    is sent: what the Hub did not take goes with the next one, or when the run continues.

    Args:
        output_dir: of the run.
        repository: that exists.
    """

    def __init__(self, output_dir: Path, repository: str):
        self.output_dir = output_dir
        self.repository = repository
        self._unsent = output_dir / UNSENT_REVISIONS

    def place(self, step: int) -> Path:
        """Folder that the model of a checkpoint belongs into, to be sent."""
        return self._unsent / f"step-{step}"

    def send_model(self, model: nn.Module, step: int) -> None:
        """
        Sends the checkpoints' models that wait, then the folder of the last one.

        Args:
            model: that the folder holds; one of this package warns of what others would miss.
            step: that it is of.

        Raises:
            HubUploadError: the Hub did not take one. The folders are as they were.
        """
        if isinstance(model, VisionTextPreTrainedModel):
            model.warn_before_upload()
        self._send_waiting()
        address = upload_folder(self.output_dir / MODEL_FOLDER, self.repository, f"Step {step}")
        logger.info("Uploaded to the Hub: %s", address)

    def try_to_send_waiting(self) -> None:
        """Sends the checkpoints' models that wait; training goes on where the Hub takes none of them."""
        try:
            self._send_waiting()
        except HubUploadError as error:
            logger.warning("%s. It is sent with the next checkpoint.", error)

    def _send_waiting(self) -> None:
        """Oldest first; what was sent is deleted. What the Hub does not take, and what is later, waits."""
        waiting = [path for path in self._unsent.glob("step-*") if _NAME.fullmatch(path.name)]
        for path in sorted(waiting, key=lambda path: int(path.name.removeprefix("step-"))):
            address = upload_folder(path, self.repository, f"Step {path.name.removeprefix('step-')}", path.name)
            logger.info("Uploaded to the Hub as revision %s: %s", path.name, address)
            delete_folder(path)
        if self._unsent.is_dir() and not any(self._unsent.iterdir()):
            self._unsent.rmdir()
