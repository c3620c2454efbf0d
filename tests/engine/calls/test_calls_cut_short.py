"""Direct connections cut short: time-outs, kills, destroyed engines, and peers that vanish."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import gevent
import pytest

import kkp2p_compat as kkp2p
from helpers.direct_support import (
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

pytestmark = pytest.mark.usefixtures("on_loopback")


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
    until(lambda: len(callee.network.underlay().searches.finder) == 1)
    if who == "caller":
        kkp2p.engine_destroy(caller)
        assert [greenlet.get(timeout=PATIENCE_S) for greenlet in waiting] == [-1, -1, -1]
    else:  # nobody tells the caller: its own time is what ends it, or whoever destroys it
        kkp2p.engine_destroy(callee)
        gevent.killall(waiting)
    kkp2p.engine_destroy(caller)


@pytest.mark.usefixtures("out_of_reach")
def test_who_was_called_is_not_here_any_more(engine: kkp2p.engine_t, peer: kkp2p.engine_t) -> None:
    """A call that is being answered under the old id leads nowhere."""
    calling = gevent.spawn(kkp2p.connect, engine, ctx_to("peer"), kkp2p.channel_t())
    until(lambda: len(peer.network.underlay().searches.finder) == 1)
    assert kkp2p.join_net(peer, "other", SECRET) == 0
    until(
        lambda: (
            not peer.switchboard.incoming.busy and not len(peer.network.underlay().searches.finder)
        )
    )
    calling.kill()


@pytest.mark.usefixtures("out_of_reach")
def test_who_was_searched_on_the_lan_is_not_here_any_more(lan_pair: Any) -> None:
    caller, callee = lan_pair
    calling = gevent.spawn(kkp2p.connect, caller, ctx_to("lan-peer"), kkp2p.channel_t())
    until(lambda: len(callee.network.underlay().searches.finder) == 1)
    assert kkp2p.join_lan(callee, "other") == 0
    until(lambda: not len(callee.network.underlay().searches.finder))
    calling.kill()


@pytest.mark.usefixtures("out_of_reach")
def test_a_path_that_nobody_waits_for_any_more(
    engine: kkp2p.engine_t, peer: kkp2p.engine_t
) -> None:
    """It is found, by a socket of its own, as the callee's greenlet is killed."""
    calling = gevent.spawn(kkp2p.connect, engine, ctx_to("peer"), kkp2p.channel_t())
    endpoint = peer.network.underlay().endpoint
    until(lambda: len(peer.network.underlay().searches.finder) == 1)

    def find_and_kill() -> None:
        (meeting,) = peer.network.underlay().searches._meetings
        (number,) = endpoint.open_sockets(socket.AF_INET, 1)
        meeting._puncher._sockets.add(number)
        meeting._search.checks.selected = ("127.0.0.1", 9, number)
        gevent.killall(list(peer.switchboard.incoming._answering.values()), block=False)
        meeting.found.set((("127.0.0.1", 9, number), 0.1))

    peer.thread.call(find_and_kill)
    until(lambda: not peer.switchboard.incoming.busy)
    assert not links(peer)
    assert not endpoint._doors.extra
    calling.kill()
