"""Where the SDK's log goes: v1's file of each engine, or v2's callback for the whole process.

Levels are the C SDK's: 0 none, 1 error, 2 normal (default), 3 info, 4 debug.  Inside, the standard
logging module is used, and "normal" is its WARNING.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable
from logging.handlers import RotatingFileHandler
from typing import IO, Any

from gevent import monkey

from .callbacks import Callbacks

__all__ = [
    "LOG_FILE",
    "EngineLog",
    "LogCallback",
    "log_without_engine",
    "set_log_callback",
    "set_log_level",
]

LOG_FILE = "kkp2p_engine.log"  # C SDK
DEFAULT_MAX_BYTES = 10 * 1024 * 1024  # what the document's programs set
_LEVELS = (logging.CRITICAL + 1, logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG)
_NAMES = {
    logging.ERROR: "error",
    logging.WARNING: "normal",
    logging.INFO: "info",
    logging.DEBUG: "debug",
}

LogCallback = Callable[[str, int, Any], object]

# Not threading's RLock: under monkey patching even the original one makes gevent locks.
_make_lock = monkey.get_original("_thread", "RLock")
_format = "%(asctime)s.%(msecs)03d %(levelname)s %(message)s"


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        record.levelname = _NAMES.get(record.levelno, record.levelname)
        return super().format(record)

    def formatMessage(self, record: logging.LogRecord) -> str:
        # Strangers choose parts of it: it stays one line and sends nothing to a terminal.
        record.message = _UNPRINTABLE.sub(lambda found: repr(found[0])[1:-1], record.message)
        return super().formatMessage(record)


_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_formatter = _Formatter(_format, "%Y-%m-%d %H:%M:%S")


class _File(RotatingFileHandler):
    """kkp2p_engine.log, renamed to kkp2p_engine.log.bak past the limit.

    Several engines and processes may write to one file: each looks whether another has renamed it.
    """

    def __init__(self, path: str, max_bytes: int, *, delay: bool) -> None:
        super().__init__(path, maxBytes=max_bytes, backupCount=1, encoding="utf-8", delay=delay)
        self._ended = False
        self.namer = lambda name: name.removesuffix(".1") + ".bak"
        self.setFormatter(_formatter)

    def createLock(self) -> None:
        # A native lock: application threads and the engine's thread both write, and a gevent lock
        # (which a monkey-patched threading.RLock is) does not work across them.
        self.lock = _make_lock()

    def emit(self, record: logging.LogRecord) -> None:
        if self._ended:
            return  # the file would be opened again
        stream = self.stream
        if stream is not None and not self._is_ours(stream):
            self.stream = None  # the next line opens the new one
            stream.close()
        super().emit(record)

    def _is_ours(self, stream: IO[str]) -> bool:
        try:
            return os.path.samestat(os.fstat(stream.fileno()), os.stat(self.baseFilename))
        except OSError:
            return False

    def handleError(self, record: logging.LogRecord) -> None:
        print(f"kkp2p: cannot write {self.baseFilename}: {sys.exc_info()[1]}", file=sys.stderr)

    def close(self) -> None:
        self._ended = True
        super().close()


class EngineLog(logging.Logger):
    """The log of one engine.  Any thread may use it."""

    def __init__(self, folder: str | None, max_bytes: int) -> None:
        super().__init__("kkp2p", _LEVELS[2])
        path = os.path.join(folder or os.getcwd(), LOG_FILE)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        self._file = _File(path, max_bytes or DEFAULT_MAX_BYTES, delay=_process.has_callback)
        self._chosen: int | None = None

    def set_level(self, level: int) -> None:
        """switch_log_level of this engine (v1); before it log_switch_level's level counts."""
        self._chosen = _LEVELS[level]

    def getEffectiveLevel(self) -> int:
        return _process.level if self._chosen is None else self._chosen

    def isEnabledFor(self, level: int) -> bool:
        return level >= self.getEffectiveLevel()

    def callHandlers(self, record: logging.LogRecord) -> None:
        if not _process.take(record):
            self._file.handle(record)

    def close(self) -> None:
        self._file.close()


class _ProcessLog:
    """What v2's log functions set, for every engine of the process."""

    def __init__(self) -> None:
        self.level = _LEVELS[2]
        self._lock = _make_lock()
        self._sink: tuple[Callbacks, LogCallback, Any] | None = None

    @property
    def has_callback(self) -> bool:
        return self._sink is not None

    def set_callback(self, callback: LogCallback | None, param: Any) -> None:
        with self._lock:
            before, self._sink = self._sink, None
            if callback is not None:
                self._sink = Callbacks(1), callback, param
        if before is not None:
            before[0].close()

    def take(self, record: logging.LogRecord) -> bool:
        sink = self._sink
        if sink is None:
            return False
        runner, callback, param = sink
        line = _formatter.format(record)
        return runner.submit(callback, line, len(line), param)


_process = _ProcessLog()


def set_log_callback(callback: LogCallback | None, param: Any) -> None:
    _process.set_callback(callback, param)


def set_log_level(level: int) -> None:
    _process.level = _LEVELS[level]


def log_without_engine(message: str, *args: object) -> None:
    """An error of a call that has no engine to log to: v2's callback, else standard logging."""
    logger = logging.getLogger("kkp2p_compat")
    if _process.level > logging.ERROR:
        return
    record = logger.makeRecord(logger.name, logging.ERROR, "", 0, message, args, None)
    if not _process.take(record):
        logger.handle(record)
