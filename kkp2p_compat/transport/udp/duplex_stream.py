"""One stream of a connection, which carries a channel: its two halves, and its messages."""

from __future__ import annotations

from ..._codes import KKP2P_UDP_CHANNEL
from . import frames as f
from .flow_control import ReceiveBudget, ReceiveWindow
from .messages import Assembler, Splitter
from .streams import ReceiveStream, SendStream

__all__ = ["INITIAL_STREAM_WINDOW_BYTES", "DuplexStream"]

# Our choice; a constant of the protocol: what each side may send before it hears of a limit.  It is
# small, because a stream that nobody reads holds so much; it grows as fast as a congestion window.
INITIAL_STREAM_WINDOW_BYTES = 256 * 1024


class DuplexStream:
    """What a connection knows of one stream."""

    __slots__ = (
        "assembler",
        "has_arrived",
        "message_bytes_received",
        "message_bytes_sent",
        "opened",
        "ours",
        "receive",
        "send",
        "splitter",
        "stream_id",
    )

    def __init__(
        self,
        stream_id: int,
        channel_type: int,
        ours: bool,
        largest_window: int,
        budget: ReceiveBudget,
    ) -> None:
        self.stream_id = stream_id
        self.ours = ours  # we opened it
        self.has_arrived = False  # the peer has our OPEN
        self.opened = False  # both sides agreed
        self.send = SendStream(stream_id, INITIAL_STREAM_WINDOW_BYTES)
        window = ReceiveWindow(INITIAL_STREAM_WINDOW_BYTES, largest_window, budget)
        self.receive = ReceiveStream(window, budget)
        self.send.held = ours  # until it is opened: before, the peer would not know the stream
        self.message_bytes_sent = 0  # of a UDP channel, whether they have left or not
        self.message_bytes_received = 0
        self.splitter: Splitter | None = None
        self.assembler: Assembler | None = None
        if channel_type == KKP2P_UDP_CHANNEL:
            self.splitter = Splitter(stream_id)
            self.assembler = Assembler()

    def handle_frame_acked(self, kind: int) -> None:
        """The peer has a frame about this stream that is no part of its data."""
        if kind == f.OPEN:
            self.has_arrived = True
        elif kind == f.RESET:
            self.send.handle_reset_acked()

    @property
    def bytes_sent(self) -> int:
        """Payload that was sent at least once, or, once its end is set, that surely will be."""
        send = self.send
        is_whole = send.finished and not send.reset
        return (send.end if is_whole else send.next_offset) + self.message_bytes_sent

    @property
    def bytes_received(self) -> int:
        """Payload that the application has taken."""
        return self.receive.consumed + self.message_bytes_received

    @property
    def done(self) -> bool:
        return self.send.done and self.receive.done
