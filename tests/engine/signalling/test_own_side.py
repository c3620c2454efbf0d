"""What a side tells of itself where there is little room."""

from __future__ import annotations

import socket

import pytest

import kkp2p_compat as kkp2p
from kkp2p_compat.engine.signalling.own_side import MAX_LAN_TEXT_BYTES, OwnSide
from kkp2p_compat.traversal.candidates import host_candidates

PORTS = {int(socket.AF_INET): 51413, int(socket.AF_INET6): 51413}


def ipv6(count: int) -> list[str]:
    return [f"2001:db8:1234:{n:x}:5678:9abc:def0:1234" for n in range(0x1000, 0x1000 + count)]


def ipv4(count: int) -> list[str]:
    return [f"192.168.100.{n}" for n in range(100, 100 + count)]


@pytest.mark.parametrize(
    ("addresses", "families"),
    [
        (ipv6(12) + ipv4(1), {True, False}),
        (ipv6(1) + ipv4(40), {True, False}),
        (ipv6(30) + ipv4(30), {True, False}),
        (ipv6(30), {True}),
        (ipv4(60), {False}),
    ],
    ids=["one of IPv4", "one of IPv6", "many of both", "IPv6 only", "IPv4 only"],
)
@pytest.mark.parametrize("is_offer", [True, False], ids=["offer", "answer"])
def test_a_lan_text_has_the_best_of_each_ip_family(
    addresses: list[str], families: set[bool], is_offer: bool
) -> None:
    side = OwnSide(host_candidates(PORTS, addresses), proves=True)
    before = list(side.direct.candidates)
    ctx = kkp2p.connect_ctx_t("peer", connect_desc=-(2**31))
    text = side.fit((lambda: side.offer(ctx, 1)) if is_offer else side.answer)
    assert len(text.encode()) <= MAX_LAN_TEXT_BYTES
    left = side.direct.candidates
    assert {":" in candidate.address for candidate in left} == families
    for is_ipv6 in families:
        of_family = [one for one in before if (":" in one.address) == is_ipv6]
        kept = [one for one in left if (":" in one.address) == is_ipv6]
        assert kept == of_family[: len(kept)]


def test_what_fits_is_told_whole() -> None:
    side = OwnSide(host_candidates(PORTS, ipv6(2) + ipv4(2)))
    before = list(side.direct.candidates)
    side.fit(side.answer)
    assert side.direct.candidates == before
