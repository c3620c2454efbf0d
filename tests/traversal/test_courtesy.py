"""What all calls of an engine together send to addresses that have not answered."""

from __future__ import annotations

import random

import pytest

from helpers.check_network import candidate
from kkp2p_compat.traversal import courtesy as courtesy_module
from kkp2p_compat.traversal.candidates import Candidate
from kkp2p_compat.traversal.checks import MAX_PORTS_PER_IP, Checks
from kkp2p_compat.traversal.courtesy import IN_ALL, PER_IP, PER_IP_PER_S, Courtesy
from kkp2p_compat.traversal.credentials import Credentials
from kkp2p_compat.traversal.stun import Kind, Message, parse_untrusted

VICTIM = "198.51.100.1"
OWN = [Candidate("host", 9, "192.0.2.1", 4000)]


@pytest.fixture
def courtesy() -> Courtesy:
    return Courtesy()


def passed(courtesy: Courtesy, ip: str, count: int, now: float, heard: bool = False) -> int:
    return sum(courtesy.may_send(ip, heard, now) for _ in range(count))


def test_one_ip_gets_so_many_and_then_a_few_a_second(courtesy: Courtesy) -> None:
    assert passed(courtesy, VICTIM, PER_IP + 100, 5.0) == PER_IP
    assert courtesy.refused == 100
    assert passed(courtesy, VICTIM, 1000, 7.0) == 2 * PER_IP_PER_S
    assert passed(courtesy, VICTIM, 1000, 6.0) == 0, "a clock that goes back gives nothing"
    assert passed(courtesy, "198.51.100.2", 100, 7.0) == 100
    assert passed(courtesy, VICTIM, 2 * PER_IP, 1e6) == PER_IP


def test_addresses_of_an_ipv6_network_count_together(courtesy: Courtesy) -> None:
    sent = sum(courtesy.may_send(f"2001:db8::{n:x}", False, 0.0) for n in range(1, PER_IP + 50))
    assert sent == PER_IP
    assert not courtesy.may_send("2001:db8::ffff:0:0:1", False, 0.0)
    assert courtesy.may_send("2001:db8:0:1::1", False, 0.0)


def test_who_has_answered_begins_anew(courtesy: Courtesy) -> None:
    passed(courtesy, VICTIM, PER_IP, 0.0)
    courtesy.met("203.0.113.1")
    assert not courtesy.may_send(VICTIM, False, 0.0)
    courtesy.met(VICTIM)
    assert courtesy.may_send(VICTIM, False, 0.0)


def test_many_victims(courtesy: Courtesy) -> None:
    """Are bounded in all, and not in the way of those that are heard."""
    ips = [f"198.51.{n // 250}.{n % 250}" for n in range(200)]
    assert sum(passed(courtesy, ip, 100, 0.0) for ip in ips) == IN_ALL
    assert passed(courtesy, "203.0.113.1", 10, 0.0) == 0
    assert passed(courtesy, "203.0.113.1", 10, 0.0, heard=True) == 10
    assert sum(passed(courtesy, ip, 100, 0.0, heard=True) for ip in ips) == IN_ALL - 10


def test_the_table_is_bounded(monkeypatch: pytest.MonkeyPatch, courtesy: Courtesy) -> None:
    monkeypatch.setattr(courtesy_module, "SLOTS", 8)
    for n in range(1000):
        courtesy.may_send(f"198.51.{n // 250}.{n % 250}", False, 0.0)
    assert len(courtesy._by_ip) == 8


# By the checks of calls.


class Call:
    """A call of a stranger, who names these."""

    def __init__(
        self, courtesy: Courtesy, named: list[Candidate], controlling: bool = False
    ) -> None:
        dice = random.Random(1)
        self.now = 0.0
        self.checks = Checks(
            controlling=controlling,
            local=Credentials.make(dice),
            remote=Credentials.make(dice),
            local_candidates=OWN,
            candidates=named,
            now=0.0,
            random=dice,
            courtesy=courtesy,
        )

    def run(self, seconds: float) -> list[bytes]:
        """What is sent meanwhile."""
        end, sent = self.now + seconds, []
        while True:
            while (transmit := self.checks.poll_transmit()) is not None:
                sent.append(transmit[0])
            due_at = self.checks.next_timer()
            if due_at is None or due_at > end:
                return sent
            self.now = max(self.now, due_at)
            self.checks.handle_timer(self.now)


def test_a_victim_named_in_call_after_call(courtesy: Courtesy) -> None:
    named = [candidate(VICTIM, port) for port in range(5001, 5001 + MAX_PORTS_PER_IP)]
    alone = len(Call(Courtesy(), named).run(60.0))
    sent = sum(len(Call(courtesy, named).run(60.0)) for _ in range(100))
    assert 100 < alone < 200
    assert PER_IP <= sent <= PER_IP + 60 * PER_IP_PER_S < 100 * alone


def test_predictions_and_sweeps_in_call_after_call(courtesy: Courtesy) -> None:
    named = [Candidate("srflx", 5, VICTIM, 5000)]
    sent = 0
    for number in range(20):
        call = Call(courtesy, named)
        if number % 2:
            call.checks.guesses.sweep(VICTIM, range(10_000, 12_000), 0.0)
        else:
            call.checks.guesses.predict(VICTIM, range(10_000, 11_000), [(0.0, None)], 0.0)
        sent += len(call.run(30.0))
    assert PER_IP <= sent <= PER_IP + 30 * PER_IP_PER_S


def test_an_address_that_answered_needs_no_leave(
    monkeypatch: pytest.MonkeyPatch, courtesy: Courtesy
) -> None:
    """Others have used up what the engine may send, but it has been asked."""
    call = Call(courtesy, [candidate("203.0.113.1", 4000)], controlling=True)
    checks = call.checks
    (data,) = call.run(0.0)
    request = parse_untrusted(data)
    monkeypatch.setattr(courtesy, "may_send", lambda *_: False)
    assert call.run(0.1) == []
    answer = Message(Kind.RESPONSE, request.transaction_id, mapped=("192.0.2.1", 4000))
    wire = answer.encode(checks.remote.key)
    assert checks.handle_message(parse_untrusted(wire), ("203.0.113.1", 4000), 0.1) is None
    assert any("no more packets" in note.text for note in checks.notes)
    assert checks.selected == ("203.0.113.1", 4000)
    assert len(call.run(0.1)) > 1, "it is told so"


def test_requests_from_forged_addresses(courtesy: Courtesy) -> None:
    """Each gets an answer no longer than itself, and what it triggers is bounded, too."""
    sent = requests = 0
    for number in range(50):
        call = Call(courtesy, [])
        checks = call.checks
        for port in range(4000, 4020):
            request = Message(
                Kind.REQUEST,
                number.to_bytes(6, "big") + port.to_bytes(6, "big"),
                priority=1,
                controlling=1,
            )
            checks.handle_message(request, (VICTIM, port), 0.0)
            requests += 1
        sent += len(call.run(60.0))
    assert sent <= requests + PER_IP + 60 * PER_IP_PER_S
