"""Records that a run does without, in a file of its folder from the first one on."""

from pathlib import Path

from accelerate import Accelerator
from torch.utils.data import Dataset

from ..data.read_report import REJECTS_FILE, RejectsFile
from ..whole_files import write_whole_file


def keep_rejects(output_dir: Path, dataset: Dataset, accelerator: Accelerator, is_new: bool) -> RejectsFile:
    """
    The file of the records that are done without, those that training comes to included. Every process must call it.

    Args:
        output_dir: of the run.
        dataset: of the training; the report of its `annotations` is written down, and it gets the file as `rejects`, where
            it has these.
        accelerator: of the run.
        is_new: whether the run starts from the beginning; an earlier file is then deleted.
    """
    rejects = RejectsFile(output_dir / REJECTS_FILE)
    report = getattr(getattr(dataset, "annotations", None), "report", None)
    if accelerator.is_main_process:
        if is_new:
            rejects.path.unlink(missing_ok=True)
        if report is not None and report.num_skipped:
            write_whole_file(rejects.path, rejects.joined_with(report))
    accelerator.wait_for_everyone()
    if hasattr(dataset, "rejects"):
        dataset.rejects = rejects
    return rejects
