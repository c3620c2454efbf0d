"""Path and relay race for a call: who waits for what, and for how long."""

from __future__ import annotations

from typing import Any

import gevent
import pytest

import kkp2p_compat as kkp2p
from helpers.direct_support import (
    accept,
    check_carries,
    close,
    connect,
    ctx_to,
    links,
    settled,
    udp_ctx,
    until,
)
from helpers.support import PATIENCE_S
from kkp2p_compat.engine.calls import callee as callee_module
from kkp2p_compat.engine.calls import caller as caller_module
from kkp2p_compat.engine.calls import race
from kkp2p_compat.engine.links import prepared_relay
from kkp2p_compat.engine.signalling.offer import parse_direct_answer_untrusted

pytestmark = pytest.mark.usefixtures("on_loopback")


@pytest.mark.parametrize("mode", [0, 1])
@pytest.mark.tuned(reuse_s=PATIENCE_S)
def test_a_dead_link_leaves_time_for_a_new_one(
    engine: kkp2p.engine_t, peer: kkp2p.engine_t, mode: int
) -> None:
    """The peer has restarted without a word, and the caller has less time than that takes."""
    close(connect(engine), accept(peer))
    until(lambda: settled(engine) and settled(peer))
    for link in links(peer):
        peer.thread.call(peer.network.underlay().endpoint.remove, link)  # type: ignore[union-attr]
    mine = kkp2p.channel_t()
    assert kkp2p.connect(engine, ctx_to("peer", mode, timeout=4000), mine) == 0
    check_carries(mine, accept(peer))


@pytest.mark.usefixtures("out_of_reach")
@pytest.mark.tuned(head_start_s=PATIENCE_S)
def test_auto_leaves_time_for_the_relay(engine: kkp2p.engine_t, peer: kkp2p.engine_t) -> None:
    """And is not told that there is no path by a call that had no time to look for one."""
    mine = kkp2p.channel_t()
    assert kkp2p.connect(engine, ctx_to("peer", timeout=200), mine) == -109
    until(lambda: not engine.busy())
    assert not engine.dialer.remote("peer").is_blocked
    assert kkp2p.connect(engine, ctx_to("peer", 0, timeout=4000), mine) == 0
    check_carries(mine, accept(peer))


@pytest.mark.usefixtures("out_of_reach")
@pytest.mark.tuned(head_start_s=0.1)
def test_auto_does_not_wait_for_mode_1(engine: kkp2p.engine_t, peer: kkp2p.engine_t) -> None:
    waiting = gevent.spawn(kkp2p.connect, engine, ctx_to("peer"), kkp2p.channel_t())
    until(lambda: engine.dialer.busy)
    check_carries(connect(engine, 0), accept(peer))
    assert not waiting.ready()
    waiting.kill()


HOUR_MS = 3_600_000


@pytest.mark.usefixtures("out_of_reach")
@pytest.mark.tuned(head_start_s=0.1)
def test_auto_does_not_wait_for_a_udp_channel(engine: kkp2p.engine_t, peer: kkp2p.engine_t) -> None:
    """Which has no relay to go by, so its caller looks for a path for as long as it has time."""
    waiting = gevent.spawn(kkp2p.connect, engine, udp_ctx(0, HOUR_MS), kkp2p.channel_t())
    until(lambda: engine.dialer.busy)
    check_carries(connect(engine, 0), accept(peer))
    assert not waiting.ready()
    waiting.kill()


@pytest.mark.usefixtures("out_of_reach")
@pytest.mark.tuned(head_start_s=0.1)
def test_a_udp_channel_does_not_end_with_the_head_start_of_another(
    engine: kkp2p.engine_t, peer: kkp2p.engine_t
) -> None:
    check_carries(connect(engine, 0), accept(peer))
    assert kkp2p.connect(engine, udp_ctx(0, 500), kkp2p.channel_t()) == -109


@pytest.mark.usefixtures("out_of_reach")
@pytest.mark.tuned(head_start_s=PATIENCE_S / 2)
def test_the_relay_for_those_who_have_less_time(
    engine: kkp2p.engine_t, peer: kkp2p.engine_t
) -> None:
    """Than the head start of the first caller, which nobody waits for any more."""
    first = gevent.spawn(kkp2p.connect, engine, ctx_to("peer", 0), kkp2p.channel_t())
    until(lambda: engine.dialer.busy)
    mine = kkp2p.channel_t()
    assert kkp2p.connect(engine, ctx_to("peer", 0, timeout=4000), mine) == 0
    first.kill()
    check_carries(mine, accept(peer))


@pytest.mark.tuned(reuse_s=PATIENCE_S, head_start_s=PATIENCE_S)
def test_a_dead_link_leaves_time_for_the_relay(
    engine: kkp2p.engine_t, peer: kkp2p.engine_t, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path is found, but nothing that is sent over it arrives: neither the old one nor a new."""
    endpoint = engine.network.underlay().endpoint
    monkeypatch.setattr(endpoint, "add", lambda link: None)
    monkeypatch.setattr(endpoint, "wake", lambda link: None)
    mine = kkp2p.channel_t()
    assert kkp2p.connect(engine, ctx_to("peer", 0, timeout=3000), mine) == 0
    theirs = accept(peer)
    assert mine.transmit_mode == 2
    check_carries(mine, theirs)


@pytest.mark.tuned(head_start_s=PATIENCE_S)
def test_a_path_does_not_wait_for_a_relay_that_nobody_takes(
    engine: kkp2p.engine_t, peer: kkp2p.engine_t, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The callee has gone to the relay; the caller, which was quicker to find the path, has not."""
    monkeypatch.setattr(callee_module, "RELAY_GRACE_S", 3600)

    prepared: list[prepared_relay.PreparedRelay] = []

    class Prepared(prepared_relay.PreparedRelay):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.hurry()
            prepared.append(self)

    def parse_later(answer: str) -> Any:
        until(lambda: prepared and prepared[0].begun)
        return parse_direct_answer_untrusted(answer)

    monkeypatch.setattr(race, "PreparedRelay", Prepared)
    monkeypatch.setattr(caller_module, "parse_direct_answer_untrusted", parse_later)
    mine, theirs = connect(engine, 0), accept(peer)
    assert mine.transmit_mode == 1
    check_carries(mine, theirs)


@pytest.mark.tuned(attempt_s=0.3)
def test_a_long_time_is_for_more_than_one_attempt(
    engine: kkp2p.engine_t, peer: kkp2p.engine_t, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first finds no path, as the peer tells nothing that leads to it."""
    candidates = type(peer.network.underlay().own).candidates
    made: list[object] = []

    def later(own: Any, *told: Any) -> Any:
        made.append(own)
        return candidates(own, *told) if len(made) > 4 else []

    monkeypatch.setattr(type(peer.network.underlay().own), "candidates", later)
    check_carries(connect(engine), accept(peer))
