"""Which channels there are: those of one engine by their ids, those of the process by descriptor.

``DESCRIPTORS`` is shared by all engines on purpose: C's API names a channel by nothing but a number
in ``close_fd``, ``read`` and ``write``, and a descriptor is the process's.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator, Mapping

from ..._codes import KKP2P_UDP_CHANNEL
from ..._descriptors import close, fork_safe_lock
from ..._errors import CallRefused, KKP2PError, LinkLost, ParameterError
from ..links.background import Background
from ..links.streams import OpenStream
from .kinds import Channel, make_channel

__all__ = ["DESCRIPTORS", "ChannelTable", "DescriptorTable"]

# What the kernel says of a connection that was cut.
_CUT = (
    errno.ECONNRESET,
    errno.ECONNABORTED,
    errno.ETIMEDOUT,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.EHOSTDOWN,
    errno.ENETDOWN,
)

UNUSED = "the application never had it"


class DescriptorTable:
    """Which descriptor is which channel's; for any thread.  There is one: ``DESCRIPTORS``."""

    def __init__(self) -> None:
        self._by_fd: dict[int, Channel] = {}
        self._lock = fork_safe_lock()

    def add(self, channel: Channel) -> None:
        with self._lock:
            self._by_fd[channel.fd] = channel

    def remove(self, channel: Channel) -> None:
        with self._lock:
            if self._by_fd.get(channel.fd) is channel:
                del self._by_fd[channel.fd]

    def has(self, channel: Channel) -> bool:
        return self._by_fd.get(channel.fd) is channel

    def find(self, fd: int) -> Channel | None:
        return _if_its_own(self._by_fd.get(fd))

    def _take(self, fd: int) -> Channel | None:
        with self._lock:
            channel = self._by_fd.pop(fd, None)
        return _if_its_own(channel)

    def takes_messages(self, fd: int) -> bool:
        """Whether a descriptor is a UDP channel's."""
        channel = self.find(fd)
        return channel is not None and channel.stream.channel_type == KKP2P_UDP_CHANNEL

    def close(self, fd: int) -> bool:
        """Close a channel's descriptor so that what was written arrives; False: not a channel's."""
        channel = self._take(fd)
        if channel is not None:
            channel.close(and_fd=True)
        return channel is not None

    def abort(self, fd: int) -> bool:
        """Close a channel's descriptor so that the peer sees a cut; False: not a channel's."""
        channel = self._take(fd)
        if channel is not None:
            channel.abort()
            close(fd)
        return channel is not None

    def lend(self, fd: int) -> None:
        """Another process has a copy of a channel's descriptor by now; see ``Channel.lend``."""
        channel = self._take(fd)
        if channel is not None:
            channel.lend()

    def failure(self, fd: int, error: OSError | None) -> KKP2PError:
        """For error_no, after a read or write that failed; no ``error``: at the end of the stream.

        -108: the peer has ended in order; -107: the channel was cut; -1: not an open socket.
        """
        channel = self.find(fd)
        if error is None:
            was_cut = channel is not None and channel.is_cut
        elif error.errno == errno.EPIPE:
            was_cut = channel is not None and channel.broken is not None
        elif error.errno in _CUT:
            was_cut = True
            if channel is not None:
                channel.handle_error(error)
        else:
            return KKP2PError(f"descriptor {fd}: {error.strerror}")
        if was_cut:
            return LinkLost(f"the channel was cut: {error if channel is None else channel.broken}")
        return CallRefused("the peer has closed" if error else "the peer has sent all")


def _if_its_own(channel: Channel | None) -> Channel | None:
    """The application may have closed the number itself, and it may be another file's now."""
    return channel if channel is not None and channel.owns_fd() else None


DESCRIPTORS = DescriptorTable()


class ChannelTable(Mapping[int, Channel]):
    """The channels of one engine, by id."""

    def __init__(self, background: Background) -> None:
        self._background = background
        self._by_id: dict[int, Channel] = {}
        self._on_over = self._handle_over  # one for all: each look makes a new one

    def __getitem__(self, channel_id: int) -> Channel:
        return self._by_id[channel_id]

    def __iter__(self) -> Iterator[int]:
        return iter(self._by_id)

    def __len__(self) -> int:
        return len(self._by_id)

    def need(self, channel_id: int) -> Channel:
        """Raises ParameterError for a channel that is not there (any more)."""
        try:
            return self._by_id[channel_id]
        except KeyError:
            raise ParameterError(f"no channel {channel_id}") from None

    def open(self, stream: OpenStream, peer_id: str, caller_id: str = "") -> Channel:
        """A channel on a stream; raises OutOfDescriptors, and then the stream is still unused."""
        channel = make_channel(self._background, stream, peer_id, self._on_over)
        channel.caller_id = caller_id
        # No secret: it only tells the channels of this process apart.
        while (channel_id := random.getrandbits(32)) in self._by_id or channel_id == 0:
            pass
        channel.channel_id = channel_id
        self._by_id[channel_id] = channel
        DESCRIPTORS.add(channel)
        channel.start()
        return channel

    def _handle_over(self, channel: Channel) -> None:
        """Its descriptor is known for as long as the application has it."""
        self._by_id.pop(channel.channel_id, None)
        if DESCRIPTORS.has(channel) and not channel.owns_fd():
            DESCRIPTORS.remove(channel)

    def discard(self, channel: Channel) -> None:
        """The application never saw it, and the peer sees a cut."""
        DESCRIPTORS.remove(channel)  # before the number is free for another thread
        channel.cut(UNUSED)
        if channel.owns_fd():
            os.close(channel.fd)

    def sweep(self) -> None:
        """Every few seconds."""
        for channel in list(self._by_id.values()):
            channel.sweep()

    def close(self) -> None:
        """The application is done with all of them."""
        for channel in list(self._by_id.values()):
            channel.finish(channel.duplicate_fd())
