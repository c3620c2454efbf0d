"""The example of docs/testing.rst, as it stands there."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

from helpers.support import ENVIRONMENT, PATIENCE_S, ROOT
from kkp2p_compat.testing.lab import Lab


def test_the_example_runs(lab: Lab, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "testing.rst").read_text()
    for name in ("echo.py", "test_echo.py"):
        _, _, after = text.partition(f"``{name}``::\n\n")
        lines = []
        for line in after.splitlines():
            if line and not line.startswith("    "):
                break
            lines.append(line)
        (tmp_path / name).write_text(textwrap.dedent("\n".join(lines)))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_echo.py"]
    ended = subprocess.run(
        command,
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=5 * PATIENCE_S,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "2 passed" in ended.stdout
