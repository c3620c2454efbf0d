"""Other people's STUN: our client asks coturn's server, coturn's client asks ours.  On loopback."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest
from gevent import socket as gsocket
from gevent.event import Event

from helpers.stun_support import start_responder
from helpers.support import PATIENCE_S
from kkp2p_compat.cloud.stun import StunResponder
from kkp2p_compat.engine.paths.own_addresses import OwnAddresses
from kkp2p_compat.transport.udp.endpoint import Endpoint
from kkp2p_compat.traversal.nat import NatBehaviour
from kkp2p_compat.traversal.stun import Kind, Message

HOME, SECOND = "127.0.0.1", "127.0.0.2"


def need(tool: str) -> None:
    if shutil.which(tool) is None:
        (pytest.fail if os.environ.get("KKP2P_REQUIRE_LAB") == "1" else pytest.skip)(f"no {tool}")


def two_free_ports() -> tuple[int, int]:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as two,
    ):
        one.bind((HOME, 0))
        two.bind((HOME, 0))
        return one.getsockname()[1], two.getsockname()[1]


@pytest.fixture
def coturn(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """The two ports of a server on two addresses."""
    need("turnserver")
    ports = two_free_ports()
    command = [
        "turnserver", "-n", "--stun-only", "-L", HOME, "-L", SECOND, "-p", str(ports[0]),
        "--alt-listening-port", str(ports[1]), "--no-cli", "--no-tls", "--no-dtls", "--no-tcp",
        "--log-file", "stdout", "--pidfile", str(tmp_path / "pid"), "--db", str(tmp_path / "db"),
    ]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for_answer(ports[0])
        yield ports
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def wait_for_answer(port: int) -> None:
    """Nothing else tells that it is up."""
    with gsocket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.1)
        for _ in range(10 * PATIENCE_S):
            sock.sendto(Message(Kind.REQUEST, os.urandom(12)).encode(None), (HOME, port))
            try:
                sock.recv(2048)
                return
            except TimeoutError:
                continue
    pytest.fail("coturn does not answer")


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
        ("-m", "Endpoint Independent Mapping"), ("-f", "Endpoint Independent Filtering"),
        ("-H", "hairpinning"),
    ],
)  # fmt: skip
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
