"""Each package's docstring is a map of its files: one line each, none missing, none stale."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "kkp2p_compat"
FILES = [*PACKAGE.glob("*/**/__init__.py"), ROOT / "samples" / "__init__.py"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.parent.relative_to(ROOT)))
def test_every_file_is_on_the_map(file: Path) -> None:
    text = ast.get_docstring(ast.parse(file.read_text())) or ""
    named = re.findall(r"^([\w/]+(?:\.py|/))  +\S", text, re.MULTILINE)
    there = {path.name for path in file.parent.glob("*.py")} - {"__init__.py"}
    there |= {f"{path.parent.name}/" for path in file.parent.glob("*/__init__.py")}
    assert sorted(named) == sorted(there)


def test_the_page_has_what_is_in_no_folder() -> None:
    """The docstring of the package itself is the API's, and no map."""
    text = (ROOT / "docs" / "architecture.rst").read_text()
    assert not {path.name for path in PACKAGE.glob("*.py") if f"``{path.name}``" not in text}
