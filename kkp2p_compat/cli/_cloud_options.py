"""The options of ``kkp2p cloud``, and the settings that they make."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import ipaddress
from pathlib import Path
from typing import Any

from ..cloud.accounts import default_data
from ..cloud.settings import DEFAULT_PORT, ROLES, CloudSettings, Limits
from ..traversal.turn_server import parse_turn_uri
from ._arguments import parse_address
from ._reload import limits_of
from ._words import _

__all__ = ["add_options", "settings_of"]

_GONE = ("--track", "--relay", "--vouch", "--relay-key")


class _Gone(argparse.Action):
    """An option that there was: who still gives it is told what to use."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: object,
        values: object,
        option_string: str | None = None,
    ) -> None:
        parser.error(
            _(
                "{option} is no more: servers of one cloud find each other in a Redis, which all "
                "of them are given by --directory redis://HOST"
            ).format(option=option_string)
        )


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="a TOML file with any of these options, under the same names; read again when it "
        "changes, and on SIGHUP: limits and log level take effect at once",
    )
    parser.add_argument(
        "--listen",
        metavar="ADDR:PORT",
        type=functools.partial(parse_address, lowest=0),
        default=("0.0.0.0", DEFAULT_PORT),
        help="where to listen; [::]:PORT for IPv6, too; port 0: any free one "
        f"(default: 0.0.0.0:{DEFAULT_PORT})",
    )
    parser.add_argument(
        "--data",
        metavar="DIR",
        type=Path,
        default=default_data(),
        help="folder of the certificate and the accounts (default: %(default)s)",
    )
    _add_fleet_options(parser.add_argument_group("several processes or machines"))
    parser.add_argument(
        "--role",
        choices=ROLES,
        default="all",
        help="serve only this role (all but the default need --directory)",
    )
    parser.add_argument(
        "--name",
        metavar="NAME_OR_IP",
        action="append",
        default=[],
        help="put this name into the certificate that the cloud generates, beside the host's own; "
        "may be repeated; a certificate that does not have the name is replaced",
    )
    parser.add_argument("--tls-cert", metavar="FILE", type=Path, help="PEM certificate (chain)")
    parser.add_argument("--tls-key", metavar="FILE", type=Path, help="its PEM key")
    parser.add_argument(
        "--account",
        metavar="PEER:SECRET",
        type=_parse_account,
        action="append",
        default=[],
        help="a temporary account; may be repeated; other users of this host can see it",
    )
    for option in _GONE:
        parser.add_argument(
            option, action=_Gone, nargs="?", dest=argparse.SUPPRESS, help=argparse.SUPPRESS
        )
    parser.add_argument(
        "--turn",
        metavar="turn:HOST:PORT",
        type=_parse_turn,
        help="roles track and all: a TURN server (RFC 8656, UDP), as peers reach it, which they "
        "may use where no direct path is found",
    )
    parser.add_argument(
        "--turn-secret",
        metavar="FILE",
        type=Path,
        help="a secret of at least 16 bytes that the TURN server has, too; coturn: use-auth-secret "
        "and static-auth-secret",
    )
    parser.add_argument(
        "--no-stun",
        action="store_true",
        help="do not answer STUN requests (UDP on the same port, and on the next one)",
    )
    parser.add_argument(
        "--no-lane",
        action="store_true",
        help="roles all and relay: do not forward UDP between peers (UDP on the same port)",
    )
    parser.add_argument(
        "--stun-address",
        metavar="IP",
        type=_parse_ip,
        help="a second address of this host, with which peers learn more about their NATs",
    )
    parser.add_argument(
        "--drain",
        metavar="SECONDS",
        type=_parse_seconds,
        default=5.0,
        help="how long relay sessions may go on after SIGTERM (default: 5)",
    )
    parser.add_argument(
        "--audit",
        metavar="FILE",
        help="write logins and refusals to this file, as lines of JSON (-: to standard output); "
        "it is opened anew on SIGHUP",
    )
    parser.add_argument(
        "--admin",
        metavar="[ADDR:]PORT",
        type=_parse_admin,
        help="serve /metrics for Prometheus, /healthz, /readyz and a status page by HTTP there; it "
        "shows and changes nothing, but has no login (default ADDR: 127.0.0.1)",
    )
    parser.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="info",
        help="what goes to standard error (default: info)",
    )
    parser.add_argument(
        "--log-format",
        choices=("text", "json"),
        default="text",
        help="lines for people, or one JSON object a line (default: text)",
    )
    limits = parser.add_argument_group("limits")
    for entry in dataclasses.fields(Limits):
        flag, help_text = f"--{entry.name.replace('_', '-')}", entry.metadata["help"]
        if isinstance(entry.default, bool):
            limits.add_argument(flag, action="store_true", help=help_text)
        else:
            kind = _parse_count if isinstance(entry.default, int) else _parse_seconds
            limits.add_argument(
                flag,
                metavar="N",
                type=kind,
                default=entry.default,
                help=f"{help_text} (default: %(default)g)",
            )


def _add_fleet_options(group: Any) -> None:
    group.add_argument(
        "--directory",
        metavar="URL",
        help="redis://, rediss:// or redis+sentinel://HOST:PORT,.../NAME: where the nodes of a "
        "cloud find accounts, peers and each other; all that they need to have in common",
    )
    group.add_argument(
        "--workers",
        metavar="N",
        type=_parse_count,
        default=1,
        help="processes that share the port, each a node of its own (needs --directory)",
    )
    group.add_argument(
        "--relay-port",
        metavar="PORT",
        type=_parse_count,
        help="with --workers: the port of the first one's relay; the others have the next ones "
        "(default: two after that of --listen)",
    )
    group.add_argument(
        "--advertise",
        metavar="HOST[:PORT]",
        type=functools.partial(parse_address, default=0),
        help="where peers reach this node, and at which port its relay, if that is another one "
        "(default: where it listens, or the host's own address)",
    )
    group.add_argument(
        "--region", metavar="NAME", default="", help="where this node is, for people"
    )
    group.add_argument("--worker", type=_parse_count, help=argparse.SUPPRESS)


def _parse_admin(text: str) -> tuple[str, int]:
    return parse_address(text if ":" in text else f"127.0.0.1:{text}", lowest=0)


def _parse_turn(text: str) -> tuple[str, int]:
    try:
        return parse_turn_uri(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _parse_ip(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise argparse.ArgumentTypeError(
            _("{text!r} is not an IP address").format(text=text)
        ) from None


def _parse_account(text: str) -> tuple[str, str]:
    peer_id, colon, secret = text.partition(":")
    if not colon:
        raise argparse.ArgumentTypeError(_("an account is PEER:SECRET"))
    return peer_id, secret


def _parse_count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(
            _("{text!r} is not a whole number, 0 or more").format(text=text)
        )
    return int(text)


def _parse_seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(_("{text!r} is not a number, 0 or more").format(text=text))
    return value


def settings_of(options: argparse.Namespace) -> CloudSettings:
    host, port = options.listen
    advertise, relay_port, index = options.advertise, None, options.worker
    if index is not None:
        relay_port = (options.relay_port or port + 2) + index
        if advertise is not None and advertise[1]:
            advertise = advertise[0], advertise[1] + index
    return CloudSettings(
        directory=options.directory,
        region=options.region,
        advertise=advertise,
        shares_port=index is not None,
        relay_port=relay_port,
        host=host,
        port=port,
        role=options.role,
        data=options.data,
        tls_cert=options.tls_cert,
        tls_key=options.tls_key,
        names=options.name,
        accounts=dict(options.account),
        turn=options.turn,
        turn_secret=options.turn_secret and options.turn_secret.read_bytes().strip(),
        stun=not options.no_stun,
        lane=not options.no_lane,
        stun_address=options.stun_address,
        drain_s=options.drain,
        audit=options.audit,
        limits=limits_of(options),
    )
