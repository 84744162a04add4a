"""One run at a time in an output folder."""

import errno
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TextIO
from weakref import WeakValueDictionary

from .whole_files import OutputFolderError


try:
    import fcntl
except ImportError:
    # Windows: folders are not locked there.
    fcntl = None

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"
# What a file system says that cannot lock files.
_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}

# A process does not exclude itself by a record lock, and would lose its lock by opening the file once more.
_held: "WeakValueDictionary[Path, FolderLock]" = WeakValueDictionary()


class FolderInUseError(OutputFolderError):
    """Another run writes to the folder; the message names the run and the remedy."""


class FolderLock:
    """
    Keeps other runs out of a folder until it is released, or until the process ends, however it ends.

    It is a record lock of the operating system on `.lock` in the folder. A file that a killed process left behind locks
    nothing. Processes that are forked, such as those that load data, do not hold it.

    Args:
        folder: an existing folder that can be written to.
        option: name of the option that gives it, for the message.

    Raises:
        FolderInUseError: another run holds it.
    """

    def __init__(self, folder: Path, option: str = "--output_dir"):
        self.path = folder.resolve() / LOCK_FILE
        self._option = option
        self._file: TextIO | None = None
        if fcntl is None:
            return
        if self.path in _held:
            raise _in_use(folder, "this process", option)
        self._file = self._lock(folder)
        if self._file is not None:
            _held[self.path] = self
            self._sign()

    def release(self) -> None:
        """Lets others in. A second call does nothing."""
        if self._file is not None:
            _held.pop(self.path, None)
            # Deleted while it is locked: whoever opened it before finds that it is gone, and makes a new one.
            self.path.unlink(missing_ok=True)
            self._file.close()
            self._file = None

    def _lock(self, folder: Path) -> TextIO | None:
        while True:
            file = self.path.open("a+")
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in _UNSUPPORTED:
                    file.close()
                    logger.warning(
                        "%s is on a file system without locks (%s): see to it that no other run writes there.",
                        folder,
                        error.strerror,
                    )
                    return None
                holder = _read_holder(file)
                file.close()
                raise _in_use(folder, holder, self._option) from error
            if self.path.exists() and os.fstat(file.fileno()).st_ino == self.path.stat().st_ino:
                return file
            file.close()

    def _sign(self) -> None:
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        self._file.truncate(0)
        self._file.write(json.dumps({"process": os.getpid(), "host": socket.gethostname(), "since": since}) + "\n")
        self._file.flush()


@contextmanager
def locked_folder(folder: Path, is_mine: bool = True, option: str = "--output_dir") -> Iterator[None]:
    """A block in which no other run writes to a folder.

    Args:
        folder, option: see [`FolderLock`].
        is_mine: false on processes that leave the locking to another one of their run.

    Raises:
        FolderInUseError: another run holds it.
    """
    lock = FolderLock(folder, option) if is_mine else None
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def _read_holder(file: TextIO) -> str:
    try:
        file.seek(0)
        content = json.loads(file.read())
        return f"process {content['process']} on {content['host']} since {content['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        # It has locked the file and not written to it yet.
        return "another process"


def _in_use(folder: Path, holder: str, option: str) -> FolderInUseError:
    return FolderInUseError(
        f"{option}={str(folder)!r} is in use by another run ({holder}): wait for its end, or choose another {option}."
    )
