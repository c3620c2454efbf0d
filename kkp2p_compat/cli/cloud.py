"""``kkp2p cloud``: run a cloud, or one of its services."""

from __future__ import annotations

import argparse
import functools
import logging
import os
import signal
import sqlite3
import sys
from typing import TYPE_CHECKING, Any

import gevent
from gevent.event import Event

from .._address import text_of
from .._version import __version__
from ..cloud.accounts import default_data
from ..cloud.certificate import Certificate, host_addresses
from ..cloud.directory import DirectoryAway
from ..cloud.server import Cloud
from ..cloud.settings import CloudSettings
from ._cloud_options import add_options, settings_of
from ._json_log import JsonFormatter
from ._layers import Layers, WrongOption
from ._output import never_waiting
from ._reload import Reloader
from ._words import N_, _, speak_english
from ._workers import Workers, tell_alive
from .invite import keep_login

if TYPE_CHECKING:
    from ..cloud.admin import Admin

__all__ = ["add_parser"]

_SERVICES = {"all": N_("route, track and relay")}  # by role, where that does not say it


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "cloud",
        help="run a cloud, where peers log in and find each other",
        description="Runs a cloud until SIGTERM or SIGINT.  With no arguments it is one process "
        "that serves everything on one port.  When the files of its certificate are replaced, new "
        "connections are shown the new one within seconds, and on SIGHUP at once.",
    )
    add_options(parser)
    parser.set_defaults(run=functools.partial(_run, parser))


def _run(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    layers = Layers(parser, options.arguments, os.environ, "KKP2P_CLOUD_")
    arguments = options.arguments
    try:
        options = layers.read()
        options.arguments = arguments
    except WrongOption as error:
        print(f"kkp2p cloud: {error}", file=sys.stderr)
        return 2
    with never_waiting():  # there is one thread for everybody: it waits for no reader of its log
        if options.workers > 1 and options.worker is None:
            return _run_workers(options)
        return _serve(layers, options)


def _run_workers(options: argparse.Namespace) -> int:
    _start_log(options)
    if options.directory is None:
        print("kkp2p cloud:", _("--workers needs --directory"), file=sys.stderr)
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
        cloud = Cloud(settings_of(options))
    except (OSError, ValueError) as error:
        print(f"kkp2p cloud: {error}", file=sys.stderr)
        return 2
    reloader = Reloader(cloud, layers, options)
    gevent.signal_handler(signal.SIGHUP, reloader.reload)  # for as long as the process lives
    admin = None
    try:
        if options.admin is not None:  # bound before peers are let in, who would be cut off
            admin = _make_admin(cloud, _admin_address(options))
        cloud.start()
    except (ImportError, OSError, ValueError, sqlite3.Error) as error:
        print(f"kkp2p cloud: {error}", file=sys.stderr)
        return 1
    stopping = Event()
    numbers = (signal.SIGTERM, signal.SIGINT)
    handlers = [gevent.signal_handler(number, stopping.set) for number in numbers]
    _say_hello(cloud)
    if admin is not None:
        admin.start()
        print(_("  status: ") + f"http://{text_of(admin.address)}/", flush=True)
    speak_english()  # whatever comes is for the log
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


def _make_admin(cloud: Cloud, where: tuple[str, int]) -> Admin:
    """Raises OSError; ImportError where prometheus-client is missing, which nobody else needs."""
    try:
        from ..cloud.admin import Admin
    except ImportError as error:
        text = _("an admin port needs more packages: pip install 'kkp2p_compat[fleet]'")
        raise ImportError(f"{text} ({error})") from error
    return Admin(cloud, where)


def _say_hello(cloud: Cloud) -> None:
    settings = cloud.settings
    host, port = cloud.address
    hosts = host_addresses() if host in ("0.0.0.0", "::") else [host]
    if host == "0.0.0.0":
        hosts = [address for address in hosts if ":" not in address]
    lines = [f"kkp2p cloud {__version__}: {_(_SERVICES.get(settings.role, settings.role))}"]
    places = [text_of((host, port)) for host in hosts]
    lines += [_("  at {address}").format(address=place) for place in places]
    if cloud.fingerprint:
        source = settings.tls_cert or (settings.data and settings.data / "cloud.crt")
        lines.append(_("  certificate: {path}").format(path=source))
        lines.append(_("  for peers that are to accept no other:"))
        lines += [f"    --login {place}#{cloud.fingerprint}" for place in places]
    if cloud.stun is not None:
        lines.append(_("  STUN: UDP ports {} and {}").format(*cloud.stun.ports))
    if cloud.lane is not None:
        lines.append(_("  lanes: UDP port {port}").format(port=cloud.advertised[1]))
    if cloud.directory is not None:
        data = "" if settings.data == default_data() else f" --data {settings.data}"
        if settings.directory is not None:
            data = f" --directory {cloud.directory.where_text}"
        try:
            count = cloud.directory.count_accounts() + len(settings.accounts)
        except DirectoryAway as error:
            logging.warning("how many accounts there are is not known for now: %s", error)
        else:
            accounts = _("  accounts: {count} in {where}")
            lines.append(accounts.format(count=count, where=cloud.directory.where_text))
        lines += [
            _("  add one: ") + f"kkp2p account add PEER{data}",
            _("  invite one: ") + f"kkp2p invite PEER{data}",
        ]
        name = (settings.names or [cloud.advertised[0]])[0]  # not loopback, if there is another
        _keep_place(settings, f"{text_of((name, port))}#{cloud.fingerprint}")
    print("\n".join(lines), flush=True)


def _keep_place(settings: CloudSettings, line: str) -> None:
    if settings.data is not None:
        try:
            keep_login(settings.data, line)
        except OSError as error:
            logging.warning("invitations will need --at: %s", error)
