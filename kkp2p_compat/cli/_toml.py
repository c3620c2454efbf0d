"""TOML files: the standard library reads them from Python 3.11 on."""

from __future__ import annotations

import sys
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["read_toml"]


def read_toml(path: str) -> dict[str, Any]:
    """Raises OSError, or ValueError that says what is wrong with it."""
    with open(path, "rb") as file:
        return tomllib.load(file)
