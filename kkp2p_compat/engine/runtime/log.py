"""Where the SDK's log goes: v1's file of each engine, or v2's callback for the whole process.

Levels are the C SDK's: 0 none, 1 error, 2 normal (default), 3 info, 4 debug.  Inside, the standard
logging module is used, and "normal" is its WARNING.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from typing import Any

from ..._say import say
from .callbacks import Callbacks
from .log_file import LogFile, format_line, make_lock

__all__ = [
    "FLUSH_S",
    "LOG_FILE",
    "EngineLog",
    "LogCallback",
    "PeerLog",
    "log_without_engine",
    "set_log_callback",
    "set_log_level",
]

LOG_FILE = "kkp2p_engine.log"  # C SDK
DEFAULT_MAX_BYTES = 10 * 1024 * 1024  # what the document's programs set
FLUSH_S = 5.0  # our choice: how long a program's callback may take over the last lines
_LEVELS = (logging.CRITICAL + 1, logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG)

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)  # it may pass: no reason to be without an engine

LogCallback = Callable[[str, int, Any], object]  # C's returns an int, which means nothing


def _working_folder() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return "."


class EngineLog(logging.Logger):
    """The log of one engine.  Any thread may use it; only making it may raise.

    That raises OSError if the file in ``folder`` cannot be opened.  Without ``folder`` the same is
    told on standard error, and the engine goes on.
    """

    def __init__(self, folder: str | None, max_bytes: int) -> None:
        super().__init__("kkp2p", _LEVELS[2])
        path = os.path.join(folder or _working_folder(), LOG_FILE)
        self._file = LogFile(path, max_bytes or DEFAULT_MAX_BYTES)
        self._chosen: int | None = None
        if _process.has_callback:
            return
        try:
            self._file.open()
        except OSError as error:
            if folder and error.errno not in _NO_SPACE:
                raise
            self._file.fail(error)

    def set_level(self, level: int) -> None:
        """v1's switch_log_level, for this engine; before it log_switch_level's level counts."""
        self._chosen = _LEVELS[level]

    def getEffectiveLevel(self) -> int:
        return _process.level if self._chosen is None else self._chosen

    def isEnabledFor(self, level: int) -> bool:
        return level >= self.getEffectiveLevel()

    def callHandlers(self, record: logging.LogRecord) -> None:
        if not _process.take(record):
            self._file.write(format_line(record))

    def close(self) -> None:
        self._file.close()


class PeerLog(logging.Logger):
    """An engine's log for what concerns one peer, whose name each line begins with."""

    def __init__(self, log: logging.Logger, peer: str) -> None:
        super().__init__(log.name)
        self._log_of_all = log
        self._peer = peer

    def isEnabledFor(self, level: int) -> bool:
        return self._log_of_all.isEnabledFor(level)

    def handle(self, record: logging.LogRecord) -> None:
        assert isinstance(record.args, tuple)
        record.msg, record.args = f"%s: {record.msg}", (self._peer, *record.args)
        self._log_of_all.handle(record)


class _ProcessLog:
    """What v2's log functions set, for every engine of the process."""

    def __init__(self) -> None:
        self.level = _LEVELS[2]
        self._lock = make_lock()
        self._sink: tuple[Callbacks, LogCallback, Any] | None = None

    @property
    def has_callback(self) -> bool:
        return self._sink is not None

    def set_callback(self, callback: LogCallback | None, param: Any) -> Callbacks | None:
        sink = None if callback is None else (Callbacks(1), callback, param)
        with self._lock:
            before, self._sink = self._sink, sink
        if before is None:
            return None
        before[0].close()
        return before[0]

    def handle_fork(self) -> None:
        """In the child, where the callback's thread is missing, and a lock may be locked for good.

        What waits for the callback is the parent's.
        """
        self._lock = make_lock()
        if self._sink is not None:
            self._sink = Callbacks(1), *self._sink[1:]

    def take(self, record: logging.LogRecord) -> bool:
        sink = self._sink
        if sink is None:
            return False
        runner, callback, param = sink
        line = format_line(record)
        length = len(line.encode(errors="backslashreplace"))  # as C counts, and as the file has it
        return runner.submit(callback, line, length, param)


_process = _ProcessLog()
os.register_at_fork(after_in_child=_process.handle_fork)


def set_log_callback(callback: LogCallback | None, param: Any) -> Callbacks | None:
    """Returns what the last lines for the callback before this one run on; None: there was none."""
    return _process.set_callback(callback, param)


def set_log_level(level: int) -> None:
    _process.level = _LEVELS[level]


def log_without_engine(message: str, *args: object) -> None:
    """An error of a call that has no engine to log to: v2's callback, else standard logging."""
    logger = logging.getLogger("kkp2p_compat")
    if _process.level > logging.ERROR:
        return
    record = logger.makeRecord(logger.name, logging.ERROR, "", 0, message, args, None)
    if not _process.take(record):
        try:
            logger.handle(record)
        except Exception:  # noqa: BLE001 - of the application's handler, or its standard error
            say(format_line(record))
