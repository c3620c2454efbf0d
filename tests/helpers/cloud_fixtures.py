"""Fixtures for tests against a real cloud: conftest.py imports them."""

from __future__ import annotations

import contextlib
import itertools
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import gevent
import pytest
from gevent import socket as gsocket

import kkp2p_compat as kkp2p
from helpers.ports import free_port
from helpers.support import PATIENCE_S, SECRET, CloudProcess, Program
from kkp2p_compat.engine.paths import own_addresses
from kkp2p_compat.traversal import lan
from kkp2p_compat.traversal.candidates import host_candidates
from kkp2p_compat.traversal.interfaces import Interface

LONG = PATIENCE_S * 1000
BlackHole = Callable[[str, int], None]
PEERS = ("peer", "other")


@pytest.fixture(scope="session")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CloudProcess]:
    """One cloud for all tests that do not harm it, with the accounts PEERS."""
    accounts = [option for peer in PEERS for option in ("--account", f"{peer}:{SECRET}")]
    process = CloudProcess(tmp_path_factory.mktemp("cloud"), *accounts, *GENEROUS)
    yield process
    assert process.end() == 0, "".join(process.output)


@pytest.fixture
def start_cloud(tmp_path: Path) -> Iterator[Callable[..., CloudProcess]]:
    """Clouds of the test's own, which may come to harm; ``data``: the folder of each."""
    with contextlib.ExitStack() as clouds:

        def start(*options: str, data: str = "cloud", port: int = 0) -> CloudProcess:
            cloud = CloudProcess(
                tmp_path / data, *options, listen=f"127.0.0.1:{port or free_port()}"
            )
            clouds.callback(cloud.end)
            return cloud

        yield start


# One address makes all the calls of the tests.
GENEROUS = ("--calls-per-s", "10000", "--connects-per-s", "10000")


@pytest.fixture
def make_engine(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[Callable[..., kkp2p.engine_t]]:
    """Engines with logs of their own; fields of engine_conf_t as keywords.  Ended by the test."""
    engines: list[kkp2p.engine_t] = []
    numbers = itertools.count()

    def make(**fields: object) -> kkp2p.engine_t:
        conf = kkp2p.engine_conf_t(
            login_domain="127.0.0.1",
            disable_upnp=1,
            log_path=str(tmp_path / f"engine{next(numbers)}"),
        )
        for name, value in fields.items():
            setattr(conf, name, value)
        if conf.login_domain is not None and not conf.login_port:
            conf.login_port = request.getfixturevalue("cloud").port
        engine = kkp2p.engine_init(conf, LONG)
        assert engine is not None
        engines.append(engine)
        return engine

    kkp2p.log_switch_level(4)  # before they start: their first lines count, too
    yield make
    kkp2p.log_switch_level(2)
    for engine in engines:
        kkp2p.engine_destroy(engine)


@pytest.fixture
def engine(make_engine: Callable[..., kkp2p.engine_t]) -> kkp2p.engine_t:
    """A caller: it has not logged in."""
    return make_engine()


@pytest.fixture
def peer(make_engine: Callable[..., kkp2p.engine_t]) -> kkp2p.engine_t:
    """A callee, logged in as "peer"."""
    engine = make_engine()
    assert kkp2p.join_net(engine, "peer", SECRET) == 0
    return engine


@pytest.fixture
def on_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines that meet on lo, and search nothing but lo: no packet leaves this host."""
    monkeypatch.setattr(
        own_addresses, "host_candidates", lambda ports: host_candidates(ports, ["127.0.0.1"])
    )
    monkeypatch.setattr(lan, "interfaces", lambda: [Interface("lo", "127.0.0.1", 8)])


@pytest.fixture
def out_of_reach(on_loopback: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Peers tell addresses where nobody is."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        ports = {int(socket.AF_INET): silent.getsockname()[1]}
        silence = host_candidates(ports, ["127.0.0.1"])
        monkeypatch.setattr(own_addresses, "host_candidates", lambda _: silence)
        monkeypatch.setattr(own_addresses.OwnAddresses, "candidates", lambda *_: silence)
        yield


@pytest.fixture
def start_program(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    with contextlib.ExitStack() as programs:

        def start(*arguments: str, **options: Sequence[str]) -> Program:
            program = Program(tmp_path, *arguments, **options)
            programs.callback(program.close)
            return program

        yield start


@pytest.fixture
def held_port() -> Iterator[int]:
    """A TCP port of both loopbacks on which nothing listens, unless somebody asks for this one.

    While it is bound no other program is given it; with SO_REUSEADDR a listener may have it.
    """
    while True:
        with contextlib.ExitStack() as stack:
            port = 0
            for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
                sock = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    sock.bind((host, port))
                except OSError:
                    break  # taken on the other loopback
                port = sock.getsockname()[1]
            else:
                yield port
                return


@pytest.fixture
def lan_port() -> int:
    """A free port for LAN searches."""
    return free_port()


@pytest.fixture
def lan_pair(
    on_loopback: None, lan_port: int, make_engine: Callable[..., kkp2p.engine_t]
) -> tuple[kkp2p.engine_t, kkp2p.engine_t]:
    """Engines without a cloud: a caller, and a callee that is found as "lan-peer"."""
    caller, callee = (make_engine(login_domain=None, lan_search_port=lan_port) for _ in range(2))
    assert kkp2p.join_lan(callee, "lan-peer") == 0
    return caller, callee


@pytest.fixture
def make_pair(
    on_loopback: None, engine: kkp2p.engine_t, peer: kkp2p.engine_t
) -> Iterator[Callable[..., tuple[kkp2p.channel_t, kkp2p.channel_t]]]:
    """Connected channels (the caller's, the callee's); closed by the test, or afterwards."""
    made: list[kkp2p.channel_t] = []

    def make(
        *, mode: int = 2, kind: int = 0, encrypt: int = 0, desc: int = 1
    ) -> tuple[kkp2p.channel_t, kkp2p.channel_t]:
        ctx = kkp2p.connect_ctx_t("peer", kind, mode, encrypt, LONG, desc)
        caller, callee = kkp2p.channel_t(), kkp2p.channel_t()
        assert kkp2p.connect(engine, ctx, caller) == 0
        assert kkp2p.accept(peer, LONG, callee) == 1
        made.extend((caller, callee))
        return caller, callee

    yield make
    for channel in made:
        kkp2p.close_fd(channel.fd)  # one that the test has closed is left alone


@pytest.fixture
def black_hole() -> Iterator[BlackHole]:
    """Addresses whose packets go nowhere: a listener whose queue is full answers no SYN."""
    with contextlib.ExitStack() as socks:

        def make(host: str, port: int) -> None:
            listener = socks.enter_context(gsocket.socket())
            listener.bind((host, port))
            listener.listen(0)
            while True:
                filler = socks.enter_context(gsocket.socket())
                try:
                    with gevent.Timeout(0.2, TimeoutError()):
                        filler.connect((host, port))
                except TimeoutError:
                    return

        yield make
