"""The words of the tools: English, which stands in the code, or Chinese where the locale wants it.

What programs read is always English: JSON, and the log.
"""

from __future__ import annotations

import gettext
import os
import re
import sys
from pathlib import Path

from .._sentence import Sentence, said

__all__ = [
    "N_",
    "_",
    "is_chinese",
    "ngettext",
    "retold",
    "speak_as_the_locale_says",
    "speak_english",
    "told",
]

DOMAIN = "kkp2p_compat"
FOLDER = Path(__file__).parents[1] / "locale"  # docs/catalogue.py writes what is in it

_english = gettext.NullTranslations()
_words = _english


def _(text: str) -> str:
    return _words.gettext(text)


def ngettext(one: str, more: str, count: int) -> str:
    """Chinese has one for all counts, which is the translation of the first."""
    return _(one) if count == 1 or is_chinese() else more


def N_(text: str) -> str:
    """A constant, which is translated where it is shown."""
    return text


def retold(text: str) -> str:
    """What the engine says; what has no translation stays as it is."""
    if not (is_chinese() and text and isinstance(text, Sentence)):
        return text
    parts = {
        name: retold(part) if isinstance(part, str) else part for name, part in text.parts.items()
    }
    template = _(text.template)
    return template.format(**parts) if parts else template


def told(error: BaseException) -> str:
    """What an error says."""
    return retold(said(error))


def is_chinese() -> bool:
    return _words is not _english


def speak_english() -> None:
    global _words
    _words = _english
    gettext.textdomain("messages")  # gettext's default; argparse takes its words from there


def speak_as_the_locale_says() -> None:
    """To be called before a parser is made: argparse looks up some words then."""
    global _words
    speak_english()
    if _wants_chinese() and _shows_chinese():
        # All kinds of Chinese get the one that there is: it is nearer to them than English.
        _words = gettext.translation(DOMAIN, FOLDER, ["zh"])
        gettext.bindtextdomain(DOMAIN, FOLDER)
        gettext.textdomain(DOMAIN)


def _wants_chinese() -> bool:
    """As gettext(3) has it: LANGUAGE comes first, but counts for nothing in the locale C."""
    locale = os.environ.get("LC_ALL") or os.environ.get("LC_MESSAGES") or os.environ.get("LANG")
    if locale in ("C", "POSIX"):
        return False
    return re.match(r"zh([_.:@]|$)", os.environ.get("LANGUAGE") or locale or "") is not None


def _shows_chinese() -> bool:
    try:
        "简体".encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
