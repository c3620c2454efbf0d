"""Calls between peers that meet nowhere but at a TURN server: a real coturn, on loopback."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import kkp2p_compat as kkp2p
from helpers import coturn
from helpers.direct_support import accept, check_carries, connect, ctx_to, links, log_of, until
from helpers.ports import free_port
from helpers.shared_directory import Shared, running_node
from helpers.support import PATIENCE_S, SECRET, write_all
from kkp2p_compat.engine.paths.path_kind import PathKind
from kkp2p_compat.transport.udp import lane

MakeEngine = Callable[..., kkp2p.engine_t]
Start = Callable[..., tuple[Any, Any]]
pytestmark = [pytest.mark.usefixtures("out_of_reach"), pytest.mark.tuned(head_start_s=0.1)]


def kind_of(engine: kkp2p.engine_t) -> PathKind:
    (link,) = links(engine)
    return link.paths.kind


def exchange(mine: kkp2p.channel_t, theirs: kkp2p.channel_t) -> None:
    """A few bytes; the channel goes on."""
    for source, target in ((mine, theirs), (theirs, mine)):
        write_all(source.fd, b"hello")
        buff = bytearray(5)
        assert kkp2p.read(target.fd, buff, 5, PATIENCE_S * 1000) == 5
        assert buff == b"hello"


@pytest.fixture
def turn_port(tmp_path: Path) -> Iterator[int]:
    port = free_port()
    with coturn.running(tmp_path, port, *coturn.TURN):
        yield port


@pytest.fixture
def clouds() -> Iterator[contextlib.ExitStack]:
    """What runs until the engines have ended."""
    with contextlib.ExitStack() as running:
        yield running


@pytest.fixture
def start(clouds: contextlib.ExitStack, make_engine: MakeEngine) -> Start:
    """A caller and a callee of a cloud whose relay is "dead", "here", or that has "none"."""

    def two(turn_port: int, secret: bytes, relay: str = "dead") -> tuple[Any, Any]:
        turn: Any = {"turn": ("127.0.0.1", turn_port), "turn_secret": secret}
        shared, accounts, role = Shared(), {"peer": SECRET}, "all" if relay == "here" else "track"
        if relay == "dead":
            shared.name_relay("127.0.0.1", free_port())
        cloud = clouds.enter_context(running_node(role, shared, accounts, **turn))
        engine, peer = (make_engine(login_port=cloud.address[1]) for _ in range(2))
        assert kkp2p.join_net(peer, "peer", SECRET) == 0
        return engine, peer

    return two


@pytest.mark.parametrize("relay", ["dead", "none"])
def test_two_that_meet_by_turn_only(
    turn_port: int, start: Start, tmp_path: Path, relay: str
) -> None:
    engine, peer = start(turn_port, coturn.SECRET, relay)
    mine, theirs = connect(engine, 0), accept(peer)
    assert (mine.transmit_mode, theirs.transmit_mode) == (2, 2)
    exchange(mine, theirs)
    log = log_of(tmp_path, 0)
    assert "our address is 127.0.0.1:" in log
    assert "relay by TURN with 127.0.0.1" in log
    check_carries(mine, theirs)
    second, other = connect(engine, 0), accept(peer)  # on the same connection
    check_carries(second, other)
    assert log_of(tmp_path, 0).count("our address is 127.0.0.1:") == 1


def test_a_secret_that_is_not_the_servers(turn_port: int, start: Start, tmp_path: Path) -> None:
    engine, _ = start(turn_port, b"another secret of the two")
    assert kkp2p.connect(engine, ctx_to("peer", mode=0, timeout=3000), kkp2p.channel_t()) != 0
    assert "no relay by TURN: TURN server 127.0.0.1" in log_of(tmp_path, 0)
    assert "401 Unauthorized" in log_of(tmp_path, 0)


def test_a_channel_moves_from_tcp_to_turn(
    turn_port: int, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where UDP gets to a TURN server, but not to our relay."""
    monkeypatch.setattr(lane.LaneClient, "handle_datagram_untrusted", lambda *_: False)
    engine, peer = start(turn_port, coturn.SECRET, "here")
    mine, theirs = connect(engine, 0), accept(peer)
    exchange(mine, theirs)
    for which in (engine, peer):
        until(lambda which=which: kind_of(which) is PathKind.TURN)
    check_carries(mine, theirs)


def test_mode_2_by_turn_only(turn_port: int, start: Start, tmp_path: Path) -> None:
    """Both sides allocate, and neither tells the other an address of its own."""
    engine, peer = start(turn_port, coturn.SECRET)
    ctx, mine = ctx_to("peer", mode=2), kkp2p.channel_t()
    ctx.encrypt_data = 1
    assert kkp2p.connect(engine, ctx, mine) == 0
    theirs = accept(peer)
    exchange(mine, theirs)
    assert kind_of(engine) is kind_of(peer) is PathKind.TURN
    for number, side in enumerate((engine, peer)):
        assert "our address is 127.0.0.1:" in log_of(tmp_path, number)
        (link,) = links(side)
        assert link.info.met.theirs.candidates == []
    check_carries(mine, theirs)


def test_the_relay_is_enough_where_it_has_a_lane(
    turn_port: int, start: Start, tmp_path: Path
) -> None:
    engine, peer = start(turn_port, coturn.SECRET, "here")
    mine, theirs = connect(engine, 0), accept(peer)
    check_carries(mine, theirs)
    assert "TURN" not in log_of(tmp_path, 0)


def test_a_server_that_is_killed_and_comes_back(tmp_path: Path, start: Start) -> None:
    """The path is dead; the link finds another one, through the server's next life."""
    port = free_port()
    with coturn.running(tmp_path, port, *coturn.TURN) as process:
        engine, peer = start(port, coturn.SECRET)
        mine, theirs = connect(engine, 0), accept(peer)
        exchange(mine, theirs)
        process.kill()
        process.wait()
    with coturn.running(tmp_path, port, *coturn.TURN):
        check_carries(mine, theirs)
