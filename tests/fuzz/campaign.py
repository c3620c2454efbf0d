"""Fuzz every target for long: ``python tests/fuzz/campaign.py --minutes 60 [--jobs 2] [--keep]``.

The minutes are shared evenly by the targets.  What crashes or hangs is written to the folder
``found``, by target; once it is mended it becomes a seed.  ``--corpus DIR`` keeps all inputs that
reached something new, for the next campaign to begin with.  ``--keep`` takes the fewest short ones
that reach as much into the corpus beside this file, which the test suite runs through.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from wire_targets import CORPUS, TARGETS

RUN = Path(__file__).with_name("run.py")
HANG_S = 20
# Our choices: what an input is worth in the repository.
MAX_KEPT_BYTES = 1024
MAX_KEPT = 60  # of a target


def folder_of(name: str, parent: Path) -> Path:
    folder = parent / name.replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def fuzz(name: str, seconds: int, work: Path, found: Path) -> str:
    """One target; what to say of it."""
    folder = folder_of(name, work)
    ended = _run(
        name,
        f"-max_total_time={seconds}",
        f"-timeout={HANG_S}",
        "-print_final_stats=1",
        f"-artifact_prefix={found}/{folder.name}-",
        str(folder),
    )
    runs = re.search(r"number_of_executed_units:\s*(\d+)", ended.stderr)
    cover = re.findall(r"cov: (\d+)", ended.stderr)
    verdict = "nothing" if ended.returncode == 0 else f"FOUND: {ended.stderr[-3000:]}"
    return (
        f"{name:16} {seconds} s, {runs[1] if runs else '?'} runs,"
        f" {cover[-1] if cover else '?'} places reached: {verdict}"
    )


def keep(name: str, work: Path) -> None:
    """The fewest inputs, the shortest ones, that reach what all of them do."""
    kept = folder_of(name, CORPUS)
    with tempfile.TemporaryDirectory() as merged:
        folders = merged, str(kept), str(folder_of(name, work))
        _run(name, "-merge=1", f"-max_len={MAX_KEPT_BYTES}", *folders).check_returncode()
        fewest = sorted(Path(merged).iterdir(), key=lambda path: path.stat().st_size)[:MAX_KEPT]
        for path in kept.iterdir():
            path.unlink()
        for path in fewest:
            shutil.copy(path, kept)


def _run(name: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(RUN), name, *options]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="of each job; 0: only --keep")
    parser.add_argument("--jobs", type=int, default=2, help="targets at once (default: 2)")
    parser.add_argument("--only", action="append", choices=list(TARGETS), help="this target")
    parser.add_argument("--found", type=Path, default=Path("found"), help="folder for what fails")
    parser.add_argument("--corpus", type=Path, help="folder for all inputs worth going on from")
    parser.add_argument("--keep", action="store_true", help="bring the suite's corpus up to date")
    options = parser.parse_args()
    options.found.mkdir(exist_ok=True)
    names = options.only or list(TARGETS)
    seconds = int(options.minutes * 60 * options.jobs / len(names))
    with tempfile.TemporaryDirectory() as nowhere, ThreadPoolExecutor(options.jobs) as pool:
        work = options.corpus or Path(nowhere)
        if seconds:
            for line in pool.map(lambda name: fuzz(name, seconds, work, options.found), names):
                print(line, flush=True)
        if options.keep:
            list(pool.map(lambda name: keep(name, work), names))
    if any(options.found.iterdir()):
        sys.exit(f"see {options.found}")


if __name__ == "__main__":
    main()
