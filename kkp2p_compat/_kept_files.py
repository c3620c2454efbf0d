"""Files that programs keep: small ones, read with a bound, replaced whole and changed by one at a
time; and logs, of whole lines.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
import time
from collections.abc import Iterator
from typing import BinaryIO

__all__ = [
    "LineWriter",
    "Stamp",
    "data_folder",
    "locked",
    "new_whole",
    "read_small",
    "stamp_of",
    "write_whole",
]

# Our choices.
LOCK_S = 5.0  # whoever changes a file has it for milliseconds
LOOK_S = 0.01  # between two tries to get the lock, as there is no wait for it that ends

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL

Stamp = tuple[int, int, int]  # when it was last changed, its inode, its size


def data_folder() -> str:
    """The user's, whatever the working folder is (XDG base directories: others are ignored)."""
    base = os.environ.get("XDG_DATA_HOME", "")
    if not os.path.isabs(base):
        base = os.path.expanduser("~/.local/share")
    return os.path.join(base, "kkp2p")


def _open(path: str, flags: int) -> int:
    return os.open(
        path, flags | os.O_NONBLOCK | os.O_NOCTTY
    )  # or we might wait for a FIFO's writer


def read_small(path: str, most: int) -> tuple[bytes, os.stat_result]:
    """What is in a regular file of at most so many bytes; raises OSError for anything else."""
    with open(path, "rb", opener=_open) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"more than {most} bytes", path)
    return content, status


def stamp_of(path: str | os.PathLike[str]) -> Stamp | None:
    """Differs when the file was replaced or written to, or is another's or has another mode: one
    that could not be read may be readable then.  None: it is not there, for now.
    """
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ctime_ns, status.st_ino, status.st_size


def write_whole(path: str, content: bytes, mode: int = 0o600) -> None:
    """Put a file in place as ``new_whole`` does; raises OSError."""
    with new_whole(path, mode) as file:
        file.write(content)


@contextlib.contextmanager
def new_whole(path: str, mode: int = 0o600, replace: bool = True) -> Iterator[BinaryIO]:
    """What the body writes is put in place whole, and with its mode from the first byte on; raises
    OSError.  If the body fails, nothing is.

    Where ``path`` is a link, what it leads to is replaced.  Without ``replace`` nothing is: what is
    there by then stays, and is an error.
    """
    target = os.path.realpath(path) if replace else path
    if not replace and os.path.lexists(target):  # before the body does its work for nothing
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
    # A name that does not grow with the file's own, which may be as long as names can be.
    name = os.path.join(os.path.dirname(target), f".kkp2p-{secrets.token_hex(8)}")
    with _errors_of(path):
        number = os.open(name, _NEW, 0o600)
    try:
        with open(number, "wb") as file:
            yield file
            file.flush()
            os.fchmod(number, mode)
            os.fsync(number)  # or a power failure could leave an empty file under the name
        with _errors_of(path):
            _put_in_place(name, target, replace)
    finally:
        with contextlib.suppress(FileNotFoundError):  # it was renamed
            os.unlink(name)


@contextlib.contextmanager
def _errors_of(path: str) -> Iterator[None]:
    """They name the file that was asked for: nobody knows of the one that is written first."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error


def _put_in_place(name: str, target: str, replace: bool) -> None:
    if not replace:
        try:
            os.link(name, target)
            return
        except FileExistsError:
            raise
        except OSError:  # FAT, say, has no links: take the name, then replace our own file
            os.close(os.open(target, _NEW, 0o600))
    os.replace(name, target)


@contextlib.contextmanager
def locked(path: str) -> Iterator[None]:
    """Keep others, who lock it too, from changing a file inside the body; raises OSError."""
    number = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        deadline = time.monotonic() + LOCK_S
        while True:
            try:
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise OSError(errno.EAGAIN, "another program keeps it locked", path) from None
            time.sleep(LOOK_S)
        yield
    finally:
        os.close(number)


class LineWriter:
    """Appends lines to a log.  One that a full disk has torn is ended before the next one."""

    __slots__ = ("is_torn",)

    def __init__(self) -> None:
        self.is_torn = False

    def append(self, number: int, data: bytes) -> None:
        """Write a line to a descriptor; raises OSError if it is not there whole."""
        rest = data = b"\n" + data if self.is_torn else data
        try:
            while rest:
                rest = rest[os.write(number, rest) :]
        finally:
            self.is_torn = 0 < len(rest) < len(data) or (self.is_torn and rest == data)
