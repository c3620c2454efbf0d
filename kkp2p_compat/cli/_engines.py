"""What the commands that make an engine share: its options, its log, and the words for its facts.

Such an engine writes no log file: with --verbose its log goes to standard error, else nowhere.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from .. import log_destroy, log_init
from .._address import text_of
from .._codes import (
    CONNECT_AUTO,
    CONNECT_P2P,
    CONNECT_RELAY,
    KKP2P_ERROR_ANALYSIS_DOMAIN_FAILURE,
    KKP2P_ERROR_ANALYSIS_DOMAIN_TIMEOUT,
    KKP2P_ERROR_DOMAIN_NO_IP,
)
from .._errors import KKP2PError, ParameterError
from .._structs import engine_conf_t
from ..control.trust import parse_fingerprints
from ..engine.engine import Engine
from ._arguments import parse_address, parse_port

__all__ = ["MODES", "add_options", "open_engine", "show_address", "show_ms"]

MODES = {"auto": CONNECT_AUTO, "p2p": CONNECT_P2P, "relay": CONNECT_RELAY}
DEFAULT_PORT = 3080
DEFAULT_LOGIN = f"127.0.0.1:{DEFAULT_PORT}"  # where ``kkp2p cloud`` listens by default
RESOLVE_S = 5.0  # our choice: for the cloud's name
QUIET, DEBUG = 0, 4  # levels of the engine's log
# A name that does not resolve may do so later: at boot the network is not up yet.
_NOT_YET = (
    KKP2P_ERROR_ANALYSIS_DOMAIN_FAILURE, KKP2P_ERROR_ANALYSIS_DOMAIN_TIMEOUT,
    KKP2P_ERROR_DOMAIN_NO_IP,
)  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    where = parser.add_argument_group("where peers meet")
    where.add_argument(
        "--login", metavar="HOST:PORT[#sha256:HEX]", type=_parse_login,
        default=os.environ.get("KKP2P_LOGIN", DEFAULT_LOGIN),  # parsed as if it were given
        help="the cloud, and the hash of its certificate, which it prints when it starts (default: "
        f"$KKP2P_LOGIN, else {DEFAULT_LOGIN})",
    )  # fmt: skip
    where.add_argument(
        "--ca", metavar="FILE", help="the cloud's certificate must verify with this one"
    )
    where.add_argument(
        "--lan", metavar="PORT", type=parse_port,
        help="use no cloud: search the LAN on this UDP port",
    )  # fmt: skip
    where.add_argument(
        "--stun", metavar="HOST:PORT,...", help="ask these STUN servers instead of the cloud"
    )
    where.add_argument(
        "--no-upnp", action="store_true", help="do not ask the router for a port mapping"
    )
    where.add_argument(
        "--tcp-only", action="store_true",
        help="use no UDP, as in a network that blocks or strangles it",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="output for programs instead of people")
    parser.add_argument(
        "--explain", action="store_true", help="show everything that was done to reach the peer"
    )
    parser.add_argument(
        "--verbose", action="store_true", help="show the engine's log on standard error"
    )


@contextlib.contextmanager
def open_engine(
    options: argparse.Namespace, waits: Callable[[KKP2PError], bool] = lambda error: False
) -> Iterator[Engine]:
    """Raises KKP2PError, for example when the cloud's name does not resolve.

    In that case ``waits`` is asked; if it returns true, the name is looked up again.
    """
    conf = engine_conf_t(
        disable_upnp=int(options.no_upnp), stun_servers=options.stun, tcp_only=int(options.tcp_only)
    )
    if options.lan:
        conf.lan_search_port = options.lan
    else:
        conf.login_domain, conf.login_port, conf.login_fingerprint = options.login
        conf.login_ca = options.ca
    log_init(_log, None, DEBUG if options.verbose else QUIET)
    try:
        engine = _make_engine(conf, waits)
        try:
            yield engine
        finally:
            engine.destroy()
    finally:
        log_destroy()


def _make_engine(conf: engine_conf_t, waits: Callable[[KKP2PError], bool]) -> Engine:
    while True:
        try:
            return Engine(conf, RESOLVE_S)
        except KKP2PError as error:
            if error.code not in _NOT_YET or not waits(error):
                raise


def _log(text: str, length: int, param: Any) -> None:
    print(text, file=sys.stderr, flush=True)


def _parse_login(text: str) -> tuple[str, int, str | None]:
    """HOST[:PORT] or [IPV6][:PORT], without a port the default one; after a # a fingerprint."""
    place, hash_sign, pin = text.partition("#")
    host, port = parse_address(place, default=DEFAULT_PORT)
    if hash_sign:
        try:
            parse_fingerprints(pin)
        except ParameterError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
    return host, port, pin if hash_sign else None


def show_ms(seconds: float | None) -> str:
    return "unknown" if seconds is None else f"{1000 * seconds:.1f} ms"


def show_address(address: tuple[str, int] | list[Any] | None) -> str:
    return "nowhere" if address is None else text_of((address[0], address[1]))
