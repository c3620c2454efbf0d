"""Calls between peers that meet nowhere but at a TURN server: a real coturn, on loopback."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import kkp2p_compat as kkp2p
from helpers import coturn
from helpers.cloud_client import running_cloud
from helpers.direct_support import accept, check_carries, close, connect, ctx_to, log_of
from helpers.support import SECRET

KEY = b"k" * 32

MakeEngine = Callable[..., kkp2p.engine_t]
pytestmark = [pytest.mark.usefixtures("out_of_reach"), pytest.mark.tuned(head_start_s=0.1)]


@pytest.fixture
def turn_port(tmp_path: Path) -> Iterator[int]:
    port = coturn.two_free_ports()[0]
    with coturn.running(tmp_path, port, *coturn.TURN):
        yield port


@pytest.fixture
def start(make_engine: MakeEngine) -> Iterator[Callable[..., tuple[Any, Any]]]:
    """A caller and a callee of a cloud whose only relay is dead."""
    nobody = ("127.0.0.1", coturn.two_free_ports()[0])
    with contextlib.ExitStack() as running:

        def two(**settings: Any) -> tuple[Any, Any]:
            cloud = running.enter_context(
                running_cloud(
                    {"peer": SECRET}, role="track", relay_key=KEY, relays=[nobody], **settings
                )
            )
            engine, peer = (make_engine(login_port=cloud.address[1]) for _ in range(2))
            assert kkp2p.join_net(peer, "peer", SECRET) == 0
            return engine, peer

        yield two


def test_two_that_meet_by_turn_only(
    turn_port: int, start: Callable[..., tuple[Any, Any]], tmp_path: Path
) -> None:
    engine, peer = start(turn=("127.0.0.1", turn_port), turn_secret=coturn.SECRET)
    mine, theirs = connect(engine, 0), accept(peer)
    assert (mine.transmit_mode, theirs.transmit_mode) == (2, 2)
    check_carries(mine, theirs)
    log = log_of(tmp_path, 0)
    assert "our address is 127.0.0.1:" in log
    assert "relay by TURN with 127.0.0.1" in log
    second, other = connect(engine, 0), accept(peer)  # on the same connection
    check_carries(second, other)
    assert log_of(tmp_path, 0).count("our address is 127.0.0.1:") == 1
    close(mine, theirs, second, other)


def test_a_secret_that_is_not_the_servers(
    turn_port: int, start: Callable[..., tuple[Any, Any]], tmp_path: Path
) -> None:
    engine, _ = start(turn=("127.0.0.1", turn_port), turn_secret=b"another secret of the two")
    assert kkp2p.connect(engine, ctx_to("peer", mode=0, timeout=3000), kkp2p.channel_t()) != 0
    assert "no relay by TURN: TURN server 127.0.0.1" in log_of(tmp_path, 0)
    assert "401 Unauthorized" in log_of(tmp_path, 0)
