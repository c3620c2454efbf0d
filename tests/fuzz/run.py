"""Fuzz a target: ``python tests/fuzz/run.py TARGET [options and corpus of libFuzzer]``.

For example ``python tests/fuzz/run.py connection -max_total_time=3600 found/``: it starts from the
target's seeds, what is kept in corpus/ here, and what is in ``found/``; and writes there what it
finds new.  ``all`` takes every target in turn, chosen by the first byte.  The targets are in
wire_targets.py; needs atheris.  campaign.py runs all of them for long, and keeps what is worth it.
"""

from __future__ import annotations

import shlex
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["kkp2p_compat"]):
    from wire_targets import TARGETS, Target, kept

NAMES = list(TARGETS)


def run_any(data: bytes) -> None:
    if data:
        TARGETS[NAMES[data[0] % len(NAMES)]].run(data[1:])


EVERY = Target(
    run_any, [bytes([NAMES.index(name)]) + seed for name in NAMES for seed in TARGETS[name].seeds]
)


def main() -> None:
    program, name, *options = [*sys.argv, ""][: max(2, len(sys.argv))]
    target = EVERY if name == "all" else TARGETS.get(name)
    if target is None:
        sys.exit(f"usage: {program} all|{'|'.join(NAMES)} [options and corpus of libFuzzer]")
    with tempfile.TemporaryDirectory() as seeds:
        for number, seed in enumerate([*target.seeds, *(kept(name) if name in TARGETS else [])]):
            Path(seeds, str(number)).write_bytes(seed)
        # New inputs go to the first folder, which is a corpus if one is given.
        # libFuzzer starts itself again, by a shell, to merge (-merge=1).
        again = " ".join([shlex.quote(sys.executable), shlex.quote(program), shlex.quote(name)])
        atheris.Setup([again, "-max_len=4096", *options, seeds], target.run)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
