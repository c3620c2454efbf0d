"""A cloud sends nobody where it could not go itself: services of the peer's host or network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent
import pytest

import kkp2p_compat as kkp2p
from helpers.line_server import RawServer, Serve, Visitor, wait_for
from helpers.support import PATIENCE_S, SECRET
from kkp2p_compat._errors import LinkLost
from kkp2p_compat.control import link as link_module
from kkp2p_compat.control.nearness import permitted
from kkp2p_compat.engine.calls import cloud_call as calls_module
from kkp2p_compat.transport.relay_wire import CALLEE, HELLO_BYTES, make_token, token_to_text

TOKEN = token_to_text(make_token(b"key", bytes(16), CALLEE, 2**32 - 1))
OFFER = '{"type":0,"mode":2,"encrypt":0,"desc":1}'

PUBLIC = ["8.8.8.8", "2606:4700::1111"]
PRIVATE = [
    "10.0.0.1",
    "172.16.5.5",
    "192.168.1.1",
    "100.64.0.1",
    "198.18.0.1",
    "fd00::1",
    "fec0::1",
    "::ffff:10.0.0.1",
    "64:ff9b::10.0.0.1",
    "2002:c0a8:0101::1",
]
LINK_LOCAL = ["169.254.169.254", "fe80::1", "fe80::1%lo", "::ffff:169.254.1.1"]
LOOPBACK = ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1", "64:ff9b::127.0.0.1"]
NOWHERE = ["0.0.0.0", "::", "224.0.0.1", "239.1.1.1", "ff02::1", "255.255.255.255"]
KINDS = [PUBLIC, PRIVATE, LINK_LOCAL, LOOPBACK]


@pytest.mark.parametrize("cloud", range(4), ids=["public", "private", "link-local", "loopback"])
def test_no_nearer_than_the_cloud(cloud: int) -> None:
    for cloud_ip in KINDS[cloud]:
        for kind, addresses in enumerate(KINDS):
            for address in set(addresses) - {cloud_ip}:
                if kind <= cloud:
                    assert permitted(address, [address], cloud_ip) == [address]
                else:
                    with pytest.raises(LinkLost, match="not where a cloud at"):
                        permitted(address, [address], cloud_ip)
        for address in NOWHERE:
            with pytest.raises(LinkLost):
                permitted(address, [address], cloud_ip)


def test_where_the_cloud_is_itself() -> None:
    for cloud_ip in ("0.0.0.0", "8.8.8.8", "fe80::1%lo"):
        assert permitted(cloud_ip, [cloud_ip], cloud_ip) == [cloud_ip]
    assert permitted("name", ["127.0.0.1"], "0.0.0.0") == ["127.0.0.1"]  # where that leads to


def test_a_cloud_that_only_a_proxy_knows_is_on_the_internet() -> None:
    assert permitted("name", ["127.0.0.1", "8.8.4.4", "10.1.1.1"], "cloud.test") == ["8.8.4.4"]


def test_of_several_addresses_the_permitted_ones() -> None:
    assert permitted("name", ["127.0.0.1", "8.8.4.4", "10.1.1.1"], "8.8.8.8") == ["8.8.4.4"]


def test_what_a_nat64_makes_of_an_address_counts_as_that_address() -> None:
    """Its own prefix is a public one, and says nothing."""
    dialled = ["10.0.0.1", "2606:4700:64::a00:1"]
    with pytest.raises(LinkLost):
        permitted("10.0.0.1", dialled, "8.8.8.8")
    assert permitted("10.0.0.1", dialled, "10.0.0.9") == dialled


class Internal:
    """A service that listens on loopback only."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.server = RawServer(self._hear)
        self.port = self.server.address[1]

    def _hear(self, sock: Any) -> None:
        self.heard.append(b"")
        self.heard.append(sock.recv(1000))


def false_cloud(host: object, port: int, done: list[str]) -> Callable[[Visitor], None]:
    """It names the service as a track, in every call, and in an offer once we have logged in."""

    def script(visitor: Visitor) -> None:
        scram = visitor.scram()
        while True:
            message = visitor.receive()
            if message["op"] == "route":
                here = message["peer"] in ("here", "me")
                visitor.send("track", tracks=[] if here else [[host, port]])
            elif message["op"] == "call":
                place = [host, port, TOKEN]
                visitor.send("calling", call=message["call"], relay=place)
            elif message["op"] == "login":
                scram = visitor.scram()
                scram.set_client_first(message["scram"])
                visitor.send("challenge", scram=scram.get_server_first())
            elif message["op"] == "proof":
                scram.set_client_final(message["scram"])
                visitor.send("welcome", scram=scram.get_server_final(), beat=60)
                visitor.send("offer", call="1", ms=500, offer=OFFER, relay=[host, port, TOKEN])
            elif message["op"] == "decline":
                done.append(message["reason"])

    return script


@pytest.fixture
def use(
    serve: Serve, make_engine: Callable[..., kkp2p.engine_t]
) -> Callable[[str], tuple[list[bytes], list[str]]]:
    """Call by a false cloud and be called; what the service has heard, and what was declined."""

    def run(host: str) -> tuple[list[bytes], list[str]]:
        internal, declined = Internal(), list[str]()
        port = serve(false_cloud(host, internal.port, declined)).address[1]
        caller, callee = make_engine(login_port=port), make_engine(login_port=port)
        for peer_id in ("elsewhere", "here"):
            ctx = kkp2p.connect_ctx_t(peer_id, connect_mode=2, timeout=500)
            assert kkp2p.connect(caller, ctx, kkp2p.channel_t()) < 0
        assert kkp2p.join_net(callee, "me", SECRET) == 0
        with gevent.Timeout(PATIENCE_S):
            wait_for(lambda: declined)
        internal.server.close()
        return internal.heard, declined

    return run


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_service_on_loopback_hears_nothing_from_a_public_cloud(
    use: Callable[[str], tuple[list[bytes], list[str]]], monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    """The false cloud is on loopback, too, so it is made to seem a public one."""
    addresses = calls_module._addresses
    monkeypatch.setattr(calls_module, "_addresses", lambda host, _: addresses(host, "8.8.8.8"))
    monkeypatch.setattr(
        link_module, "permitted", lambda host, found, _: permitted(host, found, "8.8.8.8")
    )
    heard, declined = use(host)
    assert (heard, declined) == ([], ["relay"])


def test_what_one_on_loopback_hears_is_no_command(
    use: Callable[[str], tuple[list[bytes], list[str]]],
) -> None:
    heard, _ = use("127.0.0.1")
    records = [data for data in heard if data[:1] == b"\x16"]  # TLS's: we chose what is in them
    words = [data for data in heard if data and data not in records]
    assert records
    assert [len(data) for data in words] == [HELLO_BYTES] * 2
    assert all(
        data.startswith(b"KKRL\x02") and data[5:].isalnum()
        for data in (data.replace(b"-", b"a").replace(b"_", b"a") for data in words)
    )
