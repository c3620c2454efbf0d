"""The processes of ``benchmarks hostile``: ``python -m benchmarks.hostile_ends NAME PORT ARGS...``.

Attackers say so when they are at work, and go on; who measures prints one line of JSON.  All end
with their standard input.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

import gevent
from gevent import socket, ssl

from .programs import _end_with_parent, say

ATTACKER = "127.0.0.66"
OTHER = "127.9.9.9"  # who measures: another network
# RFC 8489 section 5, with SOFTWARE (14.14) of 76 bytes: no answer is longer than its request.
STUN_REQUEST = bytes.fromhex("000100502112a442") + bytes(12) + bytes.fromhex("8022004c") + b"." * 76
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


def calls(port: int, per_s: str, addresses: str) -> None:
    """Strangers who call a peer by the relay, and never go there.  Answers are not waited for."""
    offer = json.dumps({"type": 0, "mode": 2, "encrypt": 0, "desc": 0})
    sources = [f"127.66.{number}.1" for number in range(int(addresses))]
    pause_s = len(sources) / float(per_s)
    opened = 0

    def attack(source: str) -> None:
        nonlocal opened
        while True:
            try:
                with open_link(port, source) as link:
                    opened += 1
                    gevent.spawn(drain, link)
                    due = time.monotonic()
                    for number in range(1, 2**53):
                        fields = {"call": number, "to": "good", "ms": 60_000, "offer": offer}
                        link.sendall(json.dumps({"op": "call", **fields}).encode() + b"\n")
                        due += pause_s
                        gevent.sleep(max(0.0, due - time.monotonic()))
            except OSError:
                gevent.sleep(PAUSE_S)

    def drain(link: Any) -> None:
        try:
            while link.recv(65536):
                pass
        except OSError:  # the attack ends with it, and begins anew
            return

    for source in sources:
        gevent.spawn(attack, source)
    while opened < len(sources):
        gevent.sleep(PAUSE_S)
    say(at_work=opened)
    gevent.get_hub().join()


def connects(port: int, seconds: str, peer: str, secret: str) -> None:
    """How long connects by the relay take to a peer that is called by strangers, too.

    Peer and caller are at one address.  One that fails counts as the time that it had.
    """
    import kkp2p_compat as kkp2p

    timeout_ms = 5000
    with tempfile.TemporaryDirectory() as folder:
        ends = []
        for name in ("callee", "caller"):
            log = os.path.join(folder, name)
            conf = kkp2p.engine_conf_t("127.0.0.1", port, disable_upnp=1, log_path=log)
            engine = kkp2p.engine_init(conf, timeout_ms)
            assert engine is not None
            ends.append(engine)
        callee, caller = ends
        assert kkp2p.join_net(callee, peer, secret) == 0

        def accept() -> None:
            channel = kkp2p.channel_t()
            while (accepted := kkp2p.accept(callee, 1000, channel)) >= 0:
                if accepted:
                    kkp2p.close_fd(channel.fd)

        accepting = gevent.spawn(accept)
        gevent.sleep(float(seconds) / 2)  # an attack has its effect by then
        took_ms, failed, until = [], 0, time.monotonic() + float(seconds)
        while time.monotonic() < until:
            began, channel = time.monotonic(), kkp2p.channel_t()
            ctx = kkp2p.connect_ctx_t(peer, connect_mode=2, timeout=timeout_ms)
            if kkp2p.connect(caller, ctx, channel) == 0:
                took_ms.append(1000 * (time.monotonic() - began))
                kkp2p.close_fd(channel.fd)
            else:
                failed += 1
                took_ms.append(float(timeout_ms))
            gevent.sleep(PAUSE_S)
        took_ms.sort()
        say(p95_ms=took_ms[int(0.95 * len(took_ms))], failed=failed, of=len(took_ms))
        for engine in ends:
            kkp2p.engine_destroy(engine)
        accepting.join()


def flood(port: int) -> None:
    """Datagrams that are no STUN requests, as many as go."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((ATTACKER, 0))
        say(at_work=1)
        while True:
            for _ in range(100):
                sock.sendto(b"x" * 100, ("127.0.0.1", port))
            gevent.sleep(0.005)  # 20,000 a second at most


def guess(port: int, peer: str, count: str) -> None:
    """Wrong secrets for an account, on ``count`` connections at a time."""

    def attack() -> None:
        while True:
            try:
                with open_link(port, ATTACKER) as link:
                    log_in(link, peer, "wrong")
            except OSError:
                gevent.sleep(PAUSE_S)

    for _ in range(int(count)):
        gevent.spawn(attack)
    say(at_work=count)
    gevent.get_hub().join()


def hold(port: int, count: str) -> None:
    """Connections that say nothing, as many as are let in."""
    held: list[Any] = []

    def attack() -> None:
        while True:
            with socket.create_connection(("127.0.0.1", port), 30, (ATTACKER, 0)) as sock:
                held.append(sock)
                with contextlib.suppress(OSError):
                    sock.recv(1)
            gevent.sleep(PAUSE_S)

    for _ in range(int(count)):
        gevent.spawn(attack)
    while len(held) < int(count):
        gevent.sleep(PAUSE_S)
    say(at_work=count)
    gevent.get_hub().join()


def _worst(seconds: str, step: Callable[[], object]) -> None:
    """Of many; one that fails is tried again, and takes as long as that takes."""
    worst, until = 0.0, time.monotonic() + float(seconds)
    while time.monotonic() < until:
        began = time.monotonic()
        while True:
            try:
                step()
                break
            except OSError:
                gevent.sleep(PAUSE_S)
        worst = max(worst, time.monotonic() - began)
        gevent.sleep(PAUSE_S)
    say(worst_ms=worst * 1000)


def routes(port: int, seconds: str) -> None:
    """How long it takes to connect and to be told a track, the worst of many."""

    def step() -> None:
        with open_link(port, OTHER) as link:
            ask(link, op="route", v=1, peer="good")

    _worst(seconds, step)


def stun(port: int, seconds: str) -> None:
    """How long a STUN server takes to answer; asked again after half a second (RFC 8489)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((OTHER, 0))
        sock.settimeout(0.5)

        def step() -> None:
            sock.sendto(STUN_REQUEST, ("127.0.0.1", port))
            sock.recv(2048)

        _worst(seconds, step)


def log_in(link: Any, peer: str, secret: str) -> bool:
    from scramp import ScramClient

    from kkp2p_compat.control.binding import end_point_binding

    binding = "tls-server-end-point", end_point_binding(link.getpeercert(binary_form=True))
    scram = ScramClient(["SCRAM-SHA-256-PLUS"], peer, secret, channel_binding=binding)
    answer = ask(link, op="login", v=1, peer=peer, scram=scram.get_client_first())
    if answer["op"] != "challenge":
        return False
    scram.set_server_first(answer["scram"])
    return ask(link, op="proof", scram=scram.get_client_final())["op"] == "welcome"


def beats(port: int, seconds: str, peer: str, secret: str) -> None:
    """How long a logged-in peer's heartbeat takes."""
    with open_link(port, OTHER) as link:
        assert log_in(link, peer, secret)
        _worst(seconds, lambda: ask(link, op="beat"))


def logins(port: int, seconds: str, peer: str, secret: str) -> None:
    """How long a login takes, from the attacker's own address."""

    def step() -> None:
        with open_link(port, ATTACKER) as link:
            if not log_in(link, peer, secret):
                raise ConnectionRefusedError

    _worst(seconds, step)


PROGRAMS: dict[str, Callable[..., None]] = {
    "lines": lines,
    "calls": calls,
    "routes": routes,
    "beats": beats,
    "connects": connects,
    "flood": flood,
    "guess": guess,
    "hold": hold,
    "logins": logins,
    "stun": stun,
}

if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    PROGRAMS[sys.argv[1]](int(sys.argv[2]), *sys.argv[3:])
