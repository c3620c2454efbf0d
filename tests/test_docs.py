"""The pages tell of the code as it is: files, names and tests that they name, and the pictures."""

from __future__ import annotations

import ast
import configparser
import datetime
import re
import sys
from pathlib import Path

import pytest

from benchmarks import rows
from kkp2p_compat import __version__
from kkp2p_compat.transport.udp import frames

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))

import figures  # noqa: E402 - docs/ is no package
import meeting  # noqa: E402
import pictures  # noqa: E402

PACKAGE = ROOT / "kkp2p_compat"
PAGES = {
    path.relative_to(folder).as_posix(): path.read_text()
    for folder in (ROOT, ROOT / "docs")
    for path in [*folder.glob("*.rst"), *folder.glob("zh/*.rst")]
}
EXAMPLES = {"echo.py", "test_echo.py"}  # which docs/testing.rst contains


def matches(pattern: str) -> list[tuple[str, str]]:
    """Page and what the pattern finds in it."""
    return sorted(
        {(page, found) for page, text in PAGES.items() for found in re.findall(pattern, text)}
    )


FILES = matches(r"``((?:[\w*-]+/)*(?:[\w*-]+\.(?:py|rst)|\w+/))``")
NAMES = re.findall(r"``([\w/]+\.py)``: ``(\w+)``", PAGES["architecture.rst"])
TESTS = re.findall(r"``([\w/]+\.py)::(\w+)``", PAGES["SECURITY.rst"])


def test_the_pages_name_things() -> None:
    assert len(FILES) > 100
    assert len(NAMES) > 5
    assert len(TESTS) > 15


@pytest.mark.parametrize(("page", "path"), FILES)
def test_there_is_such_a_file(page: str, path: str) -> None:
    """A bare name of a file is short for one in a folder that the page has just named."""
    name = path.rstrip("/")
    below = name if "/" in name else f"**/{name}"
    assert path in EXAMPLES or list(PACKAGE.glob(below)) or list(ROOT.glob(name))


@pytest.mark.parametrize(("file", "name"), NAMES)
def test_there_is_such_a_name(file: str, name: str) -> None:
    source = (PACKAGE / file).read_text()
    assert re.search(rf"^ *((def|class) {name}\b|{name}\b.*[:=])", source, re.MULTILINE)


def test_each_row_of_the_threat_model_names_a_test() -> None:
    _, _, *rows = re.split(r"\n   \* -", PAGES["SECURITY.rst"])  # what is before them, the head
    assert len(rows) > 20
    for row in rows:
        cells = re.split(r"\n     -", row.partition("\n\n")[0])
        assert len(cells) == 4
        assert "::test_" in cells[3]
        assert not any("::test_" in cell for cell in cells[:3])


@pytest.mark.parametrize(("file", "name"), TESTS)
def test_there_is_such_a_test(file: str, name: str) -> None:
    tree = ast.parse((ROOT / "tests" / file).read_text())
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


PICTURES = {**pictures.PICTURES, **figures.PICTURES, **meeting.PICTURES}


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_up_to_date(name: str) -> None:
    """Else run ``python docs/pictures.py``, ``docs/figures.py`` or ``docs/meeting.py``."""
    assert (ROOT / "docs" / name).read_text() == PICTURES[name]()


def test_every_picture_is_made_and_shown() -> None:
    there = {path.relative_to(ROOT / "docs").as_posix() for path in ROOT.glob("docs/**/*.svg")}
    shown = {
        Path(page).parent.joinpath(name).as_posix()
        for page, name in matches(r"\n\.\. image:: (\S+\.svg)\n")
    }
    assert there == shown == PICTURES.keys()


def test_the_matrix_that_is_drawn_has_every_row_of_the_tables() -> None:
    found = meeting.pairs()
    assert len(found) == len({frozenset(pair[:2]) for pair in found}) == 10 * 11 // 2 + 2
    public = meeting.Pair("public", "symmetric random", 244, "prflx")
    assert public in found
    assert meeting.Pair("UDP blocked", "UPnP router", None, "") in found


def test_the_tables_show_what_was_measured() -> None:
    """Else run ``python docs/figures.py``."""
    assert PAGES["performance.rst"] == figures.page()


def test_every_row_that_was_measured_can_be_measured() -> None:
    names = {name.removeprefix("compare ") for name in figures.rows()}
    assert names <= set(rows.ROWS)


def test_a_ratio_is_of_turns_that_followed_each_other() -> None:
    assert figures.spread([2 / 1, 9 / 3, 1 / 2]) == "2.00 (0.50 to 3.00)"
    assert figures.spread([1234.5]) == "1,234 (1 turn)"


def test_the_picture_of_a_call_names_what_the_code_has() -> None:
    sources = "".join(path.read_text() for path in PACKAGE.glob("c*o*/*.py"))
    steps = [step for step in pictures.CALL if isinstance(step, pictures.Step)]
    for name in [name for step in steps for name in step.names]:
        assert hasattr(frames, name) if name.isupper() else f'"{name}"' in sources


def test_the_changelog_begins_with_this_version() -> None:
    version, when = re.findall(r"\n(\d+\.\d+\.\d+) \((.+)\)\n-+\n", PAGES["CHANGELOG.rst"])[0]
    assert version == __version__
    assert when == "unreleased" or datetime.date.fromisoformat(when)


def test_every_package_is_installed() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = setup["options"]["packages"].split()
    folders = [path.parent.relative_to(ROOT) for path in PACKAGE.rglob("__init__.py")]
    assert sorted(listed) == sorted(
        [".".join(folder.parts) for folder in folders] + [pictures.SAMPLES]
    )
