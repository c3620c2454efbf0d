"""What peers open, on its way to ``accept``: it gets a place in the queue, or is refused."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator

from ..._codes import KKP2P_TCP_CHANNEL, KKP2P_UDP_CHANNEL
from ..._errors import CallRefused, KKP2PError
from ...transport.udp.events import ChannelOffered
from ...transport.udp.stream_table import REFUSED_MOVED, REFUSED_UNSUPPORTED
from ..links.peer_link import PeerLink
from ..links.streams import LinkStream, OpenStream
from .accept_queue import AcceptQueue
from .kinds import Channel
from .table import ChannelTable

__all__ = ["Acceptor"]


class Acceptor:
    """``take`` is the one way into the queue, ``place`` and ``check`` are for calls under way.

    ``own_id``: the peer id that was called.  ``caller_id``: the caller's, if the cloud vouches for
    it; else "".  ``taker``: gets what would go into the queue, with the caller's id; it accepts or
    refuses, and then gives back the place, by calling what it gets last.
    ``share``: whose part of our room the caller takes up.
    """

    taker: Callable[[OpenStream, str, str, Callable[[], object]], object] | None = None

    def __init__(
        self,
        channels: ChannelTable,
        queue: AcceptQueue[Channel],
        patience_s: float,
        log: logging.Logger,
    ) -> None:
        """``patience_s``: how long a place is held for ``accept``."""
        self.queue = queue
        self._channels = channels
        self._patience_s = patience_s
        self._log = log
        self.accepted = self.refused = 0  # channels
        self._is_refusing = False  # because all places are taken

    def take(
        self, stream: OpenStream, own_id: str, caller_id: str, caller: str, share: str
    ) -> None:
        """Accept a stream that a peer has opened, or refuse it.  ``caller``: who, for the log."""
        try:
            self._reserve(own_id, caller_id)
            if self.taker is not None:
                self.accepted += 1
                self.taker(stream, caller_id, share, self.queue.release)
                return
            channel = self._open(stream, own_id, caller_id, caller)
        except KKP2PError:
            stream.refuse()
            return
        self.accepted += 1
        stream.accept()
        what = own_id, channel.channel_id, stream.path, caller, stream.desc
        self._log.info("%s: channel %d: accepted by %s from %s, desc %d", *what)
        if not self.queue.put(channel):
            self._channels.discard(channel)

    def handle_offered(self, link: PeerLink, offered: ChannelOffered) -> None:
        """A peer opens a channel on a live link."""
        if link.retired:
            link.channels.refuse(offered.stream_id, REFUSED_MOVED)
            return
        if offered.channel_type not in (KKP2P_TCP_CHANNEL, KKP2P_UDP_CHANNEL):
            link.channels.refuse(offered.stream_id, REFUSED_UNSUPPORTED)
            return
        stream = LinkStream(
            link, offered.stream_id, offered.channel_type, offered.encrypt_data, offered.desc
        )
        self.take(stream, link.info.own_id, link.info.caller_id, link.name, link.info.share)

    @contextlib.contextmanager
    def place(self, own_id: str, caller_id: str, *, held: bool) -> Iterator[None]:
        """Raises CallRefused where there is no place.

        ``held``: keep it until the end, and for a ``take`` that follows at once.
        """
        self._reserve(own_id, caller_id)
        if not held:
            self.queue.release()
        try:
            yield
        finally:
            if held:
                self.queue.release()

    def check(self, own_id: str, caller_id: str) -> None:
        """Raises CallRefused where there is no place."""
        self._reserve(own_id, caller_id)
        self.queue.release()

    def sweep(self) -> None:
        """Close what nobody accepts, every few seconds: else its callers would wait for ever."""
        latest = time.monotonic() - self._patience_s
        for channel in self.queue.remove(lambda channel: channel.made_at <= latest):
            what = channel.peer_id, channel.channel_id, self._patience_s
            self._log.warning("%s: channel %d: cut: not accepted within %g s", *what)
            self._channels.discard(channel)

    def close(self) -> None:
        """Nobody accepts any more: peers see a cut of what has waited."""
        for channel in self.queue.close():
            self._channels.discard(channel)

    def _reserve(self, own_id: str, caller_id: str) -> None:
        if self.queue.reserve(bool(caller_id)):
            self._is_refusing = False
            return
        self.refused += 1
        if not self._is_refusing:  # once: a stranger must not be able to fill the log
            self._log.error("%s: calls are refused: the accept queue is full", own_id)
        self._is_refusing = True
        raise CallRefused("the accept queue is full")

    def _open(self, stream: OpenStream, own_id: str, caller_id: str, caller: str) -> Channel:
        try:
            return self._channels.open(stream, own_id, caller_id)
        except KKP2PError as error:
            self.queue.release()
            self._log.error("%s: a channel from %s failed: %s", own_id, caller, error)
            raise
