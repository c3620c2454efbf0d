"""Other people's STUN: our client asks coturn's server, coturn's client asks ours.  On loopback."""

from __future__ import annotations

import logging
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest
from gevent.event import Event

from helpers.coturn import HOME, need, running
from helpers.ports import free_port
from helpers.stun_support import start_responder
from helpers.support import PATIENCE_S
from kkp2p_compat.cloud.stun import StunResponder
from kkp2p_compat.engine.paths.own_addresses import OwnAddresses
from kkp2p_compat.transport.udp.endpoint import Endpoint
from kkp2p_compat.traversal.nat import NatBehaviour

SECOND = "127.0.0.2"


@pytest.fixture
def coturn(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """The two ports of a server on two addresses."""
    first = second = free_port()
    while second in (first, first + 1):
        second = free_port()
    options = ("--stun-only", "-L", SECOND, "--alt-listening-port", str(second))
    with running(tmp_path, first, *options):
        yield first, second


def test_our_client_asks_coturn(coturn: tuple[int, int]) -> None:
    """Its second port is not the next one, and its answers are padded in no way."""
    log = logging.getLogger("test")
    endpoint = Endpoint(log)
    changed = Event()
    own = OwnAddresses(endpoint, [(HOME, coturn[0])], log, gevent.spawn, changed.set)
    endpoint.on_stun = own.questions.handle_stun
    own.start()
    try:
        with gevent.Timeout(PATIENCE_S):
            while own.nat.filtering == "unknown":
                changed.wait()
                changed.clear()
            while own.found[socket.AF_INET].seen_from((SECOND, coturn[1])) is None:
                gevent.sleep(0.01)  # an answer that changes nothing is told to nobody
        assert own.nat == NatBehaviour("none", "endpoint-independent", "preserved")
        found = own.found[socket.AF_INET]
        assert found.mapped == [(HOME, endpoint.ports()[socket.AF_INET])]
        assert found.seen_from((SECOND, coturn[1])) == found.mapped[0]
        assert len(own.sample_ports(3)) == 3
    finally:
        own.close()
        gevent.sleep(0)
        endpoint.close()


@pytest.fixture
def ours() -> Iterator[StunResponder]:
    responder = start_responder(HOME, SECOND)
    yield responder
    responder.stop()


@pytest.mark.parametrize(
    ("option", "verdict"),
    [
        ("-m", "Endpoint Independent Mapping"),
        ("-f", "Endpoint Independent Filtering"),
        ("-H", "hairpinning"),
    ],
)
def test_coturns_client_asks_ours(ours: StunResponder, option: str, verdict: str) -> None:
    """Padded, as everybody who asks us must."""
    need("turnutils_natdiscovery")
    command = ["turnutils_natdiscovery", option, "-P", "-p", str(ours.ports[0]), HOME]
    with gevent.Timeout(PATIENCE_S):
        # Not gevent's subprocess: once used, it takes the end of every child of this process.
        said = gevent.get_hub().threadpool.apply(subprocess.check_output, (command,)).decode()
    assert f"reflexive addr: {HOME}:" in said
    assert f"Other addr: : {SECOND}:{ours.ports[1]}" in said
    assert verdict in said
