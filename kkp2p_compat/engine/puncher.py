"""Carry out what a plan says beyond plain checks.  The sans-IO half is traversal/punch.py."""

from __future__ import annotations

from typing import Any


class Puncher:
    """To be written: until then there are plain checks only."""

    def __init__(self, *needed: Any) -> None:
        pass

    def run(self) -> None:
        pass

    def close(self) -> None:
        pass

    def handle_fields_untrusted(self, fields: dict[str, Any]) -> None:
        pass
