"""pytest fixtures of the lab.

``pytest_plugins = ["kkp2p_compat.testing.plugin"]`` in a conftest.py makes them known.

Where there can be no lab, its tests are skipped with the reason; KKP2P_REQUIRE_LAB=1 makes that a
failure, for machines that must have one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from .lab import Lab, why_not
from .programs import Run, runner

__all__ = ["absent", "lab", "lab_environment", "need", "run"]


def absent(reason: str) -> None:
    """Skip the test, or fail it where KKP2P_REQUIRE_LAB is set."""
    if os.environ.get("KKP2P_REQUIRE_LAB") == "1":
        pytest.fail(f"the lab is required, and: {reason}")
    pytest.skip(f"no lab: {reason}")


def need(*tools: str) -> None:
    """Skip or fail the test if one of these programs is missing."""
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        absent(f"not installed: {', '.join(missing)}")


@pytest.fixture
def lab_environment() -> Mapping[str, str]:
    """The environment of programs on hosts; override this fixture to change it."""
    return os.environ


@pytest.fixture
def lab(tmp_path: Path, lab_environment: Mapping[str, str]) -> Iterator[Lab]:
    if reason := why_not():
        absent(reason)
    made = Lab(tmp_path, lab_environment)
    yield made
    made.close()


@pytest.fixture
def run(lab: Lab) -> Iterator[Run]:
    """``programs.runner``; what it started is ended before the lab is."""
    with runner() as start:
        yield start
