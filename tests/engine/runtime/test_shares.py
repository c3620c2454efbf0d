"""What one caller may have of the room for all."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from kkp2p_compat.engine.runtime.shares import Shares, share_of, stranger_at


def fill(shares: Shares, share: str, has_account: bool, most: int = 100) -> int:
    count = 0
    while shares.has_room(most, share, has_account):
        shares.enter(share)
        count += 1
    return count


def test_one_alone_gets_half_and_others_find_room() -> None:
    shares = Shares()
    assert [fill(shares, name, has_account=True) for name in ("a", "b", "c")] == [50, 25, 13]
    assert fill(shares, "a", has_account=True) == 0


def test_strangers_leave_room_for_callers_with_an_account() -> None:
    shares = Shares()
    strangers = [fill(shares, f"a stranger at {number}", has_account=False) for number in range(99)]
    assert strangers[0] == 38  # of the 75 that are theirs
    assert sum(strangers) == share_of(100, has_account=False)
    assert fill(shares, "alice", has_account=True) == 13  # of the 25 that are left


def test_room_is_given_back() -> None:
    shares = Shares()
    for _ in range(fill(shares, "a", has_account=True)):
        shares.leave("a")
    assert len(shares) == 0
    assert fill(shares, "b", has_account=True) == 50


def test_any_order_keeps_the_bound() -> None:
    dice, shares, held = random.Random(1), Shares(), Counter[str]()
    for _ in range(5000):
        name = dice.choice("abcdef")
        if dice.random() < 0.7:
            if shares.has_room(20, name, has_account=name < "d"):
                shares.enter(name)
                held[name] += 1
        elif held[name]:
            shares.leave(name)
            held[name] -= 1
        assert len(shares) == held.total() <= 20
        assert max(held.values(), default=0) <= 10


@pytest.mark.parametrize(
    ("ip", "share"),
    [
        ("203.0.113.7", "a stranger at 203.0.113.7"),
        ("::ffff:203.0.113.7", "a stranger at 203.0.113.7"),
        ("2001:db8:1:2:3:4:5:6", "a stranger at 2001:db8:1:2::/64"),
        ("fe80::1%eth0", "a stranger at fe80::/64"),
        ("no address", "a stranger"),
        (None, "a stranger"),
        ([], "a stranger"),
    ],
)
def test_an_address_and_what_one_host_may_have_for_itself_are_one_share(
    ip: object, share: str
) -> None:
    assert stranger_at(ip) == share
