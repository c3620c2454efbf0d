"""``kkp2p proxy``: a local port, TCP or UDP, that forwards to a peer.

Each connection to the port, or each client address, is one channel to the peer; a line says when it
is made, and one when it is over.  The engine's thread puts its events into a queue, so neither a
long explanation nor output that nobody reads or that cannot be written stops anything.
"""

from __future__ import annotations

import argparse
import json
import socket as _socket
import sys
import time
from collections import deque
from typing import Any

import gevent
from gevent.event import Event

from .._address import is_ip
from .._errors import KKP2PError
from .._structs import connect_ctx_t
from ..engine.engine import Engine
from ..engine.proxy.base import Proxy
from ..engine.proxy.proxied import Proxied
from ..engine.runtime.timeline import Timeline
from ._arguments import parse_address, parse_desc, parse_peer, parse_port, parse_seconds
from ._engines import MODES, add_options, open_engine, show_address, show_ms
from ._output import lost_as_json, lost_in_words, never_waiting
from ._signals import setting
from .explain import explain, timeline_fields

__all__ = ["add_parser"]

# Our choices, in seconds: between two look-ups of a name that does not resolve.
RETRY_FIRST_S = 0.5
RETRY_MOST_S = 5.0

LOOPBACKS = ["127.0.0.1", "::1"]
FREE_PORT_ATTEMPTS = 10  # our choice: of port 0, for one that is free on both
MAX_WAITING = 10_000  # our choice: events that are not printed yet; then the oldest are lost


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "proxy",
        help="open a local port that forwards to a peer",
        description="Listens on a local TCP port; each connection to it becomes a connection to "
        "the peer.  Or on a UDP port, where each client gets one.  Ends on Ctrl-C or SIGTERM.",
    )
    parser.add_argument(
        "listen", metavar="LISTEN", type=_parse_listen,
        help="PORT on 127.0.0.1 and ::1, or ADDRESS:PORT; port 0: any free one",
    )  # fmt: skip
    parser.add_argument("peer", metavar="PEER", type=parse_peer, help="peer id")
    parser.add_argument(
        "--udp", action="store_true",
        help="a UDP port: whole datagrams; a client that is idle for two minutes ends",
    )  # fmt: skip
    parser.add_argument(
        "--desc", metavar="N", type=parse_desc, default=0,
        help="connect_desc, which names the protocol as the two have agreed (default: 0)",
    )  # fmt: skip
    parser.add_argument(
        "--mode", choices=MODES, default="auto", help="auto: p2p, or else the relay (default)"
    )
    parser.add_argument(
        "--encrypt", action="store_true",
        help="encrypt end to end also on the relay; p2p is always encrypted",
    )  # fmt: skip
    parser.add_argument(
        "--timeout", metavar="SECONDS", type=parse_seconds, default=10.0,
        help="time for the connect to the peer (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--no-retry", action="store_true",
        help="end when the cloud's name does not resolve; by default look it up until it does",
    )  # fmt: skip
    add_options(parser)
    parser.set_defaults(run=_run)


def _parse_listen(text: str) -> tuple[list[str], int]:
    """PORT, on both loopback addresses, or ADDRESS:PORT; port 0 is a free one."""
    if ":" not in text:
        return LOOPBACKS, parse_port(text, lowest=0)
    host, port = parse_address(text, lowest=0)
    if not is_ip(host):
        raise argparse.ArgumentTypeError(f"{text!r} is not PORT or ADDRESS:PORT")
    return [host], port


class _Events:
    """From the engine's thread to ours."""

    def __init__(self) -> None:
        self.something = Event()
        self._waiting: deque[dict[str, Any]] = deque(maxlen=MAX_WAITING)
        self._async = gevent.get_hub().loop.async_()
        self._async.start(self.something.set)

    def put(self, event: dict[str, Any]) -> None:
        self._waiting.append(event)
        self._async.send()

    def take(self) -> list[dict[str, Any]]:
        """All there are by now, in order."""
        self.something.clear()
        return [self._waiting.popleft() for _ in range(len(self._waiting))]

    def close(self) -> None:
        self._async.close()


class _Watch:
    """Makes the events, in the engine's hub."""

    def __init__(self, events: _Events, explains: bool, is_udp: bool) -> None:
        self._is_udp = is_udp
        self.connections = 0
        self.failures = 0
        self._events = events
        self._explains = explains
        self._explained: Timeline | None = None

    def __call__(self, proxied: Proxied) -> None:
        event: dict[str, Any] = {"port": proxied.port, "at": time.time()}
        if not proxied.over:
            self.connections += 1
            event |= {
                "event": "connected", "path": proxied.path, "address": proxied.address,
                "reason": proxied.reason, "set_up_s": proxied.set_up_s,
            }  # fmt: skip
        elif not proxied.path:
            self.failures += 1
            event |= {"event": "failed", "problems": proxied.problems}
        else:
            event |= {
                "event": "ended", "problems": proxied.problems,
                "bytes_sent": proxied.bytes_sent, "bytes_received": proxied.bytes_received,
                "moves": proxied.moves,
            }  # fmt: skip
            if self._is_udp:
                event["datagrams_sent"] = proxied.datagrams_sent
                event["datagrams_received"] = proxied.datagrams_received
        event["age_s"] = time.monotonic() - proxied.began_at
        timeline = proxied.timeline
        if self._explains and timeline is not None and timeline is not self._explained:
            self._explained = timeline  # once: connections that share one came of one attempt
            event["timeline"] = timeline_fields(timeline)
        self._events.put(event)


def _run(options: argparse.Namespace) -> int:
    if options.lan and options.mode == "relay":
        print("kkp2p proxy: there is no relay on the LAN", file=sys.stderr)
        return 2
    stopping = Event()
    events = _Events()
    notice = lost_as_json if options.json else lost_in_words
    with never_waiting(notice), setting(stopping):
        try:
            with open_engine(options, _Patience(options, stopping)) as engine:
                return _serve(engine, options, events, stopping)
        except KKP2PError as error:
            if stopping.is_set():
                return 0
            print(f"kkp2p proxy: {error}", file=sys.stderr)
            return 1
        finally:
            events.close()


class _Patience:
    """Whether to look the cloud's name up again: says so once, and waits before each time."""

    def __init__(self, options: argparse.Namespace, stopping: Event) -> None:
        self._options = options
        self._stopping = stopping
        self._pause_s = RETRY_FIRST_S
        self._told = ""

    def __call__(self, error: KKP2PError) -> bool:
        if self._options.no_retry:
            return False
        if str(error) != self._told:
            self._told = str(error)
            if self._options.json:
                _show({"event": "waiting", "problem": self._told}, as_json=True)
            else:
                print(f"kkp2p proxy: {error}; trying again", file=sys.stderr, flush=True)
        stopped = self._stopping.wait(self._pause_s)
        self._pause_s = min(2 * self._pause_s, RETRY_MOST_S)
        return not stopped


def _serve(engine: Engine, options: argparse.Namespace, events: _Events, stopping: Event) -> int:
    mode = "p2p" if options.lan else options.mode
    ctx = connect_ctx_t(
        options.peer, int(options.udp), connect_mode=MODES[mode], encrypt_data=int(options.encrypt),
        timeout=int(1000 * options.timeout), connect_desc=options.desc,
    )  # fmt: skip
    watch = _Watch(events, options.explain, options.udp)
    proxies = _listen(engine, options.listen, ctx, watch)
    addresses = [proxy.address for proxy in proxies]
    _show(
        {
            "event": "listening", "address": addresses[0], "addresses": addresses,
            "peer": options.peer, "mode": mode, "protocol": "udp" if options.udp else "tcp",
        },
        options.json,
    )  # fmt: skip
    stopping.rawlink(lambda _: events.something.set())
    while not stopping.is_set():
        events.something.wait()
        for event in events.take():
            _show(event, options.json)
    for proxy in proxies:
        engine.stop_proxy(proxy.proxy_id)
    for event in events.take():
        _show(event, options.json)
    _show(
        {"event": "stopped", "connections": watch.connections, "failures": watch.failures},
        options.json,
    )
    return 0


def _listen(
    engine: Engine, where: tuple[list[str], int], ctx: connect_ctx_t, watch: _Watch
) -> list[Proxy]:
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


def _show(event: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(event), flush=True)
        return
    print("\n".join(_lines(event)), flush=True)


def _lines(event: dict[str, Any]) -> list[str]:
    kind = event["event"]
    if kind == "listening":
        places = " and ".join(map(show_address, event["addresses"]))
        udp = "UDP " * (event["protocol"] == "udp")
        return [f"listening on {udp}{places} for {event['peer']}, mode {event['mode']}"]
    if kind == "stopped":
        count, failures = event["connections"], event["failures"]
        failed = f", {failures} failed" if failures else ""
        return [f"stopped: {count} connection{'s' * (count != 1)}{failed}"]
    clock = time.strftime("%H:%M:%S", time.localtime(event["at"]))
    problems = "; ".join(event.get("problems", []))
    if kind == "connected":
        text = f"connected in {show_ms(event['set_up_s'])}: {event['path']}"
        text += f", {show_address(event['address'])}: {event['reason']}"
    elif kind == "failed":
        text = f"failed after {show_ms(event['age_s'])}: {problems}"
    else:
        word = f"broken: {problems}" if problems else "ended"
        text = f"{word}, {event['bytes_sent']:,} bytes to the peer, "
        text += f"{event['bytes_received']:,} from it, "
        if "datagrams_sent" in event:
            text += (
                f"in {event['datagrams_sent']:,} and {event['datagrams_received']:,} datagrams, "
            )
        text += f"{event['age_s']:.1f} s"
    lines = [f"{clock} port {event['port']}: {text}"]
    lines += [f"    moved from {move}" for move in event.get("moves", ())]
    if "timeline" in event:
        lines += ["    " + line for line in explain(event["timeline"])]
    return lines
