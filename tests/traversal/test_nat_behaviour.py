"""The words for what a NAT does: for people, in JSON, and from samples."""

from __future__ import annotations

import json
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kkp2p_compat._errors import BadPacket
from kkp2p_compat.traversal.nat import BLOCKED, MAX_STEP, UNKNOWN, NatBehaviour, judge_allocation

WORDS = ["endpoint-independent", "address-dependent", "address-and-port-dependent", "unknown"]
STEPS = st.integers(-MAX_STEP, MAX_STEP).filter(bool)
BEHAVIOURS = st.one_of(
    st.builds(
        NatBehaviour,
        st.sampled_from(["none", "blocked", *WORDS]),
        st.sampled_from(WORDS),
        st.sampled_from(["preserved", "random", "unknown"]),
        hairpin=st.none() | st.booleans(),
    ),
    st.builds(
        NatBehaviour, st.sampled_from(WORDS), st.sampled_from(WORDS), st.just("sequential"), STEPS
    ),
)


@given(BEHAVIOURS)
def test_round_trip(behaviour: NatBehaviour) -> None:
    text = json.dumps(behaviour.fields())
    assert NatBehaviour.parse_untrusted(json.loads(text)) == behaviour
    assert len(text) <= 200


def test_nothing_told() -> None:
    assert NatBehaviour.parse_untrusted(None) == NatBehaviour.parse_untrusted({}) == UNKNOWN
    assert UNKNOWN.fields() == {}
    assert BLOCKED.fields() == {"mapping": "blocked"}


@pytest.mark.parametrize(
    "told",
    [
        "symmetric",
        [],
        7,
        True,
        {"mapping": 1},
        {"filtering": None},
        {"allocation": ["random"]},
        {"allocation": "sequential"},
        {"allocation": "sequential", "step": 0},
        {"allocation": "sequential", "step": 65},
        {"allocation": "sequential", "step": -65},
        {"allocation": "sequential", "step": 1.0},
        {"allocation": "sequential", "step": True},
        {"allocation": "sequential", "step": 10**400},
        {"allocation": "random", "step": 1},
        {"step": 1},
        {"hairpin": 1},
        {"hairpin": "yes"},
        {"step": None},
    ],
)
def test_malformed(told: object) -> None:
    with pytest.raises(BadPacket):
        NatBehaviour.parse_untrusted(told)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)
FIELDS = st.dictionaries(
    st.sampled_from(["mapping", "filtering", "allocation", "step", "hairpin", "x"]),
    JSON | st.sampled_from([*WORDS, "sequential", 1, -3]),
)


@given(JSON | FIELDS)
def test_anything(told: object) -> None:
    try:
        behaviour = NatBehaviour.parse_untrusted(told)
    except BadPacket:
        return
    assert NatBehaviour.parse_untrusted(behaviour.fields()) == behaviour
    assert len(behaviour.text) < 150


def test_words_of_a_later_version() -> None:
    told = {"mapping": "quantum", "filtering": "quantum", "allocation": "quantum", "more": 1}
    assert NatBehaviour.parse_untrusted(told) == UNKNOWN
    assert NatBehaviour.parse_untrusted({**told, "step": 7}) == UNKNOWN


@pytest.mark.parametrize(
    ("behaviour", "text"),
    [
        (
            NatBehaviour("address-and-port-dependent", "address-dependent", "sequential", 1),
            "symmetric, sequential ports (+1), address-dependent filtering",
        ),
        (
            NatBehaviour("endpoint-independent", "endpoint-independent", "preserved", 0, True),
            "endpoint-independent mapping, preserved ports, endpoint-independent filtering, "
            "hairpin",
        ),
        (
            NatBehaviour("address-dependent", "unknown", "sequential", -2, False),
            "address-dependent mapping, sequential ports (-2), unknown filtering, no hairpin",
        ),
        (
            NatBehaviour("none", "address-dependent", "preserved"),
            "no NAT, address-dependent filtering",
        ),
        (BLOCKED, "UDP is blocked"),
        (UNKNOWN, "unknown mapping, unknown filtering"),
    ],
)
def test_for_people(behaviour: NatBehaviour, text: str) -> None:
    assert behaviour.text == text


def test_symmetric() -> None:
    symmetric = {word for word in [*WORDS, "none", "blocked"] if NatBehaviour(word).symmetric}
    assert symmetric == {"address-dependent", "address-and-port-dependent"}


@pytest.mark.parametrize(
    ("ours", "outside", "verdict"),
    [
        ([5, 6, 7, 8], [5, 6, 7, 8], ("preserved", 0)),
        ([5, 6, 7, 8], [5, 6, 7, 1024], ("preserved", 0)),  # one port was taken
        ([9, 9, 9, 9], [40, 41, 42, 43], ("sequential", 1)),
        ([9, 9, 9, 9], [43, 41, 39, 37], ("sequential", -2)),
        ([9, 9, 9, 9], [40, 46, 48, 50], ("sequential", 2)),  # somebody else took two
        ([9, 9, 9, 9], [65534, 65535, 1024, 1025], ("sequential", 1)),  # round the end
        ([9, 9, 9, 9], [40, 42, 41, 43], ("sequential", 1)),  # one overtook another
        ([9, 9, 9, 9], [40, 41, 500, 501], ("sequential", 1)),
        ([9, 9, 9, 9], [40, 4000, 50, 51], ("random", 0)),
        ([9, 9, 9], [40, 41, 42], ("sequential", 1)),
        ([9, 9, 9], [40, 41, 4200], ("random", 0)),
        ([9, 9, 9, 9], [40, 40, 40, 40], ("random", 0)),
        ([9, 9], [40, 41], ("unknown", 0)),
        ([9], [9], ("unknown", 0)),
        ([], [], ("unknown", 0)),
    ],
)
def test_allocation(ours: list[int], outside: list[int], verdict: tuple[str, int]) -> None:
    assert judge_allocation(list(zip(ours, outside, strict=True))) == verdict


def test_random_ports_look_random() -> None:
    random = Random(3)
    verdicts = [
        judge_allocation([(9, random.randint(1024, 65535)) for _ in range(4)])[0]
        for _ in range(5000)
    ]
    assert set(verdicts) == {"random"}
