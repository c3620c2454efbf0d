"""``kkp2p netcheck``: what the network lets this host do, and with --peer a test of one connection.

It is for people with a problem: each fact is shown as soon as it is known, in words, and the last
line says what it means.  The command makes an engine as any program does, and shows what the engine
finds out; it measures latencies itself.  No account is needed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent

from .._errors import KKP2PError
from .._sentence import said
from ..control.resolver import resolve
from ..control.trust import fingerprint, parse_fingerprints
from ..control.way_out import WayOut
from ..engine.engine import Engine
from ..engine.paths.lifetime import measure_lifetime
from ..engine.paths.own_addresses import LOOPBACK
from ..transport import dial
from ..traversal.nat import BLOCKED
from ..traversal.port_mapping import NOT_ASKED
from ._arguments import parse_desc, parse_peer, parse_seconds
from ._engines import add_options, open_engine
from ._peer_test import examine_peer, show_peer
from ._probes import probe_tcp, probe_udp
from ._show import show_section
from ._signals import throwing
from ._verdict import meaning, who_reaches_us
from ._words import _, told

__all__ = ["add_parser"]

# Our choices.
DISCOVERY_S = 8.0  # for everything that STUN finds out; blocked UDP takes 1.5 s
MAPPING_S = 10.0  # for a router's answer: UPnP routers are slow
LOOK_S = 0.02  # how often we look for what no event tells
RESOLVE_S = 5.0
FIND_S = 5.0  # for one of the cloud's addresses to answer

Section = tuple[str, dict[str, Any]]


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "netcheck",
        help="show what the network lets this host do; with --peer, test one connection",
        description="Finds out this host's addresses, what its NAT does, whether the router maps "
        "ports, and how far away the cloud is.  The exit status is 0 if the cloud was reached, or "
        "with --peer if that peer was.",
    )
    parser.add_argument(
        "--peer", metavar="ID", type=parse_peer, help="connect to this peer, and say how it went"
    )
    parser.add_argument(
        "--desc",
        metavar="N",
        type=parse_desc,
        default=0,
        help="connect_desc of that test (default: 0)",
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=parse_seconds,
        default=10.0,
        help="time for each connect of that test (default: %(default)s)",
    )
    parser.add_argument(
        "--lifetime",
        metavar="SECONDS",
        type=parse_seconds,
        help="find out, too, whether the NAT keeps an idle binding for this time; takes as long",
    )
    add_options(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    report: dict[str, Any] = {}
    try:
        with throwing(), open_engine(options) as engine:
            for name, fields in _examine(engine, options):
                report[name] = fields
                if not options.json:
                    show_section(name, fields)
            if options.peer:
                if not options.json:
                    print(_("Connecting to {peer} ...").format(peer=options.peer), flush=True)
                for fields in examine_peer(engine, options):
                    report["peer"] = fields
                    if not options.json:
                        show_peer(fields, options.explain)
    except KKP2PError as error:
        if options.json:
            print(json.dumps(report | {"error": str(error)}), flush=True)
        print(f"kkp2p netcheck: {told(error)}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(report, indent=2), flush=True)
    good = report["peer"]["connected"] if options.peer else report["summary"]["usable"]
    return 0 if good else 1


def _examine(engine: Engine, options: argparse.Namespace) -> Iterator[Section]:
    """Each section as soon as it is known."""
    cloud = None
    if not options.lan:
        cloud = _cloud(engine.way_out, *options.login)
        yield "cloud", cloud
    own = engine.thread.call(_own_addresses, engine)
    yield "addresses", own["addresses"]
    yield "nat", own["nat"]
    if not options.no_upnp:
        yield "port_mapping", engine.thread.call(_port_mapping, engine)
    servers = own["servers"]
    udp = {"servers": [_udp_health(ip, port) for ip, port in servers]}
    yield "udp", udp
    if options.lifetime:
        lived_s = engine.thread.call(_lifetime, engine, options.lifetime)
        yield "lifetime", {"lived_s": lived_s, "longest_s": options.lifetime}
    yield "summary", engine.thread.call(_summary, engine, cloud)


def _cloud(way_out: WayOut, host: str, port: int, pin: str | None) -> dict[str, Any]:
    try:
        found = resolve(host, RESOLVE_S, way_out.is_proxied)
        connect = way_out.knowing(found).connect
        ip = _first_to_answer(list(found), port, connect)
    except KKP2PError as error:
        return {"host": host, "port": port, "ip": None, "problem": said(error)}
    reach = probe_tcp(ip, port, connect)
    shown = fingerprint(reach.certificate)
    if reach.certificate and pin is not None and shown not in parse_fingerprints(pin):
        reach = reach._replace(
            tls_s=None,
            problem=_("it shows another certificate: sha256:{digest}").format(digest=shown.hex()),
        )
    return {
        "host": host,
        "port": port,
        "ip": ip,
        "tcp_s": reach.tcp_s,
        "tls_s": reach.tls_s,
        "problem": reach.problem,
    }


def _first_to_answer(addresses: list[str], port: int, connect: Callable[[str, int], Any]) -> str:
    """The address that an engine would use; any if none answers, so that its problem is shown."""
    with contextlib.suppress(OSError), gevent.Timeout(FIND_S, TimeoutError()):
        sock, ip = dial.connect(addresses, port, connect)
        sock.close()
        return ip
    return addresses[0]


# In the engine's hub.


def _wait_until(condition: Callable[[], object], limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while not condition() and time.monotonic() < deadline:
        gevent.sleep(LOOK_S)


def _own_addresses(engine: Engine) -> dict[str, Any]:
    own = engine.network.underlay().own
    own.ready.wait(DISCOVERY_S)
    _wait_until(lambda: all(found.done for found in own.found.values()), DISCOVERY_S)
    hosts = [each.address for each in own.host_candidates()]
    found = sorted(own.found.items())
    servers = [each.server for _, each in found if each.server is not None]
    outside = [list(mapped) for _, each in found for mapped in each.mapped]
    return {
        "addresses": {
            "ipv4": [ip for ip in hosts if ":" not in ip],
            "ipv6": [ip for ip in hosts if ":" in ip],
            "outside": outside,
        },
        "nat": {
            "asked": bool(engine.stun_servers),
            "answered": bool(servers),
            "text": own.nat.text,
            **own.nat.fields(),
        },
        "servers": servers or _asked(engine),
    }


def _asked(engine: Engine) -> list[tuple[str, int]]:
    """A STUN server that has not answered."""
    for host, port in engine.stun_servers:
        try:
            return [(next(iter(resolve(host, RESOLVE_S))), port)]
        except KKP2PError as error:
            engine.log.info("STUN server %s: %s", host, error)
    return []


def _lifetime(engine: Engine, longest_s: float) -> float | None:
    return measure_lifetime(engine.network.underlay().own, longest_s)


def _port_mapping(engine: Engine) -> dict[str, Any]:
    mapper = engine.network.underlay().mapper
    if mapper is None:
        return {"needed": False, "method": "", "address": None, "problem": ""}
    _wait_until(lambda: mapper.problem != NOT_ASKED, MAPPING_S)
    silent = mapper.problem == NOT_ASKED
    return {
        "needed": True,
        "method": mapper.method,
        "address": mapper.mapped,
        "problem": _("no answer in {seconds:.0f} s").format(seconds=MAPPING_S)
        if silent
        else mapper.problem,
    }


def _summary(engine: Engine, cloud: dict[str, Any] | None) -> dict[str, Any]:
    own = engine.network.underlay().own
    reached = cloud is None or cloud.get("tls_s") is not None
    nat, reach = own.nat, {}
    if cloud is None and not engine.stun_servers:
        text = _("On the LAN there is no NAT between peers.")
    elif nat == BLOCKED and not reached:
        text = _("The cloud answers neither by TCP nor by UDP: nothing more can be said.")
    else:
        reach = who_reaches_us(nat, own.candidates())
        text = meaning(nat, reach)
        if any(ip in LOOPBACK for each in own.found.values() for ip, _ in each.mapped):
            text = _(
                "The STUN server is on this host and cannot see what is in front of it: this "
                "holds for peers on the same network.  Name another server with --stun."
            )
        if not reached:
            text = _("The cloud cannot be reached, so nobody can be called.  ") + text
    return {"usable": reached, "reach": reach, "text": text}


def _udp_health(ip: str, port: int) -> dict[str, Any]:
    fields: dict[str, Any] = {"server": [ip, port], "problem": ""}
    try:
        health = probe_udp(ip, port)
    except OSError as error:
        return fields | {"sent": 0, "answered": 0, "problem": said(error)}
    trips = health.round_trips_s
    fields |= {"sent": health.sent, "answered": len(trips), "loss": health.loss}
    if trips:
        middle = trips[len(trips) // 2]
        fields["round_trip_s"] = {"least": trips[0], "median": middle, "most": trips[-1]}
    return fields
