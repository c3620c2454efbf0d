"""Text in lines of so many columns; a Chinese character takes two, and has no spaces around it."""

from __future__ import annotations

import re
import textwrap
import unicodedata
from collections.abc import Iterator

from ._words import is_chinese

__all__ = ["columns", "fold"]

# What a line may break between: words, and single characters, each together with the punctuation
# that must not begin or end a line.
_PIECE = re.compile(r" |[（“]*(?:[!-~]+|[^ -~])[，。、；：）”]*")


def columns(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(each) in "WF" else 1 for each in text)


def fold(text: str, width: int) -> list[str]:
    return list(_fold(text, width)) if is_chinese() else textwrap.wrap(text, width)


def _fold(text: str, width: int) -> Iterator[str]:
    line = ""
    for piece in _PIECE.findall(text):
        if line and columns(line + piece.rstrip()) > width:
            yield line.rstrip()
            line = ""
        line += piece if line else piece.lstrip()
    yield line.rstrip()
