"""A log of JSON lines, for programs that collect logs."""

from __future__ import annotations

import json
import logging
import time

__all__ = ["JsonFormatter"]


class JsonFormatter(logging.Formatter):
    """``time`` (UTC), ``level``, ``part`` (a module), ``message``, ``trace`` of an exception."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        fields = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "part": record.name.rpartition(".")[2],
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["trace"] = self.formatException(record.exc_info)
        return json.dumps(fields)
