"""docs/architecture.rst and its pictures tell of the code as it is."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from kkp2p_compat.transport.udp import frames

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))

import pictures  # noqa: E402 - docs/ is no package

TEXT = pictures.PAGE.read_text()
PATHS = sorted(set(re.findall(r"``((?:[\w*]+/)*(?:[\w*]+\.(?:py|rst)|\w+/))``", TEXT)))
NAMES = sorted(set(re.findall(r"``([\w/]+\.py)``: ``(\w+)``", TEXT)))
TO_COME = {
    f"engine/{name}.py"
    for name in (
        "calls/dialer", "calls/incoming", "calls/race", "calls/remote", "channels/acceptor",
        "channels/table", "links/link_channels", "links/link_table", "links/streams",
        "signalling/offer",
    )
}  # fmt: skip
PATHS = [path for path in PATHS if path not in TO_COME]
NAMES = [(file, name) for file, name in NAMES if file not in TO_COME]


def test_it_names_files() -> None:
    assert len(PATHS) > 60
    assert len(NAMES) > 5


@pytest.mark.parametrize("path", PATHS)
def test_there_is_such_a_file(path: str) -> None:
    """A bare name of a file is short for one in a folder that the page has just named."""
    name = path.rstrip("/")
    below = f"**/{name}" if "/" not in name else name
    assert list((ROOT / "kkp2p_compat").glob(below)) or list(ROOT.glob(name))


@pytest.mark.parametrize(("file", "name"), NAMES)
def test_there_is_such_a_name(file: str, name: str) -> None:
    source = (ROOT / "kkp2p_compat" / file).read_text()
    assert re.search(rf"^ *(def|class) {name}\b|^{name}\b.* = ", source, re.MULTILINE)


@pytest.mark.parametrize("name", pictures.PICTURES)
def test_a_picture_is_up_to_date(name: str) -> None:
    """Else run ``python docs/pictures.py``."""
    assert (ROOT / "docs" / name).read_text() == pictures.PICTURES[name]()


def test_the_picture_of_a_call_names_what_the_code_has() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "kkp2p_compat").glob("c*o*/*.py"))
    steps = [step for step in pictures.CALL if isinstance(step, pictures.Step)]
    for name in [name for step in steps for name in step.names]:
        assert hasattr(frames, name) if name.isupper() else f'"{name}"' in sources
