"""The Chinese words of the tools: ``python docs/catalogue.py`` after a change of their texts.

The texts are those of the tools, and what errors and events say (see _sentence.py).
It adds to the catalogue's .po file what is said and that does not have, with no translation,
takes out what they say no more, and makes the .mo file, which the tools read.  A test fails as long
as a translation is missing.
"""

from __future__ import annotations

import argparse
import ast
import gettext
import struct
from collections.abc import Collection, Iterator
from pathlib import Path
from unittest import mock

from kkp2p_compat import _errors, cli
from kkp2p_compat.cli import _words

__all__ = ["ARGPARSE", "PO", "compiled", "parse", "parsers", "said"]

ROOT = Path(__file__).parents[1]
PO = _words.FOLDER / "zh" / "LC_MESSAGES" / f"{_words.DOMAIN}.po"
# What argparse says to users of any Python that we support.
ARGPARSE = [
    "usage: ",
    "positional arguments",
    "options",
    "show this help message and exit",
    "show program's version number and exit",
    "argument %(argument_name)s: %(message)s",
    "%(prog)s: error: %(message)s\n",
    "the following arguments are required: %s",
    "one of the arguments %s is required",
    "unrecognized arguments: %s",
    "not allowed with argument %s",
    "ambiguous option: %(option)s could match %(matches)s",
    "ignored explicit argument %r",
    "expected one argument",
    "expected at most one argument",
    "expected at least one argument",
    "invalid %(type)s value: %(value)r",
    "invalid choice: %(value)r (choose from %(choices)s)",
]

# Not those whose text is for engineers: of the protocol, and of the arguments of the API.
_NOT_FOR_USERS = (_errors.BadPacket, _errors.ParameterError)
_ERRORS = [
    error
    for name in _errors.__all__
    if isinstance(error := getattr(_errors, name), type) and not issubclass(error, _NOT_FOR_USERS)
]
MARKS = ("_", "N_", "ngettext")
SENTENCES = ("Sentence", "note", "_note", "_add", "step", *(error.__name__ for error in _ERRORS))

Catalogue = dict[str, str]  # in the order of the file; the header is the translation of ""


def said() -> list[str]:
    """What can be translated, in the order of the code."""
    found = dict.fromkeys(ARGPARSE)
    for file in sorted((ROOT / "kkp2p_compat" / "cli").glob("*.py")):
        found |= dict.fromkeys(_marked(file, MARKS))
    found |= dict.fromkeys(_in_help())
    found |= dict.fromkeys(str(error()) for error in _ERRORS)
    for file in sorted((ROOT / "kkp2p_compat").rglob("*.py")):
        if file.relative_to(ROOT / "kkp2p_compat").parts[0] not in ("cloud", "testing", "capi"):
            found |= dict.fromkeys(_marked(file, SENTENCES))
    return list(found)


def _marked(file: Path, marks: Collection[str]) -> list[str]:
    """First arguments of these functions.  Of a plural that is enough: Chinese has no other."""
    found = []
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            first = node.args[0] if node.args else None
            if name in marks and isinstance(first, ast.Constant) and isinstance(first.value, str):
                found.append((node.lineno, first.value))
    return [text for _line, text in sorted(found)]


class _Listener(gettext.NullTranslations):
    """In place of a catalogue: writes down what is looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def gettext(self, message: str) -> str:
        self.asked.append(message)
        return message


def _in_help() -> list[str]:
    """What the help of every command looks up."""
    listener = _Listener()
    with mock.patch.object(_words, "_words", listener):
        for parser in parsers():
            parser.format_help()
    return listener.asked


def parsers(parser: argparse.ArgumentParser | None = None) -> Iterator[argparse.ArgumentParser]:
    """Of ``kkp2p``, of its commands, and of theirs."""
    parser = parser or cli.make_parser(cli.COMMANDS)
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from parsers(each)


def parse(text: str) -> Catalogue:
    """Of a .po file: entries of ``msgid``, perhaps ``msgid_plural``, and ``msgstr``."""
    found: Catalogue = {}
    for entry in text.split("\n\n"):
        fields = {"msgid": "", "msgid_plural": "", "msgstr": ""}
        name = ""
        for line in entry.splitlines():
            word, _space, rest = line.partition(" ")
            if line.startswith('"'):
                fields[name] += ast.literal_eval(line)
            elif not line.startswith("#"):
                name = word.removesuffix("[0]")
                fields[name] += ast.literal_eval(rest)
        found[fields["msgid"]] = fields["msgstr"]
    return found


def written(catalogue: Catalogue) -> str:
    """As ``parse`` reads it."""
    entries = [
        f"msgid {_quoted(text)}\nmsgstr {_quoted(theirs)}\n" for text, theirs in catalogue.items()
    ]
    return "\n".join(entries)


def _quoted(text: str) -> str:
    """Several lines where the text has more than one."""
    lines = text.splitlines(keepends=True)
    parts = ["", *lines] if len(lines) > 1 else [text]
    escapes = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
    return "\n".join(f'"{part.translate(escapes)}"' for part in parts)


def compiled(catalogue: Catalogue) -> bytes:
    """A .mo file, as GNU gettext's manual has it (The Format of GNU MO Files), with no hash table.

    What has no translation is left out: it is shown in English.
    """
    texts = sorted((key.encode(), text.encode()) for key, text in catalogue.items() if text)
    count, head = len(texts), 28
    ids, words = head, head + 8 * count
    at = words + 8 * count
    table, data = [], b""
    for column in zip(*texts, strict=True):
        for text in column:
            table.append(struct.pack("<II", len(text), at + len(data)))
            data += text + b"\0"
    header = struct.pack("<7I", 0x950412DE, 0, count, ids, words, 0, at)
    return header + b"".join(table) + data


def main() -> None:
    old = parse(PO.read_text("utf-8"))
    new = {"": old[""]} | {text: old.get(text, "") for text in said()}
    PO.write_text(written(new), "utf-8")
    PO.with_suffix(".mo").write_bytes(compiled(new))
    print(f"{len(new) - 1} texts, {list(new.values()).count('')} without a translation")


if __name__ == "__main__":
    main()
