"""channel_stats: by every path, on both sides, in step with what really passed."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

import pytest

import kkp2p_compat as kkp2p
from helpers.direct_support import LONG, close, ctx_to, until
from helpers.support import write_all

MakePair = Callable[..., tuple[kkp2p.channel_t, kkp2p.channel_t]]
SIZE = 300_000
BACK = 1234


def stats_of(engine: kkp2p.engine_t, channel: kkp2p.channel_t) -> kkp2p.channel_stats_t:
    stats = kkp2p.channel_stats(engine, channel.channel_id)
    assert stats is not None, kkp2p.error_no()
    assert stats.channel_id == channel.channel_id
    return stats


def carry(source: kkp2p.channel_t, target: kkp2p.channel_t, size: int) -> None:
    """From one side to the other, and taken there."""
    sent = os.urandom(size)
    write_all(source.fd, sent)
    received, buff = bytearray(), bytearray(65536)
    while len(received) < size:
        count = kkp2p.read(target.fd, buff, len(buff), LONG)
        assert count > 0
        received += buff[:count]
    assert received == sent


# connect_mode, encrypt_data
PATHS = {"p2p": (1, 0), "relay": (2, 0), "sealed": (2, 1)}


@pytest.mark.parametrize(("mode", "encrypt"), PATHS.values(), ids=list(PATHS))
def test_bytes_and_round_trips(
    make_pair: MakePair, engine: kkp2p.engine_t, peer: kkp2p.engine_t, mode: int, encrypt: int
) -> None:
    ours, theirs = make_pair(mode=mode, encrypt=encrypt)
    before = stats_of(engine, ours)
    assert (before.bytes_sent, before.bytes_received) == (0, 0)
    carry(ours, theirs, SIZE)
    carry(theirs, ours, BACK)
    # What was read at one end was sent by the other, and its engine has counted it.
    for side, channel, sent, received in ((engine, ours, SIZE, BACK), (peer, theirs, BACK, SIZE)):
        stats = stats_of(side, channel)
        assert (stats.bytes_sent, stats.bytes_received) == (sent, received)
        assert stats.path == ("p2p" if mode == 1 else "relay")
        assert stats.rtt_s is not None
        assert stats.min_rtt_s is not None
        assert 0 < stats.min_rtt_s < LONG
        assert 0 < stats.rtt_s < LONG
        assert stats.loss is not None
        assert 0 <= stats.loss < 1
        assert (stats.window_bytes or 0) >= 1200
        assert (stats.mtu_bytes or 0) >= 1200
        assert stats.address is not None
        assert stats.address[0] == "127.0.0.1"
        assert (stats.set_up_s is None) == (channel is theirs)
        assert not stats.is_ipv6
    close(ours, theirs)


def test_bytes_of_the_connection_below(
    make_pair: MakePair, engine: kkp2p.engine_t, peer: kkp2p.engine_t
) -> None:
    """Two channels to one peer share it: each has its own bytes, and both show the same sum."""
    first = make_pair(mode=1)
    carry(*first, SIZE)
    second = make_pair(mode=1)
    carry(*second, BACK)
    one, two = stats_of(engine, first[0]), stats_of(engine, second[0])
    assert (one.bytes_sent, two.bytes_sent) == (SIZE, BACK)
    assert one.address == two.address
    assert one.is_lan
    assert two.connection_bytes_sent is not None
    assert two.connection_bytes_sent > SIZE + BACK
    received = stats_of(peer, first[1])
    assert received.connection_bytes_received is not None
    assert received.connection_bytes_received > SIZE + BACK
    assert (one.delivery_bytes_per_s or 0) > 0
    assert (one.pacing_bytes_per_s or 0) > 0
    assert [text for _, text in one.steps] == ["own addresses", "answer", "path"]
    assert one.steps == two.steps
    assert one.set_up_s is not None
    assert one.steps[-1][0] <= one.set_up_s
    assert one.plan in ("direct", "punch")
    assert one.reason
    close(*first, *second)


def test_messages_count_too(
    make_pair: MakePair, engine: kkp2p.engine_t, peer: kkp2p.engine_t
) -> None:
    ours, theirs = make_pair(mode=1, kind=kkp2p.KKP2P_UDP_CHANNEL)
    assert kkp2p.write(ours.fd, b"x" * 5000, 5000, LONG) == 5000
    assert kkp2p.read(theirs.fd, bytearray(5000), 5000, LONG) == 5000
    assert stats_of(engine, ours).bytes_sent == 5000
    assert stats_of(peer, theirs).bytes_received == 5000
    for engine_of, channel in ((engine, ours), (peer, theirs)):
        stats = stats_of(engine_of, channel)
        assert (stats.messages_dropped, stats.messages_missing) == (0, 0)
    stream = ours, *make_pair(mode=1)
    assert stats_of(engine, stream[1]).messages_dropped is None
    assert stats_of(engine, stream[1]).messages_missing is None
    close(*stream, theirs)


def test_messages_that_are_lost(
    make_pair: MakePair, engine: kkp2p.engine_t, peer: kkp2p.engine_t
) -> None:
    """Those that were given up here, and those that the other side misses for that."""
    ours, theirs = make_pair(mode=1, kind=kkp2p.KKP2P_UDP_CHANNEL)
    engine.thread.call(lambda: give_up_some(engine))
    assert kkp2p.read(theirs.fd, bytearray(5000), 5000, LONG) == 5000
    dropped = stats_of(engine, ours).messages_dropped
    assert dropped is not None
    assert dropped > 0
    until(lambda: (stats_of(peer, theirs).messages_missing or 0) >= dropped)
    close(ours, theirs)


def give_up_some(engine: kkp2p.engine_t) -> None:
    """More at once than may wait."""
    (link,) = engine.links
    connection = link.connection
    ((stream_id, _),) = connection.streams.by_id.items()
    for _ in range(300):
        connection.streams.send_message(stream_id, bytes(5000))
    link.wake()


def test_why_it_is_relayed(
    out_of_reach: None, engine: kkp2p.engine_t, peer: kkp2p.engine_t
) -> None:
    """First the head start passes without a path, then it is known that there is none."""
    channels = []
    for _ in range(2):
        ours, theirs = kkp2p.channel_t(), kkp2p.channel_t()
        assert kkp2p.connect(engine, ctx_to("peer", mode=0), ours) == 0
        assert kkp2p.accept(peer, LONG, theirs) == 1
        channels += [ours, theirs]
    stats = stats_of(engine, channels[0])
    assert (stats.path, stats.plan) == ("relay", "punch")
    assert stats.reason == "no path within the head start"
    assert [text for _, text in stats.steps] == ["own addresses", "answer", "relay"]
    asked_for = kkp2p.channel_t()
    assert kkp2p.connect(engine, ctx_to("peer", mode=2), asked_for) == 0
    assert stats_of(engine, asked_for).reason == "the relay was asked for"
    theirs = kkp2p.channel_t()
    assert kkp2p.accept(peer, LONG, theirs) == 1
    assert stats_of(peer, theirs).reason == ""
    close(*channels, asked_for, theirs)


def test_a_peer_has_ended_its_direction(
    make_pair: MakePair, engine: kkp2p.engine_t, peer: kkp2p.engine_t
) -> None:
    """TCP counts the end of a stream as a byte; we do not."""
    ours, theirs = make_pair(mode=2)
    carry(theirs, ours, BACK)
    with socket.socket(fileno=os.dup(theirs.fd)) as sock:
        sock.shutdown(socket.SHUT_WR)
    assert kkp2p.read(ours.fd, bytearray(1), 1, LONG) == -1
    assert stats_of(engine, ours).bytes_received == BACK
    close(ours, theirs)


def test_no_such_channel(make_pair: MakePair, engine: kkp2p.engine_t) -> None:
    ours, theirs = make_pair(mode=1)
    assert kkp2p.channel_stats(engine, ours.channel_id ^ 1) is None
    assert kkp2p.error_no() == kkp2p.KKP2P_ERROR_PARAMETER
    close(ours, theirs)
    until(lambda: kkp2p.channel_stats(engine, ours.channel_id) is None)
    assert kkp2p.error_no() == kkp2p.KKP2P_ERROR_PARAMETER
    for wrong in ("1", None, 1.5):
        assert kkp2p.channel_stats(engine, wrong) is None  # type: ignore[arg-type]
    assert kkp2p.channel_stats(None, 1) is None  # type: ignore[arg-type]
    assert kkp2p.error_no() == kkp2p.KKP2P_ERROR_PARAMETER
