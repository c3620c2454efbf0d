"""The sockets, the timer and the clock for all UDP connections of an engine.

Every connection of an engine, and its STUN and connectivity checks, share one socket per address
family; only what crosses the worst NATs needs extra ones, for a while.  What arrives is told apart
by its first byte (RFC 9443), and by the connection id.

The rules:
- Everything runs in callbacks of the hub's watchers, never in a greenlet: a switch to one costs as
  much as the datagram.  So a handler must not wait.
- The order is always the same: feed what has arrived, then let each connection that was touched
  give its events and datagrams in turns, then its next deadline.  There is one timer for all.
- A turn is bounded, so that the other watchers of the hub get theirs.
- What a full socket does not take waits for room, one batch for each connection, which is not asked
  for more meanwhile.
- A stranger's datagram is counted and forgotten: it gets no answer and no line in the log.
"""

from __future__ import annotations

import functools
import math
import time
from collections import Counter
from collections.abc import Callable
from logging import Logger
from typing import Any

from gevent import get_hub

from ..._address import Address
from ..._errors import OurFault
from ..._nat64 import Nat64
from ..lane_wire import MAGIC as LANE_MAGIC
from .alarm import Alarm
from .deadline_queue import DeadlineQueue
from .demultiplex import Datagrams, connection_id, joined, key_of, runs
from .doors import Door, Doors
from .driven import Driven, Member
from .early import EarlyDatagrams
from .header import FIRST_BYTE, OVERHEAD_BYTES
from .mtu import MIN_BYTES

__all__ = ["CLOSE_INTERNAL_ERROR", "Endpoint"]

_STUN_END = b"\x04"  # RFC 7983 section 7: a STUN message begins with a byte of 0 to 3
CLOSE_INTERNAL_ERROR = 2  # our choice, docs/protocol.rst

# Our choice, as all below: a turn takes about a millisecond.
RECEIVE_TURN_BYTES = 512 << 10
RECEIVE_TURN_CALLS = 64
SHORT_BYTES = MIN_BYTES  # a shorter datagram is no part of a bulk transfer
TRANSMIT_TURN_CALLS = 16  # a connection's; 64 KB each at most
BLOCKED_TIMER_S = 0.01  # a connection that waits for room may have a deadline that room must meet
LOOK_AGAIN_S = 0.1  # and the socket may have to be asked whether it has given up to find room

_FIRST = bytes([FIRST_BYTE])
_now = time.monotonic
OnDatagram = Callable[[bytes, Address], object]


class Endpoint:
    """Belongs to the hub of the thread that makes it, as do all its methods.

    ``on_stun(data, address)`` gets what begins like a STUN message, ``on_lane`` what begins like a
    relay's about a lane.  ``dropped`` counts by reason what was for nobody or could not be sent,
    beside the sockets' own ``failures()``.
    A handler may call any method, for its own connection and for others.
    """

    def __init__(self, log: Logger, on_stun: OnDatagram | None = None) -> None:
        """Opens the sockets, on free ports.  Raises OutOfDescriptors; LinkLost: of no family."""
        self.on_stun = on_stun
        self.on_lane: OnDatagram | None = None
        self.dropped: Counter[str] = Counter()
        self.early = EarlyDatagrams(self.dropped)
        self._log = log
        self._loop = get_hub().loop
        self._members: dict[bytes, Member] = {}
        self._ready: list[Member] = []
        self._in_turn = False  # the ready ones are driven at its end, else by the callback
        self._callback: Any = None
        self._deadlines: DeadlineQueue[Member | Door] = DeadlineQueue()  # of a Door: read it
        self._closed = False
        read = functools.partial(self._turn, self._read)
        self._doors = doors = Doors(log, self._loop, read, self._leave)
        self.ports, self.port_of, self.failures = doors.ports, doors.port_of, doors.failures
        self.datagram_limit, self.translate_ipv4 = doors.datagram_limit, doors.translate_ipv4
        self.open_sockets, self.close_sockets = doors.open_sockets, doors.close_sockets
        self.adopt, self.watch = doors.adopt, doors.watch
        ring = functools.partial(self._turn, self._handle_deadlines)
        self._alarm = Alarm(self._loop, next(iter(doors)), ring)

    @property
    def nat64(self) -> Nat64 | None:
        """What translates our datagrams to IPv4 addresses."""
        return self._doors.nat64

    def _leave(self, door: Door) -> None:
        """It was closed; what connections had waiting for room in it is lost."""
        self._deadlines.remove(door)
        for member in list(door.waiting):
            self._stop_waiting(member)
            self._make_ready(member)

    def add(self, link: Driven) -> None:
        """Drive this connection from now on.  ValueError: its id is taken."""
        if self._closed:
            return
        member = Member(link)
        if member.key in self._members:
            raise ValueError(f"connection id {link.local_id:016x} is taken")
        self._members[member.key] = member
        self._make_ready(member)

    def remove(self, link: Driven) -> None:
        """Forget this connection; what it has to send yet (CLOSE) goes, if the socket takes it.

        No handler of it is called any more.  An unknown one is ignored.
        """
        member = self._members.get(key_of(link.local_id))
        if member is None or member.link is not link:
            return
        del self._members[member.key]
        member.alive = False
        self._stop_waiting(member)
        self._deadlines.remove(member)
        try:
            now = _now()
            for _ in range(TRANSMIT_TURN_CALLS):
                transmit = member.connection.poll_transmit(now)
                if transmit is None:
                    break
                self._send_or_drop(transmit.data, transmit.segment_bytes, transmit.address)
        except Exception:  # noqa: BLE001 - the others must not suffer
            self._log.exception("bug in connection %s as it ends", member.key.hex())

    def wake(self, link: Driven) -> None:
        """The application gave it something to do: drive it in this turn of the loop."""
        member = self._members.get(key_of(link.local_id))
        if member is not None and member.link is link:
            self._make_ready(member)

    def send_check(self, data: bytes, address: Address, ttl: int | None = None) -> None:
        """Send one datagram, now or never; ``ttl``: the hops that it may take, 1 to 255."""
        if ttl is None:
            self._send_or_drop(data, len(data), address)
            return
        door = self._door(address)
        if door is not None and door.socket.send_with_ttl(data, address, ttl) < len(data):
            self.dropped["socket full"] += 1

    def _send_or_drop(self, data: bytes, segment_bytes: int, address: Address) -> None:
        door = self._door(address)
        if door is not None and door.socket.send(data, segment_bytes, address) < len(data):
            self.dropped["socket full"] += 1

    def close(self) -> None:
        """Remove all connections, and close the sockets.  May be called at any time, and again."""
        if self._closed:
            return
        for member in list(self._members.values()):
            self.remove(member.link)
        self._closed = True
        self._ready.clear()
        if self._callback is not None:
            self._callback.close()
        self._alarm.close()
        self._doors.close()

    # What arrives.

    def _read(self, door: Door) -> None:
        """Read what has come; then what comes next, at once or in a while if all of it is bulk."""
        self._receive(door)
        if door.closed:
            return
        if door.socket.broken:
            self._lose(door)
            return
        now = _now()
        gather_s = math.inf
        for member in tuple(self._ready):
            try:
                gather_s = min(gather_s, member.connection.gather_s(now))
            except Exception:  # noqa: BLE001 - logged; the other connections must not suffer
                gather_s = 0.0
                self._fail(member)
        if door.socket.holds_more:
            self._deadlines.set(door, now)
        elif 0 < gather_s < math.inf:
            door.readable.stop()
            self._deadlines.set(door, now + gather_s)
        elif not door.readable.active:
            door.readable.start(self._turn, self._read, door)

    def _lose(self, door: Door) -> None:
        """An adopted socket broke."""
        self.close_sockets([door.socket.number])
        if door.on_broken is not None:
            self._tell(door.on_broken, door.socket.number)

    def _receive(self, door: Door) -> None:
        """Read what has come; a short message is delivered before anything else is done."""
        receive = door.socket.receive
        first = receive()
        if first is not None and len(first[0]) == first[1] < SHORT_BYTES:
            follows_at_once = self._loop.iteration == door.short_in + 1  # so more may wait behind
            door.short_in = self._loop.iteration
            if self._dispatch(*first) and not follows_at_once:
                return  # what comes meanwhile makes the next turn
            first = None if door.closed else receive()
        for data, segment_bytes, address in joined(
            receive, first, RECEIVE_TURN_CALLS, RECEIVE_TURN_BYTES
        ):
            for run in runs(data, segment_bytes):
                self._dispatch(run, segment_bytes, address)
            if door.closed:
                return

    def _dispatch(self, data: bytes, segment_bytes: int, address: Address) -> bool:
        """Datagrams for one receiver; True: they brought something for the application."""
        if data[:1] == _FIRST and min(len(data), segment_bytes) >= OVERHEAD_BYTES:
            member = self._members.get(connection_id(data))
            if member is None:
                self.early.keep(connection_id(data), data, segment_bytes, address)
                return False
            try:
                has_news = member.connection.handle_datagrams(data, segment_bytes, address, _now())
            except Exception:  # noqa: BLE001 - logged; the other connections must not suffer
                self._fail(member)
                has_news = False
            self._make_ready(member)
            return has_news
        is_stun = data[:1] < _STUN_END and data
        handler = self.on_stun if is_stun else self.on_lane if data[:4] == LANE_MAGIC else None
        if handler is None:
            self.dropped["not ours"] += 1
            return False
        for start in range(0, len(data), segment_bytes):
            if not self._closed:
                self._tell(handler, data[start : start + segment_bytes], address)
        return False

    def _tell(self, handler: Callable[..., object], *args: object) -> None:
        try:
            handler(*args)
        except Exception:  # noqa: BLE001 - logged; the connections must not suffer
            self._log.exception("bug in %r", handler)

    # Turns: what a watcher brings, then every connection that it touched.

    def _turn(self, function: Callable[..., object], *args: object) -> None:
        self._in_turn = True
        try:
            function(*args)
        finally:
            self._drive_ready()

    def _make_ready(self, member: Member) -> None:
        if member.ready or not member.alive:
            return
        member.ready = True
        self._ready.append(member)
        if not self._in_turn:
            self._call_later()

    def _call_later(self) -> None:
        if self._callback is None:
            self._callback = self._loop.run_callback(self._on_callback)

    def _on_callback(self) -> None:
        self._callback = None
        self._drive_ready()

    def _drive_ready(self) -> None:
        """Ends a turn.  What becomes ready meanwhile is left to the callback."""
        self._in_turn = True
        ready, self._ready = self._ready, []
        try:
            for member in ready:
                try:
                    if member.alive:
                        self._drive(member)
                except Exception:  # noqa: BLE001 - logged; the other connections must not suffer
                    self._fail(member)
            self._alarm.set(self._deadlines.earliest())
        finally:
            self._in_turn = False
            if self._ready:
                self._call_later()

    def _drive(self, member: Member) -> None:
        connection = member.connection
        now = _now()
        calls_left = TRANSMIT_TURN_CALLS
        event = connection.poll_event()
        while True:
            while event is not None:
                member.link.handle_event(event)
                if not member.alive:
                    return
                event = connection.poll_event()
            if member.waiting is None:
                calls_left = self._transmit(member, now, calls_left)
            if calls_left == 0:
                break
            event = connection.poll_event()  # what was sent may have made room for a writer
            if event is None:
                break
        member.ready = False  # not before: what a handler wrote has been sent
        deadline = math.inf if (due := connection.next_timer()) is None else due
        if member.waiting is not None:
            deadline = min(max(deadline, now + BLOCKED_TIMER_S), now + LOOK_AGAIN_S)
        elif calls_left == 0:
            # Not by the callback: the hub runs callbacks that add callbacks for up to 5 ms
            # (sys.getswitchinterval) before it looks at the sockets again.
            deadline = now
        self._deadlines.set(member, deadline)

    # What goes out.

    def _transmit(self, member: Member, now: float, calls_left: int) -> int:
        """Send until there is no more, or the socket is full; returns how many calls are left."""
        poll_transmit = member.connection.poll_transmit
        while calls_left > 0:
            transmit = poll_transmit(now)
            if transmit is None:
                break
            calls_left -= 1
            door = self._door(transmit.address)
            if door is None:
                continue
            door.socket.grow()
            batch = transmit.data, transmit.segment_bytes, transmit.address
            if not (self._send(member, door, batch) and transmit.more):
                break
        return calls_left

    def _send(self, member: Member, door: Door, batch: Datagrams) -> bool:
        """False: the rest waits in the door's line, at the end or where it has waited before."""
        data, segment_bytes, address = batch
        done = door.socket.send(data, segment_bytes, address)
        if done == len(data):
            return True
        door.waiting[member] = data[done:], segment_bytes, address
        member.waiting = door
        if not door.writable.active:
            door.writable.start(self._turn, self._send_rest, door)
        return False

    def _stop_waiting(self, member: Member) -> None:
        door, member.waiting = member.waiting, None
        if door is not None:
            del door.waiting[member]

    def _send_again(self, member: Member) -> None:
        """Before it has its turn: what has given up to find room (a FramedSocket) says so now."""
        door = member.waiting
        if door is not None and self._send(member, door, door.waiting[member]):
            self._stop_waiting(member)

    def _send_rest(self, door: Door) -> None:
        while door.waiting and not door.closed:
            member, batch = next(iter(door.waiting.items()))
            try:
                if not self._send(member, door, batch):
                    return
                self._stop_waiting(member)
            except Exception:  # noqa: BLE001 - logged; the other connections must not suffer
                self._fail(member)
            self._make_ready(member)
        if not door.closed:
            door.writable.stop()

    def _door(self, address: Address) -> Door | None:
        door = None if self._closed else self._doors.find(address)
        if door is None:
            self.dropped["no socket"] += 1
        return door

    # Time.

    def _handle_deadlines(self) -> None:
        now = _now()
        while (member := self._deadlines.pop_due(now)) is not None:
            if isinstance(member, Door):
                self._read(member)
                continue
            try:
                self._send_again(member)
                due = member.connection.next_timer()
                if due is not None and due <= now:
                    member.connection.handle_timer(now)
            except Exception:  # noqa: BLE001 - logged; the other connections must not suffer
                self._fail(member)
            self._make_ready(member)

    # Bugs.

    def _fail(self, member: Member) -> None:
        """Call while handling an exception: logs it, and closes the connection that raised it."""
        name = member.key.hex()
        self._log.exception("bug in connection %s: it is closed", name)
        self._stop_waiting(member)
        if not member.alive:
            return
        if not member.failed:
            member.failed = True
            try:
                member.connection.close(CLOSE_INTERNAL_ERROR, "internal error", _now())
                member.ready = False  # it may have failed while it was driven
                self._make_ready(member)
                return
            except Exception:  # noqa: BLE001 - logged; then it ends without telling its peer
                self._log.exception("bug in connection %s: it cannot be closed", name)
        self.remove(member.link)
        from .events import Closed  # not before there is a connection: an idle engine has none

        try:
            error = OurFault("a fault of ours in the connection")
            member.link.handle_event(Closed(error))
        except Exception:  # noqa: BLE001 - logged; nobody is left to tell
            self._log.exception("bug in the owner of connection %s", name)
