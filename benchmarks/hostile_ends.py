"""The processes of ``benchmarks hostile``: ``python -m benchmarks.hostile_ends NAME PORT ARGS...``.

Attackers say so when they are at work, and go on; who measures prints one line of JSON.  All end
with their standard input.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import gevent
from gevent import socket, ssl

from .programs import _end_with_parent, say

ATTACKER = "127.0.0.66"
OTHER = "127.9.9.9"  # who measures: another network
PAUSE_S = 0.05  # between two measurements, and after a refusal

LINES = {
    "text": b'{"op":"beat","x":"%s"}\n' % (b"x" * 65_000),
    "floats": b'{"op":"beat","x":[%s1]}\n' % (b"1.5," * 16_000),
    "surrogates": b'{"op":"beat","t":"\\\\ud","x":[%s1]}\n' % (b"1.5," * 16_000),
    "call-floats": b'{"op":"call","call":1,"to":"x","ms":9,"offer":"\\\\ud","x":[%s1]}\n'
    % (b"1.5," * 16_000),
}


def open_link(port: int, source: str) -> Any:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    raw = socket.create_connection(("127.0.0.1", port), 30, (source, 0))
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return context.wrap_socket(raw)


def ask(link: Any, **message: object) -> dict[str, Any]:
    link.sendall(json.dumps(message).encode() + b"\n")
    line = b""
    while not line.endswith(b"\n"):
        if not (data := link.recv(65536)):
            raise ConnectionError("closed by the cloud")
        line += data
    answer: dict[str, Any] = json.loads(line)
    return answer


def lines(port: int, kind: str, count: str) -> None:
    """``count`` connections that send one line again and again, and come back when closed."""
    opened = 0

    def attack() -> None:
        nonlocal opened
        while True:
            try:
                with open_link(port, ATTACKER) as link:
                    ask(link, op="route", v=1, peer="x")
                    opened += 1
                    while True:
                        link.sendall(LINES[kind])
            except OSError:
                gevent.sleep(PAUSE_S)

    for _ in range(int(count)):
        gevent.spawn(attack)
    while opened < int(count) / 2:  # the rest may be refused
        gevent.sleep(PAUSE_S)
    say(at_work=opened)
    gevent.get_hub().join()


def _worst(seconds: str, step: Callable[[], object]) -> None:
    worst, until = 0.0, time.monotonic() + float(seconds)
    while time.monotonic() < until:
        began = time.monotonic()
        step()
        worst = max(worst, time.monotonic() - began)
        gevent.sleep(PAUSE_S)
    say(worst_ms=worst * 1000)


def routes(port: int, seconds: str) -> None:
    """How long it takes to connect and to be told a track, the worst of many."""

    def step() -> None:
        with open_link(port, OTHER) as link:
            ask(link, op="route", v=1, peer="good")

    _worst(seconds, step)


def beats(port: int, seconds: str, peer: str, secret: str) -> None:
    """How long a logged-in peer's heartbeat takes, the worst of many."""
    from scramp import ScramClient

    from kkp2p_compat.control.binding import end_point_binding

    with open_link(port, OTHER) as link:
        binding = "tls-server-end-point", end_point_binding(link.getpeercert(binary_form=True))
        scram = ScramClient(["SCRAM-SHA-256-PLUS"], peer, secret, channel_binding=binding)
        answer = ask(link, op="login", v=1, peer=peer, scram=scram.get_client_first())
        scram.set_server_first(answer["scram"])
        assert ask(link, op="proof", scram=scram.get_client_final())["op"] == "welcome"
        _worst(seconds, lambda: ask(link, op="beat"))


PROGRAMS: dict[str, Callable[..., None]] = {"lines": lines, "routes": routes, "beats": beats}

if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    PROGRAMS[sys.argv[1]](int(sys.argv[2]), *sys.argv[3:])
