"""Short connections through a proxy, beside the same ones made directly.

A client of HTTP/1.0 connects, asks, reads to the end and closes, some connections at once: to a
proxy on its own host, which opens a channel for each to a server behind ``accept`` on the other
host, or directly to that server, which has a listener then.  After that it asks one request after
the other on one connection.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from kkp2p_compat.testing import lab as netns

from .p2p import MODES, PEER, PORT, Bench
from .relay import Program

AT_ONCE = 32
WARM_S = 0.3  # the first connection makes the link


@contextmanager
def _ends(bench: Bench, kind: str) -> Iterator[tuple[dict[str, Program], str, int]]:
    """The processes by name, and where to connect."""
    with ExitStack() as stack:

        def start(host: netns.Host, *command: str) -> tuple[Program, dict[str, Any]]:
            command = ("-m", "benchmarks.proxied_ends", *command)
            program = stack.enter_context(bench.started(host, *command))
            return program, program.answer()

        programs = {}
        address = bench.server.address
        if kind in MODES:
            programs["server"], _ = start(bench.server, "peer_server", PORT, PEER, bench.secret)
            proxy = "proxy", address, PORT, PEER, *MODES[kind]
            programs["proxy"], ready = start(bench.client, *proxy)
            address = "127.0.0.1"
        else:
            programs["server"], ready = start(bench.server, "tcp_server")
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
