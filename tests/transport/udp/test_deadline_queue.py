"""The heap of deadlines against a slow and obvious version."""

from __future__ import annotations

import gc
import math
import random
import weakref

import pytest

from kkp2p_compat.transport.udp.deadline_queue import SPARE_ENTRIES, DeadlineQueue


@pytest.mark.parametrize("seed", range(20))
def test_as_a_plain_dict(seed: int) -> None:
    dice = random.Random(seed)
    ours: DeadlineQueue[int] = DeadlineQueue()
    slow: dict[int, float] = {}
    now = 0.0
    for _ in range(500):
        item = dice.randrange(6)
        match dice.randrange(4):
            case 0:
                ours.remove(item)
                slow.pop(item, None)
            case 1:
                now += dice.choice((0.0, 0.5, 3.0))
                due = {item for item, at in slow.items() if at <= now}
                assert ours.earliest() <= min(slow.values(), default=math.inf)
                popped = []
                while (found := ours.pop_due(now)) is not None:
                    popped.append(found)
                    slow[found] = math.inf
                assert sorted(popped) == sorted(due), f"seed {seed}"
                assert ours.earliest() > now
            case _:
                at = math.inf if dice.randrange(5) == 0 else now + dice.uniform(-1, 5)
                ours.set(item, at)
                slow[item] = at


def test_the_earliest_first() -> None:
    ours: DeadlineQueue[str] = DeadlineQueue()
    for item, at in ("c", 3.0), ("a", 1.0), ("b", 2.0), ("d", 4.0):
        ours.set(item, at)
    assert [ours.pop_due(3.5) for _ in range(4)] == ["a", "b", "c", None]
    assert ours.earliest() == 4.0


def test_replaced_entries_are_bounded() -> None:
    """A far deadline, a near one, and again: each near one is pushed, each far one replaced."""
    ours: DeadlineQueue[str] = DeadlineQueue()
    for now in range(10_000):
        ours.set("a", now + 100_000.0)
        ours.set("a", now + 1.0)
        assert ours.pop_due(now + 1.0) == "a"
        assert len(ours._heap) <= SPARE_ENTRIES + 4


def test_a_removed_item_is_not_kept() -> None:
    class Item:
        pass

    ours: DeadlineQueue[Item] = DeadlineQueue()
    item = Item()
    gone = weakref.ref(item)
    ours.set(item, 5.0)
    ours.set(item, 1.0)
    ours.remove(item)
    del item
    gc.collect()
    assert gone() is None
    assert ours.pop_due(9.0) is None
    assert ours.earliest() == math.inf
