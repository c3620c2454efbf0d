"""Help texts in the language of the user, folded where that has no spaces."""

from __future__ import annotations

import argparse
from typing import Any

from ._fold import fold
from ._words import _, is_chinese

__all__ = ["Parser"]


class Parser(argparse.ArgumentParser):
    """Its subparsers are of this class, too."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            formatter_class=_Chinese if is_chinese() else argparse.HelpFormatter, **options
        )


class _Chinese(argparse.HelpFormatter):
    """argparse translates words of its own only, and wants spaces to break a line at."""

    def start_section(self, heading: str | None) -> None:
        super().start_section(heading and _(heading))

    def add_text(self, text: str | None) -> None:
        super().add_text(text and _(text))

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help and _(action.help)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return fold(" ".join(text.split()), width)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines = self._split_lines(text, width - len(indent))
        return "\n".join(indent + line for line in lines)
