"""Lives of connections drawn by lot: many channels while the path changes, darkens and moves.

A seed gives the whole life.  Whatever happens, every transfer that nobody gave up arrives byte for
byte; what was given up ends with its reason; in the end nothing is left.
"""

from __future__ import annotations

from functools import partial
from random import Random

import pytest

from helpers.sim.pair import Pair, Transfer, mbit_per_s
from helpers.sim.simnet import Conditions, Link

SEEDS = range(24)
LIFE_S = 20.0


def _conditions(random: Random) -> Conditions:
    often = [0.0, 0.0, 0.0]
    return Conditions(
        rate_bytes_per_s=mbit_per_s(random.choice([1, 5, 20, 200])),
        queue_bytes=random.choice([5_000, 50_000, 500_000]),
        delay_s=random.choice([0.0005, 0.01, 0.05, 0.2]),
        jitter_s=random.choice([*often, 0.02]),
        reorder=random.choice([*often, 0.1, 0.5]),
        reorder_s=random.choice([0.002, 0.04]),
        loss=random.choice([*often, 0.01, 0.1]),
        burst_enter=random.choice([*often, 0.002]),
        burst_leave=random.choice([0.05, 0.3]),
        duplicate=random.choice([*often, 0.1]),
        corrupt=random.choice([*often, 0.02]),
        mtu_bytes=random.choice([1228, 1280, 1400, 1500, 1500, 1500]),
    )


class Life:
    def __init__(self, seed: int) -> None:
        self.random = random = Random(f"life {seed}")
        self.pair = pair = Pair(
            seed,
            _conditions(random),
            _conditions(random),
            wake_s=random.choice([0.0, 0.00025, 0.005]),
            congestion=random.choice(["bbr", "bbr", "cubic"]),
        )
        self.transfers: list[Transfer] = []
        self.given_up: set[int] = set()
        for _ in range(random.randrange(1, 12)):
            self._at_some_time(self._start)
        for link in (pair.there, pair.back):
            for _ in range(random.randrange(4)):
                self._at_some_time(partial(self._change, link))
            for _ in range(random.randrange(3)):
                start = pair.network.now + random.uniform(0, LIFE_S)
                link.blackout(start, start + random.choice([0.05, 0.5, 4]))
        for _ in range(random.choice([0, 0, 1, 2])):
            self._at_some_time(self._move)
        for _ in range(random.choice([0, 0, 2])):
            self._at_some_time(partial(self._give_up, random.choice(["reset", "stop"])))

    def _at_some_time(self, action: partial[None] | object) -> None:
        assert callable(action)
        self.pair.network.after(self.random.choice([0, self.random.uniform(0, LIFE_S)]), action)

    def _start(self) -> None:
        random, pair = self.random, self.pair
        slow = {"take_bytes": random.choice([500, 20_000]), "every_s": 0.05}
        pair.reading = random.choice([{}, {}, slow])
        sizes = [random.choice([0, 1, 500, 5_000, 80_000, 300_000]) for _ in "ud"]
        if pair.reading:
            sizes[0] //= 10
        self.transfers.append(pair.start(*sizes))

    def _change(self, link: Link) -> None:
        link.change(**vars(_conditions(self.random)))

    def _move(self) -> None:
        self.pair.caller.move(("192.0.2.50", self.random.randrange(1024, 65536)))

    def _give_up(self, how: str) -> None:
        """The caller gives up what it sends; or the callee, what it would read."""
        open_ = [
            transfer
            for transfer in self.transfers
            if not transfer.done and transfer.stream_id in self.pair.callee.incoming
        ]
        if not open_:
            return
        stream_id = self.random.choice(open_).stream_id
        peer = self.pair.caller if how == "reset" else self.pair.callee
        if how == "reset":
            peer.outgoing.pop(stream_id, None)
            peer.connection.streams.reset(stream_id, 5)
        else:
            peer.incoming.pop(stream_id, None)
            peer.connection.streams.stop(stream_id)
        self.given_up.add(stream_id)
        peer.drive()

    def over(self) -> bool:
        """Whether each transfer has come to its end, on both sides."""
        for transfer in self.transfers:
            callee = transfer.at_callee
            given_up = transfer.stream_id in self.given_up
            if not transfer.at_caller.done:
                return False
            if not given_up and not callee.done:
                return False
            if given_up and self.pair.caller.connection.streams.by_id.get(transfer.stream_id):
                return False
        return True


@pytest.mark.parametrize("seed", SEEDS)
def test_a_life_drawn_by_lot(seed: int) -> None:
    life = Life(seed)
    pair = life.pair
    pair.run(None, LIFE_S)
    assert pair.caller.closed is None
    assert pair.callee.closed is None
    pair.run(life.over, 120)
    pair.run(
        lambda: (
            not pair.caller.connection.streams.by_id and not pair.callee.connection.streams.by_id
        )
    )
    pair.finish()


def test_the_same_seed_gives_the_same_life() -> None:
    ends = []
    for _ in range(2):
        life = Life(7)
        pair = life.pair
        pair.run(None, LIFE_S)
        pair.run(life.over, 120)
        ends.append((pair.network.now, pair.network.events, pair.there.counts, pair.back.counts))
    assert ends[0] == ends[1]
