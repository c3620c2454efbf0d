"""What breaks under live channels: cloud, relay, process, login.  Errors and never a hang."""

from __future__ import annotations

import secrets
import signal
import socket as _socket
from collections.abc import Callable, Iterator
from pathlib import Path

import gevent
import pytest
from gevent import socket, ssl

import kkp2p_compat as kkp2p
from helpers.support import PATIENCE_S, SECRET, CloudProcess, listen, read_all, write_all
from kkp2p_compat.cloud.certificate import load_identity
from kkp2p_compat.control import client as client_module
from kkp2p_compat.engine import engine as engine_module

LONG = PATIENCE_S * 1000
ACCOUNT = ("--account", f"peer:{SECRET}")
both_kinds = pytest.mark.parametrize("encrypt", [0, 1], ids=["plain", "encrypted"])


@pytest.fixture
def start_cloud(tmp_path: Path) -> Iterator[Callable[..., CloudProcess]]:
    clouds: list[CloudProcess] = []

    def start(*options: str, data: str = "cloud", port: int = 0) -> CloudProcess:
        listen = f"127.0.0.1:{port}"
        clouds.append(CloudProcess(tmp_path / data, *options, listen=listen))
        return clouds[-1]

    yield start
    for cloud in clouds:
        cloud.end()


def connect(engine: kkp2p.engine_t, channel: kkp2p.channel_t, encrypt: int = 0) -> int:
    ctx = kkp2p.connect_ctx_t("peer", connect_mode=2, encrypt_data=encrypt, timeout=LONG)
    return kkp2p.connect(engine, ctx, channel)


@both_kinds
def test_cloud_killed_and_restarted(
    start_cloud: Callable[..., CloudProcess],
    make_engine: Callable[..., kkp2p.engine_t],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    encrypt: int,
) -> None:
    """Live channels go on (the relay is another process); calls work again after the restart."""
    monkeypatch.setattr(client_module, "BACKOFF_MOST_S", 1.0)
    key = tmp_path / "relay.key"
    key.write_text(secrets.token_hex())
    relay = start_cloud("--role", "relay", "--relay-key", str(key), data="relay")
    track_options = (
        "--role", "track", "--relay", f"127.0.0.1:{relay.port}", "--relay-key", str(key), *ACCOUNT,
    )  # fmt: skip
    track = start_cloud(*track_options)
    callee, caller = make_engine(login_port=track.port), make_engine(login_port=track.port)
    assert kkp2p.join_net(callee, "peer", SECRET) == 0
    mine, theirs = kkp2p.channel_t(), kkp2p.channel_t()
    assert connect(caller, mine, encrypt) == 0
    assert kkp2p.accept(callee, LONG, theirs) == 1

    track.kill()
    write_all(mine.fd, b"through the outage")
    buff = bytearray(100)
    assert kkp2p.read(theirs.fd, buff, 100, LONG) > 0

    start_cloud(*track_options, port=track.port)
    again, accepted = kkp2p.channel_t(), kkp2p.channel_t()
    with gevent.Timeout(PATIENCE_S):
        while connect(caller, again, encrypt) != 0:  # the callee has to log in again first
            gevent.sleep(0.1)
    assert kkp2p.accept(callee, LONG, accepted) == 1
    write_all(mine.fd, b"and after it")
    assert kkp2p.read(theirs.fd, buff, 100, LONG) > 0
    for channel in (mine, theirs, again, accepted):
        kkp2p.close_fd(channel.fd)


def test_tracks_that_die_and_come_back(
    start_cloud: Callable[..., CloudProcess],
    make_engine: Callable[..., kkp2p.engine_t],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Route, two tracks, relay: a peer is found on its track, on the next one while its own is
    dead, and there still when its own is alive again."""
    monkeypatch.setattr(client_module, "BACKOFF_MOST_S", 1.0)
    key = tmp_path / "relay.key"
    key.write_text(secrets.token_hex())
    relay = start_cloud("--role", "relay", "--relay-key", str(key), data="relay")
    options = (
        "--role", "track", "--relay", f"127.0.0.1:{relay.port}", "--relay-key", str(key), *ACCOUNT,
    )  # fmt: skip
    tracks = [start_cloud(*options, data=name) for name in ("one", "two")]
    addresses = [f"--track=127.0.0.1:{track.port}" for track in tracks]
    route = start_cloud("--role", "route", *addresses, data="route")
    callee, caller = make_engine(login_port=route.port), make_engine(login_port=route.port)
    assert kkp2p.join_net(callee, "peer", SECRET) == 0

    def call() -> None:
        mine, theirs = kkp2p.channel_t(), kkp2p.channel_t()
        with gevent.Timeout(2 * PATIENCE_S):
            while connect(caller, mine) != 0:
                gevent.sleep(0.1)
        assert kkp2p.accept(callee, LONG, theirs) == 1
        for channel in (mine, theirs):
            kkp2p.close_fd(channel.fd)

    call()
    for track, name in zip(tracks, ("one", "two"), strict=True):
        track.kill()
        call()
        start_cloud(*options, data=name, port=track.port)
        call()


@both_kinds
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_relay_killed(
    start_cloud: Callable[..., CloudProcess],
    make_engine: Callable[..., kkp2p.engine_t],
    encrypt: int,
    number: int,
) -> None:
    """Channels end with an error on both sides, and do not hang."""
    cloud = start_cloud(*ACCOUNT, "--drain", "0")
    callee, caller = make_engine(login_port=cloud.port), make_engine(login_port=cloud.port)
    assert kkp2p.join_net(callee, "peer", SECRET) == 0
    mine, theirs = kkp2p.channel_t(), kkp2p.channel_t()
    assert connect(caller, mine, encrypt) == 0
    assert kkp2p.accept(callee, LONG, theirs) == 1
    reading = [gevent.spawn(read_all, channel.fd) for channel in (mine, theirs)]
    cloud.end(number)
    for greenlet in reading:
        assert greenlet.get(timeout=PATIENCE_S) == b""
    for channel in (mine, theirs):
        with gevent.Timeout(PATIENCE_S):
            while (result := kkp2p.write(channel.fd, b"x", 1, 1000)) == 1:
                gevent.sleep(0.01)
        assert result == -1
        kkp2p.close_fd(channel.fd)


def test_wrong_secret_and_unknown_peer(engine: kkp2p.engine_t) -> None:
    assert kkp2p.join_net(engine, "peer", "wrong") == kkp2p.KKP2P_ERROR_INVALID_PEER_KEY
    assert kkp2p.join_net(engine, "stranger", "any") == kkp2p.KKP2P_ERROR_INVALID_PEER_ID
    assert kkp2p.join_net(engine, "peer", SECRET) == 0  # the same engine may try again


def test_refused_after_join_net_has_returned(
    start_cloud: Callable[..., CloudProcess],
    make_engine: Callable[..., kkp2p.engine_t],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The cloud was away when join_net asked; when it comes it knows no such peer: accept tells."""
    monkeypatch.setattr(engine_module, "VERDICT_S", 0.1)
    monkeypatch.setattr(client_module, "BACKOFF_MOST_S", 1.0)
    listener = listen()
    port = listener.getsockname()[1]
    listener.close()
    engine = make_engine(login_port=port)
    assert kkp2p.join_net(engine, "peer", SECRET) == 0
    start_cloud("--account", f"somebody:{SECRET}", port=port)
    assert kkp2p.accept(engine, LONG, kkp2p.channel_t()) == kkp2p.KKP2P_ERROR_INVALID_PEER_ID


def test_refused_when_coming_back(
    start_cloud: Callable[..., CloudProcess],
    make_engine: Callable[..., kkp2p.engine_t],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A refusal by whoever answers at a reconnect proves nothing: the peer goes on trying."""
    monkeypatch.setattr(client_module, "BACKOFF_MOST_S", 1.0)
    cloud = start_cloud(*ACCOUNT)
    engine = make_engine(login_port=cloud.port)
    assert kkp2p.join_net(engine, "peer", SECRET) == 0
    cloud.kill()
    impostor = start_cloud("--account", f"somebody:{SECRET}", data="impostor", port=cloud.port)
    with gevent.Timeout(PATIENCE_S):
        while not any("unknown-peer" in line for line in impostor.output):
            gevent.sleep(0.05)
    impostor.kill()
    start_cloud(*ACCOUNT, port=cloud.port)
    caller, mine = make_engine(login_port=cloud.port), kkp2p.channel_t()
    with gevent.Timeout(PATIENCE_S):
        while connect(caller, mine) != 0:
            gevent.sleep(0.1)
    kkp2p.close_fd(mine.fd)


def test_peer_that_is_not_online(engine: kkp2p.engine_t) -> None:
    """-109 by the cloud's word: the hour of the time-out is not waited for."""
    ctx = kkp2p.connect_ctx_t("peer", connect_mode=2, timeout=3_600_000)
    assert kkp2p.connect(engine, ctx, kkp2p.channel_t()) == kkp2p.KKP2P_ERROR_CONNECT_TIMEOUT


def test_duplicate_login(
    peer: kkp2p.engine_t, make_engine: Callable[..., kkp2p.engine_t], engine: kkp2p.engine_t
) -> None:
    """The old login's accept reports -117, once; calls reach the new one; it may join again."""
    waiting = gevent.spawn(kkp2p.accept, peer, LONG, kkp2p.channel_t())
    new = make_engine()
    assert kkp2p.join_net(new, "peer", SECRET) == 0
    assert waiting.get(timeout=PATIENCE_S) == kkp2p.KKP2P_ERROR_DUPLICATE_ID
    assert kkp2p.accept(peer, 0, kkp2p.channel_t()) == 0
    mine, theirs = kkp2p.channel_t(), kkp2p.channel_t()
    assert connect(engine, mine) == 0
    assert kkp2p.accept(new, LONG, theirs) == 1
    assert kkp2p.join_net(peer, "peer", SECRET) == 0
    assert kkp2p.accept(new, LONG, kkp2p.channel_t()) == kkp2p.KKP2P_ERROR_DUPLICATE_ID
    for channel in (mine, theirs):
        kkp2p.close_fd(channel.fd)


def test_several_login_addresses(
    cloud: CloudProcess, make_engine: Callable[..., kkp2p.engine_t]
) -> None:
    """One at random, the others on failure: 127.0.0.2 to .4 have nobody listening."""
    engine = make_engine(login_domain="127.0.0.2|127.0.0.3|127.0.0.1|127.0.0.4")
    assert kkp2p.join_net(engine, "other", SECRET) == 0
    hosts: list[str] = []
    assert kkp2p.get_domainip(engine, hosts) == 4
    ctx = kkp2p.connect_ctx_t("other", connect_mode=2, timeout=LONG)
    mine = kkp2p.channel_t()
    assert kkp2p.connect(engine, ctx, mine) == 0
    kkp2p.close_fd(mine.fd)


class Mitm:
    """TLS with another certificate on one side, TLS to the cloud on the other, lines passed on."""

    def __init__(self, folder: Path, cloud_port: int) -> None:
        self._context = load_identity(folder).context
        self._upstream = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._upstream.check_hostname = False
        self._upstream.verify_mode = ssl.CERT_NONE
        self._cloud = ("127.0.0.1", cloud_port)
        self.seen = b""
        self._listener = listen()
        self.port = self._listener.getsockname()[1]
        self._greenlets = [gevent.spawn(self._accept)]

    def _accept(self) -> None:
        while True:
            raw, _ = self._listener.accept()
            victim = self._context.wrap_socket(raw, server_side=True)
            server = self._upstream.wrap_socket(socket.create_connection(self._cloud))
            self._greenlets += [
                gevent.spawn(self._pass_on, victim, server),
                gevent.spawn(self._pass_on, server, victim),
            ]

    def _pass_on(self, source: ssl.SSLSocket, sink: ssl.SSLSocket) -> None:
        try:
            while data := source.recv(65536):
                self.seen += data
                sink.sendall(data)
        except OSError:
            return  # the victim or the cloud hung up, which is the point
        finally:
            sink.close()

    def close(self) -> None:
        gevent.killall(self._greenlets)
        self._listener.close()


def test_man_in_the_middle_of_a_login(
    cloud: CloudProcess, make_engine: Callable[..., kkp2p.engine_t], tmp_path: Path
) -> None:
    """He has a certificate of his own; the binding gives him away, and he sees no secret."""
    middle = Mitm(tmp_path / "mitm", cloud.port)
    try:
        engine = make_engine(login_port=middle.port)
        assert kkp2p.join_net(engine, "peer", SECRET) == kkp2p.KKP2P_ERROR_INVALID_PEER_KEY
        assert b"challenge" in middle.seen
        assert SECRET.encode() not in middle.seen
    finally:
        middle.close()


def test_login_ca(
    start_cloud: Callable[..., CloudProcess],
    make_engine: Callable[..., kkp2p.engine_t],
    tmp_path: Path,
) -> None:
    """With login_ca only a cloud that it vouches for is talked to, by callers too."""
    good, bad = start_cloud(*ACCOUNT, data="good"), start_cloud(*ACCOUNT, data="bad")
    ca = str(tmp_path / "good" / "cloud.crt")
    engine = make_engine(login_port=good.port, login_ca=ca)
    assert kkp2p.join_net(engine, "peer", SECRET) == 0
    mine = kkp2p.channel_t()
    assert connect(make_engine(login_port=good.port, login_ca=ca), mine) == 0
    kkp2p.close_fd(mine.fd)
    assert connect(make_engine(login_port=bad.port, login_ca=ca), mine) == -109
    assert "certificate" in (tmp_path / "engine2" / "kkp2p_engine.log").read_text()


def test_relay_sees_only_ciphertext(
    start_cloud: Callable[..., CloudProcess],
    make_engine: Callable[..., kkp2p.engine_t],
    tmp_path: Path,
) -> None:
    """Everything that passes the relay, seen by a tap in front of it: with encrypt_data not a
    byte of the text, without it the text."""
    key = tmp_path / "relay.key"
    key.write_text(secrets.token_hex())
    relay = start_cloud("--role", "relay", "--relay-key", str(key), data="relay")
    seen = bytearray()

    def tap(source: _socket.socket, sink: _socket.socket) -> None:
        while data := source.recv(65536):
            seen.extend(data)
            sink.sendall(data)
        sink.shutdown(_socket.SHUT_WR)

    def serve(listener: _socket.socket) -> None:
        while True:
            one, _ = listener.accept()
            other = socket.create_connection(("127.0.0.1", relay.port))
            taps.extend((gevent.spawn(tap, one, other), gevent.spawn(tap, other, one)))
            sockets.extend((one, other))

    sockets: list[_socket.socket] = []
    listener = listen()
    taps = [gevent.spawn(serve, listener)]
    track = start_cloud(
        "--role", "track", "--relay", f"127.0.0.1:{listener.getsockname()[1]}",
        "--relay-key", str(key), *ACCOUNT,
    )  # fmt: skip
    callee, caller = make_engine(login_port=track.port), make_engine(login_port=track.port)
    assert kkp2p.join_net(callee, "peer", SECRET) == 0
    text = b"attack at dawn " * 1000
    for encrypt in (1, 0):
        del seen[:]
        mine, theirs = kkp2p.channel_t(), kkp2p.channel_t()
        assert connect(caller, mine, encrypt) == 0
        assert kkp2p.accept(callee, LONG, theirs) == 1
        write_all(mine.fd, text)
        kkp2p.close_fd(mine.fd)
        assert read_all(theirs.fd) == text
        kkp2p.close_fd(theirs.fd)
        assert (b"attack" in seen) == (encrypt == 0)
        assert len(seen) >= len(text)
    gevent.killall(taps)
    for sock in (*sockets, listener):
        sock.close()
