"""Strangers against a live engine: offers, trickled texts and checks that are lies or old.

What each part does with such things is proven for itself: test_check_table.py, test_candidates.py,
test_checks_bounds.py and test_courtesy.py of traversal/, engine/signalling/test_trickle.py.  What
third parties get of it is counted in lab/test_third_parties.py.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any

import pytest

import kkp2p_compat as kkp2p
from helpers.direct_support import accept, check_carries, connect, links, until
from kkp2p_compat._address import Address
from kkp2p_compat._errors import KKP2PError
from kkp2p_compat.control.link import Link
from kkp2p_compat.control.outgoing import OutgoingCall
from kkp2p_compat.engine.calls.cloud_call import call_peer
from kkp2p_compat.engine.signalling.offer import parse_direct_answer_untrusted
from kkp2p_compat.engine.signalling.own_side import OwnSide
from kkp2p_compat.engine.signalling.trickle import Trickle
from kkp2p_compat.traversal.candidates import Candidate
from kkp2p_compat.traversal.stun import Kind, Message

pytestmark = pytest.mark.usefixtures("on_loopback")

BUDGET_S = 1.0  # of a call: when it is over, the engine gives up
Finish = Callable[[Link, OutgoingCall], Any]


def call(engine: kkp2p.engine_t, offer: str, finish: Finish) -> Any:
    """By an engine's connection to the cloud, as a program of a stranger's would."""

    def do() -> Any:
        assert engine.client is not None
        with call_peer(engine.client, "peer", offer, BUDGET_S) as (link, made):
            return finish(link, made)

    return engine.thread.call(do)


def answer_of(_: Link, made: OutgoingCall) -> str:
    return str(made.answer.get())


def offer_of(ours: OwnSide) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(ours.offer(kkp2p.connect_ctx_t("peer"), 1))
    return fields


def check_works(engine: kkp2p.engine_t, peer: kkp2p.engine_t) -> None:
    mine, theirs = connect(engine), accept(peer)
    assert mine.transmit_mode == theirs.transmit_mode == 1
    check_carries(mine, theirs)


# Offers.


def candidates(*texts: object) -> Callable[[dict[str, Any]], object]:
    return lambda fields: fields["direct"].update(candidates=list(texts))


GOOD = "host 5 127.0.0.1 4000"
BAD_OFFERS = {
    "too many": candidates(*[f"host 5 127.0.0.1 {n}" for n in range(1, 34)]),
    "far too many": candidates(*[GOOD] * 1000),
    "one is no text": candidates(GOOD, 5),
    "one is a list": candidates([GOOD]),
    "one is long": candidates(GOOD + " " * 100),
    "one has a name": candidates("host 5 localhost 4000"),
    "one has a scope": candidates("host 5 fe80::1%lo 4000"),
    "one has a wrong port": candidates("host 5 127.0.0.1 65536"),
    "no list": lambda fields: fields["direct"].update(candidates={"host": 5}),
    "deep": lambda fields: fields["direct"].update(candidates=json.loads("[" * 500 + "]" * 500)),
    "no credentials": lambda fields: fields["direct"].pop("pwd"),
    "short credentials": lambda fields: fields["direct"].update(ufrag="a", pwd="b"),
    "no key": lambda fields: fields.pop("key"),
    "a key of zeros": lambda fields: fields.update(key="A" * 43),
    "no cipher": lambda fields: fields["direct"].update(cipher="rot13"),
    "a NAT of numbers": lambda fields: fields["direct"].update(nat={"mapping": 5}),
    "a NAT with a huge step": lambda fields: fields["direct"].update(
        nat={"allocation": "sequential", "step": 10**9}
    ),
    "no such connection": lambda fields: fields.update(restart="0123456789abcdef"),
    "an id that is none": lambda fields: fields.update(restart=5),
}


def test_offers_that_are_none(engine: kkp2p.engine_t, peer: kkp2p.engine_t) -> None:
    """Each is declined, nothing is left of it, and the next call is served."""
    for name, spoil in BAD_OFFERS.items():
        fields = offer_of(OwnSide([Candidate("host", 5, "127.0.0.1", 4000)]))
        spoil(fields)
        with pytest.raises(KKP2PError):
            pytest.fail(f"{name}: {call(engine, json.dumps(fields), answer_of)}")
    until(lambda: not peer.switchboard.incoming.busy)
    assert len(peer.network.underlay().searches.finder) == 0
    assert links(peer) == []
    check_works(engine, peer)


NOBODY = [  # (private ones may be the peer's where we have no address but loopback)
    "224.0.0.1",
    "239.255.255.250",
    "255.255.255.255",
    "0.0.0.0",
    "0.1.2.3",
    "240.0.0.1",
    "ff02::1",
    "::",
    "::ffff:127.0.0.1",
    "fe80::1",
    "fec0::1",
    "fd00::1",
]


def test_addresses_that_are_nobodys(
    engine: kkp2p.engine_t, peer: kkp2p.engine_t, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No packet goes there; the one good address among them is probed."""
    endpoint, probed = peer.network.underlay().endpoint, set[str]()
    send = endpoint.send_check

    def record(data: bytes, address: Address, ttl: int | None = None) -> None:
        probed.add(address[0])
        send(data, address, ttl)

    monkeypatch.setattr(endpoint, "send_check", record)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours:
        ours.bind(("127.0.0.1", 0))
        good = Candidate("host", 1, *ours.getsockname())
        ours = OwnSide([Candidate("host", 5 + n, ip, 4000) for n, ip in enumerate(NOBODY)] + [good])

        def finish(link: Link, made: OutgoingCall) -> None:
            answer = answer_of(link, made)
            public, _ = parse_direct_answer_untrusted(answer)
            keys = ours.keys(public, json.dumps(fields), answer)
            more = [Candidate("srflx", 5, ip, 4001).text for ip in NOBODY]
            trickle = Trickle(keys.trickle, True, lambda text: link.trickle(made.number, text))
            trickle.send({"candidates": more})

        fields = offer_of(ours)
        call(engine, json.dumps(fields), finish)
        until(lambda: probed)
    until(lambda: not peer.switchboard.incoming.busy)
    assert probed == {"127.0.0.1"}
    check_works(engine, peer)


def test_trickled_nonsense(engine: kkp2p.engine_t, peer: kkp2p.engine_t) -> None:
    """Of somebody who has the key, and of somebody who has not; the call itself goes on."""
    ours = OwnSide([Candidate("host", 5, "127.0.0.1", 4000)])
    fields = offer_of(ours)
    texts: list[str] = []

    def finish(link: Link, made: OutgoingCall) -> None:
        answer = answer_of(link, made)
        public, _ = parse_direct_answer_untrusted(answer)
        keys = ours.keys(public, json.dumps(fields), answer)
        trickle = Trickle(keys.trickle, True, texts.append)
        for told in (
            {"candidates": 5},
            {"candidates": [GOOD] * 33},
            {"candidates": ["x"]},
            {"spread": 1},
            {"predict": [1, 2, 3]},
            {"predict": [10**20, 0, 0]},
            {"predict": "x"},
            {"n": 10**30},
            {"candidates": None, "predict": None, "spread": None},
            {"unknown": {}},
        ):
            trickle.send(told)
        for text in [*texts, *texts, "", "x", "x" * 4000, "{}", texts[0][::-1]]:
            link.trickle(made.number, text)

    call(engine, json.dumps(fields), finish)
    until(lambda: not peer.switchboard.incoming.busy)
    check_works(engine, peer)


# Checks.


def test_checks_played_again_and_forged_ones(engine: kkp2p.engine_t, peer: kkp2p.engine_t) -> None:
    """By somebody who has heard all of a call, from elsewhere: no answer, and nothing changes."""
    underlay = peer.network.underlay()
    heard: list[bytes] = []
    take = underlay.endpoint.on_stun

    def record(data: bytes, source: Address) -> None:
        heard.append(data)
        take(data, source)

    underlay.endpoint.on_stun = record
    mine, theirs = connect(engine), accept(peer)
    underlay.endpoint.on_stun = take
    assert heard, "the call's own"
    (link,) = links(peer)
    address = link.connection.address
    forged = [bytes([*data[:-9], data[-9] ^ 1, *data[-8:]]) for data in heard]
    named = Message(Kind.REQUEST, b"x" * 12, username="somebody:else", priority=1, controlling=1)
    junk = [named.encode(b"a key of ours"), heard[0][:20], b"\0\1" + bytes(18), b"\1\1" + bytes(40)]
    told = [*heard, *forged, *junk]
    table = underlay.searches.finder._table
    before = table.drops.total()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.bind(("127.0.0.1", 0))
        for data in told:
            stranger.sendto(data, ("127.0.0.1", underlay.endpoint.ports()[socket.AF_INET]))
        until(lambda: table.drops.total() - before >= len(heard) + len(forged))
        stranger.setblocking(False)
        with pytest.raises(BlockingIOError):
            stranger.recv(2000)
    assert link.connection.address == address
    assert links(peer) == [link]
    check_carries(mine, theirs)
