"""The socket of a UDP proxy: whole datagrams, and answers that leave by the address that was asked.

Bound to all addresses of a host, a socket answers from the one that its route prefers, and a client
that has connected its own to another one never sees the answer.  So there the kernel is asked where
each datagram was sent to (RFC 3542 section 6.1; ip(7), IP_PKTINFO), and told when one goes back.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import sys
from typing import Any

from gevent import monkey

from ..._descriptors import keep_private
from ..._sentence import Sentence

__all__ = ["BUFFER_BYTES", "Ancillary", "Received", "UdpSocket", "why_lost"]

BUFFER_BYTES = 4 << 20  # our choice: 10 ms at 400 MB/s; the kernel bounds it by net.core.*mem_max
MAX_BYTES = 65_536  # no datagram is longer
_IP_PKTINFO = 8  # linux/in.h; Python has no name for it
_CONTROL_BYTES = socket.CMSG_SPACE(20)  # struct in6_pktinfo; in_pktinfo is shorter
# Not gevent's: its calls would wait, and here a watcher does that.
_new_socket: Any = monkey.get_original("socket", "socket")

Ancillary = tuple[tuple[int, int, bytes], ...]
Received = tuple[bytes, Any, Ancillary]  # data, whose, and what makes an answer leave from there


class UdpSocket:
    """Non-blocking; ``fileno`` is for the watcher.  Raises OSError."""

    def __init__(self, ip: str, port: int) -> None:
        is_ipv6 = ":" in ip
        family = socket.AF_INET6 if is_ipv6 else socket.AF_INET
        sock = self._sock = keep_private(_new_socket(family, socket.SOCK_DGRAM))
        try:
            sock.setblocking(False)
            for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                sock.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
            sock.bind((ip, port))
            self.address: tuple[str, int] = sock.getsockname()[:2]
            self._is_any = ipaddress.ip_address(self.address[0]).is_unspecified
            if self._is_any and is_ipv6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            elif self._is_any and sys.platform == "linux":
                sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        except BaseException:
            sock.close()
            raise

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()

    def receive(self) -> Received | None:
        """The next datagram; None: there is none."""
        try:
            if not self._is_any:
                return (*self._sock.recvfrom(MAX_BYTES), ())
            data, control, _, source = self._sock.recvmsg(MAX_BYTES, _CONTROL_BYTES)
        except OSError:  # none, or what happened to an earlier one
            return None
        return data, source, tuple(map(_reversed, control))

    def send(self, data: bytes, target: Any, ancillary: Ancillary) -> str:
        """Send one; returns why it is lost, if it is."""
        try:
            if ancillary:
                self._sock.sendmsg((data,), ancillary, 0, target)
            else:
                self._sock.sendto(data, target)
        except OSError as error:
            return why_lost(error)
        return ""


def why_lost(error: OSError) -> str:
    """What a socket has not sent, in a few words: losses are counted by them."""
    if isinstance(error, BlockingIOError):
        return Sentence("the socket is full")
    if error.errno == errno.EMSGSIZE:
        return Sentence("longer than a datagram")
    return errno.errorcode.get(error.errno or 0, str(error))


def _reversed(control: tuple[int, int, bytes]) -> tuple[int, int, bytes]:
    """The same, by which an answer leaves from there, by whatever interface leads to the client."""
    level, kind, value = control
    if level == socket.IPPROTO_IPV6:  # the address, the interface
        return level, kind, value[:16] + bytes(4)
    return level, kind, bytes(4) + value[4:8] + bytes(4)  # the interface, the address, unused
