"""The "direct" part of an offer or answer, and the keys of a call; what strangers send instead."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest

import kkp2p_compat as kkp2p
from kkp2p_compat._errors import BadPacket, NotSupported
from kkp2p_compat.engine.signalling import direct_offer
from kkp2p_compat.engine.signalling.direct_offer import DirectOffer
from kkp2p_compat.engine.signalling.keys import CallKeys
from kkp2p_compat.engine.signalling.offer import (
    parse_direct_answer_untrusted,
    parse_offer_untrusted,
)
from kkp2p_compat.engine.signalling.own_side import MAX_LAN_TEXT_BYTES, OwnSide
from kkp2p_compat.transport.udp.protection import AES, CHACHA, CIPHERS
from kkp2p_compat.traversal.candidates import MAX_CANDIDATES, Candidate
from kkp2p_compat.traversal.nat import UNKNOWN, NatBehaviour

NAT = NatBehaviour("address-and-port-dependent", "address-dependent", "sequential", -2, True)
CANDIDATES = [Candidate("host", 9, "192.0.2.1", 5), Candidate("srflx", 3, "198.51.100.1", 6)]


def met(ctx: kkp2p.connect_ctx_t) -> tuple[OwnSide, OwnSide, CallKeys, CallKeys]:
    """A caller and a callee that have exchanged offer and answer."""
    caller = OwnSide(CANDIDATES, NAT, worked="punch")
    text = caller.offer(ctx, 0)
    offer = parse_offer_untrusted(text)
    assert offer.direct is not None
    assert offer.key is not None
    callee = OwnSide(CANDIDATES[:1], asked=offer.direct)
    answer = callee.answer()
    public, _ = parse_direct_answer_untrusted(answer)
    return caller, callee, caller.keys(public, text, answer), callee.keys(offer.key, text, answer)


def test_both_sides_have_the_same_keys() -> None:
    _, _, callers, callees = met(kkp2p.connect_ctx_t("peer"))
    assert callers.send == callees.receive
    assert callers.receive == callees.send
    assert callers.trickle == callees.trickle
    assert len({callers.send, callers.receive, callers.trickle}) == 3


def test_each_call_has_keys_of_its_own() -> None:
    made = {met(kkp2p.connect_ctx_t("peer"))[2].send for _ in range(5)}
    assert len(made) == 5


def test_what_is_told() -> None:
    offer = parse_offer_untrusted(
        OwnSide(CANDIDATES, NAT, worked="birthday").offer(
            kkp2p.connect_ctx_t("peer", 1, 0, 1, 1000, -7), 1
        )
    )
    assert (offer.channel_type, offer.mode, offer.encrypt, offer.desc) == (1, 1, 1, -7)
    assert offer.direct is not None
    assert offer.direct.candidates == CANDIDATES
    assert offer.direct.nat == NAT
    assert offer.direct.worked == "birthday"
    assert offer.restarts is None


def test_a_restart_is_no_channel() -> None:
    for mode in (0, 1, 2):
        text = OwnSide(CANDIDATES).restart(0x0123456789ABCDEF, mode)
        offer = parse_offer_untrusted(text)
        assert (offer.restarts, offer.mode) == (0x0123456789ABCDEF, mode)
    fields = json.loads(text)
    del fields["mode"]
    assert parse_offer_untrusted(json.dumps(fields)).mode == 1  # of an older peer: p2p only
    with pytest.raises(BadPacket):
        parse_offer_untrusted(json.dumps({**fields, "mode": 3}))


def test_a_lan_text_is_one_datagram() -> None:
    many = [Candidate("host", 99 - n, f"2001:db8::{n + 1:x}", 50000) for n in range(MAX_CANDIDATES)]
    ours = OwnSide(many)
    text = ours.fit(ours.answer)
    assert len(text) <= MAX_LAN_TEXT_BYTES
    kept = parse_direct_answer_untrusted(text)[1].candidates
    assert kept == many[: len(kept)]
    assert len(kept) > 5


GOOD = json.loads(OwnSide(CANDIDATES, NAT, worked="punch").answer())["direct"]
BAD: dict[str, Any] = {
    "id": [None, 7, "", "0" * 15, "0" * 17, "0" * 15 + "g", "0" * 15 + "A", "+" + "0" * 15],
    "ufrag": [None, "", "x" * 9, "ä" * 8],
    "pwd": [None, "", "x" * 25],
    "cipher": [None, "", "des", []],
    "ciphers": [None, "aes-128-gcm", {}],
    "candidates": [None, {}, ["host 1 192.0.2.1 1"] * 33, [7], ["host"]],
    "nat": [7, [], "symmetric", {"mapping": 7}, {"mapping": []}],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in BAD.items() for v in values])
def test_malformed(name: str, value: object) -> None:
    with pytest.raises(BadPacket):
        DirectOffer.parse_untrusted({**GOOD, name: value})


@pytest.mark.parametrize("worked", [None, 7, [], {}, "", "magic", "punch "])
def test_what_worked_is_a_hint_only(worked: object) -> None:
    assert DirectOffer.parse_untrusted({**GOOD, "worked": worked}).worked == ""


def test_without_what_may_be_missing() -> None:
    fields = {name: value for name, value in GOOD.items() if name not in ("nat", "worked")}
    parsed = DirectOffer.parse_untrusted(fields)
    assert (parsed.nat, parsed.worked) == (UNKNOWN, "")


ANSWERS = ["", "null", "[]", '{"key":5}', '{"key":"short"}', '{"direct":{}}', "x" * 30000]


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: answer[:12])
def test_answers_that_are_none(answer: str) -> None:
    with pytest.raises((BadPacket, NotSupported)):
        parse_direct_answer_untrusted(answer)


@pytest.mark.parametrize("restart", [None, 7, "", "0" * 15, [], {}])
def test_malformed_restarts(restart: object) -> None:
    offer = json.loads(OwnSide(CANDIDATES).restart(1, 0))
    with pytest.raises(BadPacket):
        parse_offer_untrusted(json.dumps({**offer, "restart": restart}))
    del offer["direct"]
    with pytest.raises(BadPacket):
        parse_offer_untrusted(json.dumps(offer))


def test_offers_with_holes_and_noise() -> None:
    """Nothing but BadPacket, whatever is missing or is something else."""
    random = Random(1)
    whole = json.loads(OwnSide(CANDIDATES, NAT).offer(kkp2p.connect_ctx_t("peer"), 0))
    things = [None, True, -1, 2**70, 1e300, "", "x", [], {}, [[]], {"a": 1}]
    for _ in range(2000):
        fields = json.loads(json.dumps(whole))
        target = random.choice([fields, fields["direct"], fields["direct"]["nat"]])
        target[random.choice(list(target))] = random.choice(things)
        try:
            parse_offer_untrusted(json.dumps(fields))
        except (BadPacket, NotSupported):
            continue


@pytest.mark.parametrize(
    ("caller", "callee", "chosen"),
    [
        (AES, AES, AES),
        (AES, CHACHA, CHACHA),
        (CHACHA, AES, CHACHA),
        (CHACHA, CHACHA, CHACHA),
        ("FIPS", CHACHA, AES),
        (CHACHA, "FIPS", AES),
        ("FIPS", "FIPS", AES),
    ],
)
def test_the_cipher_that_both_have(
    monkeypatch: pytest.MonkeyPatch, caller: str, callee: str, chosen: str
) -> None:
    """``caller``, ``callee``: what each prefers; in FIPS 140 mode there is no ChaCha20."""

    def make(prefers: str, asked: DirectOffer | None = None) -> DirectOffer:
        ciphers = (AES,) if prefers == "FIPS" else tuple(CIPHERS)
        monkeypatch.setattr(direct_offer, "usable_ciphers", lambda: ciphers)
        # Without AES instructions, the CPU has no say in what there is.
        preferred = CHACHA if prefers == "FIPS" else prefers
        monkeypatch.setattr(direct_offer, "preferred_cipher", lambda: preferred)
        made = DirectOffer.make(CANDIDATES, NAT, "", asked)
        return DirectOffer.parse_untrusted(json.loads(json.dumps(made.fields())))

    assert make(callee, make(caller)).cipher == chosen


@pytest.mark.parametrize("ciphers", [[], ["des", 7, None, [], {}], [AES, AES]])
def test_ciphers_that_nobody_knows(ciphers: list[object]) -> None:
    assert set(DirectOffer.parse_untrusted({**GOOD, "ciphers": ciphers}).ciphers) <= {AES}
