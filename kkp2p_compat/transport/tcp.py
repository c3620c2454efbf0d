"""TCP sockets that carry channels: how they are set up, found dead, and closed without loss.

Four facts of Linux (measured on 6.x) shape this module:

- TCP_USER_TIMEOUT, set while a connection works, also ends one whose peer is alive and only does
  not read (zero window).  Not reading is allowed here, so we look at TCP_INFO instead.
- ``close`` with unread data in the receive queue sends a reset and throws away what we wrote and
  the network has not taken yet (of 200,000 bytes, 128,000 arrived).  Hence ``linger``.
- What the other kernel has acknowledged stays readable there even after a reset.
- The sockets of a process that is killed end like those of one that closes them: in order, unless
  SO_LINGER says otherwise.  Hence ``reset_if_killed``.

Where TCP_INFO or SIOCOUTQ is missing, a dead peer is found by keepalive alone, and ``linger`` waits
for the other side's end of stream.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import math
import os
import socket
import struct
import sys
import time
from typing import Protocol

from gevent import get_hub, sleep
from gevent import socket as gsocket
from gevent.socket import wait

from .._descriptors import keep_private
from .._io import READ

__all__ = [
    "DEAD_AFTER_S",
    "GRACE_S",
    "STANDSTILL_S",
    "HasFileno",
    "abort",
    "close_listener",
    "connect",
    "discard",
    "end",
    "ended",
    "give_up",
    "hurry",
    "left",
    "linger",
    "only_we_ended",
    "reset_if_killed",
    "shared_socket",
    "stranded",
    "tcp_info",
    "tune",
    "unread_bytes",
    "unresponsive",
    "unsent_bytes",
]

# Our choice: an idle connection whose peer vanished is found in 15 + 3 * 5 = 30 s.
KEEPALIVE_IDLE_S = 15
KEEPALIVE_INTERVAL_S = 5
KEEPALIVE_PROBES = 3

# Our choice: the longest pause between two retransmissions or window probes (the kernel's own is
# 120 s).  The stream goes on at most so long after a broken path works again, and ``give_up`` takes
# no longer.
RTO_MAX_MS = 5000

# Our choice: the shortest; Linux has 200 ms, of which each lost line of a call would cost one.  RFC
# 8961 bounds only the first time-out, before there is a round trip (section 4): later ones follow
# what is measured, as those of our own transport do.  Longer than the 40 ms for which Linux delays
# an acknowledgement: else that would look like a loss.
RTO_MIN_US = 60_000

# Our choice: the same bound for a connection with data on its way.
DEAD_AFTER_S = 30
DEAD_PROBES = 4  # window probes without an answer in that time
STRANDED_AFTER_S = 3  # instead of DEAD_AFTER_S, if the host has lost the connection's own address

# linux/tcp.h
_TCP_USER_TIMEOUT = 18
_TCP_RTO_MAX_MS = 44  # since Linux 6.15
_TCP_RTO_MIN_US = 45  # likewise
_TCP_CLOSE = 7  # the state of a connection that was reset or timed out
_TCP_CLOSE_WAIT = 8  # the other side has ended its direction, we have not ended ours
_TCP_FIN_WAIT = (4, 5)  # we have ended our direction, the other side has not ended its own
_TCP_INFO = getattr(socket, "TCP_INFO", 11)
# struct tcp_info: state, ca_state, retransmits, probes; 20 bytes; unacked; 28 bytes; last_ack_recv
_INFO = struct.Struct("=BxBB20xI28xI")
_SIOCOUTQ, _SIOCINQ = 0x5411, 0x541B  # linux/sockios.h
_SOCKADDR_BYTES = 28  # struct sockaddr_in6: family, port, address and so on
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # struct linger: on, for 0 s
_NO_ADDRESS = bytes(16)  # struct sockaddr of AF_UNSPEC: connect(2) dissolves a connection by it
_END_ON_CLOSE = struct.pack("ii", 0, 0)  # off, as a socket begins

# ``linger``: how the send queue is watched, since the kernel has no event for "all acknowledged".
POLL_FIRST_S = 0.005
POLL_MAX_S = 0.5
STANDSTILL_S = 30.0  # our choice: how long nothing of what was written may arrive after a close
GRACE_S = 0.2  # our choice: after the last acknowledgement, for the other side to end by itself
_discarded = bytearray(65536)  # shared: nobody looks at what is in it

_LINUX = sys.platform == "linux"
# Not socket.socket(fileno=fd): under socket.setdefaulttimeout() that changes the descriptor's mode.
_libc = ctypes.CDLL(None, use_errno=True)


class HasFileno(Protocol):
    def fileno(self) -> int: ...


def _fd(sock: HasFileno | int) -> int:
    return sock if isinstance(sock, int) else sock.fileno()


def shared_socket(family: int, port: int = 0) -> gsocket.socket:
    """Bound to all addresses and a port that others of these share, to listen or to connect."""
    sock = keep_private(gsocket.socket(family, socket.SOCK_STREAM))
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", port))
    except BaseException:
        sock.close()
        raise
    return sock


def connect(host: str, port: int, own_port: int = 0) -> gsocket.socket:
    """A connection to a numeric address; call in a greenlet, within a time-out of the caller's.

    ``own_port``: of a ``shared_socket``, to connect from; 0: any.
    Not gevent's create_connection: that resolves even a numeric address, in a thread of its pool,
    which took a tenth of the time of a whole call.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    if own_port:
        sock = shared_socket(family, own_port)
    else:
        sock = keep_private(gsocket.socket(family, socket.SOCK_STREAM))
    try:
        sock.settimeout(0)
        code = sock.connect_ex((host, port))
        if code == errno.EINPROGRESS:
            gsocket.wait_write(sock.fileno())
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))
        sock.settimeout(None)
    except BaseException:
        sock.close()
        raise
    return sock


def close_listener(sock: socket.socket) -> None:
    """Stop listening, also if a forked child holds a copy: the port is free from now on."""
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError as error:
        if error.errno != errno.ENOTCONN:  # it does not listen (yet); macOS: always
            raise
    finally:
        sock.close()


def hurry(sock: socket.socket) -> None:
    """Send small writes at once, and soon again if they are lost."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    _try_option(sock, _TCP_RTO_MIN_US, RTO_MIN_US)


def _try_option(sock: socket.socket, option: int, value: int) -> None:
    """Of Linux; without it all works, some of it later."""
    if _LINUX:
        with contextlib.suppress(OSError):  # an older kernel
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def tune(sock: socket.socket) -> None:
    """``hurry``, and find an idle peer that vanished within 30 s.

    An urgent byte (RFC 6093) stays in its place in the stream: what carries the stream on has no
    other way to tell of it, and by default the byte would be left out.
    TCP_USER_TIMEOUT is left alone on purpose: it would kill a connection whose peer is alive but
    does not read; see ``unresponsive``.
    """
    hurry(sock)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", KEEPALIVE_IDLE_S),
        ("TCP_KEEPINTVL", KEEPALIVE_INTERVAL_S),
        ("TCP_KEEPCNT", KEEPALIVE_PROBES),
    ):
        option = getattr(socket, name, None)
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
    _try_option(sock, _TCP_RTO_MAX_MS, RTO_MAX_MS)


def reset_if_killed(sock: socket.socket) -> None:
    """From now on the other side sees a reset, not an end of stream, if this process is killed.

    For a connection that this process only passes on; it ends one by ``linger`` or ``abort``.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)


def abort(sock: HasFileno | int) -> None:
    """Reset the connection: on Linux at once, whoever else has a copy; elsewhere by the close.

    On Linux the next use of the descriptor, which stays open, fails.
    """
    fd = _fd(sock)
    _libc.setsockopt(fd, socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE, len(_RESET_ON_CLOSE))
    if _LINUX:
        _libc.connect(fd, _NO_ADDRESS, len(_NO_ADDRESS))


def stranded(sock: HasFileno | int) -> bool:
    """Whether the host has lost the connection's own address, so that nothing can arrive any more.

    Known on Linux only.
    """
    if not _LINUX:
        return False
    found = ctypes.create_string_buffer(_SOCKADDR_BYTES)
    length = ctypes.c_uint(_SOCKADDR_BYTES)
    if _libc.getsockname(_fd(sock), found, ctypes.byref(length)):
        return False
    family = found.raw[:2]
    address = family + b"\0\0" + found.raw[4:]  # any port
    try:
        probe = socket.socket(int.from_bytes(family, sys.byteorder), socket.SOCK_DGRAM)
    except OSError:  # out of descriptors
        return False
    with probe:
        failed = _libc.bind(probe.fileno(), address, length)
        return bool(failed) and ctypes.get_errno() in (errno.EADDRNOTAVAIL, errno.ENODEV)


def tcp_info(sock: HasFileno | int, layout: struct.Struct) -> tuple[int, ...] | None:
    """The fields of struct tcp_info that ``layout`` picks; None where the kernel gives none."""
    if not _LINUX:
        return None
    info = ctypes.create_string_buffer(layout.size)
    length = ctypes.c_uint(layout.size)
    failed = _libc.getsockopt(_fd(sock), socket.IPPROTO_TCP, _TCP_INFO, info, ctypes.byref(length))
    if failed or length.value < layout.size:
        return None
    return layout.unpack(info.raw)


def _state(sock: HasFileno | int) -> int | None:
    info = tcp_info(sock, _INFO)
    return None if info is None else info[0]


def unresponsive(sock: HasFileno | int) -> bool:
    """Whether the peer at the other end of this TCP socket seems to be gone.

    That is: nothing was heard for DEAD_AFTER_S, although data was sent again or DEAD_PROBES window
    probes were sent.  (With the keepalive of ``tune`` an idle connection hears something more
    often.)  STRANDED_AFTER_S are enough if the host has another address now.  A peer that is alive
    and does not read answers the probes, so it is not gone.  False for a closed socket, and for one
    of another kind.
    """
    info = tcp_info(sock, _INFO)
    if info is None:
        return False
    _, retransmits, probes, unacked, last_ack_recv_ms = info
    asked = (unacked > 0 and retransmits > 0) or probes >= DEAD_PROBES
    if not asked or last_ack_recv_ms <= STRANDED_AFTER_S * 1000:
        return False
    return last_ack_recv_ms > DEAD_AFTER_S * 1000 or stranded(sock)


def ended(sock: HasFileno | int) -> bool:
    """Whether the kernel has ended this connection: reset, timed out, or closed both ways."""
    return _state(sock) == _TCP_CLOSE


def left(sock: HasFileno | int) -> bool:
    """Whether it has ended, or the other side has ended its direction; data may be unread."""
    return _state(sock) in (_TCP_CLOSE, _TCP_CLOSE_WAIT)


def give_up(sock: HasFileno | int) -> None:
    """Have the kernel end this connection with ETIMEDOUT at its next retransmission or probe.

    That is within RTO_MAX_MS on a socket that was ``tune``d; older kernels take up to two minutes.
    For a descriptor that the application holds and we may not close: its next call fails.  The
    descriptor is neither duplicated nor closed.  Nothing happens on a socket of another kind.
    """
    if _LINUX:
        one = ctypes.c_int(1)  # millisecond
        _libc.setsockopt(_fd(sock), socket.IPPROTO_TCP, _TCP_USER_TIMEOUT, ctypes.byref(one), 4)


def unsent_bytes(sock: HasFileno | int) -> int | None:
    """Bytes (and end of stream) that the other kernel has not acknowledged; None: unknown."""
    return _queued_bytes(sock, _SIOCOUTQ)


def unread_bytes(sock: HasFileno | int) -> int | None:
    """Bytes that have arrived and were not read yet; None: unknown."""
    return _queued_bytes(sock, _SIOCINQ)


def _queued_bytes(sock: HasFileno | int, request: int) -> int | None:
    if not _LINUX:
        return None
    count = ctypes.c_int()
    if _libc.ioctl(_fd(sock), ctypes.c_ulong(request), ctypes.byref(count)):
        return None
    return count.value


def end(sock: socket.socket) -> None:
    """End our direction, and never wait from now on.  Raises OSError if the connection is over."""
    if sock.gettimeout() != 0:
        sock.settimeout(0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _END_ON_CLOSE)
    sock.shutdown(socket.SHUT_WR)


def discard(sock: socket.socket) -> bool:
    """Drop what has arrived, or a part of it; True: there is no more.

    Raises OSError if the connection was reset.
    """
    try:
        return sock.recv_into(_discarded) == 0
    except BlockingIOError:
        return False


def only_we_ended(sock: HasFileno | int) -> bool:
    """Whether the other side has not ended its direction: then it is our SHUT_RD that reads 0."""
    return _state(sock) in _TCP_FIN_WAIT


class _Waiting:
    """For acknowledgements: ``within_s``, or as long as some come; see ``linger``."""

    def __init__(self, within_s: float | None) -> None:
        self._is_patient = within_s is None
        self._least = math.inf  # bytes that were not acknowledged
        # Not by the loop's clock, which is the wall's: that one may be set.
        self._until = time.monotonic() + (STANDSTILL_S if within_s is None else within_s)

    def left_s(self, unsent: int | None) -> float:
        now = time.monotonic()
        if self._is_patient and unsent is not None and unsent < self._least:
            self._until, self._least = now + STANDSTILL_S, unsent
        return self._until - now

    def shorten(self, seconds: float) -> None:
        self._until = min(self._until, time.monotonic() + seconds)


def linger(sock: socket.socket, within_s: float | None = None, *, reset: bool = False) -> bool:
    """Close the socket once the other kernel holds all that was written; call in a greenlet.

    Ends our direction (SHUT_WR), reads and drops what still arrives until end of stream or until
    all is acknowledged and a short grace is over, and closes.  With ``reset`` the other side is
    told of a broken stream instead: no end of stream, and a reset once all is acknowledged.
    A duplicate of the descriptor that somebody still holds reads end of stream then, too.
    ``within_s`` bounds the whole; None: it may take as long as something is acknowledged every
    30 s, as the path may be slow.  Returns whether all was acknowledged.
    """
    waiting, done = _Waiting(within_s), False
    try:
        if reset:
            sock.settimeout(0)
            done = _wait_until_acknowledged(sock, waiting)
            abort(sock)
        else:
            end(sock)
            done = _discard_until_acknowledged(sock, waiting)
            # Not earlier: what comes in after SHUT_RD is answered by a reset.
            with contextlib.suppress(OSError):  # closed both ways already
                sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        done = False  # reset, or never connected: there is nothing left to wait for
    finally:
        sock.close()
    return done


def _wait_until_acknowledged(sock: socket.socket, waiting: _Waiting) -> bool:
    """Whether the other kernel holds all that was written."""
    pause = POLL_FIRST_S
    while unsent := unsent_bytes(sock):
        left_s = waiting.left_s(unsent)
        if left_s <= 0 or ended(sock) or unresponsive(sock):
            break
        sleep(min(pause, left_s))
        pause = min(pause * 2, POLL_MAX_S)
    return not unsent


def _reset_when_acknowledged(sock: socket.socket, waiting: _Waiting) -> bool:
    """After SHUT_RD, when the kernel no longer tells the other side of room that it waits for.

    A mere close leaves it waiting for 60 s (net.ipv4.tcp_fin_timeout); a reset, once it has all
    that was written, makes its writes fail at once.
    """
    done = _wait_until_acknowledged(sock, waiting)
    if done:
        abort(sock)
    return done


def _discard_until_acknowledged(sock: socket.socket, waiting: _Waiting) -> bool:
    pause, acknowledged = POLL_FIRST_S, False
    readable = get_hub().loop.io(sock.fileno(), READ)
    try:
        while True:
            try:
                if sock.recv_into(_discarded) == 0:
                    if only_we_ended(sock):
                        return _reset_when_acknowledged(sock, waiting)
                    return True  # nothing unread can cause a reset now: the kernel sees to the rest
            except BlockingIOError:
                pass
            unsent = 0 if acknowledged else unsent_bytes(sock)
            left_s = waiting.left_s(unsent)
            if unsent == 0 and not acknowledged:
                acknowledged = True
                waiting.shorten(GRACE_S)
                left_s = min(left_s, GRACE_S)
            if left_s <= 0:
                return acknowledged
            with contextlib.suppress(TimeoutError):
                wait(readable, left_s if acknowledged else min(pause, left_s), TimeoutError())
            pause = min(pause * 2, POLL_MAX_S)
    finally:
        readable.close()
