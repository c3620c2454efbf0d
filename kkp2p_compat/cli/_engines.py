"""What the commands that make an engine share: its options, its account, its log, and the words
for its facts.

Such an engine writes no log file: with --verbose its log goes to standard error, else nowhere.
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from .. import log_destroy, log_init
from .._codes import (
    CONNECT_AUTO,
    CONNECT_P2P,
    CONNECT_RELAY,
    KKP2P_ERROR_ANALYSIS_DOMAIN_FAILURE,
    KKP2P_ERROR_ANALYSIS_DOMAIN_TIMEOUT,
    KKP2P_ERROR_DOMAIN_NO_IP,
)
from .._errors import KKP2PError
from .._structs import engine_conf_t
from ..control.invitation import Invitation, kept, kept_at, line_of_this_user
from ..engine.engine import Engine
from ..engine.links.pins import POLICIES
from ..engine.proxy.listening import show_place
from ._arguments import parse_peer, parse_port
from ._words import _

__all__ = [
    "MODES",
    "NoSecret",
    "add_account_options",
    "add_options",
    "ask_for_secret",
    "join",
    "open_engine",
    "read_secret",
    "show_address",
    "show_ms",
]

MODES = {"auto": CONNECT_AUTO, "p2p": CONNECT_P2P, "relay": CONNECT_RELAY}
DEFAULT_LOGIN = "127.0.0.1:3080"  # where ``kkp2p cloud`` listens by default
RESOLVE_S = 5.0  # our choice: for the cloud's name
QUIET, DEBUG = 0, 4  # levels of the engine's log
# A name that does not resolve may do so later: at boot the network is not up yet.
_NOT_YET = (
    KKP2P_ERROR_ANALYSIS_DOMAIN_FAILURE,
    KKP2P_ERROR_ANALYSIS_DOMAIN_TIMEOUT,
    KKP2P_ERROR_DOMAIN_NO_IP,
)


def add_options(parser: argparse.ArgumentParser) -> None:
    where = parser.add_argument_group("where peers meet")
    where.add_argument(
        "--login",
        metavar="HOST:PORT[#sha256:HEX]",
        type=_parse_login,
        default=_default_login(),  # parsed as if it were given
        help="the cloud, and the hash of its certificate, which it prints when it starts; or an "
        "invitation (default: $KKP2P_LOGIN, else what kkp2p join has kept, else "
        f"{DEFAULT_LOGIN})",
    )
    where.add_argument(
        "--ca", metavar="FILE", help="the cloud's certificate must verify with this one"
    )
    where.add_argument(
        "--lan",
        metavar="PORT",
        type=parse_port,
        help="use no cloud: search the LAN on this UDP port",
    )
    where.add_argument(
        "--stun", metavar="HOST:PORT,...", help="ask these STUN servers instead of the cloud"
    )
    where.add_argument(
        "--no-upnp", action="store_true", help="do not ask the router for a port mapping"
    )
    where.add_argument(
        "--tcp-only",
        action="store_true",
        help="use no UDP, as in a network that blocks or strangles it",
    )
    keys = parser.add_argument_group("who the peer is")
    keys.add_argument("--identity", metavar="FILE", help="our key; made if it is missing")
    keys.add_argument(
        "--known-peers", metavar="FILE", help="the keys by which we know peers, one a line"
    )
    keys.add_argument(
        "--pin",
        choices=POLICIES,
        help="who has to prove a key: no peer, those that are known (others are learned), "
        "or all (default: off; with --known-peers: first-use)",
    )
    parser.add_argument("--json", action="store_true", help="output for programs instead of people")
    parser.add_argument(
        "--explain", action="store_true", help="show everything that was done to reach the peer"
    )
    parser.add_argument(
        "--verbose", action="store_true", help="show the engine's log on standard error"
    )


def add_account_options(parser: argparse.ArgumentParser, *, required: bool, text: str) -> None:
    """Who we are.  The secret is no argument, which other users of the host could see."""
    account = parser.add_argument_group("who we are")
    joined = _joined() if required else None
    account.add_argument(
        "--as",
        metavar="PEER",
        type=parse_peer,
        required=required and not joined,
        default=joined,
        dest="own_id",
        help=text,
    )
    account.add_argument(
        "--secret-file",
        metavar="FILE",
        help="its secret is the first line of FILE (default: $KKP2P_SECRET, else it is asked for)",
    )


def _joined() -> str | None:
    """The peer id of the invitation that was joined; None: none, or none that can be read."""
    try:
        joined = kept()
    except (OSError, ValueError):
        return None  # --login says why
    return joined.peer_id if joined else None


class NoSecret(Exception):
    """The text is for the user."""


def read_secret(options: argparse.Namespace) -> str:
    """Of the account that is to log in; "" where none is needed.  Raises NoSecret."""
    if options.own_id is None or options.lan:
        return ""
    if options.secret_file is not None:
        try:
            with open(options.secret_file, encoding="utf-8") as file:
                secret = file.readline().rstrip("\r\n")
        except (OSError, UnicodeError) as error:
            raise NoSecret(f"{options.secret_file}: {error}") from error
    else:
        secret = _kept_secret(options.own_id) or ask_for_secret(options.own_id)
    if not secret:
        raise NoSecret(_("the secret of {peer} is empty").format(peer=options.own_id))
    return secret


def _kept_secret(own_id: str) -> str:
    """What ``kkp2p join`` has kept, unless the environment has another."""
    try:
        joined = kept()
    except (OSError, ValueError) as error:
        raise NoSecret(f"{kept_at()}: {error}") from error
    known = joined is not None and joined.peer_id == own_id
    return os.environ.get("KKP2P_SECRET") or (joined.secret or "" if joined and known else "")


def ask_for_secret(own_id: str) -> str:
    """The environment's, or at the terminal itself: standard input may be what is forwarded."""
    if secret := os.environ.get("KKP2P_SECRET"):
        return secret
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
        return getpass.getpass(_("Secret of {peer}: ").format(peer=own_id))
    except (OSError, EOFError) as error:
        text = _("give --secret-file or $KKP2P_SECRET: there is no terminal to ask for it")
        raise NoSecret(text) from error


def join(engine: Engine, options: argparse.Namespace, secret: str) -> None:
    """As the peer of the options, if there is one; raises KKP2PError if the cloud refuses it."""
    if options.own_id is None:
        return
    if options.lan:
        engine.join_lan(options.own_id)
    else:
        engine.join_net(options.own_id, secret)


@contextlib.contextmanager
def open_engine(
    options: argparse.Namespace,
    waits: Callable[[KKP2PError], bool] = lambda error: False,
    callers: str | None = None,
) -> Iterator[Engine]:
    """Raises KKP2PError, for example when the cloud's name does not resolve.

    In that case ``waits`` is asked; if it returns true, the name is looked up again.
    ``callers``: who may call, as engine_conf_t has it.
    """
    conf = engine_conf_t(
        disable_upnp=int(options.no_upnp),
        stun_servers=options.stun,
        tcp_only=int(options.tcp_only),
        callers=callers,
        identity=options.identity,
        known_peers=options.known_peers,
        pin=options.pin,
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


def _default_login() -> str:
    try:
        return line_of_this_user()
    except (OSError, ValueError) as error:
        raise SystemExit(f"kkp2p: {kept_at()}: {error}") from error


def _parse_login(text: str) -> tuple[str, int, str | None]:
    try:
        cloud = Invitation.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return cloud.host, cloud.port, cloud.fingerprint


def show_ms(seconds: float | None) -> str:
    return _("unknown") if seconds is None else f"{1000 * seconds:.1f} ms"


def show_address(address: tuple[str, int] | list[Any] | None) -> str:
    return _("nowhere") if address is None else show_place((address[0], address[1]))
