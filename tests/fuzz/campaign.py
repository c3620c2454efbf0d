"""Fuzz every target for long: ``python tests/fuzz/campaign.py --minutes 60 [--jobs 2] [--keep]``.

The minutes are shared evenly by the targets.  What crashes or hangs is written to the folder
``found``, by target.  ``--keep`` then adds short inputs that reached new code to the corpus beside
this file, which later runs begin with and the test suite runs through.
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


def fuzz(name: str, seconds: int, work: Path, found: Path) -> str:
    """One target; what to say of it."""
    folder = work / name.replace(" ", "-")
    folder.mkdir(parents=True)
    ended = _run(
        name, f"-max_total_time={seconds}", f"-timeout={HANG_S}", "-print_final_stats=1",
        f"-artifact_prefix={found}/{folder.name}-", str(folder),
    )  # fmt: skip
    runs = re.search(r"number_of_executed_units:\s*(\d+)", ended.stderr)
    cover = re.findall(r"cov: (\d+)", ended.stderr)
    verdict = "nothing" if ended.returncode == 0 else f"FOUND: {ended.stderr[-3000:]}"
    return (
        f"{name:16} {seconds} s, {runs[1] if runs else '?'} runs,"
        f" {cover[-1] if cover else '?'} places reached: {verdict}"
    )


def keep(name: str, work: Path) -> None:
    """What reached new code, the shortest first, as far as there is room."""
    folder = CORPUS / name.replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    room = MAX_KEPT - len(list(folder.iterdir()))
    found = sorted((work / folder.name).iterdir(), key=lambda path: path.stat().st_size)
    for path in found[: max(0, room)]:
        if path.stat().st_size <= MAX_KEPT_BYTES:
            shutil.copy(path, folder)


def _run(name: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(RUN), name, *options]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="of each job")
    parser.add_argument("--jobs", type=int, default=2, help="targets at once (default: 2)")
    parser.add_argument("--only", action="append", choices=list(TARGETS), help="this target")
    parser.add_argument("--found", type=Path, default=Path("found"), help="folder for what fails")
    parser.add_argument("--keep", action="store_true", help="add to the corpus")
    options = parser.parse_args()
    options.found.mkdir(exist_ok=True)
    names = options.only or list(TARGETS)
    seconds = max(1, int(options.minutes * 60 * options.jobs / len(names)))
    with tempfile.TemporaryDirectory() as work, ThreadPoolExecutor(options.jobs) as pool:
        lines = pool.map(lambda name: fuzz(name, seconds, Path(work), options.found), names)
        for line in lines:
            print(line, flush=True)
        if options.keep:
            for name in names:
                keep(name, Path(work))
    if any(options.found.iterdir()):
        sys.exit(f"see {options.found}")


if __name__ == "__main__":
    main()
