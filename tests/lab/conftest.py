"""The lab: skipped with the reason where it cannot be; KKP2P_REQUIRE_LAB=1 makes that a failure."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest
from netns import Lab, why_not
from programs import absent, run
from support import PATIENCE_S

__all__ = ["run"]


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    if reason := why_not():
        absent(reason)
    made = Lab(tmp_path)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _time_limit(request: pytest.FixtureRequest) -> Iterator[None]:
    """Takes the place of the shorter one of all tests; LIMIT_S of a test's file says otherwise."""
    with gevent.Timeout(getattr(request.module, "LIMIT_S", 6 * PATIENCE_S)):
        yield
