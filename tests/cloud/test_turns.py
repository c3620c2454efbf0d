"""Whose call a callee is handed next, as the rules of cloud/turns.py have it."""

from __future__ import annotations

from random import Random

import pytest

from kkp2p_compat.cloud.settings import Limits
from kkp2p_compat.cloud.turns import Turns


class Call:
    def __init__(self, share: str, is_stranger: bool = True) -> None:
        self.share = share
        self.is_stranger = is_stranger
        self.shown = False

    def __repr__(self) -> str:
        return f"<{self.share}>"


def turns_of(at_once: int = 4, strangers: int = 12, unshown: int = 2) -> Turns[Call]:
    limits = Limits(
        calls_to_a_peer=at_once, strangers_to_a_peer=strangers, unshown_to_a_peer=unshown
    )
    return Turns(limits)


def hand_over(turns: Turns[Call]) -> list[str]:
    """All whose turn it is."""
    handed = []
    while (call := turns.next()) is not None:
        turns.hand(call)
        handed.append(call.share)
    return handed


def enter(turns: Turns[Call], shares: str, is_stranger: bool = True) -> list[Call]:
    calls = [Call(share, is_stranger) for share in shares]
    for call in calls:
        assert turns.loser_to(call) is None
        turns.enter(call)
    return calls


def test_a_few_strangers_are_trusted_and_the_others_must_show_that_they_are_there() -> None:
    turns = turns_of()
    calls = enter(turns, "abcd")
    assert hand_over(turns) == ["a", "b"]
    turns.show(calls[3])
    assert hand_over(turns) == ["d"]
    turns.answer(calls[0])
    assert hand_over(turns) == []  # an answer is the callee's doing, not the caller's
    turns.show(calls[0])
    assert hand_over(turns) == ["c"]
    for call in calls:
        turns.leave(call)
    assert not turns


def test_accounts_need_not_show_anything() -> None:
    turns = turns_of(unshown=0)
    enter(turns, "s")
    enter(turns, "aabb", is_stranger=False)
    assert sorted(hand_over(turns)) == ["a", "a", "b", "b"]


def test_of_one_share_so_many_are_with_the_callee_at_once() -> None:
    turns = turns_of()
    calls = enter(turns, "aaaaaa", is_stranger=False)
    assert hand_over(turns) == ["a"] * 4
    turns.answer(calls[0])
    turns.leave(calls[1])
    assert hand_over(turns) == ["a"] * 2


def test_who_has_the_fewest_is_next() -> None:
    turns = turns_of(unshown=0)
    for call in enter(turns, "aaabbc"):
        turns.show(call)
    assert hand_over(turns) == ["a", "b", "c", "a", "b", "a"]


def test_when_strangers_have_no_room_the_greediest_loses_its_newest() -> None:
    turns = turns_of()
    greedy = enter(turns, "a" * 10)
    enter(turns, "bb")
    again = Call("a")
    assert turns.loser_to(again) is again
    newcomer = Call("c")
    assert turns.loser_to(newcomer) is greedy[-1]
    turns.leave(greedy[-1])
    turns.enter(newcomer)
    assert turns.loser_to(Call("b")) is greedy[-2]
    assert turns.loser_to(Call("account x", is_stranger=False)) is None


def test_who_has_none_gets_in_even_if_nobody_has_two() -> None:
    turns = turns_of(strangers=3)
    first, second, _ = enter(turns, "abc")
    newcomer = Call("d")
    assert turns.loser_to(newcomer) is first
    turns.leave(first)
    turns.enter(newcomer)
    again = Call("d")
    assert turns.loser_to(again) is again  # no use in changing places with somebody who has one
    assert turns.loser_to(Call("e")) is second


def test_who_was_at_the_relay_loses_nothing_while_others_were_not() -> None:
    turns = turns_of(strangers=3)
    shown = enter(turns, "aa")
    for call in shown:
        turns.show(call)
    (other,) = enter(turns, "b")
    assert turns.loser_to(Call("c")) is other
    turns.show(other)
    assert turns.loser_to(Call("c")) is shown[1]
    hand_over(turns)
    assert turns.loser_to(Call("c")) is shown[1]


def test_what_was_handed_over_can_be_lost_too() -> None:
    turns = turns_of(strangers=2)
    calls = enter(turns, "aa")
    hand_over(turns)
    assert turns.loser_to(Call("b")) is calls[1]


@pytest.mark.parametrize("seed", range(20))
def test_the_bounds_hold_in_any_order(seed: int) -> None:
    random = Random(seed)
    turns = turns_of()
    known: list[Call] = []
    handed: set[Call] = set()
    answered: set[Call] = set()
    for _ in range(2000):
        is_stranger = random.random() < 0.8
        call = Call(random.choice("abcdef" if is_stranger else "gh"), is_stranger)
        loser = turns.loser_to(call)
        if loser is not None and loser is not call:
            known.remove(loser)
            turns.leave(loser)
        if loser is not call:
            turns.enter(call)
            known.append(call)
        one = random.choice(known)
        act = random.choice([turns.show, turns.answer, turns.leave])
        if act == turns.leave:
            known.remove(one)
        if act != turns.answer or one in handed:
            act(one)
            answered |= {one} if act == turns.answer else set()
        while (due := turns.next()) is not None:
            turns.hand(due)
            handed.add(due)
        with_callee = [call for call in known if call in handed and call not in answered]
        for share in "abcdefgh":
            assert sum(call.share == share for call in with_callee) <= 4
        strangers = [call for call in known if call.is_stranger and call not in answered]
        assert len(strangers) <= 12
        trusted = [c for c in known if c.is_stranger and c in handed and not c.shown]
        assert len(trusted) <= 2
    for call in known:
        turns.leave(call)
    assert not turns
