"""The lab's fixtures, with programs whose warnings are errors, and a longer time limit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import gevent
import pytest

from helpers.support import ENVIRONMENT, PATIENCE_S
from kkp2p_compat.testing.plugin import lab, run

__all__ = ["lab", "run"]


@pytest.fixture
def lab_environment() -> Mapping[str, str]:
    return ENVIRONMENT


@pytest.fixture(autouse=True)
def _time_limit(request: pytest.FixtureRequest) -> Iterator[None]:
    """Takes the place of the shorter one of all tests; LIMIT_S of a test's file says otherwise."""
    with gevent.Timeout(getattr(request.module, "LIMIT_S", 6 * PATIENCE_S)):
        yield
