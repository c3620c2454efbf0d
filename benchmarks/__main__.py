"""``python -m benchmarks WHAT``: run one benchmark and print what it measured."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import calls, capi, chaos, compare, fleet, hostile, moves, nat, reconnect, relay, rows
from .p2p import FULL, QUICK, Load


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    quick = argparse.ArgumentParser(add_help=False)
    quick.add_argument("--quick", action="store_true", help="a small load: does it run at all?")
    what = parser.add_subparsers(dest="what", required=True)
    what.add_parser("relay", parents=[quick], help="through proxy and relay, on loopback")
    size = argparse.ArgumentParser(add_help=False)
    size.add_argument("--rounds", type=int, help="turns of each of those who are compared")
    size.add_argument("--seconds", type=float, help="of each transfer")
    size.add_argument("--json", type=Path, metavar="FILE", help="put the rows' figures into it")
    what.add_parser("capi", parents=[quick], help="the C library beside the Python API")
    direct = what.add_parser(
        "p2p", parents=[quick, size], help="between two hosts, beside others; needs root"
    )
    direct.add_argument("--only", action="append", choices=rows.ROWS, help="one of its rows")
    what.add_parser("reconnect", parents=[quick], help="peers after a restart of their cloud")
    nats = what.add_parser("nat", parents=[quick], help="through every pair of NATs; needs root")
    nats.add_argument("--only", action="append", choices=nat.KINDS, help="pairs with this kind")
    nats.add_argument("--jobs", type=int, default=3, help="pairs at once (default: 3)")
    what.add_parser("calls", parents=[quick], help="500 at once to one engine; needs root")
    trees = what.add_parser(
        "compare", parents=[quick, size], help="the same of this tree and another; needs root"
    )
    trees.add_argument("--only", action="append", choices=compare.COMPARED, help="one of the rows")
    trees.add_argument("revision", help="whatever git takes for one")
    faults = what.add_parser("chaos", help="transfers while everything breaks; needs root")
    faults.add_argument("--minutes", type=float, default=10.0, help="at most (default: 10)")
    faults.add_argument("--transfers", type=int, default=10_000, help="at most (default: 10000)")
    faults.add_argument("--seed", type=int, default=1, help="of the faults' schedule (default: 1)")
    faults.add_argument("--peers", type=int, default=chaos.PEERS, help="(default: %(default)s)")
    faults.add_argument("--verbose", action="store_true", help="show each fault as it happens")
    attacks = what.add_parser("hostile", parents=[quick], help="what attacks do to others")
    attacks.add_argument("--only", action="append", choices=hostile.ATTACKS, help="one of them")
    moving = what.add_parser("moves", parents=[quick], help="between paths; needs root")
    moving.add_argument("--only", action="append", choices=moves.PARTS, help="one of its parts")
    nodes = what.add_parser(
        "fleet", parents=[quick], help="one process, and four workers with Redis"
    )
    nodes.add_argument("--only", action="append", choices=fleet.PARTS, help="one of its parts")
    nodes.add_argument("--minutes", type=float, default=10.0, help="of chaos (default: 10)")
    nodes.add_argument("--seed", type=int, default=1, help="of its schedule (default: 1)")
    nodes.add_argument("--peers", type=int, help="in each part")
    nodes.add_argument("--verbose", action="store_true", help="show each fault, and failure")
    options = parser.parse_args()
    if options.what == "relay":
        relay.run(quick=options.quick)
    elif options.what == "calls":
        calls.run(options.quick)
    elif options.what == "capi":
        capi.run(quick=options.quick)
    elif options.what == "chaos":
        chaos.run(
            options.minutes,
            options.seed,
            options.transfers,
            peers=options.peers,
            verbose=options.verbose,
        )
    elif options.what == "compare":
        load = _sized(compare.LOAD, options)
        words = _words(options, options.revision)
        compare.run(words, load, options.revision, options.only or [], options.json)
    elif options.what == "fleet":
        fleet.run(
            options.quick,
            options.only or [],
            options.peers,
            minutes=options.minutes,
            seed=options.seed,
            verbose=options.verbose,
        )
    elif options.what == "hostile":
        hostile.run(options.quick, options.only or [])
    elif options.what == "moves":
        moves.run(options.quick, options.only or [])
    elif options.what == "nat":
        nat.run(options.quick, options.only or [], options.jobs)
    elif options.what == "reconnect":
        reconnect.run(options.quick)
    else:
        run = rows.Run(_words(options), _sized(FULL, options))
        rows.run(run, options.only or list(rows.ROWS), options.json)


def _words(options: argparse.Namespace, *more: str) -> list[str]:
    """What is measured, as the command line said."""
    seconds = ["--seconds", f"{options.seconds:g}"] if options.seconds else []
    return [options.what, *more, *seconds]


def _sized(load: Load, options: argparse.Namespace) -> Load:
    load = QUICK if options.quick else load
    given: dict[str, Any] = {"rounds": options.rounds or load.rounds}
    if options.seconds:
        given |= {"link_s": options.seconds, "veth_s": options.seconds}
    return replace(load, **given)


main()
