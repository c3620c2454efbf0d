"""The lab's fixtures, with programs whose warnings are errors."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from helpers.support import ENVIRONMENT
from kkp2p_compat.testing.plugin import lab, run

__all__ = ["lab", "run"]


@pytest.fixture
def lab_environment() -> Mapping[str, str]:
    return ENVIRONMENT
