"""The two kinds of channels, and how each one ends.

A *raw* channel is relayed without encryption: its descriptor is the TCP socket, and the engine
holds no copy of it, or the application's ``close`` would not reach the peer.  The engine recognises
the socket by its inode, and checks every few seconds whether it is still alive.  A *paired* channel
is a socket pair: the application has one end, and between the other and the peer the engine carries
the bytes, or messages.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket as _socket
import time
from collections.abc import Callable
from typing import Any

from gevent import socket as gsocket

from ..._codes import KKP2P_UDP_CHANNEL
from ..._descriptors import close, keep_private
from ..._errors import KKP2PError, LinkLost, from_os_error
from ..._io import Signal, failed, hung_up, send, shut_down
from ..._structs import channel_t
from ...transport import tcp
from ..links.background import Background
from ..links.streams import OpenStream, Pipe

__all__ = ["Channel", "linger", "make_channel"]

# Each system call saved here is a moment less in which the application's thread and the engine's
# wait for the interpreter's lock of each other: they make and take channels at the same time.
_NONBLOCK = getattr(_socket, "SOCK_NONBLOCK", 0)

PAIR_BUFFER_BYTES = 1 << 20  # our choice: per direction; the kernel halves it by net.core.wmem_max

CLOSED = "closed by the application"
LENT = "handed over to another process"
ABORTED = "aborted by the application"

OnOver = Callable[["Channel"], object]


class Channel:
    """A stream to a peer, and the descriptor by which the application has it.

    ``on_over`` is called once, in the engine; the descriptor stays the application's to close.
    """

    def __init__(
        self, background: Background, stream: OpenStream, peer_id: str, on_over: OnOver, fd: int
    ) -> None:
        self.channel_id = 0  # until it is in the table
        self.stream = stream
        self.peer_id = peer_id
        self.caller_id = ""  # of who called us, if the cloud vouches for it
        self.fd = fd
        self.made_at = time.monotonic()
        self.broken: KKP2PError | None = None  # what cut one of the directions short
        self.is_cut = False  # the peer's was
        self._background = background
        self._on_over = on_over
        self._identity = _identity(fd)
        self._is_over = False

    def describe(self, channel: channel_t) -> None:
        """Fill the application's struct."""
        stream = self.stream
        channel.peer_id = self.peer_id
        channel.channel_type = stream.channel_type
        channel.transmit_mode = stream.transmit_mode
        channel.encrypt_data = stream.encrypt
        channel.channel_id = self.channel_id
        channel.is_ipv6_p2p = int(stream.is_ipv6_p2p)
        channel.connect_desc = stream.desc
        channel.fd = self.fd
        channel.caller_id = self.caller_id

    # The descriptor.

    def owns_fd(self) -> bool:
        """Whether the number is still our socket's: the application may have closed it itself."""
        try:
            return _identity(self.fd) == self._identity
        except OSError:
            return False

    def _copy_fd(self) -> int | None:
        """A duplicate of the descriptor; None: it is closed, or the process has no more left."""
        try:
            duplicate = os.dup(self.fd)
        except OSError as error:
            if error.errno != errno.EBADF:
                self._background.log.error("channel %d: %s", self.channel_id, error)
            return None
        # Checked afterwards: the number may change hands in another thread at any moment.
        if _identity(duplicate) == self._identity:
            return duplicate
        os.close(duplicate)
        return None

    def duplicate_fd(self) -> int | None:
        """A copy for ``finish`` of what is about to be closed; None: not needed, or closed."""
        return None

    # From the application.

    def close(self, *, and_fd: bool) -> None:
        """The application is done with the channel.  What was written still arrives.

        Without ``and_fd`` the descriptor stays open, and reads end of stream.
        """
        thread = self._background.thread
        # Not in the engine's thread: by then the number may have changed hands.
        duplicate = self.duplicate_fd() if thread.usable else None
        if and_fd:
            close(self.fd)
        if not thread.post(lambda: self.finish(duplicate)) and duplicate is not None:
            os.close(duplicate)

    def lend(self) -> None:
        """Another process has a copy of the descriptor: ours is closed, and its is the only one.

        It is told of no cut then: it reads end of stream.
        """
        close(self.fd)

    def abort(self) -> None:
        """The application gives up both directions: the peer sees a cut.

        It waits for that, as the descriptor is closed next, which must not look like an end; who is
        interrupted meanwhile does not call it off.
        """
        done = Signal()

        def cut() -> None:
            try:
                self.cut(ABORTED)
            finally:
                done.set()

        try:
            if self._background.thread.post(cut):  # else the engine is destroyed, or a parent's
                done.wait()
        finally:
            done.close()

    def handle_error(self, error: OSError) -> None:
        """The kernel has reported a cut to the application, as it does only once."""

    # In the engine.

    def start(self) -> None:
        """Called once the channel is in the table."""

    def finish(self, duplicate: int | None) -> None:
        """The application is done with it.  ``duplicate``: what duplicate_fd returned."""
        raise NotImplementedError

    def cut(self, reason: str) -> None:
        """Give up both directions, and tell the peer."""
        raise NotImplementedError

    def sweep(self) -> None:
        """Every few seconds: notice what no event tells."""

    def stats(self) -> dict[str, Any]:
        """Fields of channel_stats_t, as the stream has them."""
        return self.stream.stats()

    def _end(self, error: KKP2PError | None, is_cut: bool) -> None:
        """Both directions are over.  ``is_cut``: the peer's had not come to its end."""
        if error is None:
            self._forget("ended")
        else:
            self.broken, self.is_cut = error, is_cut
            self._forget(f"cut: {error}", logging.WARNING)

    def _forget(self, reason: str, level: int = logging.INFO) -> None:
        if not self._is_over:
            self._is_over = True
            self._background.log.log(
                level, "%s: channel %d: %s", self.peer_id, self.channel_id, reason
            )
            self._on_over(self)


class RawChannel(Channel):
    """The descriptor is the TCP socket to the relay."""

    def duplicate_fd(self) -> int | None:
        duplicate = self._copy_fd()
        if duplicate is None or not tcp.left(duplicate) or tcp.unread_bytes(duplicate):
            return duplicate
        # Nothing more comes in, so no reset can follow: the kernel sees to what was written.  And
        # epoll(7) forgets a descriptor only once no copy of it is open.
        shut_down(duplicate)
        os.close(duplicate)
        return None

    def lend(self) -> None:
        """It comes back by ``linger``."""
        super().lend()
        self._background.thread.post(lambda: self._forget(LENT))

    def handle_error(self, error: OSError) -> None:
        if self.broken is None:
            self.broken, self.is_cut = LinkLost(error.strerror or str(error)), True
            broken = self.broken
            self._background.thread.post(lambda: self._end(broken, True))

    def finish(self, duplicate: int | None) -> None:
        self._forget(CLOSED)
        if duplicate is not None:
            linger(self._background, duplicate)

    def abort(self) -> None:
        if self._background.thread.usable:  # else the connection may be a parent's
            tcp.abort(self.fd)  # here and now: later the number may be another's
        super().abort()

    def cut(self, reason: str) -> None:
        if self.owns_fd():
            tcp.abort(self.fd)
        self._forget(reason)

    def sweep(self) -> None:
        if not self.owns_fd():
            self._forget(CLOSED)
        elif failed(self.fd):
            self._end(LinkLost("the relay, or the peer, has reset the connection"), True)
        elif tcp.unresponsive(self.fd) and (duplicate := self._copy_fd()) is not None:
            tcp.give_up(duplicate)
            os.close(duplicate)
            self._end(LinkLost("the relay does not answer"), True)

    def stats(self) -> dict[str, Any]:
        duplicate = self._copy_fd()
        try:
            return self.stream.stats(duplicate)
        finally:
            if duplicate is not None:
                os.close(duplicate)


class PairedChannel(Channel):
    """The descriptor is one end of a socket pair, and the stream is carried to the other."""

    def __init__(
        self, background: Background, stream: OpenStream, peer_id: str, on_over: OnOver
    ) -> None:
        is_udp = stream.channel_type == KKP2P_UDP_CHANNEL
        self._ours, theirs = _make_pair(_socket.SOCK_SEQPACKET if is_udp else _socket.SOCK_STREAM)
        super().__init__(background, stream, peer_id, on_over, theirs.detach())
        self._closed = False
        self._pipe: Pipe | None = None  # until the end, or the two would wait for the collector

    def start(self) -> None:
        self._pipe = self.stream.pipe(self._ours, self._handle_end, self._mark, self._background)

    def finish(self, duplicate: int | None) -> None:
        if self._pipe is not None:
            # What is in the pair still goes out.  Then both ends read end of stream, also if a
            # forked child has a copy of the application's.
            shut_down(self._ours.fileno())
            self._closed = True
            self._pipe.application_closed()

    def cut(self, reason: str) -> None:
        self._forget(reason)
        if self._pipe is not None:
            self._pipe.abort(LinkLost(reason))

    def _handle_end(self, error: KKP2PError | None, is_cut: bool) -> None:
        """Close our end, and shut the pair down: a forked child may have a copy of the other end.

        After a cut the close comes first, or a reader would take the shutdown for an orderly end.
        """
        self._pipe = None
        self._end(error, is_cut)
        theirs = self._copy_fd() if is_cut else None
        if not is_cut and not self._closed:  # else ``finish`` has done so
            shut_down(self._ours.fileno())
        self._ours.close()
        if theirs is not None:
            if not hung_up(theirs):
                shut_down(theirs)
            os.close(theirs)

    def _mark(self) -> None:
        """Put a byte into our end; see pair.py."""
        duplicate = self._copy_fd()
        if duplicate is not None:
            with contextlib.suppress(OSError):  # the application has ended its direction
                send(duplicate, b"\0", 1, 0)
            os.close(duplicate)


def linger(background: Background, fd: int) -> None:
    """Close a socket to a relay once the relay has what was written to it."""
    sock = gsocket.socket(_socket.AF_INET, _socket.SOCK_STREAM, fileno=fd)
    background.linger(keep_private(sock))


def make_channel(
    background: Background, stream: OpenStream, peer_id: str, on_over: OnOver
) -> Channel:
    """A channel on a stream, which it takes over, unless OutOfDescriptors is raised."""
    fd = stream.detach()
    if fd is None:
        return PairedChannel(background, stream, peer_id, on_over)
    return RawChannel(background, stream, peer_id, on_over, fd)


def _make_pair(kind: int) -> tuple[_socket.socket, _socket.socket]:
    try:
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, kind | _NONBLOCK)
    except OSError as error:
        raise from_os_error(error, "a channel's descriptors") from error
    for end in (ours, theirs):
        if end.gettimeout() != 0:  # gevent's in a monkey-patched program, or on macOS
            end.setblocking(False)
        end.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDBUF, PAIR_BUFFER_BYTES)
        # As of a TCP connection (tcp.tune); besides, without it Linux reports a byte as readable
        # that no recv returns.
        end.setsockopt(_socket.SOL_SOCKET, _socket.SO_OOBINLINE, 1)
    return keep_private(ours), theirs


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino
