"""``python -m benchmarks relay``: run one benchmark and print what it measured."""

from __future__ import annotations

import argparse

from . import relay


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("what", choices=["relay"])
    parser.add_argument(
        "--quick", action="store_true", help="a hundredth of the load: does it run at all?"
    )
    args = parser.parse_args()
    relay.run(quick=args.quick)


main()
