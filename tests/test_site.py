"""Sphinx makes the site of the pages without a warning; its examples and links hold."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import kkp2p_compat as kkp2p
from helpers.support import ENVIRONMENT, PATIENCE_S, ROOT

MISSING = [name for name in ("sphinx", "furo") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, beside which the other builders find what was read for it."""
    folder = tmp_path_factory.mktemp("site")
    _build("html", folder)
    return folder


def _build(builder: str, folder: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-n", "-b", builder]
    # Sphinx's own warnings of what Python deprecates are not ours.
    ended = subprocess.run(
        [*command, "-d", folder / "read", ROOT / "docs", folder / builder],
        cwd=folder,
        env={**ENVIRONMENT, "PYTHONWARNINGS": "default"},
        capture_output=True,
        text=True,
        timeout=5 * PATIENCE_S,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_the_reference_has_the_whole_api(built: Path) -> None:
    page = (built / "html" / "api.html").read_text()
    there = set(re.findall(r'id="kkp2p_compat\.(?:_codes\.)?(\w+)"', page))
    assert set(kkp2p.__all__) - there == {"__version__", "connect_cb"}


def test_a_page_that_is_named_is_a_link(built: Path) -> None:
    page = (built / "html" / "index.html").read_text()
    assert 'href="tools.html"><span class="doc">Tools</span></a> has the rest' in page


def test_a_page_leads_to_the_one_in_the_other_language(built: Path) -> None:
    for page, other in (("tools", "zh/tools"), ("zh/tools", "../tools"), ("zh/index", "../index")):
        assert (
            f'href="{other}.html"><span class="doc">' in (built / f"html/{page}.html").read_text()
        )


@pytest.mark.parametrize("builder", ["doctest", "linkcheck"])
def test_it_holds(built: Path, builder: str) -> None:
    _build(builder, built)
