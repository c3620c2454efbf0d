"""``kkp2p publish``: whatever listens at a target is reached by a peer id.

Each channel that a caller opens becomes a connection to the target that its connect_desc names; a
line says when one is made, and one when it is over.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import gevent

from .._errors import KKP2PError
from .._sentence import Sentence, said
from ..engine.engine import Engine
from ..engine.proxy.targets import GivenTarget, PathTarget, PortTarget, Target
from ._arguments import LOOPBACKS, parse_address, parse_desc, parse_path, parse_peer, parse_port
from ._engines import NoSecret, add_account_options, add_options, join, read_secret
from ._forward import Report, Watch, forward
from ._words import _, told

__all__ = ["add_parser"]

STDIO = "-"
ACCEPT_S = 3600.0  # nothing comes but the end of the login: how often that is looked at
ACCOUNTS = "accounts"  # engine_conf_t.callers: all that have one


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "publish",
        help="let peers reach a local port by a peer id",
        description="Whatever listens at TARGET is reached by the peer id: each channel that a "
        "caller opens, for example with kkp2p proxy, becomes a connection to it.  Ends on Ctrl-C "
        "or SIGTERM.",
    )
    parser.add_argument(
        "target",
        metavar="TARGET",
        nargs="?",
        type=_parse_target,
        help="PORT of this host, HOST:PORT, unix:PATH, or - for standard input and output, of "
        "the first caller; it serves each connect_desc that has no --target",
    )
    parser.add_argument(
        "--target",
        metavar="N=TARGET",
        dest="targets",
        action="append",
        default=[],
        type=_parse_numbered,
        help="the target of connect_desc N; may be given several times",
    )
    parser.add_argument(
        "--from",
        metavar="ID",
        dest="callers",
        nargs="+",
        action="extend",
        type=parse_peer,
        help="only these may call, or with the word accounts all that have one: the cloud vouches "
        "for callers that have logged in, and for no others (default: anybody may call)",
    )
    parser.add_argument(
        "--udp", action="store_true", help="UDP: whole datagrams, to UDP ports; no TCP then"
    )
    parser.add_argument(
        "--no-retry",
        action="store_true",
        help="end when the cloud's name does not resolve; by default look it up until it does",
    )
    add_account_options(parser, required=True, text="the peer id that callers use; its account")
    add_options(parser)
    parser.set_defaults(run=_run)


def _parse_target(text: str) -> Target | str:
    if text == STDIO:
        return STDIO
    if path := parse_path(text):
        return PathTarget(path)
    if ":" not in text:
        return PortTarget(LOOPBACKS, parse_port(text))
    host, port = parse_address(text)
    return PortTarget((host,), port)


def _parse_numbered(text: str) -> tuple[int, Target | str]:
    number, equals, target = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(_("{text!r} is not N=TARGET").format(text=text))
    return parse_desc(number), _parse_target(target)


def _targets(options: argparse.Namespace) -> dict[int | None, Any]:
    """By connect_desc; raises ValueError, whose text is for the user."""
    targets: dict[int | None, Any] = dict(options.targets)
    if len(targets) < len(options.targets):
        raise ValueError(_("there are two targets for one connect_desc"))
    if options.target is not None:
        targets[None] = options.target
    if not targets:
        raise ValueError(_("TARGET is needed, or --target"))
    if list(targets.values()).count(STDIO) > 1:
        raise ValueError(_("standard input and output can be one target only"))
    if options.udp and not all(isinstance(target, PortTarget) for target in targets.values()):
        raise ValueError(_("--udp needs ports"))
    if len(options.callers or ()) > 1 and ACCOUNTS in options.callers:
        raise ValueError(_("accounts are all that have one: it stands alone"))
    if options.lan and options.callers:
        # The engine would refuse every call.
        raise ValueError(_("on the LAN nobody vouches for callers: --from cannot be kept"))
    return targets


def _run(options: argparse.Namespace) -> int:
    try:
        targets = _targets(options)
        secret = read_secret(options)
    except (ValueError, NoSecret) as error:
        print(f"kkp2p publish: {error}", file=sys.stderr)
        return 2

    def begin(engine: Engine, report: Report) -> Callable[[], None]:
        if report.stdio is not None:
            given = GivenTarget(report.stdio.socket, Sentence("standard input and output"))
            targets.update({desc: given for desc, one in targets.items() if one == STDIO})
        report.show(
            {
                "event": "publishing",
                "peer": options.own_id,
                "targets": {"" if desc is None else desc: str(targets[desc]) for desc in targets},
                "callers": ", ".join(options.callers or ["anybody"]),
                "protocol": "udp" if options.udp else "tcp",
            }
        )
        engine.publish(targets, options.udp, Watch(report, options.explain, options.udp))
        presence = _Presence(report)
        engine.watch_login(presence)
        join(engine, options, secret)
        if options.lan:
            presence(None)
        waiting = gevent.spawn(_wait_for_end, engine, report)

        def stop() -> None:
            engine.unpublish()
            waiting.kill()

        return stop

    callers = ",".join(options.callers) if options.callers else None
    by_stdio = STDIO in targets.values()
    return forward("publish", options, begin, callers=callers, by_stdio=by_stdio)


class _Presence:
    """Says once that we are online, or why not."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._told: str | None = None

    def __call__(self, error: KKP2PError | None) -> None:
        problem = "" if error is None else said(error)
        if problem != self._told:
            self._told = problem
            event = {"event": "offline", "problem": problem} if problem else {"event": "online"}
            self._report.put(event | {"at": time.time()})


def _wait_for_end(engine: Engine, report: Report) -> None:
    """Of the login: the account is gone, or somebody else has logged in with it."""
    try:
        while True:
            engine.accept(ACCEPT_S)
    except KKP2PError as error:
        report.fail(told(error))
