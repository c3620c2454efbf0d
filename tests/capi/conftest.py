from __future__ import annotations

from collections.abc import Mapping

import pytest

from helpers.c_programs import Compiler, start_c
from helpers.support import ENVIRONMENT
from kkp2p_compat.testing.plugin import lab, run

__all__ = ["compiler", "lab", "run", "start_c"]


@pytest.fixture
def lab_environment() -> Mapping[str, str]:
    return ENVIRONMENT


@pytest.fixture(scope="session")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Compiler:
    return Compiler(tmp_path_factory.mktemp("capi"))
