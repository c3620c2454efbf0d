"""The calls of a track, whatever comes in whatever order: none is left behind, none is lost."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from helpers.usage_support import make_usage
from kkp2p_compat._errors import BadPacket
from kkp2p_compat.cloud import calls as calls_module
from kkp2p_compat.cloud.calls import Calls
from kkp2p_compat.cloud.counting import address_keys
from kkp2p_compat.cloud.limits import Gatekeeper
from kkp2p_compat.cloud.members import Call, Member
from kkp2p_compat.cloud.relays import Relays
from kkp2p_compat.cloud.settings import Limits

LIMITS = Limits(
    calls_per_s=1e9,
    open_calls=6,
    open_calls_per_address=8,
    kept_calls=4,
    kept_calls_per_address=5,
    limit_loopback=True,
)
KEY = b"k" * 32
PEERS = ("a", "b", "c", "d")


class FakeConnection:
    """What a Member asks of one."""

    is_new = False

    def __init__(self, host: str) -> None:
        self.host = host
        self.room = True
        self.sent: list[dict[str, Any]] = []

    def has_room(self, line: bytes) -> bool:
        return self.room

    def send(self, line: bytes) -> None:
        self.sent.append(json.loads(line))


class World:
    def __init__(self, seed: int, clock: SimpleNamespace) -> None:
        self.random = Random(seed)
        self.clock = clock
        self.gate = Gatekeeper(LIMITS)
        self.online: dict[str, Any] = {}
        self.made = 0
        relays = Relays(KEY, make_usage(KEY))
        self.calls = Calls(self.gate, self.online, relays, KEY)

    def step(self) -> None:
        dice = self.random
        acts: list[Callable[[], None]] = [
            self._come,
            self._go,
            self._call,
            self._call,
            self._answer,
            self._answer,
            self._end,
            self._sweep,
            self._slow,
        ]
        dice.choice(acts)()
        self.check()

    def check(self) -> None:
        """Every call is in all of its places."""
        everybody = list(self.online.values())
        outgoing = [call for one in everybody for call in one.outgoing.values()]
        kept = [call for one in everybody for call in one.kept.values()]
        for places in (outgoing + kept, self.incoming()):
            assert len(places) == len(self.calls)
            assert set(places) == set(self.incoming())
        assert not any(call.answered for call in outgoing)
        assert all(call.answered for call in kept)
        for tally, calls in ((self.gate.open_calls, outgoing), (self.gate.kept_calls, kept)):
            for width in range(2):
                keys = Counter(address_keys(call.caller.host)[width] for call in calls)
                assert {key: tally.counts[key] for key in keys} == keys
            assert tally.counts.total() == 2 * len(calls)
        assert all(len(one.outgoing) <= LIMITS.open_calls for one in everybody)
        assert all(len(one.kept) <= LIMITS.kept_calls for one in everybody)
        assert all(
            count <= LIMITS.kept_calls_per_address * (4 if "/" in key else 1)
            for key, count in self.gate.kept_calls.counts.items()
        )

        assert self.gate.counts.calls.total() + len(outgoing) == self.made

    def incoming(self) -> list[Call]:
        return [call for one in self.online.values() for call in one.incoming.values()]

    def _handle(self, op: str, sender: Any, **fields: Any) -> None:
        self.calls.handlers[op](sender, {"op": op, **fields})

    def _one(self) -> Any:
        return self.random.choice(list(self.online.values()))

    def _come(self) -> None:
        absent = [peer for peer in PEERS if peer not in self.online]
        if absent:
            peer = self.random.choice(absent)
            connection: Any = FakeConnection(f"192.0.2.{len(peer) + (peer > 'b')}")
            self.online[peer] = Member(connection, LIMITS)
            self.online[peer].peer_id = peer

    def _go(self) -> None:
        if self.online and self.random.random() < 0.3:
            self.calls.gone(self.online.pop(self._one().peer_id))

    def _call(self) -> None:
        if not self.online:
            return
        caller, number = self._one(), self.random.randrange(12)
        fields = {"to": self.random.choice(PEERS), "ms": self.random.choice([1, 2500, 60_000])}
        if number in caller.outgoing:
            with pytest.raises(BadPacket, match="in use"):
                self._handle("call", caller, call=number, offer="", **fields)
        else:
            self.made += 1
            self._handle("call", caller, call=number, offer="", **fields)

    def _answer(self) -> None:
        known = self.incoming()
        if known:
            call = self.random.choice(known)
            op = self.random.choice(["answer", "answer", "answer", "decline", "trickle"])
            more = {"answer": {"answer": ""}, "decline": {"reason": ""}, "trickle": {"text": ""}}
            self._handle(op, call.callee, call=call.id, **more[op])

    def _end(self) -> None:
        if self.online:
            op = self.random.choice(["over", "cancel"])
            self._handle(op, self._one(), call=self.random.randrange(12))

    def _sweep(self) -> None:
        self.clock.now += self.random.random() * 3
        self.calls.sweep(self.clock.now)

    def _slow(self) -> None:
        if self.online:
            connection = self._one().connection
            connection.room = not connection.room


@pytest.mark.parametrize("seed", range(20))
def test_any_order(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=1000.0, time=lambda: 1e9)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(calls_module, "time", clock)
    world = World(seed, clock)
    for _ in range(600):
        world.step()
    clock.now += 62
    world.calls.sweep(clock.now)
    world.check()
    assert len(world.calls) == 0
    assert not world.gate.open_calls
    assert not world.gate.kept_calls
