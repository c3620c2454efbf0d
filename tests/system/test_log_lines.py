"""What the log tells a user: who, which connection, why; once, and at which level."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from gevent import socket

import kkp2p_compat as kkp2p
from helpers.line_server import LineServer, Visitor
from helpers.support import PATIENCE_S, SECRET, CloudProcess, read_all
from kkp2p_compat._address import HostPort
from kkp2p_compat._errors import CallRefused
from kkp2p_compat.control.client import CloudClient
from kkp2p_compat.control.link import Link
from kkp2p_compat.control.links import Links
from kkp2p_compat.control.refusals import refusal

LONG = PATIENCE_S * 1000


def text(tmp_path: Path, number: int) -> str:
    return (tmp_path / f"engine{number}" / "kkp2p_engine.log").read_text()


def test_a_connect_that_fails_names_the_peer(engine: kkp2p.engine_t, tmp_path: Path) -> None:
    ctx = kkp2p.connect_ctx_t("absent", timeout=LONG)
    assert kkp2p.connect(engine, ctx, kkp2p.channel_t()) == kkp2p.KKP2P_ERROR_CONNECT_TIMEOUT
    assert "CONNECT_TIMEOUT: absent: the peer is not online" in text(tmp_path, 0)


def test_the_default_level(
    make_engine: Callable[..., kkp2p.engine_t], cloud: CloudProcess, tmp_path: Path
) -> None:
    engine = make_engine()
    kkp2p.switch_log_level(engine, 2)
    assert kkp2p.join_net(engine, "peer", SECRET) == 0
    assert kkp2p.join_net(engine, "peer", SECRET) == 0  # by a second connection
    kkp2p.engine_destroy(engine)
    lines = text(tmp_path, 0).splitlines()
    assert sum("logged in at 127.0.0.1" in line for line in lines) == 2
    assert sum("certificate not verified: no login_ca" in line for line in lines) == 1
    assert " error " not in "".join(lines)


def test_who_called(
    make_pair: Callable[..., tuple[kkp2p.channel_t, kkp2p.channel_t]], tmp_path: Path
) -> None:
    _, callee = make_pair(desc=-5)
    line = f"peer: channel {callee.channel_id}: accepted by relay from a stranger, desc -5"
    assert line in text(tmp_path, 1)


@pytest.mark.parametrize(("mode", "path"), [(1, "p2p"), (2, "relay")])
def test_connections_of_a_proxy_have_their_port(
    engine: kkp2p.engine_t, peer: kkp2p.engine_t, tmp_path: Path, mode: int, path: str
) -> None:
    proxy_id, channel = ctypes.c_uint32(), kkp2p.channel_t()
    ctx = kkp2p.connect_ctx_t("peer", connect_mode=mode, timeout=LONG)
    assert kkp2p.start_proxy(engine, "127.0.0.1", 0, ctx, proxy_id) == 0
    address = kkp2p.proxy_address(engine, proxy_id)
    with socket.create_connection(address) as local:
        port = local.getsockname()[1]
        assert kkp2p.accept(peer, LONG, channel) == 1
    assert read_all(channel.fd) == b""
    kkp2p.close_fd(channel.fd)
    kkp2p.stop_proxy(engine, proxy_id)
    assert f"peer: proxy 1: port {port}: connected by {path}" in text(tmp_path, 0)


def test_why_engine_init_failed(engine_conf: Callable[..., kkp2p.engine_conf_t]) -> None:
    conf = engine_conf(login_domain="127.0.0.1", login_port=1, login_ca="/no/such/file")
    assert kkp2p.engine_init(conf, LONG) is None
    log = Path(str(conf.log_path), "kkp2p_engine.log").read_text()
    assert "error engine_init: login_ca /no/such/file: " in log


def test_a_refused_connection_is_logged_once(
    make_engine: Callable[..., kkp2p.engine_t], tmp_path: Path, held_port: int
) -> None:
    engine = make_engine(login_port=held_port)
    ctx = kkp2p.connect_ctx_t("peer", timeout=LONG)
    assert kkp2p.connect(engine, ctx, kkp2p.channel_t()) < 0
    log = text(tmp_path, 0)
    # The engine may have said already that it does not reach the cloud yet.
    log = "".join(line for line in log.splitlines(True) if "not reached yet" not in line)
    assert log.count("refused") == 1
    assert "peer: cloud 127.0.0.1:" in log
    assert "certificate" not in log  # none was seen


def test_an_address_that_failed_is_tried_last(
    serve: Callable[..., LineServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    def script(visitor: Visitor) -> None:
        visitor.receive("route")
        visitor.send("track", tracks=[])
        visitor.wait_until_gone()

    port = serve(script).address[1]
    tried: list[str] = []
    connect = Links._connect

    def watch(self: Links, address: HostPort, named_by: str | None) -> Link:
        tried.append(address[0])
        return connect(self, address, named_by)

    monkeypatch.setattr(Links, "_connect", watch)
    client = CloudClient(
        "127.0.0.2|127.0.0.1",
        port,
        ["127.0.0.2", "127.0.0.1"],
        logging.getLogger("test"),
        ca_file=None,
        on_offer=print,
        on_login_lost=print,
    )
    monkeypatch.setattr(
        client._links._rng, "shuffle", lambda addresses: addresses.sort(reverse=True)
    )
    for _ in range(2):
        next(client.links_to("peer")).close()
    client.close()
    assert tried == ["127.0.0.2", "127.0.0.1", "127.0.0.1"]


def test_a_reason_of_any_shape() -> None:
    nested: list[object] = []
    for _ in range(100_000):  # repr raises RecursionError; the decoder lets some through that do
        nested = [nested]
    assert str(refusal(nested)) == "refused: <list>"
    while nested:
        (nested,) = nested  # type: ignore[assignment]
    assert str(refusal("x" * 1000)) == f"refused: {'x' * 80!r}"
    assert isinstance(refusal(None), CallRefused)
