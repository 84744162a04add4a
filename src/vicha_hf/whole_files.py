"""Writing so that a file or folder is either whole or not there, whenever the process dies, and errors that help."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator
from safetensors import SafetensorError


# What a name is followed by while it is written, while its successor takes its place, and while it is deleted.
UNFINISHED, REPLACED, DELETED = ".unfinished", ".replaced", ".deleted"
# Pages and images that a command writes carry it: a command replaces what it wrote before, and nothing else.
MADE_BY = "made by vicha_hf"
MADE_BY_TAG = f'<meta name="generator" content="{MADE_BY}">'
# What to do after a folder of a training run could not be written.
_CONTINUE = "continue with --resume_from_checkpoint latest"


class OutputFolderError(OSError):
    """The output folder cannot be written to; the message names it, what is needed and what is free."""


@contextmanager
def complete_folder(folder: Path, accelerator: Accelerator, needed_bytes: int = 0) -> Iterator[Path]:
    """A new folder to write into that takes the place of `folder` when the block ends without an error.

    Every process must enter; all may write. A run that dies at any moment leaves `folder` as it was or as it is to be,
    after [`tidy_up`].

    Args:
        folder: final name, in an existing folder.
        accelerator: of the run.
        needed_bytes: about what will be written; with less free space nothing is begun.

    Raises:
        OutputFolderError: writing failed. What was there before is intact.
    """
    unfinished = _hidden(folder, UNFINISHED)
    main = accelerator.is_main_process
    try:
        if main:
            shutil.rmtree(unfinished, ignore_errors=True)
            _require_space(folder, needed_bytes)
            unfinished.mkdir(parents=True)
        accelerator.wait_for_everyone()
        yield unfinished
        accelerator.wait_for_everyone()
        if main:
            _reach_the_disk(unfinished)
            _put_in_place(unfinished, folder)
    except Exception as error:
        if not is_write_error(error):
            raise
        message = _failure(folder, needed_bytes, error, _CONTINUE)
        if main:
            shutil.rmtree(unfinished, ignore_errors=True)
        if isinstance(error, OutputFolderError):
            raise
        raise OutputFolderError(message) from error
    accelerator.wait_for_everyone()


@contextmanager
def explained_writing(folder: Path) -> Iterator[None]:
    """A block that writes into a folder by other libraries.

    Raises:
        OutputFolderError: writing failed.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OutputFolderError) or not is_write_error(error):
            raise
        raise OutputFolderError(_failure(folder, 0, error)) from error


def is_write_error(error: Exception) -> bool:
    """Whether an exception of a block that writes says that it could not."""
    # torch.save reports a full disk as a RuntimeError of its archive writer, tokenizers as an Exception and no more.
    return isinstance(error, OSError | SafetensorError) or any(
        sign in str(error) for sign in ("inline_container", "PytorchStreamWriter", "No space left", "(os error ")
    )


def write_whole_file(path: Path, content: str | bytes) -> None:
    """Replace a file by one with `content` in a single step; its folder is made if need be.

    Raises:
        OutputFolderError: writing failed; the old file is intact.
    """
    write_whole_files({path: content})


def write_whole_files(contents: Mapping[Path, str | bytes]) -> None:
    """Replace several files that belong together: none before all of the new ones have reached the disk.

    Raises:
        OutputFolderError: writing failed; the old files are intact.
    """
    unfinished = {path: _own_unfinished(path) for path in contents}
    path = None
    try:
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with unfinished[path].open("wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
        for path in contents:
            unfinished[path].replace(path)
    except OSError as error:
        for left in unfinished.values():
            left.unlink(missing_ok=True)
        raise OutputFolderError(_failure(path, len(contents[path]), error)) from error


def write_whole_lines(path: Path, lines: Iterable[str]) -> None:
    """Replace a file by one with these lines, which need not fit into memory; its folder is made if need be.

    Args:
        path: of the file.
        lines: each with its end; what they raise leaves the old file as it was.

    Raises:
        OutputFolderError: writing failed; the old file is intact.
    """
    with whole_file(path) as unfinished, unfinished.open("w", encoding="utf-8") as file:
        for line in lines:
            file.write(line)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name to write to; the file takes the place of `path` when the block ends without an error.

    Args:
        path: of the file; its folder is made if need be.

    Raises:
        OutputFolderError: writing failed; the old file is intact.
    """
    unfinished = _own_unfinished(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.touch()
    except OSError as error:
        raise OutputFolderError(_failure(path, 0, error)) from error
    try:
        yield unfinished
        _flush(unfinished)
        unfinished.replace(path)
    except OSError as error:
        raise OutputFolderError(_failure(path, 0, error)) from error
    finally:
        unfinished.unlink(missing_ok=True)


def append_line(path: Path, line: str) -> None:
    """Add a line to a file.

    Raises:
        OutputFolderError: writing failed.
    """
    try:
        with path.open("a") as file:
            file.write(line + "\n")
    except OSError as error:
        raise OutputFolderError(_failure(path, len(line) + 1, error)) from error


def delete_folder(folder: Path) -> None:
    """Delete so that a half-deleted folder is never seen under its name."""
    if folder.exists():
        leaving = _hidden(folder, DELETED)
        shutil.rmtree(leaving, ignore_errors=True)
        folder.rename(leaving)
        shutil.rmtree(leaving)


def tidy_up(output_dir: Path) -> None:
    """Put back what a killed run was replacing, and delete what it had half written or half deleted."""
    for replaced in output_dir.glob(f".*{REPLACED}"):
        folder = replaced.with_name(replaced.name.removeprefix(".").removesuffix(REPLACED))
        if not folder.exists():
            replaced.rename(folder)
    for ending in (UNFINISHED, REPLACED, DELETED):
        for left in output_dir.glob(f".*{ending}"):
            if left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink()


def require_writable(output_dir: Path, option: str = "--output_dir") -> None:
    """Make the folder if need be, and find out whether it can be written to, before hours are spent.

    Args:
        output_dir: the folder.
        option: name of the option that gives it, for the message.

    Raises:
        OutputFolderError: it cannot.
    """
    if output_dir.is_file():
        raise OutputFolderError(f"{option}={str(output_dir)!r} cannot be written to: it is a file; name a folder.")
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output_dir) as file:
            file.write(b"written")
            file.flush()
    except OSError as error:
        raise OutputFolderError(
            f"{option}={str(output_dir)!r} cannot be written to ({error.strerror or error}; "
            f"{_free_space(output_dir)}). Make it writable, or choose another {option}."
        ) from error


def require_writable_file(path: Path, inputs: Iterable[object] = ()) -> None:
    """The same for a single file.

    Args:
        path: of the file.
        inputs: what the command reads, by path; things that are no paths pass.

    Raises:
        OutputFolderError: it cannot be written, or it is one of the inputs.
    """
    for source in inputs:
        if isinstance(source, str | os.PathLike) and os.path.abspath(os.path.expanduser(source)) == os.path.abspath(
            path
        ):
            raise OutputFolderError(f"{path} is read by this command, which leaves it as it is: name another file.")
    if path.is_dir():
        raise OutputFolderError(f"{path} is a folder: name a file to write to.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent) as file:
            file.write(b"written")
            file.flush()
    except OSError as error:
        raise OutputFolderError(
            f"{path} cannot be written ({error.strerror or error}; {_free_space(path.parent)}). Make its folder writable, "
            "or name another file."
        ) from error


def require_result_file(path: Path, inputs: Iterable[object] = ()) -> None:
    """The same for a result, which may take the place of an earlier one: a JSON object, or a page or image of a command.

    Args:
        path: of the file.
        inputs: what the command reads, as for [`require_writable_file`].

    Raises:
        OutputFolderError: as there, or something else is there.
    """
    require_writable_file(path, inputs)
    if path.exists() and not _is_result(path.read_bytes()):
        raise OutputFolderError(f"{path} is there already and no earlier result: name another file.")


def require_new(path: Path, overwrite: bool = False) -> None:
    """Refuses to replace what is there: a file, or a folder that holds something.

    Args:
        path: of the output.
        overwrite: whether the caller has agreed.

    Raises:
        OutputFolderError: something is there.
    """
    if not overwrite and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise OutputFolderError(f"{path} is there already: name another output, or give --overwrite.")


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def free_bytes(folder: Path) -> int:
    """Free space of the disk that `folder` is on, or would be on."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free


def readable_size(count: float) -> str:
    """Bytes in the unit that suits them."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} GiB"


def _is_result(content: bytes) -> bool:
    if not content.strip() or MADE_BY.encode() in content:
        return True
    try:
        found = json.loads(content)
    except ValueError:
        return False
    # A list may be annotations; one of found concepts says how well each fits.
    return isinstance(found, dict) or (isinstance(found, list) and all(map(_has_scores, found)))


def _has_scores(row: object) -> bool:
    return isinstance(row, dict) and {*row} == {"image", "concepts", "concept_scores"}


def _hidden(path: Path, ending: str) -> Path:
    return path.with_name(f".{path.name}{ending}")


def _own_unfinished(path: Path) -> Path:
    """Each process has a file of its own: of two that write one file at once, the last has it whole."""
    return path.with_name(f".{path.name}.{os.getpid()}{UNFINISHED}")


def _put_in_place(unfinished: Path, folder: Path) -> None:
    replaced = _hidden(folder, REPLACED)
    shutil.rmtree(replaced, ignore_errors=True)
    if folder.exists():
        # Not deleted before its successor is there: a run that dies in between must not lose both.
        folder.rename(replaced)
    unfinished.rename(folder)
    _flush(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _reach_the_disk(folder: Path) -> None:
    """After a power cut a renamed folder may otherwise hold empty files."""
    for path in folder.rglob("*"):
        _flush(path)
    _flush(folder)


def _flush(path: Path) -> None:
    if path.is_dir() and not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _require_space(folder: Path, needed_bytes: int) -> None:
    if free_bytes(folder.parent) < needed_bytes:
        raise OutputFolderError(_failure(folder, needed_bytes, "the disk is too full", _CONTINUE))


def _failure(path: Path, needed_bytes: int, reason: object, remedy: str = "start again") -> str:
    needed = f"about {readable_size(needed_bytes)} are needed, " if needed_bytes else ""
    return (
        f"{path.name} could not be written to {path.parent}: {reason}. There {needed}{_free_space(path.parent)}. What "
        f"was saved before is intact: make room or the folder writable, then {remedy}."
    )


def _free_space(folder: Path) -> str:
    try:
        return f"{readable_size(free_bytes(folder))} are free"
    except OSError as error:
        return f"free space unknown ({error})"
