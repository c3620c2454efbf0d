"""The endpoint survives what strangers send, and what the handlers of its connections do."""

from __future__ import annotations

import random
import struct

import gevent
import pytest

from helpers.endpoint_support import (
    Link,
    added,
    arrives,
    log,
    make,
    ours,
    packet,
    place,
    send,
    stranger,
)
from kkp2p_compat import _codes
from kkp2p_compat._address import Address
from kkp2p_compat.transport.udp.batch_socket import BatchSocket
from kkp2p_compat.transport.udp.endpoint import CLOSE_INTERNAL_ERROR, Endpoint
from kkp2p_compat.transport.udp.events import Closed, Event, Readable, Transmit

__all__ = ["make", "ours", "stranger"]

CLOSE_CALL = f"close {CLOSE_INTERNAL_ERROR}"
STUN = b"\x00\x01".ljust(28, b"s")


# What strangers send.


def test_a_joined_buffer_is_told_apart(ours: Endpoint, stranger: BatchSocket) -> None:
    links = {number: added(ours, number) for number in (1, 2, 1 << 63)}
    stun: list[tuple[bytes, Address]] = []
    ours.on_stun = lambda data, address: stun.append((data, address))
    order = [1, 1, 2, 3, 1 << 63, 2, 2]
    packets = [packet(number, b"%d" % place) for place, number in enumerate(order)]
    ended = packet(1, b"end")
    send(stranger, ours, *packets, STUN)
    send(stranger, ours, *packets[:3], packets[2][:31])
    send(stranger, ours, *[packet(1, b"", 20)] * 3)
    send(stranger, ours, *[STUN] * 3, b"\x01" * 5)
    send(stranger, ours, ended)
    last = links[1].connection
    last.wait_for(lambda: ended in last.received)
    for number, link in links.items():
        mine = [each for each, target in zip(packets, order, strict=True) if target == number]
        again = [each for each in packets[:3] if each[15] == number and number < 3]
        assert link.connection.received == mine + again + [ended] * (number == 1)
    assert stun == [(each, ("127.0.0.1", stranger.port)) for each in [STUN] * 4 + [b"\x01" * 5]]
    assert ours.dropped == {"unknown connection": 1, "not ours": 1 + 1}


def test_a_lanes_datagrams(ours: Endpoint, stranger: BatchSocket) -> None:
    link = added(ours, 1)
    lane, stun = [], []
    of_lane = [b"KKLN\x03 of 14 by" + bytes([number]) for number in range(3)]
    send(stranger, ours, *of_lane)
    send(stranger, ours, packet(1, b"first"))
    link.connection.wait_for(lambda: link.connection.received)
    assert ours.dropped == {"not ours": len(of_lane)}, "nobody wants them"
    ours.on_lane = lambda data, address: lane.append((data, address))
    ours.on_stun = lambda data, address: stun.append(data)
    send(stranger, ours, *of_lane, b"KKLM".ljust(len(of_lane[0])), STUN[:12])
    send(stranger, ours, packet(1, b"last"))
    link.connection.wait_for(lambda: len(link.connection.received) == 2)
    assert lane == [(each, ("127.0.0.1", stranger.port)) for each in of_lane]
    assert stun == [STUN[:12]]
    assert ours.dropped == {"not ours": len(of_lane) + 1}


def test_anything(ours: Endpoint, stranger: BatchSocket) -> None:
    link = added(ours, 1)
    stun: list[bytes] = []
    ours.on_stun = lambda data, address: stun.append(data)
    dice = random.Random(7)
    for first in range(256):
        for size in (1, 15, 16, 17, 31, 32, 33, 100, 1500):
            stranger.send(bytes([first]) + dice.randbytes(size - 1), size, place(ours))
        gevent.sleep(0)  # or the receive buffer runs over
    stranger._sock.sendto(b"", place(ours))
    send(stranger, ours, packet(1, b"end"))
    link.connection.wait_for(lambda: link.connection.received)
    assert link.connection.received == [packet(1, b"end")]
    assert len(stun) == 4 * 9
    assert {data[0] for data in stun} == {0, 1, 2, 3}
    assert ours.dropped == {"unknown connection": 4, "not ours": 251 * 9 + 5 + 1}
    assert stranger.receive() is None, "a stranger was answered"


def test_stun_without_anybody_to_take_it(ours: Endpoint, stranger: BatchSocket) -> None:
    link = added(ours, 1)
    send(stranger, ours, STUN)
    send(stranger, ours, packet(1, b"end"))
    link.connection.wait_for(lambda: link.connection.received)
    assert ours.dropped == {"not ours": 1}


def test_a_check_is_answered(ours: Endpoint, stranger: BatchSocket) -> None:
    ours.on_stun = lambda data, address: ours.send_check(data[::-1], address)
    send(stranger, ours, STUN)
    assert arrives(stranger) == [STUN[::-1]]


# Bugs.


@pytest.mark.parametrize("bug", ["datagrams", "gather", "event", "transmit", "next timer", "timer"])
def test_a_bug_closes_its_connection_only(
    bug: str, ours: Endpoint, stranger: BatchSocket, caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = added(ours, 1), added(ours, 2)
    bad.connection.bugs.add(bug)
    bad.connection.transmits.append(Transmit(b"x", 1, ("127.0.0.1", 9)))
    bad.connection.deadline = 1.0
    send(stranger, ours, packet(1, b""))
    bad.connection.wait_for(lambda: CLOSE_CALL in bad.connection.calls)
    bad.connection.bugs.clear()
    for link in good, bad:  # it may have its last words
        ours.wake(link)
    send(stranger, ours, packet(2, b""))
    good.connection.wait_for(lambda: good.events)
    assert bad.connection.calls.count(CLOSE_CALL) == 1
    assert not any(isinstance(event, Closed) for event in bad.events)
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("bug", ["datagrams", "event", "transmit", "next timer", CLOSE_CALL])
def test_a_connection_that_cannot_even_be_closed_is_removed(
    bug: str, ours: Endpoint, stranger: BatchSocket
) -> None:
    bad, good = added(ours, 1), added(ours, 2)
    bad.connection.bugs |= {bug, "datagrams"}
    send(stranger, ours, packet(1, b""))
    bad.connection.wait_for(lambda: CLOSE_CALL in bad.connection.calls)
    bad.connection.events.append(Readable(0))
    bad.connection.transmits.extend([Transmit(b"x", 1, ("127.0.0.1", 9))] * 2)
    send(stranger, ours, packet(1, b""))
    bad.connection.wait_for(lambda: bad.events and isinstance(bad.events[-1], Closed))
    ended = bad.events[-1]
    assert isinstance(ended, Closed)
    assert ended.error.code == _codes.KKP2P_ERROR_SYSTEM_INTERNAL
    ours.add(Link(1))  # its id is free
    send(stranger, ours, packet(2, b""))
    good.connection.wait_for(lambda: good.events)


def test_a_handler_that_always_raises(ours: Endpoint, stranger: BatchSocket) -> None:
    bad, good = added(ours, 1), added(ours, 2)

    def on_event(event: Event) -> None:
        raise ZeroDivisionError

    bad.on_event = on_event
    for _ in range(3):
        send(stranger, ours, packet(1, b""), packet(2, b""))
    good.connection.wait_for(lambda: len(good.events) == 3)
    bad.connection.wait_for(lambda: any(isinstance(event, Closed) for event in bad.events))
    assert isinstance(bad.events.pop(), Closed)
    assert not any(isinstance(event, Closed) for event in bad.events), "told twice"


def test_a_batch_that_makes_no_sense(ours: Endpoint, stranger: BatchSocket) -> None:
    bad, good = added(ours, 1), added(ours, 2)
    bad.connection.transmits.append(Transmit(b"xx", 0, ("127.0.0.1", stranger.port)))
    bad.connection.transmits.append(Transmit(b"bye", 3, ("127.0.0.1", stranger.port)))
    ours.wake(bad)
    assert arrives(stranger) == [b"bye"]
    assert CLOSE_CALL in bad.connection.calls
    send(stranger, ours, packet(2, b""))
    good.connection.wait_for(lambda: good.events)


def test_a_bug_in_what_takes_stun(
    ours: Endpoint, stranger: BatchSocket, caplog: pytest.LogCaptureFixture
) -> None:
    link = added(ours, 1)
    ours.on_stun = lambda data, address: struct.unpack(">Q", data)
    send(stranger, ours, STUN, STUN)
    send(stranger, ours, packet(1, b""))
    link.connection.wait_for(lambda: link.events)
    assert caplog.text.count("struct.error") == 2


# Ends at awkward moments.


def test_a_handler_removes_its_own_connection(ours: Endpoint, stranger: BatchSocket) -> None:
    link = added(ours, 1)

    def on_event(event: Event) -> None:
        link.connection.transmits.append(Transmit(b"bye", 3, ("127.0.0.1", stranger.port)))
        ours.remove(link)

    link.on_event = on_event
    send(stranger, ours, *[packet(1, b"")] * 5)
    assert arrives(stranger) == [b"bye"]
    send(stranger, ours, packet(1, b""))
    ours.wake(link)
    other = added(ours, 2)
    send(stranger, ours, packet(2, b""))
    other.connection.wait_for(lambda: other.events)
    assert len(link.events) == 1, "a handler was called after the removal"
    assert link.connection.calls == ["datagrams", "event", "transmit"]
    assert ours.dropped == {"unknown connection": 1}


def test_a_handler_removes_another(ours: Endpoint, stranger: BatchSocket) -> None:
    first, second, third = (added(ours, number) for number in (1, 2, 3))
    first.on_event = lambda event: ours.remove(second)
    for number in (1, 2, 3):
        send(stranger, ours, packet(number, b""))
    third.connection.wait_for(lambda: third.events)
    assert second.events == []


def test_a_handler_adds_another(ours: Endpoint, stranger: BatchSocket) -> None:
    first, second = added(ours, 1), Link(2)
    first.on_event = lambda event: ours.add(second)
    send(stranger, ours, packet(1, b""))
    second.connection.wait_for(lambda: second.connection.calls == ["next timer"])
    send(stranger, ours, packet(2, b""))
    second.connection.wait_for(lambda: second.events)


@pytest.mark.parametrize("by", ["event", "stun", "last words"])
def test_close_in_the_middle_of_a_turn(by: str, stranger: BatchSocket) -> None:
    ours = Endpoint(log)
    links = [added(ours, number) for number in range(3)]
    for link in links:
        link.connection.deadline = 1.0
        link.connection.transmits.append(Transmit(b"bye", 3, ("127.0.0.1", stranger.port)))
        link.on_event = lambda event: ours.close()
        if by == "last words":
            link.connection.bugs.update(("datagrams", "transmit", CLOSE_CALL))
    ours.on_stun = lambda data, address: ours.close()
    if by == "stun":
        send(stranger, ours, STUN, STUN)
    send(stranger, ours, *(packet(number % 3, b"") for number in range(30)))
    if by != "last words":
        assert arrives(stranger) == [b"bye"]
    links[0].connection.wait_for(lambda: ours._closed)
    ours.close()
    for method in ours.add, ours.wake, ours.remove:
        method(links[0])
    ours.send_check(b"late", ("127.0.0.1", stranger.port))
    gevent.sleep(0)
    handled = sum(len(link.events) for link in links)
    assert handled == (0 if by == "stun" else 1)
    assert ours.ports()
    assert ours.dropped["no socket"] == 1
    assert not ours.failures(), "a closed socket was used"


def test_close_with_everything_under_way(stranger: BatchSocket) -> None:
    ours = Endpoint(log)
    links = [added(ours, number) for number in range(3)]
    for link in links:
        link.connection.deadline = 1.0
        ours.wake(link)
    send(stranger, ours, packet(0, b""))
    ours.close()
    gevent.sleep(0)
    assert [link.connection.calls for link in links] == [[]] * 3
