"""Programs as a reader of the pages has them: ``kkp2p`` and ``python`` are those of this tree."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from helpers.support import ENVIRONMENT

SHIM = '#!/bin/sh\nexec {} "$@"\n'


def installed_environment(folder: Path) -> Mapping[str, str]:
    """As after the installation, with the home of the one who runs a program."""
    programs = folder / "bin"
    programs.mkdir()
    python = shlex.quote(sys.executable)
    for name, command in {"python": python, "kkp2p": f"{python} -m kkp2p_compat"}.items():
        (programs / name).write_text(SHIM.format(command))
        (programs / name).chmod(0o755)
    kept = {name: value for name, value in ENVIRONMENT.items() if not name.startswith("XDG_")}
    path = f"{programs}{os.pathsep}{kept['PATH']}"
    return {**kept, "PATH": path, "PYTHONUNBUFFERED": "1"}
