from __future__ import annotations

import pytest

from helpers.c_programs import Compiler, start_c

__all__ = ["compiler", "start_c"]


@pytest.fixture(scope="session")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Compiler:
    return Compiler(tmp_path_factory.mktemp("capi"))
