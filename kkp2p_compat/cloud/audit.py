"""The audit log: who has logged in, and who was refused what, as lines of JSON.

It never has a secret, nor anything that a stranger could fill the disk with: of refusals only so
many a second are written, and of the others how many there were.  Several processes may write to
one file.
"""

from __future__ import annotations

import json
import logging
import os
import time

from .._bucket import Bucket
from .._kept_files import LineWriter
from .directory import audit_time

__all__ = ["Audit"]

log = logging.getLogger(__name__)

# Our choices.
REFUSALS_PER_S = 10.0
REFUSALS_AT_ONCE = 1000.0
MAX_CHARS = 200  # of a text that a stranger may have chosen
STANDARD_OUTPUT = "-"

# Neither a FIFO nor a terminal may keep the cloud, which is one thread, waiting.
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


class Audit:
    """``write`` what is done, ``refuse`` what is not; ``reopen`` when the file was moved away."""

    def __init__(self, path: str) -> None:
        """Raises OSError."""
        self._path = path
        self._node = ""
        self._descriptor = self._open()
        self._lines = LineWriter()
        self._refusals = Bucket(REFUSALS_PER_S, REFUSALS_AT_ONCE, time.monotonic())
        self._left_out = 0
        self._fails = False

    def name_node(self, node_id: str) -> None:
        """Whose lines these are from now on."""
        self._node = node_id

    def _open(self) -> int | None:
        if self._path == STANDARD_OUTPUT:
            return None  # sys.stdout of that moment, which may know how not to wait for a reader
        return os.open(self._path, _FLAGS, 0o600)

    def reopen(self) -> None:
        try:
            descriptor = self._open()
        except OSError as error:
            log.error("the audit log goes on in the file that it had: %s", error)
            return
        self._close()
        self._descriptor, self._lines = descriptor, LineWriter()

    def close(self) -> None:
        self.sweep(time.monotonic())
        self._close()

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)

    def write(self, what: str, **fields: str | int | None) -> None:
        """Fields that are None are left out."""
        told = {
            name: value[:MAX_CHARS] if isinstance(value, str) else value
            for name, value in fields.items()
            if value is not None
        }
        line = json.dumps({"time": audit_time(), "what": what, **told, "node": self._node})
        try:
            if self._descriptor is None:
                print(line, flush=True)
            else:
                self._lines.append(self._descriptor, line.encode() + b"\n")
        except OSError as error:  # a full disk, or a reader that is gone or does not read
            if not self._fails:
                log.error("the audit log cannot be written: %s", error)
            self._fails = True
        else:
            self._fails = False

    def refuse(self, what: str, **fields: str | int | None) -> None:
        if self._refusals.take(time.monotonic()):
            self.write(what, **fields)
        else:
            self._left_out += 1

    def sweep(self, now: float) -> None:
        """To be called about once a second."""
        if self._left_out and self._refusals.take(now):
            left_out, self._left_out = self._left_out, 0
            self.write("refusals-left-out", count=left_out)
