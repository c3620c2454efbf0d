"""Which descriptor is which channel's, in all engines of the process.

``DESCRIPTORS`` is shared on purpose: C's API names a channel by nothing but a number in
``close_fd``, ``read`` and ``write``, and a descriptor is the process's.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from ..._codes import KKP2P_UDP_CHANNEL
from ..._descriptors import close, fork_safe_lock
from ..._errors import CallRefused, KKP2PError, LinkLost

if TYPE_CHECKING:
    from .kinds import Channel

__all__ = ["DESCRIPTORS", "DescriptorTable"]

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
            try:
                channel.abort()
            finally:  # also if the caller is interrupted, as the number is nobody's channel now
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
