"""A TCP connection that carries datagrams: where a network blocks UDP, or strangles it.

Each datagram has its length in front, two bytes in network order; otherwise the stream is the
datagrams of docs/protocol.rst, "The UDP transport", unchanged.  To a connection it is one more
socket that its addresses may name.  It moves whole runs of datagrams with each system call.

TCP repeats what is lost and never drops, so what waits must be kept short here: the kernel takes
no more than UNSENT_BYTES which it cannot send yet (TCP_NOTSENT_LOWAT), and none of ours wait but
the rest of a datagram that it has cut.  The size of its buffer is left to the kernel (tcp_wmem):
the rest of what is in it is on its way.  While nothing at all gets through, for STUCK_S and more,
datagrams are lost here as they are on a dead UDP path: so a connection notices, and tries another.
"""

from __future__ import annotations

import errno
import socket
import time
from collections import Counter
from logging import Logger
from typing import Any

from gevent import monkey

from ..._address import Address, HostPort, text_of
from ..._descriptors import keep_private
from .. import tcp

__all__ = ["FramedSocket"]

_LENGTH_BYTES = 2
_RECEIVE_BYTES = 128 << 10  # our choice: of one system call, and about what is kept at most

# Our choice: what is for no connection is handled one by one.  A full read has 109 of 1,200 bytes.
MAX_RUN_DATAGRAMS = 128

# Our choices.  Two batches: the kernel asks for more when half of it has been sent.
UNSENT_BYTES = 128 << 10
STUCK_S = 0.1
DATAGRAM_BYTES = 16_376  # no packet of the network's, so far fewer for the same bytes; 4 a batch

_TCP_NOTSENT_LOWAT = getattr(socket, "TCP_NOTSENT_LOWAT", None)  # not everywhere
# Not gevent's: its calls would wait, and here a watcher of the endpoint does that.
_new_socket: Any = monkey.get_original("socket", "socket")


class FramedSocket:
    """A BatchSocket's face over one connected TCP socket.

    ``broken``: the connection is over, or the other side has sent what cannot be.  ``holds_more``:
    datagrams have been received that no watcher can tell of; call ``receive``.
    """

    datagram_bytes = DATAGRAM_BYTES

    def __init__(self, sock: Any, address: HostPort, number: int, log: Logger) -> None:
        """Takes over ``sock``, a connected TCP socket of gevent's or a plain one, which is detached
        from its object.  What was read from it before is the caller's.

        ``address``: what the other end is known by; with ``number`` behind it, it is the address of
        all that comes.
        """
        self.number = number
        self.failures: Counter[str] = Counter()
        self.broken = False
        self.holds_more = False
        self._log = log
        self._address: Address = (*address, number)
        self._received = b""
        self._place = 0  # in it, of the next frame
        self._stride = 1  # of the last run: its frames' bytes
        self._cut = b""  # the datagram of which the kernel took a part only
        self._rest = b""  # what it did not take
        self._unacked: int | None = -1  # when the kernel's buffer was found full
        self._stuck_at = 0.0
        self._sock: socket.socket = keep_private(_new_socket(fileno=sock.detach()))
        try:
            self._sock.setblocking(False)
            tcp.tune(self._sock)
            if _TCP_NOTSENT_LOWAT is not None:
                self._sock.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, UNSENT_BYTES)
            self.port: int = self._sock.getsockname()[1]
        except BaseException:
            self._sock.close()
            raise

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()

    def grow(self) -> None:
        """As large as it gets."""

    def _break(self, reason: str) -> None:
        if not self.broken:
            self.broken = True
            self._log.info("TCP that carries datagrams, %s: %s", text_of(self._address), reason)

    def _fail(self, error: OSError) -> None:
        self.failures[errno.errorcode.get(error.errno or 0, str(error))] += 1
        self._break(str(error))

    # Sending.

    def send(self, data: bytes, segment_bytes: int, address: Address) -> int:
        """As BatchSocket's.  A datagram that is cut counts as not sent: it is to be given again,
        but the other side gets its rest in any case.
        """
        if self._rest and not self._flush():
            return len(data) if self.broken or self._is_stuck() else 0
        done = 0
        if self._cut and data.startswith(self._cut):
            done, self._cut = len(self._cut), b""
        # The header stands between all datagrams but for a shorter one at the end.
        header = segment_bytes.to_bytes(_LENGTH_BYTES, "big")
        last = (len(data) - done) % segment_bytes
        whole = len(data) - last
        parts = [data[start : start + segment_bytes] for start in range(done, whole, segment_bytes)]
        framed = header.join([b"", *parts])
        if last:
            framed += last.to_bytes(_LENGTH_BYTES, "big") + data[whole:]
        taken = self._take(framed)
        if taken == len(framed) or self.broken or (not taken and self._is_stuck()):
            return len(data)
        stride = segment_bytes + _LENGTH_BYTES
        frames, cut_at = divmod(taken, stride)
        start = done + frames * segment_bytes
        if cut_at:
            self._cut = data[start : start + segment_bytes]
            self._rest = framed[taken : (frames + 1) * stride]
        return start

    def _flush(self) -> bool:
        """Whether the other side has all of what was cut, or its kernel will."""
        self._rest = self._rest[self._take(self._rest) :]
        return not self._rest

    def _take(self, framed: bytes) -> int:
        """How much of it the kernel takes now."""
        try:
            taken = self._sock.send(framed)
        except BlockingIOError:
            return 0
        except OSError as error:
            self._fail(error)
            return 0
        self._unacked = -1
        return taken

    def _is_stuck(self) -> bool:
        """Whether there was no room for a while, and the other side acknowledged nothing."""
        unacked, now = tcp.unsent_bytes(self._sock), time.monotonic()
        if unacked != self._unacked:
            self._unacked, self._stuck_at = unacked, now + STUCK_S
        if now < self._stuck_at:
            return False
        self.failures["stuck"] += 1
        return True

    def send_with_ttl(self, data: bytes, address: Address, ttl: int) -> int:
        """Of a connection each datagram goes as far as the others."""
        return self.send(data, len(data), address)

    # Receiving.

    def receive(self) -> tuple[bytes, int, Address] | None:
        """As BatchSocket's.  After None ``broken`` tells whether there will be more."""
        if not self.holds_more and not self._fill():
            return None
        received, start = self._received, self._place
        size = int.from_bytes(received[start : start + _LENGTH_BYTES], "big")
        stride = self._stride = size + _LENGTH_BYTES
        whole = min((len(received) - start) // stride, MAX_RUN_DATAGRAMS)
        stop = start + whole * stride
        if whole > 1:  # as many as are of one length, seen by their headers
            for place in range(_LENGTH_BYTES):
                column = received[start + place : stop : stride]
                whole = min(whole, len(column) - len(column.lstrip(column[:1])))
            stop = start + whole * stride
        run = bytearray(received[start:stop])
        # Without their headers: in half the time that it takes to cut and join the datagrams.
        del run[::stride]
        del run[:: stride - 1]
        self._place = stop
        if self._look() and 0 < (shorter := self._next_size()) < size:
            self._place += _LENGTH_BYTES + shorter
            run += received[stop + _LENGTH_BYTES : self._place]
            self._look()
        return bytes(run), size, self._address

    def _next_size(self) -> int:
        head = self._received[self._place : self._place + _LENGTH_BYTES]
        return int.from_bytes(head, "big")

    def _look(self) -> bool:
        """Set ``holds_more``: whether a whole datagram was received and not given out."""
        left = len(self._received) - self._place - _LENGTH_BYTES
        size = self._next_size()
        self.holds_more = left >= size > 0
        if left >= 0 and not size:
            self._break("it brings an empty datagram, which no peer sends")
        return self.holds_more

    def _fill(self) -> bool:
        """Receive; True: there is a whole datagram."""
        if self.broken:
            return False
        rest = self._received[self._place :]
        # Ends with a frame if all are as long as the last ones: then there is no rest to be copied.
        want = _RECEIVE_BYTES - _RECEIVE_BYTES % self._stride - len(rest)
        try:
            data = self._sock.recv(want)
        except BlockingIOError:
            return False
        except OSError as error:
            self._fail(error)
            return False
        if not data:
            self._break("the other side has ended it")
            return False
        self._received, self._place = rest + data if rest else data, 0
        return self._look()
