"""How far checks go, what they tell of themselves, and guesses that are right."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import pytest

from helpers.check_network import DELAY_S, Host, Network, candidate, fresh_request, lan
from kkp2p_compat.traversal import checks as checks_module
from kkp2p_compat.traversal.candidates import Candidate
from kkp2p_compat.traversal.check_table import CheckTable
from kkp2p_compat.traversal.checks import Checks, Credentials
from kkp2p_compat.traversal.guesses import LOW_TTL
from kkp2p_compat.traversal.notes import NoteKind
from kkp2p_compat.traversal.stun import Kind, Message, parse_untrusted

PEER = "203.0.113.2"
SRFLX = Candidate("srflx", 100, PEER, 4000)
START = 50.0


class Side:
    def __init__(self, controlling: bool, *listed: Candidate) -> None:
        dice = Random(1)
        self.theirs = Credentials.make(dice)
        self.checks = Checks(
            controlling=controlling,
            local=Credentials.make(dice),
            remote=self.theirs,
            local_candidates=[Candidate("host", 9, "192.0.2.1", 4000)],
            candidates=listed,
            now=START,
            random=dice,
        )
        self.table = CheckTable()
        self.table.add(self.checks)

    def sent(self) -> list[tuple[bytes, Any, int | None]]:
        found = []
        while (transmit := self.checks.poll_transmit()) is not None:
            found.append(transmit)
        return found

    def hops(self, seconds: float) -> list[int | None]:
        """Of all checks in this time, which nobody answers."""
        found = [ttl for _, _, ttl in self.sent()]
        end = START + seconds
        while (due := self.checks.next_timer()) is not None and due <= end:
            self.checks.handle_timer(due)
            found += [ttl for _, _, ttl in self.sent()]
        return found

    def answer(self, request: bytes, source: Any, now: float) -> bool:
        message = Message(Kind.RESPONSE, parse_untrusted(request).transaction_id)
        data = message.encode(self.theirs.key)
        return self.table.handle_datagram_untrusted(data, source, now) is not None


@pytest.mark.parametrize(
    ("controlling", "kind", "hops"),
    [
        (False, "srflx", [LOW_TTL, None, None, None]),
        (False, "mapped", [None] * 4),
        (False, "host", [None] * 4),
        (True, "srflx", [None] * 4),
    ],
)
def test_the_first_check_of_the_callee(
    controlling: bool, kind: str, hops: list[int | None]
) -> None:
    assert Side(controlling, SRFLX._replace(kind=kind)).hops(0.5) == hops


def test_quiet_for_longer() -> None:
    side = Side(False, SRFLX)
    side.checks.stay_low(0.2)
    assert side.hops(0.5) == [LOW_TTL, LOW_TTL, LOW_TTL, None]


def test_an_address_that_was_heard_needs_no_quiet_check() -> None:
    network = lan()
    network.start(network.callee, [SRFLX])
    network.callee.checks.stay_low(9.0)
    transmits = []
    poll = network.callee.checks.poll_transmit

    def poll_transmit() -> Any:
        if (transmit := poll()) is not None:
            transmits.append(transmit)
        return transmit

    network.callee.checks.poll_transmit = poll_transmit  # type: ignore[method-assign]
    network.run(0.06)
    network.receive(network.callee, fresh_request(network), (PEER, 4000))
    requests = [ttl for data, _, ttl in transmits if parse_untrusted(data).kind is Kind.REQUEST]
    assert requests == [LOW_TTL, None], "the second of them in return"


def test_a_guess_that_is_right() -> None:
    side = Side(True, SRFLX)
    side.checks.guesses.predict(PEER, range(30000, 30010), [(0.0, None)], START)
    side.checks.handle_timer(START)
    by_target = {address: data for data, address, _ in side.sent()}
    assert side.answer(by_target[PEER, 30004], (PEER, 30004), START + 0.03)
    assert side.checks.guesses.stopped
    side.checks.handle_timer(START + 0.2)
    assert side.checks.selected == (PEER, 30004)
    assert side.checks.round_trip_s == pytest.approx(0.03)


def test_a_right_guess_from_an_extra_socket() -> None:
    side = Side(True, SRFLX)
    side.checks.guesses.spread((PEER, 4000), [7, 8], [(0.0, LOW_TTL)], START)
    side.checks.handle_timer(START)
    by_target = {address: (data, ttl) for data, address, ttl in side.sent()}
    assert by_target[PEER, 4000, 8][1] == LOW_TTL
    assert side.answer(by_target[PEER, 4000, 8][0], (PEER, 4000, 8), START + 0.03)
    side.checks.handle_timer(START + 0.2)
    assert side.checks.selected == (PEER, 4000, 8)


def test_an_answer_to_a_guess_from_elsewhere() -> None:
    """It verifies nothing; where it came from is probed."""
    side = Side(True, SRFLX)
    side.checks.guesses.predict(PEER, [30000], [(0.0, None)], START)
    side.checks.handle_timer(START)
    by_target = {address: data for data, address, _ in side.sent()}
    assert side.answer(by_target[PEER, 30000], (PEER, 30077), START + 0.03)
    assert side.checks.selected is None
    assert not side.checks.guesses.stopped
    assert [address for _, address, _ in side.sent()] == [(PEER, 30077)]


def test_an_answer_to_a_guess_that_is_replayed_or_forged() -> None:
    side = Side(True, SRFLX)
    side.checks.guesses.predict(PEER, [30000], [(0.0, None)], START)
    side.checks.handle_timer(START)
    by_target = {address: data for data, address, _ in side.sent()}
    side.theirs = Credentials.make(Random(9))
    assert not side.answer(by_target[PEER, 30000], (PEER, 30000), START)
    assert side.table.drops == {"a wrong key": 1}
    side.theirs = side.checks.remote
    assert side.answer(by_target[PEER, 30000], (PEER, 30000), START)
    assert not side.answer(by_target[PEER, 30000], (PEER, 30000), START)
    assert side.table.drops["an answer to no check of ours"] == 1


def test_what_is_told() -> None:
    network = lan()
    network.callee.addresses = ("192.0.2.2",)
    network.start_both()
    network.run_to_the_end()
    texts = [note.text for note in network.caller.checks.notes]
    assert texts[0] == "check 1 of host [2001:db8::2]:4000"
    assert "host 192.0.2.2:4000 answered after 20.0 ms" in texts
    assert "chose host 192.0.2.2:4000" in texts
    times = [note.at for note in network.caller.checks.notes]
    assert times == sorted(times)
    texts = [note.text for note in network.callee.checks.notes]
    assert "a check came from host 192.0.2.1:4000" in texts
    assert "the caller chose host 192.0.2.1:4000" in texts
    for host in network.hosts:
        counted = Counter(note.kind for note in host.checks.notes)
        sent = [parse_untrusted(data).kind for _, data in network.sent_by(host)]
        assert counted[NoteKind.CHECK] == sent.count(Kind.REQUEST)
        assert counted[NoteKind.ANSWER] == 1
        assert not counted[NoteKind.LEARNT]


def test_notes_are_bounded() -> None:
    network = lan()
    network.start(network.callee, [])
    network.callee.checks.add_candidates([SRFLX._replace(port=n) for n in range(1, 3000)])
    notes = network.callee.checks.notes
    assert len(notes) == checks_module.MAX_NOTES
    notes.clear()
    network.run(5)
    assert notes == [], "whoever clears them gets no more of them"


@pytest.mark.parametrize(
    ("dead", "round_trips"), [("10.0.0.2", 1), ("192.0.2.9", 2), ("fd00::2", 1), ("2001:db8::2", 2)]
)
def test_patience_with_a_better_address_that_is_dead(dead: str, round_trips: int) -> None:
    """One in our own network would have been quicker than the one that answered."""
    mine = "10.0.0.1", "192.0.2.1", "fd00::1", "2001:db8::1"
    network = Network(Host(*mine), Host("192.0.2.2", dead))
    listed = [candidate(dead, priority=2), candidate("192.0.2.2", priority=1)]
    network.dead = {dead}
    network.start(network.callee)
    start = network.now
    checks = network.start(network.caller, listed)
    network.run(9, lambda: checks.selected)
    least_s = round_trips * 2 * DELAY_S
    assert least_s <= network.now - start <= least_s + checks_module.GRACE_S + 1e-6
