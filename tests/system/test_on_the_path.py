"""Who is on the path to the cloud or is the relay: seen through, or blind."""

from __future__ import annotations

import shutil
import socket as _socket
from collections.abc import Callable
from pathlib import Path

import gevent
from gevent import socket, ssl

import kkp2p_compat as kkp2p
from helpers.redis_server import RedisServer
from helpers.support import PATIENCE_S, SECRET, CloudProcess, listen, read_all, write_all
from kkp2p_compat.cloud.certificate import load_identity

LONG = PATIENCE_S * 1000
ACCOUNT = ("--account", f"peer:{SECRET}")


def connect(engine: kkp2p.engine_t, channel: kkp2p.channel_t, encrypt: int = 0) -> int:
    ctx = kkp2p.connect_ctx_t("peer", connect_mode=2, encrypt_data=encrypt, timeout=LONG)
    return kkp2p.connect(engine, ctx, channel)


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
    ca = shutil.copy(tmp_path / "good" / "cloud.crt", str(tmp_path / "ca.crt"))
    engine = make_engine(login_port=good.port, login_ca=ca)
    assert kkp2p.join_net(engine, "peer", SECRET) == 0
    mine = kkp2p.channel_t()
    assert connect(make_engine(login_port=good.port, login_ca=ca), mine) == 0
    kkp2p.close_fd(mine.fd)
    other = make_engine(login_port=bad.port, login_ca=ca)
    assert connect(other, mine) == -109
    assert "certificate" in (tmp_path / "engine2" / "kkp2p_engine.log").read_text()
    shutil.copy(tmp_path / "bad" / "cloud.crt", ca)  # renewed, while the engine runs
    peer = make_engine(login_port=bad.port, login_ca=ca)
    assert kkp2p.join_net(peer, "peer", SECRET) == 0
    assert connect(other, mine) == 0
    kkp2p.close_fd(mine.fd)


def test_relay_sees_only_ciphertext(
    start_cloud: Callable[..., CloudProcess],
    make_engine: Callable[..., kkp2p.engine_t],
    redis_server: RedisServer,
) -> None:
    """Everything that passes the relay, seen by a tap in front of it: with encrypt_data not a
    byte of the text, without it the text."""
    listener = listen()
    shown = f"127.0.0.1:{listener.getsockname()[1]}"
    fleet = ("--directory", redis_server.url, "--role")
    relay = start_cloud(*fleet, "relay", "--advertise", shown, data="relay")
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
    taps = [gevent.spawn(serve, listener)]
    track = start_cloud(*fleet, "track", *ACCOUNT)
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
