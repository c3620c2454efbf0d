"""One link to a peer for all channels, as long as it is the same peer."""

from __future__ import annotations

from collections.abc import Callable

import gevent
import pytest

import kkp2p_compat as kkp2p
from helpers.direct_support import (
    LONG,
    MakeEngine,
    accept,
    check_carries,
    connect,
    links,
    settled,
    until,
)
from helpers.support import PATIENCE_S, SECRET, CloudProcess
from kkp2p_compat._errors import CallRefused
from kkp2p_compat.engine.links import peer_link

pytestmark = pytest.mark.usefixtures("on_loopback")


def test_the_second_channel_needs_no_cloud(
    start_cloud: Callable[..., CloudProcess], make_engine: MakeEngine
) -> None:
    cloud = start_cloud("--account", f"peer:{SECRET}")
    callee, caller = (make_engine(login_port=cloud.port) for _ in range(2))
    assert kkp2p.join_net(callee, "peer", SECRET) == 0
    for mode in (1, 0):
        check_carries(connect(caller, mode), accept(callee))
    cloud.kill()
    for mode in (1, 0):
        mine, theirs = connect(caller, mode, desc=mode), accept(callee)
        assert (mine.transmit_mode, theirs.transmit_mode, theirs.connect_desc) == (1, 1, mode)
        check_carries(mine, theirs)
    assert len(links(caller)) == len(links(callee)) == 2  # one of each mode


def test_connects_at_once_share_a_link(engine: kkp2p.engine_t, peer: kkp2p.engine_t) -> None:
    connecting = [gevent.spawn(connect, engine, desc=number) for number in range(50)]
    theirs = [accept(peer) for _ in connecting]
    mine = [greenlet.get(timeout=PATIENCE_S) for greenlet in connecting]
    assert len(links(engine)) == len(links(peer)) == 1
    by_desc = {channel.connect_desc: channel for channel in theirs}
    assert sorted(by_desc) == list(range(50))
    for channel in mine:
        check_carries(channel, by_desc[channel.connect_desc])
    until(lambda: settled(engine) and settled(peer))


def test_a_peer_that_came_back(make_engine: MakeEngine, engine: kkp2p.engine_t) -> None:
    """The link to the one before it is not used."""
    for _ in range(2):
        callee = make_engine()
        assert kkp2p.join_net(callee, "peer", SECRET) == 0
        mine, theirs = connect(engine), accept(callee)
        check_carries(mine, theirs)
        until(lambda: settled(engine))
        kkp2p.engine_destroy(callee)


@pytest.mark.parametrize("how", ["another engine", "another name"])
def test_a_peer_that_moved(make_engine: MakeEngine, engine: kkp2p.engine_t, how: str) -> None:
    """A live link to where it was is not a way to it."""
    old, new = make_engine(), make_engine()
    assert kkp2p.join_net(old, "peer", SECRET) == 0
    mine, theirs = connect(engine), accept(old)
    if how == "another name":
        assert kkp2p.join_net(old, "other", SECRET) == 0
    assert kkp2p.join_net(new, "peer", SECRET) == 0
    if how == "another engine":
        assert kkp2p.accept(old, LONG, kkp2p.channel_t()) == -117
    check_carries(connect(engine), accept(new))
    assert kkp2p.accept(old, 0, kkp2p.channel_t()) == 0
    check_carries(mine, theirs)  # what was open stays so


def test_a_link_that_is_not_used_is_ended(
    monkeypatch: pytest.MonkeyPatch, engine: kkp2p.engine_t, peer: kkp2p.engine_t
) -> None:
    check_carries(connect(engine), accept(peer))
    until(lambda: settled(engine))
    engine.thread.call(engine.sweep)
    assert len(links(engine)) == 1  # not yet
    monkeypatch.setattr(peer_link, "IDLE_S", 0)
    engine.thread.call(engine.sweep)
    until(lambda: not links(engine) and not links(peer))
    check_carries(connect(engine), accept(peer))


def test_only_the_called_side_accepts(engine: kkp2p.engine_t, peer: kkp2p.engine_t) -> None:
    mine, theirs = connect(engine), accept(peer)
    with pytest.raises(CallRefused):
        peer.thread.call(links(peer)[0].channels.open, 0, 0, 0)
    assert kkp2p.accept(engine, 0, kkp2p.channel_t()) == 0
    check_carries(mine, theirs)
