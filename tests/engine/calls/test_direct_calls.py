"""Meeting peers directly over the cloud: what both sides are told, one link for all, refusals."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

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
    log_of,
    settled,
    udp_ctx,
    until,
)
from helpers.support import PATIENCE_S, SECRET, in_thread, read_all
from kkp2p_compat._errors import LinkLost, TimedOut
from kkp2p_compat.engine.calls import callee as callee_module
from kkp2p_compat.engine.calls import incoming
from kkp2p_compat.engine.channels import kinds as channels
from kkp2p_compat.engine.links.link_channels import LinkChannels
from kkp2p_compat.engine.paths import own_addresses, underlay
from kkp2p_compat.traversal.candidates import host_candidates

pytestmark = pytest.mark.usefixtures("on_loopback")


# What both sides are told.


@pytest.mark.parametrize("mode", [0, 1])
@pytest.mark.tuned(head_start_s=PATIENCE_S)
def test_fields(engine: kkp2p.engine_t, peer: kkp2p.engine_t, mode: int) -> None:
    mine, theirs = connect(engine, mode, desc=-(2**31)), accept(peer)
    for channel in (mine, theirs):
        assert channel.peer_id == "peer"  # of an accepted one: the own id, as in C
        assert channel.channel_type == kkp2p.KKP2P_TCP_CHANNEL
        assert (channel.transmit_mode, channel.is_ipv6_p2p) == (1, 0)
        assert channel.connect_desc == -(2**31)
        assert 0 < channel.channel_id < 2**32
    assert mine.channel_id != theirs.channel_id
    check_carries(mine, theirs)


def test_over_ipv6(monkeypatch: pytest.MonkeyPatch, make_engine: MakeEngine) -> None:
    if (
        not Path("/proc/net/if_inet6").exists()
        or "lo" not in Path("/proc/net/if_inet6").read_text()
    ):
        (pytest.fail if os.environ.get("KKP2P_REQUIRE_LAB") == "1" else pytest.skip)("no ::1")
    monkeypatch.setattr(
        own_addresses, "host_candidates", lambda ports: host_candidates(ports, ["::1"])
    )
    peer = make_engine()
    assert kkp2p.join_net(peer, "peer", SECRET) == 0
    mine, theirs = connect(make_engine()), accept(peer)
    assert (mine.is_ipv6_p2p, theirs.is_ipv6_p2p) == (1, 1)
    check_carries(mine, theirs)


def test_to_itself(peer: kkp2p.engine_t) -> None:
    check_carries(connect(peer), accept(peer))


def test_callback(engine: kkp2p.engine_t, peer: kkp2p.engine_t) -> None:
    """In the greenlets of a thread with a hub, and from a thread without one."""
    calls: gevent.queue.Queue[tuple[int, kkp2p.channel_t, object]] = gevent.queue.Queue()
    ctx = ctx_to("peer")
    ctx.func, ctx.func_param = (lambda *call: calls.put(call)), 7
    assert kkp2p.connect(engine, ctx, None) == 0
    result, mine, param = calls.get(timeout=PATIENCE_S)
    assert (result, mine.transmit_mode, param) == (0, 1, 7)
    check_carries(mine, accept(peer))

    told: list[Any] = []
    ctx.func = lambda *call: told.append(call)
    assert in_thread(lambda: kkp2p.connect(engine, ctx, None)) == 0
    theirs = accept(peer)
    until(lambda: told)
    assert told[0][0] == 0
    check_carries(told[0][1], theirs)


# A path that is of no use.


@pytest.mark.tuned(head_start_s=PATIENCE_S)
def test_a_path_that_opens_no_channel_is_not_tried_again_soon(
    monkeypatch: pytest.MonkeyPatch, engine: kkp2p.engine_t, peer: kkp2p.engine_t, tmp_path: Path
) -> None:
    """As where checks pass, and nothing larger: auto mode would lose its time at each connect."""

    def silent(*_: object) -> int:
        raise TimedOut("nothing comes back")

    monkeypatch.setattr(LinkChannels, "ask", silent)
    for _ in range(2):
        mine, theirs = connect(engine, 0), accept(peer)
        assert (mine.transmit_mode, theirs.transmit_mode) == (2, 2)
        check_carries(mine, theirs)
    assert log_of(tmp_path, 0).count("the path carries nothing: nothing comes back") == 2


# Refused.


@pytest.mark.tuned(accept_queue_places=2)
def test_full_accept_queue(make_engine: MakeEngine) -> None:
    """With the first call, by the cloud; with a later one, on the link.  Then there is room."""
    callee, caller, late = make_engine(), make_engine(), make_engine()
    assert kkp2p.join_net(callee, "peer", SECRET) == 0
    mine = [connect(caller), connect(caller)]
    for mode in (0, 1):
        for one in (caller, late):
            assert kkp2p.connect(one, ctx_to("peer", mode), kkp2p.channel_t()) == -108
    for channel in mine:
        check_carries(channel, accept(callee))
    for one in (caller, late):
        check_carries(connect(one), accept(callee))
    until(lambda: settled(caller) and settled(late) and settled(callee))


def test_out_of_descriptors(
    monkeypatch: pytest.MonkeyPatch, engine: kkp2p.engine_t, peer: kkp2p.engine_t
) -> None:
    """The callee's; then the caller's.  The link lives on."""
    make_pair, left = channels._make_pair, [0]

    def limited(kind: int) -> Any:
        left[0] -= 1
        if left[0] == -1:
            raise channels.from_os_error(OSError(24, "Too many open files"), "descriptors")
        return make_pair(kind)

    monkeypatch.setattr(channels, "_make_pair", limited)
    assert kkp2p.connect(engine, ctx_to("peer"), kkp2p.channel_t()) == -108
    until(lambda: settled(engine) and settled(peer))
    left[0] = 1
    assert kkp2p.connect(engine, ctx_to("peer"), kkp2p.channel_t()) == -119
    theirs = accept(peer)
    assert read_all(theirs.fd) == b""
    close(theirs)
    until(lambda: settled(engine) and settled(peer))
    check_carries(connect(engine), accept(peer))
    assert len(links(engine)) == 1


def test_too_many_links(
    monkeypatch: pytest.MonkeyPatch, engine: kkp2p.engine_t, peer: kkp2p.engine_t
) -> None:
    monkeypatch.setattr(callee_module, "MAX_LINKS", 0)
    assert kkp2p.connect(engine, ctx_to("peer"), kkp2p.channel_t()) == -109
    mine, theirs = connect(engine, 0), accept(peer)
    assert mine.transmit_mode == 2
    check_carries(mine, theirs)


def test_one_address_leaves_links_for_others(
    monkeypatch: pytest.MonkeyPatch, make_engine: MakeEngine, peer: kkp2p.engine_t
) -> None:
    monkeypatch.setattr(callee_module, "MAX_LINKS", 4)  # strangers may have three of them
    strangers, channel = [make_engine() for _ in range(3)], kkp2p.channel_t()
    for stranger in strangers[:2]:
        check_carries(connect(stranger), accept(peer))
    assert kkp2p.connect(strangers[2], ctx_to("peer"), channel) == -109
    other = make_engine()
    assert kkp2p.join_net(other, "other", SECRET) == 0
    check_carries(connect(other), accept(peer))
    for gone in (strangers[0], other):
        kkp2p.engine_destroy(gone)
    until(lambda: len(links(peer)) == 1)
    check_carries(connect(strangers[2]), accept(peer))  # what the others had is there for it


# Without a path.


@pytest.mark.usefixtures("out_of_reach")
@pytest.mark.tuned(head_start_s=0.1)
def test_no_path(engine: kkp2p.engine_t, peer: kkp2p.engine_t, tmp_path: Path) -> None:
    """Auto takes the relay, and remembers why; mode 1 fails when the caller's time is over."""
    for _ in range(2):
        mine, theirs = connect(engine, 0), accept(peer)
        assert (mine.transmit_mode, theirs.transmit_mode) == (2, 2)
        check_carries(mine, theirs)
    log = log_of(tmp_path, 0)
    assert log.count("connected by relay with") == 1
    assert "no path within the head start; own addresses" in log
    assert "on the live connection" in log
    assert kkp2p.connect(engine, ctx_to("peer", timeout=150), kkp2p.channel_t()) == -109


@pytest.mark.usefixtures("out_of_reach")
def test_lines_of_a_search_name_the_peer(
    engine: kkp2p.engine_t, peer: kkp2p.engine_t, tmp_path: Path
) -> None:
    """On an engine with many peers nobody could tell else whose they are."""
    calling = gevent.spawn(kkp2p.connect, engine, ctx_to("peer"), kkp2p.channel_t())
    for number, (one, name) in enumerate(((engine, "peer"), (peer, "a stranger"))):
        searches = one.network.underlay().searches
        until(lambda: searches._meetings)  # noqa: B023
        (meeting,) = searches._meetings
        one.thread.call(meeting.handle_text_untrusted, "junk")
        log = log_of(tmp_path, number)
        assert f" {name}: trickle: dropped: " in log, log
    calling.kill()


def no_udp(*_: object, **__: object) -> None:
    raise LinkLost("UDP socket: [Errno 97] Address family not supported by protocol")


@pytest.mark.parametrize("who", ["caller", "callee"])
def test_a_host_without_udp(
    monkeypatch: pytest.MonkeyPatch, make_engine: MakeEngine, who: str
) -> None:
    endpoint = underlay.Endpoint
    engines = {}
    for name in ("caller", "callee"):
        monkeypatch.setattr(underlay, "Endpoint", no_udp if name == who else endpoint)
        engines[name] = make_engine()
    monkeypatch.setattr(underlay, "Endpoint", no_udp)  # it is tried again
    engine, peer = engines["caller"], engines["callee"]
    assert kkp2p.join_net(peer, "peer", SECRET) == 0
    mine, theirs = connect(engine, 0), accept(peer)
    assert (mine.transmit_mode, theirs.transmit_mode) == (2, 2)
    check_carries(mine, theirs)
    assert kkp2p.connect(engine, ctx_to("peer"), kkp2p.channel_t()) == -109


def test_a_peer_that_knows_nothing_of_p2p(
    monkeypatch: pytest.MonkeyPatch, engine: kkp2p.engine_t, peer: kkp2p.engine_t
) -> None:
    """It answers a call of auto as if that were one by the relay, and declines one of mode 1."""
    parse = incoming.parse_offer_untrusted
    monkeypatch.setattr(
        incoming, "parse_offer_untrusted", lambda text: parse(text.replace('"direct"', '"unknown"'))
    )
    mine, theirs = connect(engine, 0), accept(peer)
    assert (mine.transmit_mode, theirs.transmit_mode) == (2, 2)
    check_carries(mine, theirs)
    assert kkp2p.connect(engine, ctx_to("peer"), kkp2p.channel_t()) == -109
    assert kkp2p.connect(engine, udp_ctx(0, LONG), kkp2p.channel_t()) == -109


@pytest.mark.tuned(head_start_s=PATIENCE_S)
def test_a_host_that_gets_udp_later(
    monkeypatch: pytest.MonkeyPatch, make_engine: MakeEngine, peer: kkp2p.engine_t
) -> None:
    """What it lacked says nothing of the peer, so auto mode does not take the relay for a while."""
    with monkeypatch.context() as patch:
        patch.setattr(underlay, "Endpoint", no_udp)
        engine = make_engine()
        mine, theirs = connect(engine, 0), accept(peer)
        assert (mine.transmit_mode, theirs.transmit_mode) == (2, 2)
        check_carries(mine, theirs)
        assert kkp2p.connect(engine, udp_ctx(0, LONG), kkp2p.channel_t()) == -106
    mine, theirs = connect(engine, 0), accept(peer)
    assert (mine.transmit_mode, theirs.transmit_mode) == (1, 1)
    check_carries(mine, theirs)


def test_a_peer_that_is_away(engine: kkp2p.engine_t) -> None:
    for mode in (0, 1):
        assert kkp2p.connect(engine, ctx_to("other", mode), kkp2p.channel_t()) == -109
