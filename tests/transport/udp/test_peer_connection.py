"""One connection alone: what it makes of packets, and what it waits for."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from helpers.udp_streams import encode_stream
from keyed_connection import PEER, keyed_connection, played_peer
from kkp2p_compat._codes import KKP2P_TCP_CHANNEL
from kkp2p_compat.transport.udp import frames as f
from kkp2p_compat.transport.udp.clock import Timer
from kkp2p_compat.transport.udp.events import ChannelOffered, Closed, Readable
from kkp2p_compat.transport.udp.header import OVERHEAD_BYTES
from kkp2p_compat.transport.udp.lifecycle import CLOSE_NORMAL

BODY = bytes(range(251)) * 8
STREAMS = (0, 2, 4)  # the peer's; the last of them is never opened


class Observed:
    """A connection whose peer writes what it likes; ``seen`` is all that it says and sends."""

    def __init__(self) -> None:
        self.connection = keyed_connection(0.0, is_caller=False)
        self.seen: list[object] = []
        self._sealer, self._opener = played_peer()
        self._number = 0

    def give(self, plaintexts: list[bytes], now: float) -> None:
        """Of one length, so they come as one batch."""
        data = b"".join(self._sealer.seal(self._number, 9, plaintexts))
        self._number += len(plaintexts)
        size = len(plaintexts[0]) + OVERHEAD_BYTES
        self.connection.handle_datagrams(data, size, PEER, now)
        self._look(now)

    def _look(self, now: float) -> None:
        streams = self.connection.streams
        while (event := self.connection.poll_event()) is not None:
            self.seen.append(str(event) if isinstance(event, Closed) else event)
            if isinstance(event, ChannelOffered):
                streams.accept(event.stream_id)
            elif isinstance(event, Readable):
                data = b"".join(streams.peek(event.stream_id))
                streams.consume(event.stream_id, len(data))
                self.seen.append((data, streams.at_end(event.stream_id)))
        while (transmit := self.connection.poll_transmit(now)) is not None:
            for place in range(0, len(transmit.data), transmit.segment_bytes):
                packet = transmit.data[place : place + transmit.segment_bytes]
                number, plaintext = self._opener.open_untrusted(packet)
                self.seen.append((number, f.parse_untrusted(plaintext)))


# Of each packet: its stream, and where its data begins; None: where that of the last one ended.
RUNS = st.lists(
    st.tuples(
        st.integers(1, 40),  # bytes of data in each packet of a run
        st.lists(
            st.tuples(
                st.sampled_from(STREAMS),
                st.none() | st.integers(0, 600) | st.just(1 << 30),
                st.booleans(),
            ),
            min_size=1,
            max_size=20,
        ),
    ),
    max_size=8,
)


@given(RUNS)
def test_a_run_of_stream_frames_means_what_each_alone_means(
    runs: list[tuple[int, list[tuple[int, int | None, bool]]]],
) -> None:
    """The hot path takes them together, and only where a packet is one STREAM frame."""
    together, alone = Observed(), Observed()
    for one in (together, alone):
        opens = [f.encode(f.Open(stream, KKP2P_TCP_CHANNEL, 0, 0)) for stream in STREAMS[:2]]
        one.give([b"".join(opens)], 0.0)
    stop = 0
    for now, (size, packets) in enumerate(runs, 1):
        plaintexts = []
        for stream, offset, fin in packets:
            start = stop if offset is None else offset
            stop = start + size
            data = BODY[start:stop].ljust(size, b"\0")
            plaintexts.append(encode_stream(stream, start, data, fin and offset is None))
        together.give(plaintexts, now / 1000)
        alone.give([f.encode(f.Ping()) + plaintext for plaintext in plaintexts], now / 1000)
    assert together.seen == alone.seen


def test_every_timer_has_its_deadline_and_the_earliest_is_the_next() -> None:
    connection = keyed_connection(100.0, is_caller=False)
    assert list(connection._on_timer) == list(Timer)
    liveness, packer = connection.liveness, connection.packer
    liveness.begin_doubt(1.0, 0, connection.recovery.rtt)
    connection.recovery.loss_time = 2.0
    liveness.suspect_at = 3.0
    liveness.ask_at = 4.0
    connection.probe_path(("192.0.2.7", 1), 5.0)
    connection._received.ack_at = 6.0
    packer.paced_until = 7.0
    connection.path.mtu.next_at = 8.0
    connection.paths.left.next_at = 8.5
    liveness.heard_at = packer.eliciting_at = 9.0
    settings = connection.settings
    assert dict(zip(Timer, connection._deadlines(), strict=True)) == {
        Timer.DOUBT: 1.0,
        Timer.LOSS: 2.0,
        Timer.SUSPICION: 3.0,
        Timer.SILENCE: 4.0,
        Timer.VALIDATION: 5.0,
        Timer.ACK: 6.0,
        Timer.PACING: 7.0,
        Timer.MTU: 8.0,
        Timer.LEFT: 8.5,
        Timer.KEEPALIVE: 9.0 + settings.keepalive_s,
        Timer.IDLE: 9.0 + settings.idle_timeout_s,
    }
    assert connection.next_timer() == 1.0


def test_what_is_not_waited_for_is_never_due() -> None:
    deadlines = dict(zip(Timer, keyed_connection(100.0, is_caller=False)._deadlines(), strict=True))
    waits = {timer for timer, at in deadlines.items() if at < math.inf}
    assert waits == {Timer.IDLE, Timer.KEEPALIVE, Timer.MTU}


def test_what_is_closing_waits_for_one_thing_only() -> None:
    connection = keyed_connection(100.0, is_caller=False)
    connection.close(CLOSE_NORMAL, "that is all", 101.0)
    assert connection.next_timer() == 101.0
