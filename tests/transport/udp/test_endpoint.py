"""The endpoint drives connections: in order, in bounded turns, and whatever they do."""

from __future__ import annotations

import errno
import resource
import select
import socket
import time
from collections.abc import Callable
from typing import Any

import gevent
import pytest

from helpers.endpoint_support import (
    IPS,
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
from kkp2p_compat._errors import OutOfDescriptors
from kkp2p_compat.transport.udp import batch_socket, endpoint
from kkp2p_compat.transport.udp.batch_socket import BatchSocket
from kkp2p_compat.transport.udp.endpoint import Endpoint
from kkp2p_compat.transport.udp.events import Event, Readable, Transmit

__all__ = ["make", "ours", "stranger"]

# The order of things.


@pytest.mark.parametrize("family", list(IPS), ids=["ipv4", "ipv6"])
def test_two_endpoints(family: socket.AddressFamily, make: Callable[[], Endpoint]) -> None:
    a, b = make(), make()
    here, there = added(a, 1), added(b, 2)
    ping, pong = packet(2, b"ping") * 44, packet(1, b"pong")
    there.on_event = lambda event: there.connection.transmits.append(
        Transmit(pong, 100, place(a, family))
    )
    here.connection.transmits.append(Transmit(ping, 100, place(b, family)))
    a.wake(here)
    here.connection.wait_for(lambda: len(here.connection.received) == 44)
    assert here.connection.received == [pong] * 44
    assert there.connection.received == [packet(2, b"ping")] * 44
    calls = there.connection.calls
    assert calls[0] == "datagrams"
    assert calls.index("event") < calls.index("transmit") < calls.index("next timer")
    assert not a.dropped + b.dropped + a.failures() + b.failures()


def test_a_wake_drives_once(ours: Endpoint, stranger: BatchSocket) -> None:
    link = added(ours, 1)
    for _ in range(3):
        ours.wake(link)
    assert link.connection.calls == []
    gevent.sleep(0)
    assert link.connection.calls == ["next timer"]
    link.on_event = lambda event: ours.wake(link)
    send(stranger, ours, packet(1, b""))
    link.connection.wait_for(lambda: link.connection.calls.count("next timer") == 2)
    gevent.sleep(0)
    assert link.connection.calls.count("next timer") == 2


def test_room_for_a_writer_is_used_at_once(ours: Endpoint, stranger: BatchSocket) -> None:
    """Sending makes events, whose handlers give more to send."""
    link = added(ours, 1)
    transmit = Transmit(b"data", 4, ("127.0.0.1", stranger.port))
    left = [3]

    def poll_transmit(now: float) -> Transmit | None:
        if link.connection.transmits:
            link.connection.events.append(Readable(0))
            return link.connection.transmits.popleft()
        return None

    def write(event: Event) -> None:
        left[0] -= 1
        if left[0] > 0:
            link.connection.transmits.append(transmit)

    link.connection.poll_transmit = poll_transmit  # type: ignore[method-assign]
    link.on_event = write
    link.connection.transmits.append(transmit)
    ours.wake(link)
    gevent.sleep(0)
    assert left == [0]
    assert link.connection.calls.count("next timer") == 1


def test_bulk_is_left_in_the_socket_for_a_while(ours: Endpoint, stranger: BatchSocket) -> None:
    bulk, other = added(ours, 1), added(ours, 2)
    bulk.connection.gathers_s = 1.0
    send(stranger, ours, packet(1, b"first", 1400))
    bulk.connection.wait_for(lambda: bulk.connection.received)
    bulk.connection.gathers_s = 0.0
    send(stranger, ours, packet(1, b"second", 1400))
    elsewhere = BatchSocket(socket.AF_INET6, log)
    try:
        elsewhere.send(packet(2, b"x"), 100, place(ours, socket.AF_INET6))
        other.connection.wait_for(lambda: other.connection.received)
    finally:
        elsewhere.close()
    assert len(bulk.connection.received) == 1
    bulk.connection.wait_for(lambda: len(bulk.connection.received) == 2)
    send(stranger, ours, packet(1, b"third", 1400))  # is read as it comes
    bulk.connection.wait_for(lambda: len(bulk.connection.received) == 3)


def test_what_is_bulk_for_one_does_not_make_another_wait(
    ours: Endpoint, stranger: BatchSocket
) -> None:
    bulk, other = added(ours, 1), added(ours, 2)
    bulk.connection.gathers_s = 60.0
    send(stranger, ours, packet(1, b"bulk", 1400), packet(2, b"a request", 1400))
    other.connection.wait_for(lambda: other.connection.received)
    send(stranger, ours, packet(2, b"the next one", 1400))
    other.connection.wait_for(lambda: len(other.connection.received) == 2)


def test_a_long_sender_lets_others_have_their_turn(ours: Endpoint, stranger: BatchSocket) -> None:
    sender, other = added(ours, 1), added(ours, 2)
    count = 10 * endpoint.TRANSMIT_TURN_CALLS
    transmit = Transmit(b"data", 4, ("127.0.0.1", stranger.port))
    sender.connection.transmits.extend([transmit] * count)
    left_then: list[int] = []
    other.on_event = lambda event: left_then.append(len(sender.connection.transmits))
    send(stranger, ours, packet(2, b""))
    ours.wake(sender)
    sender.connection.wait_for(lambda: not sender.connection.transmits)
    assert left_then[0] > 0, "the datagram waited until all was sent"


def test_a_long_receiver_lets_others_have_their_turn(ours: Endpoint, stranger: BatchSocket) -> None:
    link = added(ours, 1)
    count = 3 * endpoint.RECEIVE_TURN_CALLS
    for _ in range(count):
        send(stranger, ours, packet(1, b""))
    link.connection.wait_for(lambda: len(link.connection.received) == count)
    assert link.connection.calls.count("next timer") >= 3


def test_a_turn_ends_after_so_many_bytes(
    ours: Endpoint, stranger: BatchSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "RECEIVE_TURN_BYTES", 300)
    link = added(ours, 1)
    for _ in range(9):
        send(stranger, ours, packet(1, b"", 100))
    link.connection.wait_for(lambda: len(link.connection.received) == 9)
    assert link.connection.calls.count("next timer") >= 2


def test_a_short_message_is_delivered_before_more_is_read(
    ours: Endpoint, stranger: BatchSocket
) -> None:
    """What waits behind it is then read together."""
    link = added(ours, 1)
    messages = [packet(1, b"%d" % number) for number in range(5)]
    for message in messages:
        send(stranger, ours, message)
    link.connection.wait_for(lambda: len(link.connection.received) == 5)
    assert link.connection.received == messages
    delivered = link.connection.calls.index("event")
    assert link.connection.calls[:delivered] == ["datagrams"]
    link.connection.wait_for(lambda: link.connection.calls.count("next timer") == 2)


def test_what_is_for_nobody_holds_nothing_up(ours: Endpoint, stranger: BatchSocket) -> None:
    link = added(ours, 1)
    for _ in range(3):
        send(stranger, ours, packet(2, b""))
    send(stranger, ours, packet(1, b""))
    link.connection.wait_for(lambda: "next timer" in link.connection.calls)
    assert link.connection.calls == ["datagrams", "event", "next timer"]
    assert set(ours.dropped) == {"unknown connection"}


def test_datagrams_that_come_one_by_one_are_handled_together(
    ours: Endpoint, stranger: BatchSocket
) -> None:
    """In their order, and cut where another connection's begin."""
    links = [added(ours, number) for number in (0, 1)]
    stranger.can_segment = False
    order = [1] * 9 + [0] * 2 + [1] * 3
    packets = [packet(to, b"%d" % number, 1000) for number, to in enumerate(order)]
    packets[-1] = packets[-1][:900]
    for start, stop in ((0, 9), (9, 14)):
        send(stranger, ours, *packets[start:stop])
    stranger._sock.sendto(b"", place(ours))
    links[1].connection.wait_for(lambda: len(links[1].connection.received) == 12)
    for to, link in enumerate(links):
        sent = [each for each, target in zip(packets, order, strict=True) if target == to]
        assert link.connection.received == sent
        assert link.connection.calls.count("datagrams") == 1 + to
        assert link.connection.calls.count("next timer") == 1
    assert ours.dropped == {"not ours": 1}


def test_a_run_of_one_connection_does_not_hold_up_another(
    ours: Endpoint, stranger: BatchSocket
) -> None:
    """It is handled in its place, though what comes before it and behind it could be joined."""
    bulk, other = added(ours, 1), added(ours, 2)
    before, behind = 3 * endpoint.RECEIVE_TURN_CALLS // 2, 2 * endpoint.RECEIVE_TURN_CALLS
    came_then: list[int] = []
    other.on_event = lambda event: came_then.append(len(bulk.connection.received))
    for number in range(before + behind):
        if number == before:
            send(stranger, ours, packet(2, b"", 1000))
        send(stranger, ours, packet(1, b"%d" % number, 1000))
    bulk.connection.wait_for(lambda: len(bulk.connection.received) == before + behind)
    assert bulk.connection.received == [
        packet(1, b"%d" % number, 1000) for number in range(before + behind)
    ]
    assert before <= came_then[0] <= before + endpoint.RECEIVE_TURN_CALLS


def test_ids(ours: Endpoint) -> None:
    link = added(ours, 1)
    with pytest.raises(ValueError, match="taken"):
        ours.add(Link(1))
    for unknown in Link(1), Link(2):
        ours.wake(unknown)
        ours.remove(unknown)
    gevent.sleep(0)
    assert link.connection.calls == []
    ours.remove(link)
    ours.add(Link(1))


# Time.


def test_deadlines_in_their_order(ours: Endpoint) -> None:
    links = [added(ours, number) for number in range(5)]
    order: list[int] = []
    start = time.monotonic()
    for link in links:
        called = link.connection.handle_timer

        def handle_timer(now: float, link: Link = link, called: Any = called) -> None:
            order.append(link.local_id)
            called(now)

        link.connection.handle_timer = handle_timer  # type: ignore[method-assign]
        link.connection.deadline = start + 60 + link.local_id
        ours.wake(link)
    gevent.sleep(0)
    for link, deadline in zip(links, (0.003, 0.002, -1, None, 0.004), strict=True):
        link.connection.deadline = None if deadline is None else start + deadline
        ours.wake(link)
    links[4].connection.wait_for(lambda: links[4].connection.deadline is None)
    assert order == [2, 1, 0, 4]


def test_a_deadline_that_moves_on_wakes_nobody(ours: Endpoint) -> None:
    link, later = added(ours, 1), added(ours, 2)
    for delay_s in 0.01, 0.03, 60.0:
        link.connection.deadline = time.monotonic() + delay_s
        ours.wake(link)
        gevent.sleep(0)
    link.connection.calls.clear()
    later.connection.deadline = time.monotonic() + 0.04
    ours.wake(later)
    later.connection.wait_for(lambda: "timer" in later.connection.calls)
    assert "timer" not in link.connection.calls
    assert "transmit" not in link.connection.calls


# A full socket.


class Full(socket.socket):
    """Takes no datagram while ``room`` is 0."""

    room = 0

    def sendto(self, *args: Any) -> int:
        return self._take(super().sendto, *args)

    def sendmsg(self, *args: Any) -> int:
        return self._take(super().sendmsg, *args)

    def _take(self, call: Callable[..., int], *args: Any) -> int:
        if Full.room <= 0:
            raise BlockingIOError(errno.EAGAIN, "full")
        Full.room -= 1
        return call(*args)


@pytest.mark.parametrize("plain", [False, True])
def test_what_waits_for_room_is_sent_once_and_in_order(
    plain: bool,
    make: Callable[[], Endpoint],
    stranger: BatchSocket,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(batch_socket, "_new_socket", Full)
        ours = make()
    for door in ours._doors:
        door.socket.can_segment &= not plain
    links = [added(ours, number) for number in (1, 2)]
    Full.room = 0
    sent = {link: [packet(link.local_id, b"%d" % number) for number in range(40)] for link in links}
    for link in links:
        for start in range(0, 40, 4):
            data = b"".join(sent[link][start : start + 4])
            link.connection.transmits.append(Transmit(data, 100, ("127.0.0.1", stranger.port)))
        link.connection.deadline = time.monotonic()
        ours.wake(link)
    links[0].connection.wait_for(lambda: "timer" in links[0].connection.calls)
    for link in links:  # events and deadlines went on, and no second batch was asked for
        assert link.connection.calls.count("transmit") == 1
    received: list[bytes] = []
    while len(received) < 80:
        Full.room = 1
        received += arrives(stranger)
    assert stranger.receive() is None
    for link in links:
        assert [each for each in received if each[15] == link.local_id] == sent[link]
    assert received[4][15] != received[0][15], "one has kept the other from its turn"


def test_a_connection_that_ends_while_it_waits_for_room(
    make: Callable[[], Endpoint],
    monkeypatch: pytest.MonkeyPatch,
    stranger: BatchSocket,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(batch_socket, "_new_socket", Full)
    ours = make()
    Full.room = 0
    links = [added(ours, number) for number in (1, 2)]
    for link in links:
        data = packet(link.local_id, b"")
        link.connection.transmits.append(Transmit(data, 100, ("127.0.0.1", stranger.port)))
        ours.wake(link)
    gevent.sleep(0)
    ours.remove(links[0])
    ours.send_check(b"a check", ("127.0.0.1", stranger.port))
    assert ours.dropped == {"socket full": 1}
    Full.room = 2
    assert arrives(stranger) == [packet(2, b"")]
    assert not caplog.records


def test_a_deadline_that_needs_room_does_not_spin(
    make: Callable[[], Endpoint], monkeypatch: pytest.MonkeyPatch, stranger: BatchSocket
) -> None:
    monkeypatch.setattr(batch_socket, "_new_socket", Full)
    ours = make()
    Full.room = 0
    blocked, later = added(ours, 1), added(ours, 2)
    blocked.connection.handle_timer = lambda now: blocked.connection.calls.append("timer")  # type: ignore[method-assign]
    start = time.monotonic()
    blocked.connection.deadline = start  # to send, and it stays until it can
    later.connection.deadline = start + 0.05
    blocked.connection.transmits.append(Transmit(b"x", 1, ("127.0.0.1", stranger.port)))
    for link in blocked, later:
        ours.wake(link)
    later.connection.wait_for(lambda: "timer" in later.connection.calls)
    most = (time.monotonic() - start) / endpoint.BLOCKED_TIMER_S + 1
    assert 0 < blocked.connection.calls.count("timer") <= most


def test_a_deadline_does_not_wait_for_a_socket_that_is_full(
    make: Callable[[], Endpoint], monkeypatch: pytest.MonkeyPatch, stranger: BatchSocket
) -> None:
    monkeypatch.setattr(batch_socket, "_new_socket", Full)
    ours = make()
    Full.room = 0
    one, other = socket.socketpair()
    with one, other:
        ours._alarm._soon.close()
        one.setblocking(False)
        while select.select([], [one], [], 0)[1]:
            one.send(bytes(1 << 16))
        # Like a socket that the kernel calls full.
        ours._alarm._soon = ours._loop.io(one.fileno(), 2)
        blocked, due = added(ours, 1), added(ours, 2)
        blocked.connection.transmits.append(Transmit(b"x", 1, ("127.0.0.1", stranger.port)))
        due.connection.deadline = time.monotonic()
        for link in blocked, due:
            ours.wake(link)
        due.connection.wait_for(lambda: "timer" in due.connection.calls)
        ours.close()


# Where there is little.


def test_no_descriptors() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open("/dev/null") as last:
        free = last.fileno()
    for more in 0, 1:  # the second fails at its second socket
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + more, hard))
        try:
            with pytest.raises(OutOfDescriptors):
                Endpoint(log)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_no_ipv6(
    make: Callable[[], Endpoint], stranger: BatchSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def new_socket(family: socket.AddressFamily, kind: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "no such family")
        return socket.socket(family, kind)

    monkeypatch.setattr(batch_socket, "_new_socket", new_socket)
    ours = make()
    assert list(ours.ports()) == [socket.AF_INET]
    link = added(ours, 1)
    link.connection.transmits.append(Transmit(b"six", 3, ("::1", 9)))
    link.connection.transmits.append(Transmit(b"four", 4, ("127.0.0.1", stranger.port)))
    ours.wake(link)
    assert arrives(stranger) == [b"four"]
    assert ours.dropped == {"no socket": 1}
