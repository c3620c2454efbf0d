"""``python -m benchmarks WHAT``: run one benchmark and print what it measured."""

from __future__ import annotations

import argparse

from . import calls, chaos, compare, hostile, nat, p2p, reconnect, relay


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    quick = argparse.ArgumentParser(add_help=False)
    quick.add_argument("--quick", action="store_true", help="a small load: does it run at all?")
    what = parser.add_subparsers(dest="what", required=True)
    what.add_parser("relay", parents=[quick], help="through proxy and relay, on loopback")
    direct = what.add_parser("p2p", parents=[quick], help="between two hosts; needs root")
    direct.add_argument("--only", action="append", choices=p2p.SECTIONS, help="one of its parts")
    direct.add_argument("--mode", type=int, choices=[1, 2], default=1, help="2: over the relay")
    what.add_parser("reconnect", parents=[quick], help="peers after a restart of their cloud")
    nats = what.add_parser("nat", parents=[quick], help="through every pair of NATs; needs root")
    nats.add_argument("--only", action="append", choices=nat.KINDS, help="pairs with this kind")
    nats.add_argument("--jobs", type=int, default=3, help="pairs at once (default: 3)")
    what.add_parser("calls", parents=[quick], help="500 at once to one engine; needs root")
    trees = what.add_parser("compare", parents=[quick], help="with another revision; needs root")
    trees.add_argument("revision", help="whatever git takes for one")
    faults = what.add_parser("chaos", help="transfers while everything breaks; needs root")
    faults.add_argument("--minutes", type=float, default=10.0, help="at most (default: 10)")
    faults.add_argument("--transfers", type=int, default=10_000, help="at most (default: 10000)")
    faults.add_argument("--seed", type=int, default=1, help="of the faults' schedule (default: 1)")
    faults.add_argument("--peers", type=int, default=chaos.PEERS, help="(default: %(default)s)")
    faults.add_argument("--verbose", action="store_true", help="show each fault as it happens")
    attacks = what.add_parser("hostile", parents=[quick], help="what attacks do to others")
    attacks.add_argument("--only", action="append", choices=hostile.ATTACKS, help="one of them")
    options = parser.parse_args()
    if options.what == "relay":
        relay.run(quick=options.quick)
    elif options.what == "calls":
        calls.run(options.quick)
    elif options.what == "chaos":
        chaos.run(
            options.minutes, options.seed, options.transfers, peers=options.peers,
            verbose=options.verbose,
        )  # fmt: skip
    elif options.what == "compare":
        compare.run(options.quick, options.revision)
    elif options.what == "hostile":
        hostile.run(options.quick, options.only or [])
    elif options.what == "nat":
        nat.run(options.quick, options.only or [], options.jobs)
    elif options.what == "reconnect":
        reconnect.run(options.quick)
    else:
        p2p.run(options.quick, options.only or [], options.mode)


main()
