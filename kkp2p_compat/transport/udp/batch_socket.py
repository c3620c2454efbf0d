"""One UDP socket that moves many datagrams with each system call.

A system call per datagram of 1,400 bytes bounds a transfer at some 300 MB/s here; one per 64 KB
does not.  So a send hands the kernel up to 64 datagrams to cut apart (UDP_SEGMENT, Linux 4.18), and
a receive takes consecutive datagrams of one sender joined (UDP_GRO, Linux 5.0).  Where the kernel,
a device or a path refuses that, plain datagrams go instead, and the caller sees no difference.

Datagrams are never fragmented, and the kernel's idea of the path's MTU is not asked: the connection
searches for it, and a datagram that is too large for the interface (EMSGSIZE) is one more that gets
lost.  No failure to send is an error here: the network loses datagrams anyway.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
from collections import Counter
from logging import DEBUG, INFO, Logger
from typing import Any

from gevent import monkey

from ..._address import Address
from ..._descriptors import keep_private

__all__ = ["MAX_REMEMBERED", "MAX_SEGMENTS", "MAX_SEND_BYTES", "BatchSocket", "Target"]

# linux/udp.h, linux/in.h, linux/in6.h, asm-generic/socket.h: Python has no names for these.
_SOL_UDP = 17
_UDP_SEGMENT = 103
_UDP_GRO = 104
_IP_MTU_DISCOVER = 10
_IPV6_MTU_DISCOVER = 23
_PMTUDISC_PROBE = 3  # never fragment, and ignore the path MTU that the kernel believes in
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33

MAX_SEGMENTS = 64  # UDP_MAX_SEGMENTS of linux/udp.h up to 6.8, 128 since
MAX_SEND_BYTES = 65507  # IPv4's longest datagram: 65,535 without the headers of 20 and 8 bytes
_RECEIVE_BYTES = 65536  # no joined buffer is longer (GRO_LEGACY_MAX_SIZE of linux/netdevice.h)

# Our choice: 10 ms at 400 MB/s, so that another thread with the GIL does not cost packets.  The
# kernel counts twice as much (its own overhead), and without privileges allows net.core.*mem_max.
BUFFER_BYTES = 4 << 20
MAX_REMEMBERED = 4096  # our choice: addresses, or hosts that segmentation does not reach

# A device or a path that cannot do it, or (EINVAL, EMSGSIZE) a segment above the interface's MTU.
_NOT_SEGMENTED = (errno.EIO, errno.EINVAL, errno.EMSGSIZE, errno.EOPNOTSUPP, errno.ENOPROTOOPT)

_LINUX = sys.platform == "linux"
_HOPS = {
    socket.AF_INET: (socket.IPPROTO_IP, socket.IP_TTL),
    # As a control message and as an option of the socket it has different names.
    socket.AF_INET6: (
        socket.IPPROTO_IPV6,
        socket.IPV6_HOPLIMIT if _LINUX else socket.IPV6_UNICAST_HOPS,
    ),
}
_U16 = struct.Struct("=H")
_INT = struct.Struct("=i")
_Control = tuple[int, int, bytes]  # a control message: level, type, data
Target = tuple[tuple[Any, ...], tuple[_Control, ...]]  # as the socket module takes it
# Not gevent's: its calls would wait, and here a watcher of the endpoint does that.
_new_socket: Any = monkey.get_original("socket", "socket")


class BatchSocket:
    """Bound to ``host``, or every address of its family; non-blocking.  ``fileno``: for watchers.

    ``number``: of an extra socket; its addresses have it as their third item.  An extra socket has
    the kernel's default buffers, and moves datagrams one by one, until ``grow``: most of them are
    for a few checks, and hundreds are opened at once.
    ``failures`` counts by reason what was not sent, or not received; each reason is logged once.
    Raises OSError where the family or the port is not available, or descriptors have run out.
    """

    broken = holds_more = False  # as of every DoorSocket
    datagram_bytes = 0
    CONTROL_BYTES = socket.CMSG_SPACE(_INT.size)  # what the kernel may tell with a datagram

    def __init__(
        self,
        family: socket.AddressFamily,
        log: Logger,
        port: int = 0,
        number: int = 0,
        host: str = "",
    ) -> None:
        self.family = family
        self.number = number
        self.can_segment = False
        self.failures: Counter[str] = Counter()
        self._log = log
        self._targets: dict[Address, Target] = {}
        self._plain_only: set[str] = set()  # hosts
        self._sock: socket.socket = keep_private(_new_socket(family, socket.SOCK_DGRAM))
        try:
            self._sock.setblocking(False)
            self._configure()
            self._sock.bind((host or ("::" if family == socket.AF_INET6 else "0.0.0.0"), port))
            self.port: int = self._sock.getsockname()[1]
        except BaseException:
            self._sock.close()
            raise

    def _configure(self) -> None:
        if self.family == socket.AF_INET6:
            self._sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if _LINUX:
            if self.family == socket.AF_INET6:
                self._try_option(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE)
            else:
                self._try_option(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)
        self._is_large = False
        if self.number == 0:
            self.grow()

    def grow(self) -> None:
        """Make it fit for a connection, with large buffers and batches."""
        if self._is_large:
            return
        self._is_large = True
        for force, option in (
            (_SO_RCVBUFFORCE, socket.SO_RCVBUF),
            (_SO_SNDBUFFORCE, socket.SO_SNDBUF),
        ):
            if not (_LINUX and self._try_option(socket.SOL_SOCKET, force, BUFFER_BYTES)):
                self._try_option(socket.SOL_SOCKET, option, BUFFER_BYTES)
        if not _LINUX:
            return
        self._try_option(_SOL_UDP, _UDP_GRO, 1)
        # 0 is the default: no segmentation unless a send asks for it.  An older kernel would take
        # the control message of a send without a word and fragment the whole.
        self.can_segment = self._try_option(_SOL_UDP, _UDP_SEGMENT, 0)

    def _try_option(self, level: int, option: int, value: int) -> bool:
        try:
            self._sock.setsockopt(level, option, value)
        except OSError as error:
            self._log.debug("UDP: socket option %d of level %d: %s", option, level, error)
            return False
        return True

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()

    # Sending.

    def send(self, data: bytes, segment_bytes: int, address: Address) -> int:
        """Send datagrams of ``segment_bytes``, the last may be shorter; how many bytes are done.

        Fewer than ``len(data)``: the socket is full.  Send the rest when it is writable; the rest
        begins with a whole datagram.  What cannot be sent at all is counted, and done.
        """
        found = self._targets.get(address) or self._resolve(address)
        if found is None:
            return len(data)
        target, origin = found
        size = len(data)
        refused = False
        if size > segment_bytes and self.can_segment and address[0] not in self._plain_only:
            if size > MAX_SEND_BYTES or size > MAX_SEGMENTS * segment_bytes:
                return self._send_in_parts(data, segment_bytes, address)
            control = ((_SOL_UDP, _UDP_SEGMENT, _U16.pack(segment_bytes)), *origin)
            try:
                return self._sock.sendmsg((data,), control, 0, target)
            except BlockingIOError:
                return 0
            except OSError as error:
                if error.errno not in _NOT_SEGMENTED:
                    self._count(error, address)
                    return size
                refused = True
        return self._send_plain(data, segment_bytes, address, found, refused)

    def send_with_ttl(self, data: bytes, address: Address, ttl: int) -> int:
        """Send one datagram that ends after ``ttl`` hops; returns as ``send`` does."""
        found = self._targets.get(address) or self._resolve(address)
        if found is None:
            return len(data)
        target, _ = found
        level, option = _HOPS[self.family]
        try:
            if _LINUX:
                return self._sock.sendmsg((data,), ((level, option, _INT.pack(ttl)),), 0, target)
            usual = self._sock.getsockopt(
                level, option
            )  # elsewhere a single message cannot carry it
            self._sock.setsockopt(level, option, ttl)
            try:
                return self._sock.sendto(data, target)
            finally:
                self._sock.setsockopt(level, option, usual)
        except BlockingIOError:
            return 0
        except OSError as error:
            self._count(error, address)
            return len(data)

    def _send_in_parts(self, data: bytes, segment_bytes: int, address: Address) -> int:
        most = segment_bytes * max(1, min(MAX_SEGMENTS, MAX_SEND_BYTES // segment_bytes))
        for start in range(0, len(data), most):
            part = data[start : start + most]
            done = self.send(part, segment_bytes, address)
            if done < len(part):
                return start + done
        return len(data)

    def _send_plain(
        self, data: bytes, segment_bytes: int, address: Address, found: Target, refused: bool
    ) -> int:
        """One call for each datagram.  ``refused``: the kernel has just declined the whole."""
        target, origin = found
        for start in range(0, len(data), segment_bytes):
            try:
                if origin:
                    self._sock.sendmsg((data[start : start + segment_bytes],), origin, 0, target)
                else:
                    self._sock.sendto(data[start : start + segment_bytes], target)
            except BlockingIOError:
                return start
            except OSError as error:
                self._count(error, address)
                if error.errno != errno.EMSGSIZE:  # which a shorter last one may escape
                    break
                continue
            if (
                refused and start == 0
            ):  # the size is not why, so the next batch would be refused, too
                self._log.info("UDP: datagrams to %s go one by one", address[0])
                if len(self._plain_only) >= MAX_REMEMBERED:
                    self._plain_only.clear()
                self._plain_only.add(address[0])
        return len(data)

    def _resolve(self, address: Address) -> Target | None:
        """What the socket module takes; for anything but a numeric IP it would ask the DNS."""
        ip, port = address[:2]
        try:
            socket.inet_pton(self.family, ip)
            if not 0 < port < 65536:
                raise OSError(errno.EINVAL, f"port {port}")
        except OSError as error:
            self._count(error, address)
            return None
        target = (ip, port, 0, 0) if self.family == socket.AF_INET6 else (ip, port)
        if len(self._targets) >= MAX_REMEMBERED:
            self._targets.clear()
        found = self._targets[address] = target, self._origin(address)
        return found

    def _origin(self, address: Address) -> tuple[_Control, ...]:
        """What makes the kernel send from an address of our choice; nothing: it chooses."""
        return ()

    def _count(self, error: OSError, address: Address | None) -> None:
        reason = errno.errorcode.get(error.errno or 0, str(error))
        self.failures[reason] += 1
        if self.failures[reason] == 1:
            # A datagram may have been sent to find out whether it is too large.
            level = DEBUG if error.errno == errno.EMSGSIZE else INFO
            self._log.log(level, "UDP: %s: %s (said once)", address or "receiving", error)

    # Receiving.

    def receive(self) -> tuple[bytes, int, Address] | None:
        """Consecutive datagrams of one sender: (data, segment_bytes, address); None: no more.

        Each is ``segment_bytes`` long, the last may be shorter.  An empty datagram is (b"", 0, ..).
        """
        try:
            data, control, _, source = self._sock.recvmsg(_RECEIVE_BYTES, self.CONTROL_BYTES)
        except BlockingIOError:
            return None
        except OSError as error:  # some kernels report what happened to an earlier datagram here
            self._count(error, None)
            return None
        segment_bytes = len(data)
        number = self.number
        for level, kind, value in control:
            if level == _SOL_UDP and kind == _UDP_GRO:
                segment_bytes = _INT.unpack(value)[0]
            else:
                number = self._number_of(value)
        if number or len(source) > 2:
            ip, port = source[:2]
            source = (ip, port, number) if number else (ip, port)
        return data, segment_bytes, source

    def _number_of(self, value: bytes) -> int:
        """By what a control message of a kind that was asked for says, beside the joined size."""
        return self.number
