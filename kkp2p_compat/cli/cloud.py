"""``kkp2p cloud``: run a cloud, or one of its services."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import ipaddress
import itertools
import logging
import os
import signal
import sqlite3
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gevent
from gevent.event import Event

from .._address import text_of
from .._errors import ParameterError
from .._version import __version__
from ..cloud.accounts import default_data
from ..cloud.certificate import Certificate, host_addresses
from ..cloud.server import Cloud
from ..cloud.settings import DEFAULT_PORT, ROLES, CloudSettings, Limits
from ..control.trust import parse_fingerprints
from ..traversal.turn_server import parse_turn_uri
from ._arguments import parse_address
from ._json_log import JsonFormatter
from ._layers import Layers, WrongOption
from ._output import never_waiting
from ._reload import Reloader, limits_of
from ._workers import Workers, tell_alive
from .invite import keep_login

if TYPE_CHECKING:
    from ..cloud.admin import Admin

__all__ = ["add_parser"]

_SERVICES = {"all": "route, track and relay", "route": "route", "track": "track", "relay": "relay"}


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "cloud",
        help="run a cloud, where peers log in and find each other",
        description="Runs a cloud until SIGTERM or SIGINT.  With no arguments it is one process "
        "that serves everything on one port.  When the files of its certificate are replaced, new "
        "connections are shown the new one within seconds, and on SIGHUP at once.",
    )
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
    parser.add_argument("--role", choices=ROLES, default="all", help="serve only this role")
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
    parser.add_argument(
        "--track",
        metavar="HOST:PORT[#sha256:HEX]",
        type=_parse_track,
        action="append",
        default=[],
        help="role route: a track, as peers reach it, and the hash of its certificate, which it "
        "prints when it starts; may be repeated",
    )
    parser.add_argument(
        "--vouch",
        metavar="sha256:HEX",
        type=_parse_sha256,
        action="append",
        default=[],
        help="the certificate of another server of this cloud, which peers that have logged in "
        "here are told to trust; may be repeated",
    )
    parser.add_argument(
        "--relay",
        metavar="HOST:PORT",
        type=parse_address,
        action="append",
        default=[],
        help="roles track and all: a relay, as peers reach it; may be repeated; relays that do "
        "not answer are left out",
    )
    parser.add_argument(
        "--relay-key",
        metavar="FILE",
        type=Path,
        help="a secret of at least 16 bytes that tracks and relays share",
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
                help=f"{help_text} (default: {entry.default:g})",
            )
    parser.set_defaults(run=functools.partial(_run, parser))


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


def _parse_track(text: str) -> tuple[tuple[str, int], list[str]]:
    """A track, and the certificates that are named behind it."""
    address, hash_sign, sha256 = text.partition("#")
    return parse_address(address), [_parse_sha256(sha256)] if hash_sign else []


def _parse_sha256(text: str) -> str:
    """In the form that goes over the wire."""
    try:
        (digest,) = parse_fingerprints(text)
    except (ParameterError, ValueError):  # ValueError: several
        raise argparse.ArgumentTypeError(
            f"{text!r} is not the SHA-256 of a certificate in hex"
        ) from None
    return digest.hex()


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
        raise argparse.ArgumentTypeError(f"{text!r} is not an IP address") from None


def _parse_account(text: str) -> tuple[str, str]:
    peer_id, colon, secret = text.partition(":")
    if not colon:
        raise argparse.ArgumentTypeError("an account is PEER:SECRET")
    return peer_id, secret


def _parse_count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, 0 or more")
    return int(text)


def _parse_seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number, 0 or more")
    return value


def _settings(options: argparse.Namespace) -> CloudSettings:
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
        tracks=[address for address, _ in options.track],
        certificates=[*itertools.chain(options.vouch, *(named for _, named in options.track))],
        relays=options.relay,
        relay_key=options.relay_key and options.relay_key.read_bytes().strip(),
        turn=options.turn,
        turn_secret=options.turn_secret and options.turn_secret.read_bytes().strip(),
        stun=not options.no_stun,
        lane=not options.no_lane,
        stun_address=options.stun_address,
        drain_s=options.drain,
        audit=options.audit,
        limits=limits_of(options),
    )


def _run(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    layers = Layers(parser, options.arguments, os.environ, "KKP2P_CLOUD_")
    arguments = options.arguments
    try:
        options = layers.read()
        options.arguments = arguments
    except WrongOption as error:
        print(f"kkp2p cloud: {error}", file=sys.stderr)
        return 2
    if options.workers > 1 and options.worker is None:
        return _run_workers(options)
    with never_waiting():  # there is one thread for everybody: it waits for no reader of its log
        return _serve(layers, options)


def _run_workers(options: argparse.Namespace) -> int:
    _start_log(options)
    if options.directory is None:
        print("kkp2p cloud: --workers needs --directory", file=sys.stderr)
        return 2
    try:
        if options.role != "relay":  # once, before several processes want to make it
            Certificate(options.data, options.tls_cert, options.tls_key, options.name)
        workers = Workers(options.arguments, options.workers, options.listen)
    except (OSError, ValueError) as error:
        print(f"kkp2p cloud: {error}", file=sys.stderr)
        return 1
    return workers.run()


def _start_log(options: argparse.Namespace) -> None:
    handler = logging.StreamHandler(sys.stderr)
    is_json = options.log_format == "json"
    text = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(JsonFormatter() if is_json else text)
    logging.basicConfig(handlers=[handler], level=options.log_level.upper())


def _serve(layers: Layers, options: argparse.Namespace) -> int:
    _start_log(options)
    for name in layers.unknown:
        logging.warning("the variable %s is not an option's", name)
    try:
        cloud = Cloud(_settings(options))
    except (OSError, ValueError) as error:
        print(f"kkp2p cloud: {error}", file=sys.stderr)
        return 2
    reloader = Reloader(cloud, layers, options)
    gevent.signal_handler(signal.SIGHUP, reloader.reload)  # for as long as the process lives
    try:
        cloud.start()
        admin = None if options.admin is None else _start_admin(cloud, _admin_address(options))
    except (ImportError, OSError, ValueError, sqlite3.Error) as error:
        cloud.stop(0)
        print(f"kkp2p cloud: {error}", file=sys.stderr)
        return 1
    stopping = Event()
    numbers = (signal.SIGTERM, signal.SIGINT)
    handlers = [gevent.signal_handler(number, stopping.set) for number in numbers]
    _say_hello(cloud)
    if admin is not None:
        print(f"  status: http://{text_of(admin.address)}/", flush=True)
    if options.worker is not None:
        gevent.spawn(tell_alive, stopping.set)
    stopping.wait()
    for handler in handlers:
        handler.cancel()  # a second signal ends us at once
    logging.info("stopping")
    reloader.stop()
    cloud.stop()
    if admin is not None:
        admin.stop()
    logging.info("stopped")
    return 0


def _admin_address(options: argparse.Namespace) -> tuple[str, int]:
    """Each worker has its own, one after the other."""
    host, port = options.admin
    return host, port and port + (options.worker or 0)


def _start_admin(cloud: Cloud, where: tuple[str, int]) -> Admin:
    """Raises OSError; ImportError where prometheus-client is missing, which nobody else needs."""
    try:
        from ..cloud.admin import Admin
    except ImportError as error:
        text = "an admin port needs more packages: pip install 'kkp2p_compat[fleet]'"
        raise ImportError(f"{text} ({error})") from error
    admin = Admin(cloud, where)
    admin.start()
    return admin


def _say_hello(cloud: Cloud) -> None:
    settings = cloud.settings
    host, port = cloud.address
    hosts = host_addresses() if host in ("0.0.0.0", "::") else [host]
    if host == "0.0.0.0":
        hosts = [address for address in hosts if ":" not in address]
    lines = [f"kkp2p cloud {__version__}: {_SERVICES[settings.role]}"]
    places = [text_of((host, port)) for host in hosts]
    lines += [f"  at {place}" for place in places]
    if cloud.fingerprint:
        source = settings.tls_cert or (settings.data and settings.data / "cloud.crt")
        lines += [f"  certificate: {source}", "  for peers that are to accept no other:"]
        lines += [f"    --login {place}#{cloud.fingerprint}" for place in places]
    if cloud.stun is not None:
        lines.append("  STUN: UDP ports {} and {}".format(*cloud.stun.ports))
    if cloud.lane is not None:
        lines.append(f"  lanes: UDP port {cloud.advertised[1]}")
    if cloud.directory is not None:
        count = cloud.directory.count_accounts() + len(settings.accounts)
        data = "" if settings.data == default_data() else f" --data {settings.data}"
        if settings.directory is not None:
            data = f" --directory {cloud.directory.where_text}"
        lines += [
            f"  accounts: {count} in {cloud.directory.where_text}",
            f"  add one: kkp2p account add PEER{data}",
        ]
        lines.append(f"  invite one: kkp2p invite PEER{data}")
        name = (settings.names or [cloud.advertised[0]])[0]  # not loopback, if there is another
        _keep_place(settings, f"{text_of((name, port))}#{cloud.fingerprint}")
    print("\n".join(lines), flush=True)


def _keep_place(settings: CloudSettings, line: str) -> None:
    if settings.data is not None:
        try:
            keep_login(settings.data, line)
        except OSError as error:
            logging.warning("invitations will need --at: %s", error)
