"""What may be probed beside the peer's list, and how much of it."""

from __future__ import annotations

import pytest

from kkp2p_compat._address import Address
from kkp2p_compat.traversal import guesses as module
from kkp2p_compat.traversal.candidates import Candidate
from kkp2p_compat.traversal.guesses import MAX_PREDICTED, MAX_PROBES, PACE_S, Guesses, Wave
from kkp2p_compat.traversal.notes import Note

ONCE: list[Wave] = [(0.0, None)]
PORTS = range(20000, 20010)


def made(*listed: Candidate) -> tuple[Guesses, list[str]]:
    notes: list[str] = []
    by_address: dict[Address, Candidate] = {(c.address, c.port): c for c in listed}
    return Guesses(
        by_address, lambda text, *values, **_: notes.append(Note(0, text, values=values).text)
    ), notes


def srflx(ip: str = "203.0.113.1", kind: str = "srflx") -> Candidate:
    return Candidate(kind, 1, ip, 4000)


def fired(guesses: Guesses, now: float = 0.0) -> list[tuple[float, Address, int | None]]:
    """All of it: when, where to, how far."""
    found = []
    while guesses.next_at() < float("inf"):
        now = max(now, guesses.next_at())
        while (guess := guesses.poll(now)) is not None:
            found.append((now, *guess))
    return found


def test_in_their_order_and_at_a_pace() -> None:
    guesses, notes = made(srflx())
    waves: list[Wave] = [(0.0, 3), (1.0, None)]
    assert guesses.predict("203.0.113.1", PORTS, waves, 50.0) == 20
    found = fired(guesses, 50.0)
    assert [address for _, address, _ in found] == [("203.0.113.1", port) for port in PORTS] * 2
    assert [ttl for _, _, ttl in found] == [3] * 10 + [None] * 10
    assert [at for at, _, _ in found[:8]] == [50.0] * 8, "a burst"
    assert found[9][0] == pytest.approx(50.0 + PACE_S)
    assert found[10][0] == 51.0
    assert notes == ["20 probes of predicted ports of 203.0.113.1"]


def test_by_an_extra_socket() -> None:
    guesses, _ = made(srflx())
    guesses.predict("203.0.113.1", [20000], ONCE, 0.0, number=7)
    guesses.spread(("203.0.113.1", 4000), [8, 9], ONCE, 0.0)
    assert [address for _, address, _ in fired(guesses)] == [
        ("203.0.113.1", 20000, 7),
        ("203.0.113.1", 4000, 8),
        ("203.0.113.1", 4000, 9),
    ]


@pytest.mark.parametrize(
    ("listed", "ip"),
    [
        (srflx(), "203.0.113.2"),
        (srflx(kind="host"), "203.0.113.1"),
        (srflx("10.0.0.1"), "10.0.0.1"),
        (srflx("192.168.1.1"), "192.168.1.1"),
        (srflx("100.64.0.1"), "100.64.0.1"),
        (srflx("127.0.0.1"), "127.0.0.1"),
        (srflx("169.254.1.1"), "169.254.1.1"),
        (srflx("2001:db8::1"), "2001:db8::1"),
    ],
)
def test_no_ports_of_what_is_not_the_peers_outside_address(listed: Candidate, ip: str) -> None:
    guesses, notes = made(listed)
    assert guesses.predict(ip, PORTS, ONCE, 0.0) == 0
    assert guesses.sweep(ip, PORTS, 0.0) == 0
    assert fired(guesses) == []
    assert notes == []


def test_no_services() -> None:
    guesses, _ = made(srflx(kind="mapped"))
    assert guesses.sweep("203.0.113.1", [-1, 0, 22, 1023, 1024, 65535, 65536], 0.0) == 2


def test_sockets_send_to_listed_addresses_only() -> None:
    guesses, _ = made(srflx())
    assert guesses.spread(("203.0.113.1", 4001), [1, 2], ONCE, 0.0) == 0
    assert guesses.spread(("203.0.113.2", 4000), [1, 2], ONCE, 0.0) == 0


def test_bounds() -> None:
    guesses, _ = made(srflx())
    for _ in range(200):
        guesses.predict("203.0.113.1", PORTS, [*ONCE, *ONCE], 0.0)
    assert len(fired(guesses)) == MAX_PREDICTED
    for _ in range(100):
        guesses.sweep("203.0.113.1", range(1024, 3000), 0.0)
        guesses.spread(("203.0.113.1", 4000), range(1, 500), ONCE, 0.0)
    found = fired(guesses)
    assert len(found) == MAX_PROBES - MAX_PREDICTED
    took_s = found[-1][0] - found[0][0]
    assert len(found) <= module.BURST + 1 + took_s / PACE_S


def test_a_late_timer_makes_up_for_a_little_only() -> None:
    guesses, _ = made(srflx())
    guesses.sweep("203.0.113.1", range(2000, 2100), 0.0)
    while guesses.poll(0.0) is not None:
        pass
    count = 0
    while guesses.poll(10.0) is not None:
        count += 1
    assert count == module.BURST + 1


def test_an_answer_stops_all() -> None:
    guesses, _ = made(srflx())
    guesses.sweep("203.0.113.1", PORTS, 0.0)
    guesses.stop()
    assert guesses.stopped
    assert fired(guesses) == []
    assert guesses.sweep("203.0.113.1", PORTS, 0.0) == 0
