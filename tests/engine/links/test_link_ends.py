"""Links between engines: how they end, and what their paths leave."""

from __future__ import annotations

import functools
import socket

import pytest

import kkp2p_compat as kkp2p
from helpers.direct_support import (
    LONG,
    MakeEngine,
    accept,
    check_carries,
    close,
    connect,
    links,
    settled,
    until,
)
from helpers.support import SECRET, read_all, write_all
from kkp2p_compat.engine.links import link_table
from kkp2p_compat.engine.paths.path_finder import Path

pytestmark = pytest.mark.usefixtures("on_loopback")


def test_destroy_with_live_links(make_engine: MakeEngine) -> None:
    """What was written arrives, and the other side's channels end at once."""
    callee, caller = make_engine(), make_engine()
    assert kkp2p.join_net(callee, "peer", SECRET) == 0
    pairs = [(connect(caller), accept(callee)) for _ in range(5)]
    for mine, _ in pairs:
        write_all(mine.fd, b"last words")
    kkp2p.engine_destroy(caller)
    for mine, theirs in pairs:
        assert read_all(theirs.fd) == b"last words"
        assert kkp2p.read(mine.fd, bytearray(1), 1, LONG) == -1
        close(mine, theirs)
    until(lambda: settled(callee) and not links(callee))


def test_a_peer_that_is_gone_without_a_word(
    monkeypatch: pytest.MonkeyPatch, engine: kkp2p.engine_t, peer: kkp2p.engine_t
) -> None:
    """Its network is: reads end with an error, and the next connect makes a new link."""
    monkeypatch.setattr(
        link_table,
        "TransportSettings",
        functools.partial(link_table.TransportSettings, idle_timeout_s=0.5, keepalive_s=0.1),
    )
    mine, theirs = connect(engine), accept(peer)
    for one in (engine, peer):
        door = one.network.underlay().endpoint._doors.main[socket.AF_INET]  # type: ignore[union-attr]
        monkeypatch.setattr(door.socket, "send", lambda data, *_: len(data))
    assert read_all(mine.fd) == read_all(theirs.fd) == b""
    until(lambda: not links(engine) and not links(peer))
    close(mine, theirs)
    monkeypatch.undo()


def test_sockets_go_with_their_paths(engine: kkp2p.engine_t, peer: kkp2p.engine_t) -> None:
    mine, theirs = connect(engine), accept(peer)
    (link,) = links(engine)
    endpoint = engine.network.underlay().endpoint
    ip, port = link.connection.address[:2]

    def try_by_a_fresh_socket() -> int:
        (number,) = endpoint.open_sockets(socket.AF_INET, 1)
        link.paths.offer(Path((ip, port, number), None))
        link.ask()  # so that it is noticed
        return number

    extra = endpoint._doors.extra
    door = endpoint._doors.main[socket.AF_INET]
    for _ in range(3):
        engine.thread.call(door.readable.stop)  # the path in use is dead
        number = engine.thread.call(try_by_a_fresh_socket)
        door = extra[number]
        until(lambda number=number: link.connection.address == (ip, port, number))
        until(lambda number=number: set(extra) == {number})
    check_carries(mine, theirs)
    until(lambda: settled(engine))
    engine.thread.call(link.close, "of the test")
    until(lambda: link.closed)
    engine.thread.call(try_by_a_fresh_socket)
    assert not extra
