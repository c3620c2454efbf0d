"""Peers of ``fleet_chaos.py``, many in one program: ``python -m benchmarks.fleet_chaos_ends``.

Each calls others at random times, and compares every byte that comes back; a call that fails is
made once more, a while later.  One line of JSON for each question, one for each answer.
"""

from __future__ import annotations

import random
import struct
import time
from collections import Counter
from itertools import count
from typing import Any, cast

import gevent

import kkp2p_compat as kkp2p

from .agents import serve_in_hub
from .chaos_ends import Book, Over, Watch, Wire, compare, pattern

PORT = 3080
CONNECT_MS = 15_000
RETRY_AFTER_S = 15.0  # the peers of a dead node are back by then
LOOK_MS = 1000
HEAD = struct.Struct("!QI")  # number, bytes
# Kinds of channels: connect_mode, encrypt_data.
KINDS = {"auto": (0, 0), "relay": (2, 0), "sealed": (2, 1)}
SIZES = {100: 10, 20_000: 10, 300_000: 4, 2_000_000: 1}  # weights


class Records:
    """As much of a Book as a Watch needs: calls that took too long, or gave a strange code."""

    def __init__(self) -> None:
        self.strange: list[dict[str, Any]] = []

    def put(self, **record: Any) -> None:
        self.strange.append(record)


class Crowd:
    def __init__(self) -> None:
        self.records = Records()
        self.watch = Watch(cast(Book, self.records))
        self.counts: Counter[str] = Counter()
        self.failures: list[dict[str, Any]] = []
        self.peers: list[Peer] = []
        self.resting = False

    def begin(self, login: str, secret: str, names: list[str]) -> dict[str, Any]:
        """Peers that are online, and answer."""
        self.peers = [Peer(self, name, login, secret) for name in names]
        for peer in self.peers:
            gevent.spawn(peer.answer_all)
        return {}

    def work(self, everybody: list[str], seed: int, pause_s: float) -> dict[str, Any]:
        for peer in self.peers:
            others = [name for name in everybody if name != peer.name]
            gevent.spawn(peer.call_on, others, random.Random(f"{seed} {peer.name}"), pause_s)
        return {}

    def rest(self) -> dict[str, Any]:
        """Begin no more calls; how many are still under way, and who is not online."""
        self.resting = True
        return {
            "working": sum(peer.working for peer in self.peers),
            "lost": [peer.name for peer in self.peers if not peer.is_online],
        }

    def report(self) -> dict[str, Any]:
        return {"counts": self.counts, "failures": self.failures, "strange": self.records.strange}

    def leave(self) -> dict[str, Any]:
        for peer in self.peers:
            kkp2p.engine_destroy(peer.engine)
        return {}


class Peer:
    def __init__(self, crowd: Crowd, name: str, login: str, secret: str) -> None:
        self.name = name
        self.working = 0
        self._crowd = crowd
        number = int("".join(filter(str.isdigit, name)))
        self._numbers = count(number * 10**9)
        conf = kkp2p.engine_conf_t(login, PORT, log_path=f"log-{name}", disable_upnp=1)
        engine = kkp2p.engine_init(conf, 5000)
        if engine is None:
            raise RuntimeError(f"no engine: {kkp2p.error_no()}")
        self.engine: Any = engine
        kkp2p.switch_log_level(engine, 3)
        if kkp2p.join_net(engine, name, secret) != 0:
            raise RuntimeError(f"{name} is not online: {kkp2p.error_no()}")

    @property
    def is_online(self) -> bool:
        return bool(self.engine.client.online)

    # Answering.

    def answer_all(self) -> None:
        channel = kkp2p.channel_t()
        while (got := kkp2p.accept(self.engine, LOOK_MS, channel)) >= 0:
            if got:
                gevent.spawn(self._echo, channel.fd)
                channel = kkp2p.channel_t()
        self._crowd.counts[f"accept gave {got}"] += 1

    def _echo(self, fd: int) -> None:
        wire, record = Wire(self._crowd.watch, fd), {"right": 0, "wrong": 0}
        good = False
        try:
            head = b""
            while len(head) < HEAD.size:
                head += wire.take(HEAD.size - len(head))
            number, size = HEAD.unpack(head)
            compare(wire, pattern(number, "up", size), record)
            wire.give(pattern(number, "down", size))
            good = True
        except Over as over:
            self._crowd.counts[f"answered: {over}"] += 1
        finally:
            self._crowd.counts["wrong"] += record["wrong"]
            wire.close(good)

    # Calling.

    def call_on(self, others: list[str], rng: random.Random, pause_s: float) -> None:
        while not self._crowd.resting:
            gevent.sleep(rng.expovariate(1 / pause_s))
            if not self._crowd.resting:
                self.working += 1
                try:
                    self._call(rng.choice(others), rng)
                finally:
                    self.working -= 1

    def _call(self, to: str, rng: random.Random) -> None:
        counts, kind = self._crowd.counts, rng.choice(list(KINDS))
        size = rng.choices(list(SIZES), list(SIZES.values()))[0]
        counts["calls"] += 1
        channel = self._connect(kind, to, "first")
        if channel is None:
            gevent.sleep(RETRY_AFTER_S)
            channel = self._connect(kind, to, "retry")
        if channel is None:
            return
        how = "direct" if channel.transmit_mode == 1 else kind
        counts[f"transfers {how}"] += 1
        record = {"right": 0, "wrong": 0}
        wire, number = Wire(self._crowd.watch, channel.fd), next(self._numbers)
        good = False
        try:
            wire.give(HEAD.pack(number, size) + pattern(number, "up", size))
            compare(wire, pattern(number, "down", size), record)
            good = True
        except Over as over:
            counts[f"ended early {how}"] += 1
            self._note(kind, to, f"{how}: {over}")
        finally:
            counts["wrong"] += record["wrong"]
            counts["right"] += record["right"]
            wire.close(good)

    def _connect(self, kind: str, to: str, which: str) -> kkp2p.channel_t | None:
        mode, encrypt = KINDS[kind]
        ctx = kkp2p.connect_ctx_t(to, connect_mode=mode, encrypt_data=encrypt, timeout=CONNECT_MS)
        channel = kkp2p.channel_t()
        result = kkp2p.connect(self.engine, ctx, channel)
        if result == 0:
            return channel
        self._crowd.counts[f"failed {which}"] += 1
        self._note(kind, to, f"{which}: {result}")
        return None

    def _note(self, kind: str, to: str, why: str) -> None:
        self._crowd.failures.append(
            {"at": time.monotonic(), "by": self.name, "to": to, "kind": kind, "why": why}
        )


if __name__ == "__main__":
    serve_in_hub(Crowd())
