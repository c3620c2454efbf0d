"""kkp2p_engine.log: one write a line, renamed to kkp2p_engine.log.bak when it would grow too large.

Whatever the disk does, writing never raises: lines that cannot be written are counted, and the
next one that can be is preceded by one that says how many are missing, and why.  Several engines
and processes may write to one file: each looks whether another has renamed it.

Others may be able to write to the folder.  So the file is opened only if it is a regular one, and
not a link by which somebody else would choose what we write to.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
from collections.abc import Callable
from typing import Any

from gevent import monkey

from ..._kept_files import LineWriter
from ..._say import say

__all__ = ["LogFile", "format_line", "make_lock"]

_NAMES = {
    logging.ERROR: "error",
    logging.WARNING: "normal",
    logging.INFO: "info",
    logging.DEBUG: "debug",
}
# Others may not read who calls whom.  A file that exists keeps its mode, also when it is renamed.
NEW_FILE_MODE = 0o600
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
_FLAGS |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY  # a FIFO would keep us waiting for a reader
_NOT_REGULAR = (errno.ELOOP, errno.EMLINK, errno.ENXIO)  # of a symbolic link (BSD: EMLINK), a FIFO

# Not threading's RLock: application threads and the engine's write, and under monkey patching even
# the original one makes gevent locks, which do not work across threads.
make_lock: Callable[[], Any] = monkey.get_original("_thread", "RLock")
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        record.levelname = _NAMES.get(record.levelno, record.levelname)
        return super().format(record)

    def formatMessage(self, record: logging.LogRecord) -> str:
        # Strangers choose parts of it: it must stay one line, and hold no command for a terminal.
        record.message = _UNPRINTABLE.sub(lambda found: repr(found[0])[1:-1], record.message)
        return super().formatMessage(record)


_formatter = _Formatter("%(asctime)s.%(msecs)03d %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S")


def format_line(record: logging.LogRecord) -> str:
    try:
        return _formatter.format(record)
    except Exception as error:  # noqa: BLE001 - of an argument's own code; its text may fail, too
        record.msg, record.args = "%r: cannot be told: %s", (record.msg, type(error).__name__)
        return _formatter.format(record)


def _line(level: int, text: str, *args: object) -> str:
    return format_line(logging.LogRecord("kkp2p", level, "", 0, text, args, None))


class LogFile:
    """Any thread may call.  ``open`` is optional: the first line opens the file, too."""

    def __init__(self, path: str, max_bytes: int) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._fd = -1
        self._mode = NEW_FILE_MODE
        self._lock = make_lock()
        self._why = ""  # the file cannot be written now; "": it can
        self._lost = 0  # lines, since it cannot
        self._lines = LineWriter()
        self._keeps_name = False  # it cannot be renamed, and starts over in place instead
        self._ended = False

    def open(self) -> None:
        """Raises OSError."""
        with self._lock:
            self._fd = self._open()

    def write(self, line: str) -> None:
        data = f"{line}\n".encode(errors="backslashreplace")
        with self._lock:
            if self._ended:
                return  # the file would be opened again
            try:
                self._make_room(len(data))
                if self._lost:
                    text = _line(logging.ERROR, "%d lines were lost: %s", self._lost, self._why)
                    self._append(f"{text}\n".encode())
                    self._lost = 0
                self._append(data)
                self._why = ""
            except OSError as error:
                self._lost += 1
                self.fail(error)

    def fail(self, error: OSError) -> None:
        """The file cannot be written: say so on standard error, once."""
        if not self._why:
            why = error.strerror or str(error)
            say(f"kkp2p: cannot write {self.path}: {why}; until it can be, lines are lost")
        self._why = error.strerror or str(error)

    def close(self) -> None:
        with self._lock:
            self._ended = True
            try:
                self._close()
            except OSError as error:  # such as a quota that is found out about only now
                self.fail(error)

    def _open(self) -> int:
        os.makedirs(os.path.dirname(self.path) or ".", exist_ok=True)
        try:
            fd = os.open(self.path, _FLAGS, self._mode)
        except OSError as error:
            if error.errno in _NOT_REGULAR:
                raise OSError(error.errno, "not a regular file", self.path) from error
            raise
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "not a regular file", self.path)
        self._mode = stat.S_IMODE(found.st_mode)
        return fd

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _append(self, data: bytes) -> None:
        self._lines.append(self._fd, data)

    def _make_room(self, length: int) -> None:
        if self._fd >= 0 and not self._is_ours():
            self._close()
        if self._fd < 0:
            self._fd, self._lines = self._open(), LineWriter()
        size = os.fstat(self._fd).st_size
        if not size or size + length <= self._max_bytes:
            return
        if self._keeps_name and size + length <= 2 * self._max_bytes:
            return
        try:
            os.replace(self.path, f"{self.path}.bak")
        except OSError as error:
            if self._keeps_name:
                os.ftruncate(self._fd, 0)
            else:
                self._keeps_name = True
                self._append(f"{_line(logging.ERROR, _NO_BAK, error.strerror)}\n".encode())
        else:
            self._keeps_name = False
            self._close()
            self._fd, self._lines = self._open(), LineWriter()

    def _is_ours(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._fd), os.lstat(self.path))
        except OSError:
            return False


_NO_BAK = "the log cannot be renamed: %s; at twice its size it starts over in place"
