"""One side's part of a plan: what it asks for, what it tells, and what it does not believe."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kkp2p_compat._errors import BadPacket
from kkp2p_compat.traversal.candidates import Candidate
from kkp2p_compat.traversal.checks import Checks, Credentials
from kkp2p_compat.traversal.guesses import LOW_TTL, MAX_PREDICTED
from kkp2p_compat.traversal.nat import NatBehaviour
from kkp2p_compat.traversal.plan import Plan
from kkp2p_compat.traversal.punch import (
    AIMED,
    MAX_ROUNDS,
    ROUND_S,
    Close,
    Open,
    Punch,
    Sample,
    Tell,
    Turn,
)

EIM, APDM = "endpoint-independent", "address-and-port-dependent"
STEADY = NatBehaviour(EIM, APDM, "preserved")
SEQUENTIAL = NatBehaviour(APDM, APDM, "sequential", 3)
RANDOM = NatBehaviour(APDM, APDM, "random")
PEER = "203.0.113.2"
START = 10.0


class Case:
    """We call; ``does``: our part and the peer's."""

    def __init__(self, nat: NatBehaviour, does: tuple[str, str], **plan: Any) -> None:
        dice = random.Random(1)
        ours = [Candidate("host", 9, "10.0.0.1", 4000), Candidate("srflx", 5, "203.0.113.1", 4000)]
        theirs = [Candidate("host", 9, "10.0.1.1", 4000), Candidate("srflx", 5, PEER, 4000)]
        self.checks = Checks(
            controlling=True,
            local=Credentials.make(dice),
            remote=Credentials.make(dice),
            local_candidates=ours,
            candidates=theirs,
            now=START,
            random=dice,
        )
        self.punch = Punch(self.checks, Plan("predict", "", *does, **plan), True, nat, dice, START)

    def actions(self) -> list[object]:
        found = []
        while (action := self.punch.poll_action()) is not None:
            found.append(action)
        return found

    def probes(self, until: float) -> list[Any]:
        """Where guesses went, and how far they may go."""
        found = []
        guesses = self.checks.guesses
        while guesses.next_at() <= until:
            now = guesses.next_at()
            while (guess := guesses.poll(now)) is not None:
                found.append(guess)
        return found


def test_a_side_that_predicts() -> None:
    case = Case(SEQUENTIAL, ("predict", "aim"))
    assert case.actions() == [Sample(3, 1)]
    case.punch.handle_sampled(1, [20000, 20003, 20006], START + 0.1)
    assert case.actions() == [Open(1, 1)]
    case.punch.handle_opened(1, [(5, 41000)], START + 0.1)
    assert case.actions() == [Tell({"predict": [1, 20006, 3]})]
    assert case.probes(START + 9) == [((PEER, 4000, 5), LOW_TTL), ((PEER, 4000, 5), None)]


def test_samples_that_overtook_each_other() -> None:
    case = Case(SEQUENTIAL, ("predict", "aim"))
    case.punch.handle_sampled(1, [20000, 20006, 20003], START)
    case.punch.handle_opened(1, [(5, 41000)], START)
    assert case.actions()[-1] == Tell({"predict": [1, 20006, 3]})
    case = Case(SEQUENTIAL, ("predict", "aim"))
    case.punch.handle_sampled(1, [65531, 65534, 1025], START)
    case.punch.handle_opened(1, [(5, 41000)], START)
    assert case.actions()[-1] == Tell({"predict": [1, 1025, 3]})


def test_a_nat_that_is_not_known_yet() -> None:
    """The sample tells; where it shows no step, nothing is told."""
    unknown = NatBehaviour(APDM, APDM)
    for ports, told in (
        ([20000, 20002, 20006], [1, 20006, 2]),
        ([20006, 20004, 20002], [1, 20002, -2]),
        ([20000, 50002, 30006], None),
        ([20000], None),
    ):
        case = Case(unknown, ("predict", "aim"))
        case.punch.handle_sampled(1, ports, START)
        assert (Open(1, 1) in case.actions()) == (told is not None)
        if told:
            case.punch.handle_opened(1, [(5, 41000)], START)
            assert case.actions() == [Tell({"predict": told})]


def test_a_nat_that_preserves_needs_no_sample() -> None:
    case = Case(NatBehaviour(APDM, APDM, "preserved"), ("predict", "aim"))
    assert case.actions() == [Open(1, 1)]
    case.punch.handle_opened(1, [(5, 41000)], START)
    assert case.actions() == [Tell({"predict": [1, 40999, 1]})]


def test_a_side_that_aims() -> None:
    case = Case(STEADY, ("aim", "predict"))
    assert case.actions() == []
    assert case.punch.next_timer() is None
    case.punch.handle_fields_untrusted({"predict": [1, 65530, 3]}, START + 1)
    probes = case.probes(START + 9)
    assert probes[:4] == [
        ((PEER, 65533), None),
        ((PEER, 1024), None),
        ((PEER, 1027), None),
        ((PEER, 1030), None),
    ]
    assert len(probes) == 2 * AIMED[0]


def test_both_aim_when_both_have_told() -> None:
    case = Case(SEQUENTIAL, ("predict+aim", "predict+aim"), stride=2)
    case.actions()
    case.punch.handle_fields_untrusted({"predict": [1, 30000, -2]}, START)
    case.punch.handle_sampled(1, [20000], START)
    assert case.probes(START + 9) == []
    case.punch.handle_opened(1, [(5, 41000)], START)
    probes = case.probes(START + 9)
    assert probes[:3] == [((PEER, port, 5), None) for port in (29998, 29994, 29990)]


def test_rounds_go_on_until_there_are_enough() -> None:
    case = Case(SEQUENTIAL, ("predict", "aim"))
    closed: list[int] = []
    now = START
    for number in range(1, MAX_ROUNDS + 1):
        actions = case.actions()
        closed += [each for action in actions if isinstance(action, Close) for each in action[0]]
        assert actions[-1] == Sample(3, number)
        case.punch.handle_sampled(number, [20000], now)
        case.punch.handle_opened(number, [(number, 41000)], now)
        case.actions()
        due = case.punch.next_timer()
        assert due is not None
        assert due > now + ROUND_S
        now = due
        case.punch.handle_timer(now)
    assert case.actions() == []
    assert case.punch.next_timer() is None
    assert closed == list(range(1, MAX_ROUNDS - 1))


def test_no_sample_and_no_socket() -> None:
    """The next round tries again."""
    case = Case(SEQUENTIAL, ("predict", "aim"))
    case.actions()
    case.punch.handle_sampled(1, [], START)
    assert case.actions() == []
    case.punch.handle_timer(START + ROUND_S)
    assert case.actions() == [Sample(3, 2)]
    case.punch.handle_sampled(2, [20000], START + ROUND_S)
    assert case.actions() == [Open(1, 2)]
    case.punch.handle_opened(2, [], START + ROUND_S)
    assert case.actions() == []
    case.punch.handle_timer(START + 3 * ROUND_S)
    assert case.actions() == [Sample(3, 3)]


def test_the_peer_is_a_round_ahead() -> None:
    """What was asked for in the round before is not taken for the new one."""
    case = Case(SEQUENTIAL, ("predict+aim", "predict+aim"))
    case.actions()
    case.punch.handle_fields_untrusted({"predict": [2, 30000, 1]}, START)
    assert case.actions() == [Sample(3, 2)]
    case.punch.handle_sampled(1, [20000], START)
    assert case.actions() == []
    case.punch.handle_opened(1, [(4, 41000)], START)
    assert case.actions() == [Close((4,))]
    case.punch.handle_sampled(2, [20010], START)
    case.punch.handle_opened(2, [(5, 41000)], START)
    assert case.actions() == [Open(1, 2), Tell({"predict": [2, 20010, 3]})]
    assert len(case.probes(START + 9)) == 2 * AIMED[0]


def test_patience() -> None:
    case = Case(SEQUENTIAL, ("predict", "aim"), patience_s=0.5)
    assert case.actions() == []
    assert case.punch.next_timer() == START + 0.5
    case.punch.handle_timer(START + 0.5)
    assert case.actions() == [Sample(3, 1)]


def test_a_birthday() -> None:
    case = Case(RANDOM, ("spread", "sweep"))
    assert case.actions() == [Turn("")]
    case.punch.handle_turn(START)
    assert case.actions() == [Open(256, 0)]
    case.punch.handle_opened(0, [(number, 41000) for number in range(1, 101)], START)
    assert case.actions() == [Tell({"spread": 100})]
    probes = case.probes(START + 3)
    assert probes == [((PEER, 4000, number), LOW_TTL) for number in range(1, 101)]
    assert len(case.probes(START + 99)) == 100

    case = Case(STEADY, ("sweep", "spread"))
    assert case.actions() == []
    case.punch.handle_fields_untrusted({"spread": 100}, START)
    assert case.actions() == [Turn(PEER)]
    case.punch.handle_turn(START)
    swept = case.probes(START + 99)
    assert len(swept) == len(set(swept)) == 2000
    assert {address[0] for address, _ in swept} == {PEER}


@pytest.mark.parametrize("part", ["check", "aim", "predict", "spread", "sweep", "predict+aim"])
@pytest.mark.parametrize(
    "told",
    [
        None,
        1,
        "x",
        [],
        [1],
        [1, 2],
        [1, 2, 3, 4],
        [0, 2000, 1],
        [MAX_ROUNDS + 1, 2000, 1],
        [1, 0, 1],
        [1, 65536, 1],
        [1, 2000, 0],
        [1, 2000, 65],
        [1, 2000, -65],
        [1.0, 2000, 1],
        [True, 2000, 1],
        ["1", 2000, 1],
        {"1": 2},
    ],
)
def test_predictions_that_are_none(told: object, part: str) -> None:
    case = Case(STEADY, (part, "predict"))
    case.actions()
    with pytest.raises(BadPacket):
        case.punch.handle_fields_untrusted({"predict": told}, START)
    assert case.actions() == []
    assert case.probes(START + 99) == []


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@given(st.lists(st.dictionaries(st.sampled_from(["predict", "spread", "n"]), ANY_JSON), max_size=9))
def test_any_fields(told: list[dict[str, object]]) -> None:
    for mine, theirs in (("aim", "predict"), ("predict+aim", "predict+aim"), ("sweep", "spread")):
        case = Case(SEQUENTIAL, (mine, theirs))
        for fields in told:
            try:
                case.punch.handle_fields_untrusted(fields, START)
            except BadPacket:
                continue
        assert len(case.probes(START + 999)) <= MAX_PREDICTED
        assert len(case.actions()) <= 3 + 2 * len(told)


@pytest.mark.parametrize("theirs", ["check", "aim", "spread", "sweep"])
def test_what_the_plan_does_not_have(theirs: str) -> None:
    mine = {"check": "check", "aim": "predict", "spread": "check", "sweep": "spread"}[theirs]
    case = Case(SEQUENTIAL, (mine, theirs))
    case.actions()
    with pytest.raises(BadPacket):
        case.punch.handle_fields_untrusted({"predict": [1, 2000, 1]}, START)
    with pytest.raises(BadPacket):
        case.punch.handle_fields_untrusted({"spread": 256}, START)
    case.punch.handle_fields_untrusted({"candidates": []}, START)
    assert case.actions() == []
    assert case.probes(START + 99) == []


def test_a_peer_that_tells_again_and_again() -> None:
    case = Case(STEADY, ("aim", "predict"))
    for number in range(1, MAX_ROUNDS + 1):
        case.punch.handle_fields_untrusted({"predict": [number, 2000, 1]}, START)
        with pytest.raises(BadPacket):
            case.punch.handle_fields_untrusted({"predict": [number, 3000, 1]}, START)
    aimed = sum(AIMED) + (MAX_ROUNDS - len(AIMED)) * AIMED[-1]
    assert len(case.probes(START + 999)) == 2 * aimed <= MAX_PREDICTED
    case = Case(STEADY, ("sweep", "spread"))
    case.punch.handle_fields_untrusted({"spread": 256}, START)
    for _ in range(3):
        with pytest.raises(BadPacket):
            case.punch.handle_fields_untrusted({"spread": 256}, START)
    assert case.actions() == [Turn(PEER)]


def test_nothing_more_when_a_path_answers() -> None:
    case = Case(SEQUENTIAL, ("predict", "aim"))
    case.checks.guesses.stop()
    assert case.actions() == []
    assert case.punch.next_timer() is None
    case.punch.handle_timer(START + 99)
    assert case.actions() == []


def test_a_peer_without_an_outside_address() -> None:
    for does in (("aim", "predict"), ("sweep", "spread")):
        case = Case(STEADY, does)
        case.checks._listed.clear()
        case.punch.handle_fields_untrusted(
            {"predict": [1, 2000, 1]} if does[0] == "aim" else {"spread": 1}, START
        )
        case.punch.handle_turn(START)
        assert case.probes(START + 99) == []
