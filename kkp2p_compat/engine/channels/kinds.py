"""The channels of this process: which descriptor is whose, and how each one ends.

Three kinds.  A *raw* channel is relayed without encryption: its descriptor is the TCP socket, and
the engine holds no copy of it, or the application's ``close`` would not reach the peer.  The engine
recognises the socket by its inode, and looks from time to time whether it still lives.  A
*sealed* channel is a socket pair, one end the application's, the other pumped by the engine.  So
is a *direct* one, whose bytes, or messages, go over a link to the peer.

The table of descriptors is shared by all engines: ``close_fd`` gets nothing but a number.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket as _socket
import time
from typing import TYPE_CHECKING, Any

from gevent import socket as gsocket

from ..._codes import (
    KKP2P_ERROR,
    KKP2P_ERROR_CONN_DISCONNECT,
    KKP2P_ERROR_OTHER_DISCONNECT,
    KKP2P_TCP_CHANNEL,
    KKP2P_UDP_CHANNEL,
    TRANSMIT_P2P,
    TRANSMIT_RELAY,
)
from ..._descriptors import close, fork_safe_lock, keep_private
from ..._errors import EngineClosed, KKP2PError, LinkLost, from_os_error
from ..._io import failed, hung_up, send, shut_down
from ..._structs import channel_t
from ...transport import pair, tcp, tcp_stats
from ...transport.carry import SealedStream
from ..links.streams import DirectStream, RelayedStream

if TYPE_CHECKING:
    from ..engine import Engine

__all__ = [
    "Channel",
    "DirectChannel",
    "RawChannel",
    "SealedChannel",
    "abort_fd",
    "adopt",
    "close_channel",
    "close_fd",
    "failure_code",
    "takes_messages",
]

LINGER_S = 30  # our choice: how long what was written may take to arrive after a close
# What the kernel says of a connection that was cut.
_CUT = (
    errno.ECONNRESET, errno.ECONNABORTED, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH,
    errno.EHOSTDOWN, errno.ENETDOWN,
)  # fmt: skip
PAIR_BUFFER_BYTES = 1 << 20  # our choice: per direction; the kernel halves it by net.core.wmem_max

ABORTED = "aborted by the application"
UNUSED = "the application never had it"

_by_fd: dict[int, Channel] = {}
_lock = fork_safe_lock()


class Channel:
    """What both kinds share.  ``describe`` fills the application's struct."""

    channel_type = KKP2P_TCP_CHANNEL
    transmit_mode = TRANSMIT_RELAY
    is_ipv6 = False
    caller_id = ""  # of who called us, if the cloud vouches for it

    def __init__(
        self, engine: Engine, connection: RelayedStream | DirectStream, peer_id: str, fd: int
    ) -> None:
        self.engine = engine
        self.channel_id = engine.new_channel_id()
        self.peer_id = peer_id
        self.fd = fd
        self._identity = _identity(fd)
        self.desc = connection.desc
        self.how = connection.how  # it was connected, for the log
        self.set_up_s = connection.set_up_s
        self.timeline = connection.timeline
        self.reason = connection.reason  # for going by that path
        self.made_at = time.monotonic()
        self.broken: KKP2PError | None = None  # what cut one of the directions short
        self.is_cut = False  # the peer's was
        self._encrypt = connection.encrypt
        engine.channels[self.channel_id] = self
        with _lock:
            _by_fd[fd] = self

    def describe(self, channel: channel_t) -> None:
        channel.peer_id = self.peer_id
        channel.channel_type = self.channel_type
        channel.transmit_mode = self.transmit_mode
        channel.encrypt_data = self._encrypt
        channel.channel_id = self.channel_id
        channel.is_ipv6_p2p = int(self.is_ipv6)
        channel.connect_desc = self.desc
        channel.fd = self.fd
        channel.caller_id = self.caller_id

    def owns_fd(self) -> bool:
        """Whether the number still is our socket: the application may have closed it itself."""
        try:
            return _identity(self.fd) == self._identity
        except OSError:
            return False

    def forget(self, reason: object, level: int = logging.INFO) -> None:
        """The engine is done with it.  The descriptor stays the application's to close."""
        if self.engine.channels.pop(self.channel_id, None) is not None:
            self.engine.log.log(level, "%s: channel %d: %s", self.peer_id, self.channel_id, reason)
        with _lock:
            if _by_fd.get(self.fd) is self and not self.owns_fd():
                del _by_fd[self.fd]

    def end(self, error: KKP2PError | None, is_cut: bool) -> None:
        """Both directions are over.  ``is_cut``: before the peer's had come to its end."""
        if error is None:
            self.forget("ended")
        else:
            self.broken, self.is_cut = error, is_cut
            self.forget(f"cut: {error}", logging.WARNING)

    def _copy_fd(self) -> int | None:
        """A duplicate of the descriptor; None: it is closed, or there is no other to be had."""
        try:
            duplicate = os.dup(self.fd)
        except OSError as error:
            if error.errno != errno.EBADF:
                self.engine.log.error("channel %d: %s", self.channel_id, error)
            return None
        # Looked at afterwards: the number may change hands in another thread at any moment.
        if _identity(duplicate) == self._identity:
            return duplicate
        os.close(duplicate)
        return None

    def _mark(self) -> None:
        """See pair.py."""
        duplicate = self._copy_fd()
        if duplicate is not None:
            with contextlib.suppress(OSError):  # the application has ended its direction
                send(duplicate, b"\0", 1, 0)
            os.close(duplicate)

    def _close_end(self, ours: Any, is_cut: bool) -> None:
        """Close our end of a pair; the application is told also if a forked child has a copy.

        Not by SHUT_RDWR at once if it was cut: that would be an end for whoever reads just then.
        """
        if not is_cut:
            _end(ours)
            return
        theirs = self._copy_fd()
        ours.close()
        if theirs is not None:
            if not hung_up(theirs):
                shut_down(theirs)
            os.close(theirs)

    def duplicate_fd(self) -> int | None:
        """Our own copy of a descriptor that is about to be closed; None: not needed, or gone."""
        return None

    def close(self, duplicate: int | None) -> None:
        """In the engine: the application has called close_fd or close_channel, and is done.

        What was written still arrives.  ``duplicate`` is what duplicate_fd returned.
        """
        raise NotImplementedError

    def abort(self) -> None:
        """From the application, by abort_fd: give up both directions, and tell the peer."""
        self.engine.thread.call(self._abort, ABORTED)

    def _abort(self, reason: str) -> None:
        raise NotImplementedError

    def discard(self) -> None:
        """In the engine: the application never saw this channel, and the peer hears of a cut."""
        with _lock:  # before the number is free for another thread
            _by_fd.pop(self.fd, None)
        self._abort(UNUSED)
        if self.owns_fd():
            os.close(self.fd)

    def handle_error(self, error: OSError) -> None:
        """From the application: the kernel has told it of a cut, which it does once."""

    def sweep(self) -> None:
        """In the engine, every few seconds: notice what no event tells."""
        raise NotImplementedError


class RawChannel(Channel):
    """The descriptor is the TCP socket to the relay."""

    def __init__(self, engine: Engine, connection: RelayedStream, peer_id: str) -> None:
        self.relay = connection.relay
        self.before = tcp_stats.passed(connection.sock)
        super().__init__(engine, connection, peer_id, connection.sock.detach())

    def duplicate_fd(self) -> int | None:
        return self._copy_fd()

    def close(self, duplicate: int | None) -> None:
        self.forget("closed by the application")
        if duplicate is not None:
            sock = gsocket.socket(_socket.AF_INET, _socket.SOCK_STREAM, fileno=duplicate)
            self.engine.linger(keep_private(sock))

    def _abort(self, reason: str) -> None:
        if self.owns_fd():
            tcp.abort(self.fd)
        self.forget(reason)

    def handle_error(self, error: OSError) -> None:
        if self.broken is None:
            self.broken, self.is_cut = LinkLost(error.strerror or str(error)), True
            broken = self.broken
            self.engine.thread.post(lambda: self.end(broken, True))

    def sweep(self) -> None:
        if not self.owns_fd():
            self.forget("closed by the application")
        elif failed(self.fd):
            self.end(LinkLost("the relay, or the peer, has reset the connection"), True)
        elif tcp.unresponsive(self.fd) and (duplicate := self.duplicate_fd()) is not None:
            tcp.give_up(duplicate)
            os.close(duplicate)
            self.end(LinkLost("the relay does not answer"), True)


class SealedChannel(Channel):
    """The descriptor is one end of a socket pair; the engine seals what goes through the other."""

    def __init__(self, engine: Engine, connection: RelayedStream, peer_id: str) -> None:
        try:
            ours, theirs = _make_pair(_socket.SOCK_STREAM)
        except KKP2PError:
            connection.sock.close()
            raise
        self._plain = keep_private(gsocket.socket(fileno=ours.detach()))
        self.relay = connection.relay
        self.wire = connection.sock
        self.stream = SealedStream(self._plain, self.wire, *connection.seal(), self._mark)
        super().__init__(engine, connection, peer_id, theirs.detach())
        engine.pumps.add(engine.thread.spawn(self._run))

    def _run(self) -> None:
        error: KKP2PError | None = EngineClosed()  # when killed
        try:
            error = self.stream.run()
        finally:
            is_cut = error is not None and not self.stream.received_all
            pair.settle(self._plain, self._mark if is_cut else None)
            self.end(error, is_cut)
            self._close_end(self._plain, is_cut)
            if error is None:
                self.engine.linger(self.wire)
            else:
                _end(self.wire)

    def _abort(self, reason: str) -> None:
        self.forget(reason)
        self.stream.abort(LinkLost(reason))

    def close(self, duplicate: int | None) -> None:
        if self.channel_id in self.engine.channels:
            # What is in the pair still goes out; to the application it is an end of stream, and to
            # us, whoever has a copy of its descriptor (a forked child).
            shut_down(self._plain.fileno())
            self.engine.thread.spawn(self.stream.application_closed)

    def sweep(self) -> None:
        self.stream.check()


class DirectChannel(Channel):
    """The descriptor is one end of a socket pair; the engine's end is piped to a link."""

    transmit_mode = TRANSMIT_P2P

    def __init__(self, engine: Engine, connection: DirectStream, peer_id: str) -> None:
        self.channel_type = connection.channel_type
        self.is_ipv6 = connection.link.is_ipv6
        self.link = connection.link
        self.stream = connection.stream
        is_udp = connection.channel_type == KKP2P_UDP_CHANNEL
        try:
            self._ours, theirs = _make_pair(
                _socket.SOCK_SEQPACKET if is_udp else _socket.SOCK_STREAM
            )
        except KKP2PError:
            connection.link.give_up(connection.stream_id)
            raise
        super().__init__(engine, connection, peer_id, theirs.detach())
        self._closed_at: float | None = None
        self._pipe = connection.link.pipe(
            connection.stream_id, connection.channel_type, self._ours, self._end, self._mark
        )

    def _end(self, error: KKP2PError | None, is_cut: bool) -> None:
        self.end(error, is_cut)
        self._close_end(self._ours, is_cut)

    def _abort(self, reason: str) -> None:
        self.forget(reason)
        self._pipe.abort(LinkLost(reason))

    def close(self, duplicate: int | None) -> None:
        if self.channel_id in self.engine.channels:
            shut_down(self._ours.fileno())  # as for a sealed one
            self._closed_at = time.monotonic()
            self._pipe.application_closed()

    def sweep(self) -> None:
        if self._closed_at is not None and time.monotonic() - self._closed_at >= LINGER_S:
            self._pipe.abort(LinkLost("the peer does not take what was written"))


def _make_pair(kind: int) -> tuple[_socket.socket, _socket.socket]:
    try:
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, kind)
    except OSError as error:
        raise from_os_error(error, "a channel's descriptors") from error
    for end in (ours, theirs):
        end.setblocking(False)
        end.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDBUF, PAIR_BUFFER_BYTES)
        # As of a TCP connection (tcp.tune); besides, without it Linux reports a byte as readable
        # that no recv returns.
        end.setsockopt(_socket.SOL_SOCKET, _socket.SO_OOBINLINE, 1)
    return keep_private(ours), theirs


def _end(sock: Any) -> None:
    """Close it so that the other end is told, also if a forked child has a copy."""
    shut_down(sock.fileno())
    sock.close()


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def adopt(engine: Engine, connection: RelayedStream | DirectStream, peer_id: str) -> Channel:
    """A channel of the application's on a connection, which it takes over."""
    if isinstance(connection, DirectStream):
        return DirectChannel(engine, connection, peer_id)
    if connection.keys is not None:
        return SealedChannel(engine, connection, peer_id)
    return RawChannel(engine, connection, peer_id)


def takes_messages(fd: int) -> bool:
    """Whether a descriptor is a UDP channel's."""
    channel = _by_fd.get(fd)
    return channel is not None and channel.channel_type == KKP2P_UDP_CHANNEL and channel.owns_fd()


def close_fd(fd: int) -> bool:
    """Close a channel's descriptor so that what was written arrives; False: not a channel's."""
    with _lock:
        channel = _by_fd.pop(fd, None)
    if channel is None or not channel.owns_fd():
        return False
    thread = channel.engine.thread
    duplicate = channel.duplicate_fd() if thread.usable else None
    close(fd)
    if not thread.post(lambda: channel.close(duplicate)) and duplicate is not None:
        os.close(duplicate)
    return True


def abort_fd(fd: int) -> bool:
    """Close a channel's descriptor so that the peer is told of a cut; False: not a channel's."""
    with _lock:
        channel = _by_fd.pop(fd, None)
    if channel is None or not channel.owns_fd():
        return False
    if channel.engine.thread.usable:  # else it is over, or another process's
        with contextlib.suppress(EngineClosed):  # in this moment
            channel.abort()
    close(fd)
    return True


def failure_code(fd: int, error: OSError | None) -> int:
    """What error_no has after a read or write that failed; no ``error``: it came to the end.

    -108: the peer has ended in order; -107: the channel was cut; -1: it never was one.
    """
    channel = _by_fd.get(fd)
    if channel is not None and not channel.owns_fd():
        channel = None
    if error is not None and error.errno in _CUT and channel is not None:
        channel.handle_error(error)
    if error is None:
        was_cut = channel is not None and channel.is_cut
    elif error.errno == errno.EPIPE:
        was_cut = channel is not None and channel.broken is not None
    elif error.errno in _CUT:
        was_cut = True
    else:
        return KKP2P_ERROR
    return KKP2P_ERROR_CONN_DISCONNECT if was_cut else KKP2P_ERROR_OTHER_DISCONNECT


def close_channel(channel: Channel) -> None:
    """From the application: end a channel; its descriptor stays open, and reads end of stream."""
    thread = channel.engine.thread
    # Here and not in the engine's thread, where the number may have changed hands meanwhile.
    duplicate = channel.duplicate_fd() if thread.usable else None
    if not thread.post(lambda: channel.close(duplicate)) and duplicate is not None:
        os.close(duplicate)
