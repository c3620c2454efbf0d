"""Direct connections cut short: time-outs, kills, destroyed engines, and peers that vanish."""

from __future__ import annotations

import functools
import socket
from pathlib import Path

import gevent
import pytest

import kkp2p_compat as kkp2p
from helpers.direct_support import (
    LONG,
    MakeEngine,
    accept,
    check_carries,
    close,
    connect,
    ctx_to,
    links,
    settled,
    until,
)
from helpers.support import PATIENCE_S, SECRET, read_all, write_all
from kkp2p_compat.engine.calls import race, remote
from kkp2p_compat.engine.links import link_table

pytestmark = pytest.mark.usefixtures("on_loopback")


# Time, and those who do not wait.


@pytest.mark.parametrize("timeout", [0, 1, 2, 5, 10, 20, 40])
def test_short_time_outs(engine: kkp2p.engine_t, peer: kkp2p.engine_t, timeout: int) -> None:
    """Connected or not: either way both sides agree, and nothing is left."""
    mine = kkp2p.channel_t()
    result = kkp2p.connect(engine, ctx_to("peer", timeout=timeout), mine)
    assert result == -109 if timeout == 0 else result in (0, -109)
    if result == 0:
        write_all(mine.fd, b"in time")
        close(mine)
    until(lambda: not engine.busy() and not peer.busy())
    heard = []
    theirs = kkp2p.channel_t()
    while kkp2p.accept(peer, 0, theirs) == 1:  # one that was given up has nothing but an end
        heard.append(read_all(theirs.fd))
        close(theirs)
    assert (b"in time" in heard) == (result == 0)
    until(lambda: settled(engine) and settled(peer))


@pytest.mark.parametrize("how", ["time-out", "kill"])
def test_connects_that_are_given_up(engine: kkp2p.engine_t, peer: kkp2p.engine_t, how: str) -> None:
    """At any moment of the first call and of later ones; nothing is left on either side."""

    def connect_and_close() -> bool:
        channel = connect(engine)
        close(channel)
        return True

    def give_up_after(pause_s: float) -> None:
        if how == "time-out":
            with gevent.Timeout(pause_s, False):
                connect_and_close()
        else:
            connecting = gevent.spawn(connect_and_close)
            gevent.sleep(pause_s)
            connecting.kill()

    for pause_s in (0, 0.001, 0.002, 0.004, 0.008, 0.016, 0.001, 0.002):
        give_up_after(pause_s)
    theirs = kkp2p.channel_t()

    def nothing_left() -> bool:
        while kkp2p.accept(peer, 0, theirs) == 1:
            close(theirs)
        return settled(engine) and settled(peer)

    until(nothing_left)
    check_carries(connect(engine), accept(peer))


@pytest.mark.parametrize("mode", [0, 1])
def test_a_dead_link_leaves_time_for_a_new_one(
    engine: kkp2p.engine_t, peer: kkp2p.engine_t, mode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peer has restarted without a word, and the caller has less time than that takes."""
    monkeypatch.setattr(remote, "REUSE_S", PATIENCE_S)
    close(connect(engine), accept(peer))
    until(lambda: settled(engine) and settled(peer))
    for link in links(peer):
        peer.thread.call(peer.network.underlay().endpoint.remove, link)  # type: ignore[union-attr]
    mine = kkp2p.channel_t()
    assert kkp2p.connect(engine, ctx_to("peer", mode, timeout=4000), mine) == 0
    check_carries(mine, accept(peer))


@pytest.mark.usefixtures("out_of_reach")
def test_auto_leaves_time_for_the_relay(
    engine: kkp2p.engine_t, peer: kkp2p.engine_t, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is not told that there is no path by a call that had no time to look for one."""
    mine = kkp2p.channel_t()
    assert kkp2p.connect(engine, ctx_to("peer", timeout=200), mine) == -109
    until(lambda: not engine.busy())
    assert not engine.dialer.remote("peer").is_blocked
    monkeypatch.setattr(race, "HEAD_START_S", PATIENCE_S)
    assert kkp2p.connect(engine, ctx_to("peer", 0, timeout=4000), mine) == 0
    check_carries(mine, accept(peer))


@pytest.mark.usefixtures("out_of_reach")
def test_auto_does_not_wait_for_mode_1(
    engine: kkp2p.engine_t, peer: kkp2p.engine_t, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(race, "HEAD_START_S", 0.1)
    waiting = gevent.spawn(kkp2p.connect, engine, ctx_to("peer"), kkp2p.channel_t())
    until(lambda: engine.dialer.busy)
    check_carries(connect(engine, 0), accept(peer))
    assert not waiting.ready()
    waiting.kill()


@pytest.mark.usefixtures("out_of_reach")
@pytest.mark.parametrize("who", ["caller", "callee"])
def test_destroy_while_a_path_is_looked_for(
    make_engine: MakeEngine, who: str, tmp_path: Path
) -> None:
    callee, caller = make_engine(), make_engine()
    assert kkp2p.join_net(callee, "peer", SECRET) == 0
    waiting = [
        gevent.spawn(kkp2p.connect, caller, ctx_to("peer", timeout=3_600_000), kkp2p.channel_t())
        for _ in range(3)
    ]
    until(lambda: len(callee.network.underlay().finder) == 1)
    if who == "caller":
        kkp2p.engine_destroy(caller)
        assert [greenlet.get(timeout=PATIENCE_S) for greenlet in waiting] == [-1, -1, -1]
    else:  # nobody tells the caller: its own time is what ends it, or whoever destroys it
        kkp2p.engine_destroy(callee)
        gevent.killall(waiting)
    kkp2p.engine_destroy(caller)


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
        link_table, "TransportSettings",
        functools.partial(link_table.TransportSettings, idle_timeout_s=0.5, keepalive_s=0.1),
    )  # fmt: skip
    mine, theirs = connect(engine), accept(peer)
    for one in (engine, peer):
        door = one.network.underlay().endpoint._doors.main[socket.AF_INET]  # type: ignore[union-attr]
        monkeypatch.setattr(door.socket, "send", lambda data, *_: len(data))
    assert read_all(mine.fd) == read_all(theirs.fd) == b""
    until(lambda: not links(engine) and not links(peer))
    close(mine, theirs)
    monkeypatch.undo()
