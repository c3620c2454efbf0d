"""The lab: skipped with the reason where it cannot be; KKP2P_REQUIRE_LAB=1 makes that a failure."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from netns import Lab, why_not


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    reason = why_not()
    if reason and os.environ.get("KKP2P_REQUIRE_LAB") == "1":
        pytest.fail(f"the lab is required, and: {reason}")
    elif reason:
        pytest.skip(f"no lab: {reason}")
    made = Lab(tmp_path)
    yield made
    made.close()
