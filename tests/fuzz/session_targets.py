"""Strangers at the relay, servers that know no secret, altered records, peers that trickle lies."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import ssl
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any

import gevent
from gevent import socket
from gevent.pool import Group

from control_targets import Wire, no_faults_of_ours
from kkp2p_compat._errors import BadPacket, KKP2PError
from kkp2p_compat.cloud.certificate import load_identity
from kkp2p_compat.cloud.directory_local import LocalDirectory
from kkp2p_compat.cloud.limits import Gatekeeper, Limits
from kkp2p_compat.cloud.relay import Relay
from kkp2p_compat.cloud.usage import Usage
from kkp2p_compat.control import link as link_module
from kkp2p_compat.transport import relay_wire
from kkp2p_compat.transport.relay import MAX_SPOTS, parse_places_untrusted
from kkp2p_compat.traversal import lan, lan_wire
from kkp2p_compat.traversal.candidates import Candidate
from kkp2p_compat.traversal.checks import Checks, Credentials
from kkp2p_compat.traversal.nat import NatBehaviour
from kkp2p_compat.traversal.plan import Side, make_plan
from kkp2p_compat.traversal.punch import Close, Open, Punch, Sample, Tell, Turn

__all__ = [
    "CHALLENGES",
    "GUESTS",
    "LAN_ANSWERS",
    "PLACES",
    "TRICKLES",
    "fuzz_lan_search",
    "fuzz_places",
    "fuzz_punch",
    "fuzz_relay",
    "fuzz_scram_client",
]

KEY = bytes(range(32))
log = logging.Logger("fuzz", logging.CRITICAL)


def _pieces(data: bytes) -> list[tuple[int, bytes]]:
    return [(line[0], line[1:]) for line in data.split(b"\n") if line]


# The relay.  A piece: one byte (who, and what they do), and the bytes that they send, or nothing
# for a hello with a token that is right.

HOSTS = 4
COME, SAY, LEAVE, SWEEP = range(4)


def fuzz_relay(data: bytes) -> None:
    with no_faults_of_ours():
        _fuzz_relay(data)


def _fuzz_relay(data: bytes) -> None:
    limits = Limits(relay_sessions_per_address=2)
    gate, closing = Gatekeeper(limits), Group()
    relay = Relay(gate, KEY, Usage(KEY, LocalDirectory(None)), closing)
    ends: list[Any] = [None] * HOSTS
    for how, said in _pieces(data):
        who, what = how & 3, how >> 2 & 3
        if what == COME and ends[who] is None and gate.enter(f"192.0.2.{who & 1}"):
            ends[who], theirs = socket.socketpair()
            theirs.settimeout(0)  # as the server leaves it
            relay.welcome(theirs, f"192.0.2.{who & 1}")
        elif what == SAY and ends[who] is not None:
            with contextlib.suppress(OSError):  # it was sent away
                ends[who].setblocking(False)
                ends[who].send(said or _hello(how >> 4))
        elif what == LEAVE and ends[who] is not None:
            ends[who].close()
            ends[who] = None
        elif what == SWEEP:
            gate.sweep(time.monotonic() + (100 if how & 16 else 0))
            relay.sweep(time.monotonic())
        gevent.sleep(0)
    for end in ends:
        if end is not None:
            end.close()
    gevent.sleep(0)
    gate.sweep(time.monotonic() + 100)  # those that still wait have waited too long
    relay.stop(0)
    closing.join(5)
    assert not len(closing), "a socket that nobody closes"
    assert (relay.sessions, relay.waiting, gate.connections) == (0, 0, 0)
    assert not gate.relay_sessions
    assert not gate.relay_callees
    assert not gate.connections_of


def _hello(which: int) -> bytes:
    """Of four calls' both sides, with a receipt or without."""
    session = bytes([which >> 2]) * relay_wire.SESSION_BYTES
    token = relay_wire.make_token(KEY, session, which & 1, int(time.time()) + 60)
    return relay_wire.hello(token, bool(which & 2))


def _guest(who: int, what: int, said: bytes = b"", more: int = 0) -> bytes:
    return bytes([who | what << 2 | more << 4]) + said + b"\n"


GUESTS = [
    _guest(0, COME)
    + _guest(1, COME)
    + _guest(0, SAY)
    + _guest(1, SAY, more=1)
    + _guest(0, SAY, b"hello")
    + _guest(1, LEAVE)
    + _guest(0, SWEEP),
    _guest(2, COME)
    + _guest(2, SAY, more=2)
    + _guest(3, COME)
    + _guest(3, SAY, b"KKRL\x02AAAA")
    + _guest(2, SAY, b"early")
    + _guest(3, SWEEP, more=1)
    + _guest(2, COME),
]


# A server that has a peer log in, and does not know the secret.


@functools.cache
def _certificate() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        load_identity(Path(folder))
        return ssl.PEM_cert_to_DER_cert(Path(folder, "cloud.crt").read_text())


class _Asked(link_module.Link):
    """``answers``: what the server says to each question."""

    answers: list[Any]

    def _ask(self, line: bytes, answer: str) -> Any:
        assert b"secret word" not in line
        return {"op": answer, "scram": self.answers.pop(0) if self.answers else None}


def fuzz_scram_client(data: bytes) -> None:
    link = _Asked(("192.0.2.1", 1), log, lambda *_: None, None, None)
    link.certificate = _certificate()
    link.answers = data.decode("latin-1").split("\n")
    try:
        link.login("alice", "secret word")
    except KKP2PError:
        assert link.closed.is_set()
        assert not link.takes_offers
        return
    raise AssertionError("a server that does not know the secret was believed")


CHALLENGES = [b"r=abc,s=QUJD,i=4096\nv=AAAA", b"r=" + b"x" * 24 + b",s=QQ==,i=16384\ne=other-error"]


# What answers a LAN search.


def fuzz_lan_search(data: bytes) -> None:
    question = lan_wire.Message(lan_wire.SEARCH, b"\0" * lan_wire.ID_BYTES, "bob", "{}")
    once = lan._Once("bob", log)
    wire = Wire()
    wire.heard.append((data[: lan_wire.SEARCH_BYTES + 1], ("192.0.2.1", 1)))
    answer = lan._take_answer(wire, question, str, once)
    if answer is not None:
        assert lan_wire.parse_untrusted(data)[:3] == (lan_wire.ANSWER, question.search_id, "bob")
        assert len(answer[0].encode()) <= lan_wire.MAX_TEXT_BYTES


LAN_ANSWERS = [
    lan_wire.encode(lan_wire.Message(lan_wire.ANSWER, bytes(lan_wire.ID_BYTES), "bob", "{}"))
]


# Where a track sends a call.


def fuzz_places(data: bytes) -> None:
    with contextlib.suppress(BadPacket, ValueError, RecursionError):
        told = json.loads(data)
        if not isinstance(told, dict):
            return
        place, others = told.get("relay"), told.get("relays")
        places, token = parse_places_untrusted(place, others, ("192.0.2.1", 3080))
        assert 1 <= len(places) <= MAX_SPOTS
        assert len(token) == relay_wire.TOKEN_BYTES
        for host, port in places:
            assert 0 < port < 65536
            assert host.isascii()
            assert host


_TOKEN = relay_wire.token_to_text(relay_wire.make_token(KEY, bytes(16), 0, 5))
PLACES = [
    json.dumps(
        {"relay": [None, None, _TOKEN], "relays": [["192.0.2.7", 1], ["a.example", 2]]}
    ).encode(),
    json.dumps({"relay": ["2001:db8::1", 9, _TOKEN]}).encode(),
]


# A peer that punches, and tells what it likes.  A piece: one byte (the time that passes, and
# whether sockets can be had), and what it tells, as JSON.

NATS = [
    NatBehaviour.parse_untrusted(fields)
    for fields in (
        None,
        {"mapping": "endpoint-independent", "filtering": "address-and-port-dependent"},
        {"mapping": "address-and-port-dependent", "allocation": "sequential", "step": 2},
        {"mapping": "address-and-port-dependent", "allocation": "random"},
    )
]
MAX_DATAGRAMS = 30_000  # of one call, whatever its peer tells: the sweeps of all rounds
MAX_TURNS = 3000


def fuzz_punch(data: bytes) -> None:
    if not data:
        return
    ours, theirs = NATS[data[0] & 3], NATS[data[0] >> 2 & 3]
    mine = [Candidate("host", 9, "192.168.1.2", 4001), Candidate("srflx", 5, "198.51.100.9", 4001)]
    other = [Candidate("srflx", 5, "203.0.113.9", 5001)]
    is_caller = bool(data[0] & 16)
    checks = Checks(
        controlling=is_caller,
        local=Credentials("AAAAAAAA", "B" * 24),
        remote=Credentials("CCCCCCCC", "D" * 24),
        local_candidates=mine,
        candidates=other,
        now=0.0,
        random=Random(1),
    )
    sides = Side(ours, mine), Side(theirs, other)
    plan = make_plan(*(sides if is_caller else sides[::-1]))
    punch = Punch(checks, plan, is_caller, ours, Random(2), 0.0)  # type: ignore[arg-type]
    run = _PunchRun(punch, checks)
    run.go()
    for how, text in _pieces(data[1:]):
        run.grants = how & 128 == 0
        run.wait((how & 63) / 16)
        with contextlib.suppress(BadPacket, ValueError, RecursionError):
            fields = json.loads(text)
            if isinstance(fields, dict):
                punch.handle_fields_untrusted(fields, run.now)
        run.go()
    for _ in range(MAX_TURNS):
        if not run.wait(None):
            break
    assert run.datagrams <= MAX_DATAGRAMS, run.datagrams


class _PunchRun:
    """What the puncher does, with a clock of its own."""

    def __init__(self, punch: Punch, checks: Checks) -> None:
        self.now = 0.0
        self.grants = True
        self.datagrams = 0
        self._punch = punch
        self._checks = checks
        self._open: dict[int, int] = {}
        self._numbers = 0

    def go(self) -> None:
        for _ in range(MAX_TURNS):
            action = self._punch.poll_action()
            if action is None:
                break
            self._do(action)
        else:
            raise AssertionError("actions without an end")
        while (transmit := self._checks.poll_transmit()) is not None:
            to = transmit[1]
            if len(to) == 2 or to[2] in self._open:  # else the endpoint drops it
                self.datagrams += 1

    def _do(self, action: Any) -> None:
        punch, now = self._punch, self.now
        if isinstance(action, Sample):
            ports = [6000 + number for number in range(action.sockets)] if self.grants else []
            punch.handle_sampled(action.round, ports, now)
        elif isinstance(action, Open):
            made = [
                (self._numbers + n, 7000 + n) for n in range(action.sockets if self.grants else 0)
            ]
            self._numbers += len(made)
            self._open.update(made)
            assert len(self._open) <= 1024
            punch.handle_opened(action.round, made, now)
        elif isinstance(action, Close):
            for number in action.numbers:
                self._open.pop(number, None)
        elif isinstance(action, Turn):
            punch.handle_turn(now)
        else:
            assert isinstance(action, Tell)
            json.dumps(action.fields)

    def wait(self, seconds: float | None) -> bool:
        """So long; or until something is due.  False: nothing is."""
        due = [
            time
            for time in (self._punch.next_timer(), self._checks.next_timer())
            if time is not None
        ]
        if seconds is None and not due:
            return False
        self.now = max(self.now, min(due) if seconds is None else self.now + seconds)
        self._checks.handle_timer(self.now)
        self._punch.handle_timer(self.now)
        self.go()
        return True


TRICKLES = [
    bytes([first])
    + b"\n"
    + b"\n".join(
        bytes([20]) + json.dumps(fields).encode()
        for fields in (
            {"predict": [1, 6000, 2]},
            {"spread": 256},
            {"predict": [2, 6010, 0]},
            {"spread": 1},
        )
    )
    for first in (0x06, 0x09, 0x0E, 0x16, 0x1E)  # NATs and roles; others take long
]
