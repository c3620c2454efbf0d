"""This tree beside another revision of it, in turns in one run: ratios, and how far they spread.

The rows are those of rows.py.  The programs that measure are this tree's for both, so only the
product differs.
"""

from __future__ import annotations

import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from . import rows
from .p2p import FULL, Load
from .relay import TREE

LOAD = replace(
    FULL,
    rounds=5,
    link_s=6.0,
    veth_s=3.0,
    trips=5_000,
    channels=1_000,
    idle_channels=300,
    at_once=(100, 1000),
    tries=1,
)
COMPARED = [name for name, row in rows.ROWS.items() if row.ours]
USUAL = (
    "trip",
    "channel",
    "new",
    "memory",
    "relay-trip",
    "relay-channel",
    "relay-new",
    "relay-memory",
)


def _unpack(revision: str, folder: Path) -> Path:
    """The product as it was at that revision, beside what measures as it is now."""
    archive = folder / "archive.tar"
    command = ["git", "archive", "--output", str(archive), revision, "kkp2p_compat"]
    subprocess.run(command, cwd=TREE, check=True)
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    (folder / "benchmarks").symlink_to(TREE / "benchmarks")
    return folder


def run(
    what: Sequence[str], load: Load, revision: str, names: Sequence[str], file: Path | None
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        trees = {"then": _unpack(revision, Path(folder)), "now": TREE}
        rows.show(f"this tree against {revision}")
        rows.run(rows.Run(what, load, trees), names or USUAL, file)
