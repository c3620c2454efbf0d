"""The channels of one engine, by their ids."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping

from ..._errors import ParameterError
from ..links.background import Background
from ..links.streams import OpenStream
from .descriptors import DESCRIPTORS
from .kinds import Channel, make_channel

__all__ = ["ChannelTable"]

UNUSED = "the application never had it"


class ChannelTable(Mapping[int, Channel]):
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
