"""Recovery alone: what is measured of which flight."""

from __future__ import annotations

from kkp2p_compat.transport.udp.recovery import Flight, Recovery


def test_round_trips_are_measured_again_from_when_we_run() -> None:
    recovery = Recovery()
    for number, sent_at in ((0, 0.0), (1, 31.0)):
        recovery.sent(Flight(number, number + 1, 100, sent_at, None))
    recovery.measure_from(30.0)
    assert recovery.handle_ack([(0, 1)], 0.0, 30.5)
    assert recovery.rtt.latest_s is None
    assert recovery.handle_ack([(0, 2)], 0.0, 31.25)
    assert recovery.rtt.latest_s == 0.25
