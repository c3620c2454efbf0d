"""Short connections through a proxy, beside the same ones made directly.

A client of HTTP/1.0 connects, asks, reads to the end and closes, some connections at once: to a
proxy on its own host, which opens a channel for each to a server behind ``accept`` on the other
host, or directly to that server, which has a listener then.  After that it asks one request after
the other on one connection.

Datagrams likewise: to a UDP proxy, behind which a program echoes what its channels bring, or to a
UDP socket of that program.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from kkp2p_compat.testing import lab as netns

from .p2p import MODES, PEER, PORT, Bench
from .relay import Program

AT_ONCE = 32
DATAGRAM_BYTES = 1200
OUT_AT_ONCE = 64  # datagrams that are on their way, there or back
WARM_S = 0.3  # the first connection makes the link


@contextmanager
def _ends(bench: Bench, kind: str, udp: str = "") -> Iterator[tuple[dict[str, Program], str, int]]:
    """The processes by name, and where to connect.  ``udp``: "udp_", or nothing."""
    with ExitStack() as stack:

        def start(host: netns.Host, *command: str) -> tuple[Program, dict[str, Any]]:
            command = ("-m", "benchmarks.proxied_ends", *command)
            program = stack.enter_context(bench.started(host, *command))
            return program, program.answer()

        programs = {}
        address = bench.server.address
        if kind in MODES:
            programs["server"], _ = start(
                bench.server, f"peer_{udp}server", PORT, PEER, bench.secret
            )
            proxy = f"{udp}proxy", address, PORT, PEER, *MODES[kind]
            programs["proxy"], ready = start(bench.client, *proxy)
            address = "127.0.0.1"
        else:
            programs["server"], ready = start(bench.server, f"{udp or 'tcp_'}server")
        programs["client"], _ = start(bench.client, "client")
        yield programs, address, ready["port"]


def turn(bench: Bench, kind: str) -> dict[str, float]:
    with _ends(bench, kind) as (programs, host, port):
        client = programs["client"]

        def ask(what: str, **fields: object) -> dict[str, float]:
            client.ask(what, host=host, port=port, **fields)
            return client.answer()

        ask("short", seconds=WARM_S, at_once=AT_ONCE)
        begin = {name: program.cpu_s() for name, program in programs.items()}
        short = ask("short", seconds=bench.load.veth_s, at_once=AT_ONCE)
        cpu_us = {
            name: (program.cpu_s() - begin[name]) / short["count"] * 1e6
            for name, program in programs.items()
        }
        kept = ask("kept", count=bench.load.trips)
    return {
        f"short connections a second, {AT_ONCE} at once": short["per_s"],
        "a short connection, p50 us": short["p50_us"],
        "a short connection, p99 us": short["p99_us"],
        "CPU us a short connection, all programs": sum(cpu_us.values()),
        **{
            f"CPU us a short connection, {name}": cpu_us.get(name, 0.0)
            for name in ("client", "proxy", "server")
        },
        "a request on an open connection, p50 us": kept["p50_us"],
        "a request on an open connection, p99 us": kept["p99_us"],
    }


def udp_turn(bench: Bench, kind: str) -> dict[str, float]:
    with _ends(bench, kind, "udp_") as (programs, host, port):
        client = programs["client"]

        def ask(what: str, **fields: object) -> dict[str, float]:
            client.ask(what, host=host, port=port, **fields)
            return client.answer()

        sizes = {"size": DATAGRAM_BYTES, "at_once": OUT_AT_ONCE}
        ask("datagrams", seconds=WARM_S, **sizes)
        begin = {name: program.cpu_s() for name, program in programs.items()}
        many = ask("datagrams", seconds=bench.load.veth_s, **sizes)
        cpu_us = {
            name: (program.cpu_s() - begin[name]) / many["count"] * 1e6
            for name, program in programs.items()
        }
        trips = ask("pings", count=bench.load.trips, size=100)
    return {
        f"datagrams of {DATAGRAM_BYTES} bytes there and back a second": many["per_s"],
        "lost of them, %": 100 * many["lost"],
        **{
            f"CPU us there and back, {name}": cpu_us.get(name, 0.0)
            for name in ("client", "proxy", "server")
        },
        "there and back one by one, p50 us": trips["p50_us"],
        "there and back one by one, p99 us": trips["p99_us"],
        "lost of those, %": 100 * trips["lost"],
    }
