"""``kkp2p proxy``: a local port, TCP or UDP, that forwards to a peer; or several.

Each connection to the port, or each client address, is one channel to the peer; a line says when it
is made, and one when it is over.
"""

from __future__ import annotations

import argparse
import socket as _socket
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from .._address import is_ip
from .._errors import KKP2PError
from .._sentence import Sentence
from .._structs import connect_ctx_t
from ..engine.engine import Engine
from ..engine.proxy.base import Proxy
from ._arguments import (
    LOOPBACKS,
    parse_address,
    parse_desc,
    parse_path,
    parse_peer,
    parse_port,
    parse_seconds,
)
from ._engines import MODES, NoSecret, add_account_options, add_options, join, read_secret
from ._forward import Report, Watch, forward
from ._toml import read_toml
from ._words import _

__all__ = ["add_parser"]

FREE_PORT_ATTEMPTS = 10  # our choice: of port 0, for one that is free on both
STDIO = "-"

Place = tuple[tuple[str, ...], int]  # addresses, or the path of a Unix socket; and a port


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "proxy",
        help="open a local port that forwards to a peer",
        description="Listens on a local TCP port; each connection to it becomes a connection to "
        "the peer.  Or on a UDP port, where each client gets one.  Ends on Ctrl-C or SIGTERM.",
    )
    _add_one(parser, optional="?")
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="a TOML file with a table [[proxy]] for each of several proxies, whose keys are "
        "listen, peer, udp, desc, mode, encrypt and timeout",
    )
    parser.add_argument(
        "--no-retry",
        action="store_true",
        help="end when the cloud's name does not resolve; by default look it up until it does",
    )
    add_account_options(
        parser,
        required=False,
        text="log in as PEER, which must have an account of its own: for peers that choose who "
        "may call them; by default the caller is nobody in particular",
    )
    add_options(parser)
    parser.set_defaults(run=_run)


def _add_one(parser: argparse.ArgumentParser, optional: str | None = None) -> None:
    """The options of one proxy."""
    parser.add_argument(
        "listen",
        metavar="LISTEN",
        type=_parse_listen,
        nargs=optional,
        help="PORT on 127.0.0.1 and ::1, or ADDRESS:PORT; port 0: any free one; or unix:PATH; or "
        "-: forward standard input and output, and end with them, as ssh's ProxyCommand wants it",
    )
    parser.add_argument("peer", metavar="PEER", type=parse_peer, nargs=optional, help="peer id")
    parser.add_argument(
        "--udp",
        action="store_true",
        help="a UDP port: whole datagrams; a client that is idle for two minutes ends",
    )
    parser.add_argument(
        "--desc",
        metavar="N",
        type=parse_desc,
        default=0,
        help="connect_desc, which names the protocol as the two have agreed (default: 0)",
    )
    parser.add_argument(
        "--mode", choices=MODES, default="auto", help="auto: p2p, or else the relay (default)"
    )
    parser.add_argument(
        "--encrypt",
        action="store_true",
        help="encrypt end to end also on the relay; p2p is always encrypted",
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=parse_seconds,
        default=10.0,
        help="time for the connect to the peer (default: %(default)s)",
    )


def _parse_listen(text: str) -> Place | str:
    """PORT, on both loopback addresses, or ADDRESS:PORT; port 0 is a free one.  Or as it says."""
    if text == STDIO:
        return STDIO
    if path := parse_path(text):
        return (path,), 0
    if ":" not in text:
        return LOOPBACKS, parse_port(text, lowest=0)
    host, port = parse_address(text, lowest=0)
    if not is_ip(host):
        raise argparse.ArgumentTypeError(
            _("{text!r} is not PORT, ADDRESS:PORT or unix:PATH").format(text=text)
        )
    return (host,), port


class _UsedWrongly(Exception):
    """The text is for the user."""


class _TableParser(argparse.ArgumentParser):
    """Of a table of a file: it does not end the program."""

    def error(self, message: str) -> NoReturn:
        raise _UsedWrongly(message)


def _proxies(options: argparse.Namespace) -> list[argparse.Namespace]:
    """Each with the options of its own; raises _UsedWrongly."""
    if options.config is None:
        if options.peer is None:
            raise _UsedWrongly(_("LISTEN and PEER are needed, or --config"))
        proxies = [options]
    elif options.listen is not None:
        raise _UsedWrongly(_("--config stands in place of LISTEN and PEER"))
    else:
        proxies = _read_config(options.config)
    for one in proxies:
        if options.lan and one.mode == "relay":
            raise _UsedWrongly(_("there is no relay on the LAN"))
        if one.udp and not _takes_udp(one.listen):
            raise _UsedWrongly(_("--udp needs a port"))
    return proxies


def _takes_udp(listen: Place | str) -> bool:
    return listen != STDIO and is_ip(listen[0][0])


def _read_config(path: str) -> list[argparse.Namespace]:
    try:
        tables = read_toml(path).get("proxy")
    except (OSError, ValueError) as error:
        raise _UsedWrongly(f"{path}: {error}") from error
    if not isinstance(tables, list) or not tables:
        raise _UsedWrongly(_("{path}: there is no table [[proxy]]").format(path=path))
    where = _("{path}, proxy {number}")
    return [
        _read_table(where.format(path=path, number=number), table)
        for number, table in enumerate(tables, 1)
    ]


def _read_table(where: str, table: Any) -> argparse.Namespace:
    parser = _TableParser(add_help=False, allow_abbrev=False)
    _add_one(parser)
    arguments: list[str] = []
    try:
        fields = dict(table)
        places = [str(fields.pop("listen")), str(fields.pop("peer"))]
        if STDIO in places:
            raise _UsedWrongly(_("- is for one proxy alone, and not for a file"))
        for key, value in fields.items():
            if isinstance(value, bool):
                arguments += [f"--{key}"] * value
            else:
                arguments.append(f"--{key}={value}")
        return parser.parse_args([*arguments, "--", *places])
    except KeyError as error:
        text = _("{where}: {key} is missing").format(where=where, key=error.args[0])
        raise _UsedWrongly(text) from error
    except (TypeError, ValueError, _UsedWrongly) as error:
        raise _UsedWrongly(f"{where}: {error}") from error


def _run(options: argparse.Namespace) -> int:
    try:
        proxies = _proxies(options)
        secret = read_secret(options)
    except (_UsedWrongly, NoSecret) as error:
        print(f"kkp2p proxy: {error}", file=sys.stderr)
        return 2

    def begin(engine: Engine, report: Report) -> Callable[[], None]:
        join(engine, options, secret)
        report.tells_peer = len(proxies) > 1
        started: list[Proxy] = []
        for one in proxies:
            started += _start(engine, one, options, report)

        def stop() -> None:
            for proxy in started:
                engine.stop_proxy(proxy.proxy_id)

        return stop

    return forward("proxy", options, begin, by_stdio=options.listen == STDIO)


def _start(
    engine: Engine, one: argparse.Namespace, options: argparse.Namespace, report: Report
) -> list[Proxy]:
    mode = "p2p" if options.lan else one.mode
    ctx = connect_ctx_t(
        one.peer,
        int(one.udp),
        connect_mode=MODES[mode],
        encrypt_data=int(one.encrypt),
        timeout=int(1000 * one.timeout),
        connect_desc=one.desc,
    )
    watch = Watch(report, options.explain, one.udp)
    if report.stdio is not None:
        return [engine.proxy_socket(report.stdio.socket, Sentence("standard input"), ctx, watch)]
    proxies = _listen(engine, one.listen, ctx, watch)
    addresses = [proxy.address for proxy in proxies]
    report.show(
        {
            "event": "listening",
            "address": addresses[0],
            "addresses": addresses,
            "peer": one.peer,
            "mode": mode,
            "protocol": "udp" if one.udp else "tcp",
        }
    )
    return proxies


def _listen(engine: Engine, where: Place, ctx: connect_ctx_t, watch: Watch) -> list[Proxy]:
    """On both loopbacks by the same port: "localhost" means either."""
    hosts, port = where
    if hosts is LOOPBACKS and not _has_ipv6():
        hosts = hosts[:1]
    attempts = 1 if port else FREE_PORT_ATTEMPTS
    while True:
        attempts -= 1
        first = engine.start_proxy(hosts[0], port, ctx, watch)
        try:
            number = first.address[1]
            return [first, *(engine.start_proxy(host, number, ctx, watch) for host in hosts[1:])]
        except KKP2PError:
            engine.stop_proxy(first.proxy_id)
            if not attempts:
                raise


def _has_ipv6() -> bool:
    try:
        _socket.create_server((LOOPBACKS[1], 0), family=_socket.AF_INET6).close()
    except OSError:
        return False
    return True
