"""What passes on a link before the peer's proof, and what a wrong proof or none leads to."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import kkp2p_compat as kkp2p
from helpers.direct_support import (
    MakeEngine,
    accept,
    check_carries,
    ctx_to,
    links,
    log_of,
    settled,
    until,
)
from helpers.support import PATIENCE_S, SECRET
from kkp2p_compat._errors import BadPacket, EngineClosed, KKP2PError, UnprovenPeer
from kkp2p_compat.engine.links import pins as pins_module
from kkp2p_compat.engine.links import proving
from kkp2p_compat.engine.links.pins import Pins
from kkp2p_compat.engine.links.proving import Proving
from kkp2p_compat.engine.signalling.identity import Identity
from kkp2p_compat.engine.signalling.known_peers import KnownPeers
from kkp2p_compat.transport.udp import events as e
from kkp2p_compat.transport.udp import frames

WRONG_KEY = kkp2p.KKP2P_ERROR_INVALID_PEER_KEY


class Rogue:
    """Has the key that the other side knows, and proves with it what it should not."""

    def __init__(self, right: Identity, how: str) -> None:
        self.fingerprint = right.fingerprint
        self.made = 0
        self._right = right
        self._how = how
        self._earlier = right.prove(bytes(32), True, "", "peer")

    def prove(self, secret: bytes, is_caller: bool, own_id: str, called_id: str) -> Any:
        prove = functools.partial(self._right.prove, secret, is_caller, own_id, called_id)
        self.made += 1
        if self._how == "of another connection":
            return self._right.prove(bytes(32), is_caller, own_id, called_id)
        if self._how == "of the other role":
            return self._right.prove(secret, not is_caller, own_id, called_id)
        if self._how == "under another id":
            return self._right.prove(secret, is_caller, "carol", called_id)
        if self._how == "that names another id":
            return prove()._replace(peer_id=b"carol".ljust(32, b"\0"))
        if self._how == "for another peer":
            return self._right.prove(secret, is_caller, own_id, "carol")
        if self._how == "changed":
            return prove()._replace(signature=bytes(64))
        assert self._how == "taken out"
        return frames.Ping()


WRONG = [
    "of another connection",
    "of the other role",
    "under another id",
    "that names another id",
    "for another peer",
    "changed",
]


@pytest.fixture
def pair(
    on_loopback: None, tmp_path: Path, make_engine: MakeEngine
) -> tuple[kkp2p.engine_t, kkp2p.engine_t]:
    """ "other" and "peer", logged in, who know each other's keys."""
    keys = [Identity.kept_in(str(tmp_path / name)).fingerprint for name in ("other", "peer")]
    (tmp_path / "known").write_text(f"other {keys[0]}\npeer {keys[1]}\n")
    engines = []
    for name in ("other", "peer"):
        engines.append(
            make_engine(identity=str(tmp_path / name), known_peers=str(tmp_path / "known"))
        )
        assert kkp2p.join_net(engines[-1], name, SECRET) == 0
    return engines[0], engines[1]


def turn_rogue(engine: kkp2p.engine_t, how: str) -> None:
    right = engine.pins.identity
    assert right is not None
    engine.pins.identity = Rogue(right, how)  # type: ignore[assignment]


@pytest.mark.parametrize("how", WRONG)
@pytest.mark.parametrize("mode", [1, 2])
def test_a_callee_with_a_wrong_proof(
    pair: tuple[kkp2p.engine_t, kkp2p.engine_t], how: str, mode: int
) -> None:
    turn_rogue(pair[1], how)
    ctx = kkp2p.connect_ctx_t("peer", 0, mode, 1, PATIENCE_S * 1000)
    assert kkp2p.connect(pair[0], ctx, kkp2p.channel_t()) == WRONG_KEY
    until(lambda: not links(pair[0]) and not links(pair[1]))


@pytest.mark.parametrize("how", WRONG)
@pytest.mark.parametrize("mode", [1, 2])
def test_a_caller_with_a_wrong_proof(
    pair: tuple[kkp2p.engine_t, kkp2p.engine_t], tmp_path: Path, how: str, mode: int
) -> None:
    turn_rogue(pair[0], how)
    ctx = kkp2p.connect_ctx_t("peer", 0, mode, 1, PATIENCE_S * 1000)
    assert kkp2p.connect(pair[0], ctx, kkp2p.channel_t()) == kkp2p.KKP2P_ERROR_OTHER_DISCONNECT
    assert kkp2p.accept(pair[1], 0, kkp2p.channel_t()) == 0
    assert "refused: " in log_of(tmp_path, 1)


@pytest.mark.parametrize("kind", [kkp2p.KKP2P_TCP_CHANNEL, kkp2p.KKP2P_UDP_CHANNEL])
def test_a_caller_whose_proof_is_taken_out_opens_nothing(
    pair: tuple[kkp2p.engine_t, kkp2p.engine_t], monkeypatch: pytest.MonkeyPatch, kind: int
) -> None:
    caller, callee = pair
    turn_rogue(caller, "taken out")
    ctx = kkp2p.connect_ctx_t("peer", kind, 1, 0, PATIENCE_S * 1000)
    connecting = gevent.spawn(kkp2p.connect, caller, ctx, kkp2p.channel_t())
    until(lambda: [link for link in links(callee) if link.connection.streams.by_id])  # OPEN is here
    assert kkp2p.accept(callee, 0, kkp2p.channel_t()) == 0
    assert not connecting.ready()
    callee.thread.call(callee.sweep)
    assert not connecting.ready()  # the proof may still come
    monkeypatch.setattr(proving, "PROOF_S", 0)
    callee.thread.call(callee.sweep)
    assert connecting.get(timeout=PATIENCE_S) == kkp2p.KKP2P_ERROR_OTHER_DISCONNECT
    assert kkp2p.accept(callee, 0, kkp2p.channel_t()) == 0


def test_a_callee_whose_proof_is_taken_out_is_sent_nothing(
    pair: tuple[kkp2p.engine_t, kkp2p.engine_t], monkeypatch: pytest.MonkeyPatch
) -> None:
    caller, callee = pair
    turn_rogue(callee, "taken out")
    connecting = gevent.spawn(kkp2p.connect, caller, ctx_to("peer"), kkp2p.channel_t())
    theirs = accept(callee)
    assert caller.thread.call(lambda: caller.dialer.ask(ctx_to("peer"), print, b"early")) is None
    assert not connecting.ready()
    monkeypatch.setattr(proving, "PROOF_S", 0)
    caller.thread.call(caller.sweep)
    assert connecting.get(timeout=PATIENCE_S) == WRONG_KEY
    assert kkp2p.read(theirs.fd, bytearray(9), 9, PATIENCE_S * 1000) == -1
    kkp2p.close_fd(theirs.fd)


def test_channels_at_once_wait_for_one_proof(pair: tuple[kkp2p.engine_t, kkp2p.engine_t]) -> None:
    made = [kkp2p.channel_t() for _ in range(20)]
    connecting = [
        gevent.spawn(kkp2p.connect, pair[0], ctx_to("peer", desc=number), channel)
        for number, channel in enumerate(made)
    ]
    theirs = {channel.connect_desc: channel for channel in (accept(pair[1]) for _ in made)}
    assert [greenlet.get(timeout=PATIENCE_S) for greenlet in connecting] == [0] * 20
    for number, channel in enumerate(made):
        check_carries(channel, theirs[number])
    until(lambda: settled(pair[0]) and settled(pair[1]))


def test_who_has_no_secret_signs_once_a_link(pair: tuple[kkp2p.engine_t, kkp2p.engine_t]) -> None:
    """The second channel, on the live link, costs no proof."""
    for _ in range(2):
        channel = kkp2p.channel_t()
        assert kkp2p.connect(pair[0], ctx_to("peer"), channel) == 0
        check_carries(channel, accept(pair[1]))
    assert all(not link.is_proving for engine in pair for link in links(engine))
    assert [len(links(engine)) for engine in pair] == [1, 1]


# What is held, and what is remembered.

LOG = logging.getLogger("test")


def make_pins(
    known: KnownPeers | None = None,
    is_strict: bool = False,
    spawn: Callable[..., Any] = gevent.spawn,
) -> Pins:
    return Pins(Identity(Ed25519PrivateKey.generate()), known, is_strict, LOG, spawn)


def make_proving(pins: Pins, *, is_caller: bool = False, claimed: str = "") -> Proving:
    met: Any = SimpleNamespace(keys=SimpleNamespace(proof=bytes(32)), is_caller=is_caller)
    return Proving(pins, met, own_id="bob", called_id="bob", claimed_id=claimed)


def test_what_is_held_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proving, "MAX_HELD", 20)
    held = make_proving(make_pins())
    for number in range(30):
        held.hold(e.Readable(0))
        held.hold(e.Writable(0))
        held.hold(e.MessageReceived(0, bytes([number])))
    for number in range(4):
        held.hold(e.ChannelOffered(number, 0, 0, 0))
    with pytest.raises(BadPacket):
        held.hold(e.ChannelOffered(4, 0, 0, 0))
    taken = held.take()
    assert taken[:16] == [e.MessageReceived(0, bytes([number])) for number in range(16)]
    assert taken[16:] == [e.ChannelOffered(number, 0, 0, 0) for number in range(4)]
    assert held.take() == []


@pytest.mark.parametrize(
    ("claimed", "said", "right"),
    [
        ("alice", "alice", True),
        ("alice", "", False),
        ("alice", "carol", False),
        ("", "alice", True),
    ],
)
def test_the_proof_has_to_say_what_the_cloud_says(claimed: str, said: str, right: bool) -> None:
    callee = make_proving(make_pins(), claimed=claimed)
    other = Identity(Ed25519PrivateKey.generate())
    proof = other.prove(bytes(32), True, said, "bob")
    if right:
        assert callee.check_untrusted(proof) == ((other.fingerprint, False), "")
    else:
        with pytest.raises(UnprovenPeer, match="the cloud says 'alice'"):
            callee.check_untrusted(proof)


def test_a_name_that_only_its_bearer_vouches_for_is_not_remembered(tmp_path: Path) -> None:
    pins = make_pins(KnownPeers(str(tmp_path / "known")))
    proof = Identity(Ed25519PrivateKey.generate()).prove(bytes(32), True, "alice", "bob")
    assert make_proving(pins).check_untrusted(proof)[1] == ""
    assert make_proving(pins, claimed="alice").check_untrusted(proof)[1] == "alice"


def test_whoever_says_that_it_is_a_peer_that_we_know_has_its_key(tmp_path: Path) -> None:
    """Also where the cloud says nothing of who calls."""
    known = KnownPeers(str(tmp_path / "known"))
    right, wrong = (Identity(Ed25519PrivateKey.generate()) for _ in range(2))
    known.add("alice", right.fingerprint)
    callee = make_proving(make_pins(known))
    assert callee.check_untrusted(right.prove(bytes(32), True, "alice", "bob"))[0].is_pinned
    with pytest.raises(UnprovenPeer, match="the key of alice is"):
        callee.check_untrusted(wrong.prove(bytes(32), True, "alice", "bob"))


FINGERPRINT = f"sha256:{'0' * 64}"


def remembered(pins: Pins) -> KKP2PError | None:
    """What becomes of it."""
    outcomes: list[KKP2PError | None] = []
    pins.remember("alice", FINGERPRINT, outcomes.append)
    until(lambda: outcomes)
    return outcomes[0]


def test_two_programs_see_two_first_keys(tmp_path: Path) -> None:
    known = KnownPeers(str(tmp_path / "known"))
    assert remembered(make_pins(known)) is None
    assert known.keys() == {"alice": {FINGERPRINT}}
    known.forget("alice")
    known.add("alice", f"sha256:{'1' * 64}")
    assert isinstance(remembered(make_pins(known)), UnprovenPeer)


def test_a_key_that_cannot_be_kept_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "known").mkdir()
    assert isinstance(remembered(make_pins(KnownPeers(str(tmp_path / "known")))), UnprovenPeer)


def test_no_thread_to_keep_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(function: Callable[[], object]) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(pins_module, "native_thread", fail)
    assert isinstance(remembered(make_pins(KnownPeers(str(tmp_path / "known")))), UnprovenPeer)


def test_an_engine_that_ends_meanwhile(tmp_path: Path) -> None:
    """The key is kept or not; nobody is told."""
    outcomes: list[KKP2PError | None] = []
    started: list[gevent.Greenlet[..., Any]] = []

    def spawn(*args: Any) -> gevent.Greenlet[..., Any]:
        started.append(gevent.spawn(*args))
        return started[0]

    pins = make_pins(KnownPeers(str(tmp_path / "known")), spawn=spawn)
    pins.remember("alice", FINGERPRINT, outcomes.append)
    started[0].kill(EngineClosed)
    assert outcomes == []
