"""What fails on this host for a reason of its own is told as that, and the relay is still a way."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import UnsupportedAlgorithm

import kkp2p_compat as kkp2p
from helpers.direct_support import MakeEngine, accept, check_carries, connect, ctx_to, log_of
from helpers.support import SECRET
from kkp2p_compat.engine.calls import callee as callee_module
from kkp2p_compat.engine.calls import caller as caller_module
from kkp2p_compat.engine.signalling import keys

pytestmark = pytest.mark.usefixtures("on_loopback")


def code_of(engine: kkp2p.engine_t, mode: int, encrypt: int = 0) -> int:
    ctx = ctx_to("peer", mode)
    ctx.encrypt_data = encrypt
    channel = kkp2p.channel_t()
    code = kkp2p.connect(engine, ctx, channel)
    if code == 0:
        kkp2p.close_fd(channel.fd)
    return code


def check_relayed(engine: kkp2p.engine_t, peer: kkp2p.engine_t) -> None:
    mine, theirs = connect(engine, 0), accept(peer)
    assert mine.transmit_mode == theirs.transmit_mode == 2
    check_carries(mine, theirs)


def broken(*_: object, **__: object) -> Any:
    raise ZeroDivisionError("a bug that nobody has thought of")


def test_a_fault_of_the_callers(
    monkeypatch: pytest.MonkeyPatch, engine: kkp2p.engine_t, peer: kkp2p.engine_t, tmp_path: Path
) -> None:
    monkeypatch.setattr(caller_module, "OwnSide", broken)
    check_relayed(engine, peer)
    assert code_of(engine, 1) == kkp2p.KKP2P_ERROR_SYSTEM_INTERNAL
    log = log_of(tmp_path, 0)
    assert "a fault of ours: ZeroDivisionError('a bug that nobody has thought of')" in log
    assert log.count("Traceback") == 2, "one for each attempt"
    assert "the engine is destroyed" not in log


def test_a_fault_of_the_callees(
    monkeypatch: pytest.MonkeyPatch, engine: kkp2p.engine_t, peer: kkp2p.engine_t, tmp_path: Path
) -> None:
    """The caller hears of it at once, and does not wait for an answer until its time is over."""
    monkeypatch.setattr(callee_module, "OwnSide", broken)
    check_relayed(engine, peer)
    assert code_of(engine, 1) == kkp2p.KKP2P_ERROR_CONN_DISCONNECT
    assert "a fault in the peer's program" in log_of(tmp_path, 0)
    assert "bug in the answer to a call from a stranger" in log_of(tmp_path, 1)


@pytest.fixture
def fips(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where OpenSSL is in FIPS 140 mode."""

    class Refusing:
        @staticmethod
        def generate() -> Any:
            raise UnsupportedAlgorithm("X25519 is not supported by this version of OpenSSL.")

    monkeypatch.setattr(keys, "X25519PrivateKey", Refusing)


def test_cryptography_without_x25519(fips: None, make_engine: MakeEngine, tmp_path: Path) -> None:
    engine, peer = make_engine(), make_engine()
    assert kkp2p.join_net(peer, "peer", SECRET) == 0
    check_relayed(engine, peer)
    assert code_of(engine, 1) == kkp2p.KKP2P_ERROR_CONNECT_TIMEOUT
    for mode in (0, 2):
        assert code_of(engine, mode, encrypt=1) == kkp2p.KKP2P_ERROR_PARAMETER
    assert code_of(engine, 2) == 0
    log = log_of(tmp_path, 0)
    assert log.count("no p2p, no LAN and no encrypt_data: the cryptography of this host") == 1
    assert "Traceback" not in log


def test_only_the_callee_is_without_x25519(
    engine: kkp2p.engine_t,
    request: pytest.FixtureRequest,
    make_engine: MakeEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It declines what it cannot do, and the caller takes the relay."""
    assert engine.switchboard  # looks once whether there is an X25519
    original = keys.X25519PrivateKey
    request.getfixturevalue("fips")
    peer = make_engine()
    assert kkp2p.join_net(peer, "peer", SECRET) == 0
    calls = itertools.count()
    refusing: Any = keys.X25519PrivateKey

    class OnlyTheCaller:
        """Both engines are in this process: the caller's key is the first of each call."""

        generate: Callable[[], Any] = staticmethod(
            lambda: (refusing if next(calls) % 2 else original).generate()
        )

    monkeypatch.setattr(keys, "X25519PrivateKey", OnlyTheCaller)
    check_relayed(engine, peer)
    assert code_of(engine, 2, encrypt=1) == kkp2p.KKP2P_ERROR_PARAMETER
