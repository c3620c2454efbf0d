"""Who gets in and how much of the cloud is whose: places, shares, deadlines, and what is logged."""

from __future__ import annotations

import logging

import pytest

from kkp2p_compat.cloud import limits as limits_module
from kkp2p_compat.cloud.limits import (
    CONNECTION_WORK_BURST_S,
    WORK_BURST_S,
    Allowance,
    Deadlines,
    Gatekeeper,
    Shares,
)
from kkp2p_compat.cloud.settings import Limits


def test_a_home_is_not_256_addresses() -> None:
    """Whoever has a /56 could shut everybody else out, as could 2 of the kind with a /48."""
    gate = Gatekeeper(Limits(connections=600, connections_per_address=100))
    home = [f"2001:db8:0:{net:x}::{host:x}" for net in range(256) for host in range(3)]
    inside = [host for host in home if gate.enter(host)]
    assert len(inside) == 400
    assert gate.enter("2001:db8:0:100::1")
    assert gate.enter("192.0.2.1")
    for host in [*inside, "2001:db8:0:100::1", "192.0.2.1"]:
        gate.leave(host)
    assert not gate.connections_of


def test_a_part_of_the_places_is_for_those_with_few() -> None:
    gate = Gatekeeper(Limits(connections=400, connections_per_address=1000))
    assert sum(gate.enter("192.0.2.1") for _ in range(1000)) == 300
    others = [f"198.51.{net}.1" for net in range(100)]
    assert all(gate.enter(host) for host in others)
    assert not gate.enter("203.0.113.1")


def test_a_share_is_waited_for_and_others_have_theirs() -> None:
    shares = Shares(Limits(work_per_address=0.25, bytes_per_s_per_address=100.0, burst_s=1.0))
    greedy, same_network = "192.0.2.1", "192.0.2.2"
    shares.spend(greedy, 0.0, WORK_BURST_S)
    assert shares.wait_s(greedy, 0.0) == 0.0
    shares.spend(greedy, 0.0, 0.01)
    assert shares.wait_s(greedy, 0.0) == pytest.approx(0.04)
    assert shares.wait_s(same_network, 0.0) == 0.0
    shares.spend(greedy, 0.0, 0.01)  # the next of its connections waits for both
    assert shares.wait_s(greedy, 0.0) == pytest.approx(0.08)
    shares.spend(greedy, 0.0, -0.01)
    shares.spend(greedy, 0.0, 0.0, 150)
    assert shares.wait_s(greedy, 0.0) == 0.5
    for loopback in ("127.0.0.1", "::1"):
        shares.spend(loopback, 0.0, 10.0, 10**9)
        assert shares.wait_s(loopback, 0.0) == 0.0


def test_a_connection_waits_for_what_it_has_used_most_of() -> None:
    limits = Limits(work=0.5, bytes_per_s=100.0, burst_s=1.0, messages_per_s=2.0)
    allowance = Allowance(limits, 0.0)
    allowance.spend(0.0, CONNECTION_WORK_BURST_S, 100)
    assert allowance.wait_s(0.0) == 0.0
    allowance.spend(0.0, 0.5, 50)
    assert allowance.wait_s(0.0) == pytest.approx(1.0)  # the time, at half a second a second
    allowance.spend(0.0, 0.0, 150)
    assert allowance.wait_s(0.0) == pytest.approx(2.0)  # the bytes


def test_a_connection_says_so_much_and_no_more() -> None:
    allowance = Allowance(Limits(messages_per_s=2.0), 0.0)
    assert [allowance.take_message(0.0) for _ in range(3)] == [True, True, False]
    assert allowance.take_message(0.5)


def test_deadlines() -> None:
    class Item:
        def __init__(self, deadline: float) -> None:
            self.deadline = deadline
            self.expired = 0

        def expire(self) -> None:
            self.expired += 1
            deadlines.discard(self)
            deadlines.discard(last)  # one that ends takes another with it

        def shut_down(self) -> None:
            raise AssertionError

    deadlines = Deadlines()
    items = [Item(1.0), Item(2.0), Item(9.0)]
    last = items[2]
    for item in items:
        deadlines.add(item)
    deadlines.sweep(1.5)
    assert [item.expired for item in items] == [1, 0, 0]
    deadlines.sweep(10.0)
    assert [item.expired for item in items] == [1, 1, 0]
    assert deadlines.items() == []


def test_refusals_are_counted_after_the_first(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(limits_module.time, "monotonic", lambda: now)
    gate = Gatekeeper(Limits())
    for _ in range(5):
        gate.refused("192.0.2.7", "reason")
    gate.refused("192.0.2.8", "other")
    assert [record.getMessage() for record in caplog.records] == [
        "192.0.2.7 refused: reason",
        "192.0.2.8 refused: other",
    ]
    caplog.clear()
    gate.sweep(now + 31)
    assert [record.getMessage() for record in caplog.records] == [
        "192.0.2.7: 4 more refusals in 30 s"
    ]
    gate.sweep(now + 62)
    assert len(caplog.records) == 1


def test_the_log_table_is_bounded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limits_module, "TABLE_SIZE", 3)
    caplog.set_level(logging.CRITICAL)
    gate = Gatekeeper(Limits())
    for number in range(100):
        gate.refused(f"192.0.2.{number}", "reason")
    assert len(gate.refusals) == 3


def test_relay_sessions_are_told_sparingly(caplog: pytest.LogCaptureFixture) -> None:
    """A stranger's cost two lines each; of those that follow soon only the number is told."""
    caplog.set_level(logging.INFO)
    gate = Gatekeeper(Limits())
    for number in range(100):
        gate.paired.tell("192.0.2.7", "relay: %d: paired", number)
        gate.ended.tell("192.0.2.7", "relay: %d: ended", number)
    gate.sweep(limits_module.time.monotonic() + 31)
    assert [record.getMessage() for record in caplog.records] == [
        "relay: 0: paired",
        "relay: 0: ended",
        "192.0.2.7: 99 more relay sessions that began in 30 s",
        "192.0.2.7: 99 more relay sessions that ended in 30 s",
    ]


def test_loopback_is_exempt_unless_said_otherwise() -> None:
    for limit_loopback, admitted in ((False, 5), (True, 2)):
        limits = Limits(connections_per_address=2, limit_loopback=limit_loopback)
        for host in ("127.0.0.1", "::1"):
            gate = Gatekeeper(limits)
            assert sum(gate.enter(host) for _ in range(5)) == admitted
            while gate.connections:
                gate.leave(host)
            assert not gate.connections_of
