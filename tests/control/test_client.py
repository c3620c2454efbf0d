"""The peer's side of the control plane as a whole, against clouds that misbehave."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import gevent
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

import kkp2p_compat as kkp2p
from helpers.line_server import LineServer, RawServer, Script, Serve, Visitor, all_here, wait_for
from helpers.support import PATIENCE_S, SECRET
from kkp2p_compat._errors import (
    CloudUnreachable,
    DuplicateLogin,
    EngineClosed,
    KKP2PError,
    LoginRefused,
    PeerOffline,
    TimedOut,
)
from kkp2p_compat._io import time_limit
from kkp2p_compat.cloud.certificate import TLSIdentity, load_identity
from kkp2p_compat.control import links as links_module
from kkp2p_compat.control import resolver
from kkp2p_compat.control.client import CloudClient
from kkp2p_compat.control.links import Links
from kkp2p_compat.control.wire import Message
from kkp2p_compat.engine.calls.cloud_call import make_call
from kkp2p_compat.engine.links.streams import SplicedStream
from kkp2p_compat.transport.relay_wire import CALLEE, make_token, token_to_text

pytestmark = pytest.mark.usefixtures("quick_backoff")

TOKEN = token_to_text(make_token(b"key", bytes(16), CALLEE, 2**32 - 1))
Make = Callable[..., CloudClient]


@pytest.fixture
def lost() -> list[KKP2PError]:
    """The ends of logins that accept would tell."""
    return []


@pytest.fixture
def make(lost: list[KKP2PError]) -> Iterator[Make]:
    clients: list[CloudClient] = []

    def make(
        server: Any, addresses: tuple[str, ...] = ("127.0.0.1",), **options: Any
    ) -> CloudClient:
        options = {"ca_file": None, "on_offer": print, "on_login_lost": lost.append} | options
        domain = "|".join(addresses)
        log = logging.getLogger("test")
        clients.append(CloudClient(domain, server.address[1], list(addresses), log, **options))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def ctx(timeout: int = PATIENCE_S * 1000) -> kkp2p.connect_ctx_t:
    return kkp2p.connect_ctx_t("bob", timeout=timeout)


def next_but_routes(visitor: Visitor) -> Message:
    """Several callers may ask at once where somebody is."""
    while (message := visitor.receive())["op"] == "route":
        visitor.send("track", tracks=[])
    return message


online = all_here(lambda visitor: (visitor.log_in(), visitor.wait_until_gone()))


def test_login_is_tried_again_until_it_works(make: Make, serve: Serve, lost: list[Any]) -> None:
    scripts: list[Script] = [
        lambda visitor: None,
        lambda visitor: visitor.send_raw(b"rubbish\n"),
        lambda visitor: visitor.send("bye", reason="shutdown"),
        lambda visitor: (visitor.receive(), visitor.send("track", tracks=[["x", 0]])),
        lambda visitor: (visitor.receive(), visitor.send("track", tracks=[["127.0.0.1", 1]])),
        all_here(lambda visitor: None),
        all_here(lambda visitor: (visitor.receive(), visitor.send("refused", reason="limit"))),
        all_here(lambda visitor: (visitor.receive(), visitor.send("challenge", scram="i=9999999"))),
        all_here(lambda visitor: visitor.log_in()),
        online,
    ]
    turns = iter(scripts)
    server = serve(lambda visitor: next(turns)(visitor))
    make(server).login("me", SECRET).get()
    wait_for(lambda: server.visits == len(scripts))
    assert lost == []


@pytest.mark.parametrize(
    ("reason", "kind"),
    [("unknown-peer", LoginRefused), ("bad-secret", LoginRefused), ("duplicate", DuplicateLogin)],
)
def test_a_final_refusal_ends_it(
    make: Make, serve: Serve, lost: list[Any], reason: str, kind: type[KKP2PError]
) -> None:
    server = serve(
        all_here(lambda visitor: (visitor.receive(), visitor.send("refused", reason=reason)))
    )
    client = make(server)
    with pytest.raises(kind):
        client.login("me", SECRET).get()
    assert client._home is not None
    client._home.join()
    assert (server.visits, lost) == (1, [])


def test_a_wrong_server_does_not_keep_a_half_made_login(make: Make, serve: Serve) -> None:
    server = serve(all_here(lambda v: (v.log_in(scram="v=AAAA"), v.wait_until_gone())))
    client = make(server)
    with pytest.raises(LoginRefused):
        client.login("me", SECRET).get()
    wait_for(lambda: not client._links.all())


def test_a_later_login_takes_no_fewer_iterations(
    make: Make, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever is in the middle would make guessing the secret cheaper."""
    turns = iter([8192, 4096, 8192])
    proofs: list[int] = []

    def script(visitor: Visitor) -> None:
        iterations = next(turns)
        visitor.log_in(iterations)
        proofs.append(iterations)
        if server.visits == 3:
            visitor.wait_until_gone()

    server = serve(all_here(script))
    make(server).login("me", SECRET).get()
    wait_for(lambda: len(proofs) == 2)
    assert (server.visits, proofs) == (3, [8192, 8192])
    assert "wants under 8192 iterations" in caplog.text


@pytest.mark.parametrize("reason", ["duplicate", "removed"])
def test_the_end_of_a_login_is_told_once(
    make: Make, serve: Serve, lost: list[Any], reason: str
) -> None:
    server = serve(
        all_here(lambda v: (v.log_in(), v.send("bye", reason=reason), v.wait_until_gone()))
    )
    client = make(server)
    client.login("me", SECRET).get()
    assert client._home is not None
    client._home.join()
    assert [type(error) for error in lost] == [
        DuplicateLogin if reason == "duplicate" else LoginRefused
    ]
    assert server.visits == 1


def test_the_next_address_when_one_is_dead(make: Make, serve: Serve) -> None:
    server = serve(online)
    client = make(server, ("127.0.0.2", "127.0.0.3", "127.0.0.1", "::1"))
    client.login("me", SECRET).get()
    assert [link.address for link in client._links.all()] == [("127.0.0.1", server.address[1])]


def test_all_addresses_are_dead(make: Make) -> None:
    server = RawServer(lambda sock: sock.close())
    with pytest.raises(CloudUnreachable):
        make_call(make(server, ("127.0.0.1", "127.0.0.2")), ctx(), PATIENCE_S, "")
    server.close()


def test_one_link_is_shared_and_opened_once(make: Make, serve: Serve) -> None:
    def decline(visitor: Visitor) -> None:
        while True:
            visitor.send("declined", call=next_but_routes(visitor)["call"], reason="offline")

    server = serve(decline)
    client = make(server)
    calls = [gevent.spawn(make_call, client, ctx(), PATIENCE_S, "") for _ in range(20)]
    for call in calls:
        with pytest.raises(PeerOffline):
            call.get()
    assert server.visits == 1
    assert len(client._links._locks) == 0


def test_a_link_that_has_closed_is_never_used_again(make: Make, serve: Serve) -> None:
    """Nor in the moment between its end and the callback that forgets it."""
    server = serve(all_here(lambda visitor: visitor.wait_until_gone()))
    client = make(server)
    first = next(client.links_to("bob"))
    first.close()
    second = next(client.links_to("bob"))
    assert second is not first
    gevent.sleep(0)
    gevent.sleep(0)
    assert next(client.links_to("bob")) is second


def call_within(client: CloudClient, seconds: float) -> SplicedStream:
    """As the engine calls: the time limit is around all that is tried."""
    with time_limit(seconds, TimedOut(f"not connected within {seconds * 1000:.0f} ms")):
        return make_call(client, ctx(), seconds, "")


def test_a_time_out_of_the_call_is_no_reason_to_try_the_next_address(make: Make) -> None:
    server = RawServer(lambda sock: gevent.sleep(PATIENCE_S))
    addresses = tuple(f"127.0.0.{i}" for i in range(1, 17))
    with pytest.raises(TimedOut, match="within 50 ms"):
        call_within(make(server, addresses), 0.05)
    server.close()


def test_a_time_out_of_a_call_leaves_the_link_to_the_others(make: Make, serve: Serve) -> None:
    calls: list[Message] = []

    def script(visitor: Visitor) -> None:
        for _ in range(2):
            calls.append(next_but_routes(visitor))
        first, second = calls
        for _ in range(2):
            message = visitor.receive()
            if message["op"] == "beat":  # the client wonders whether we live
                visitor.send("beat")
            else:
                assert message == {"op": "cancel", "call": first["call"]}
        visitor.send("declined", call=second["call"], reason="busy")
        visitor.wait_until_gone()

    client = make(serve(script))
    first = gevent.spawn(make_call, client, ctx(), PATIENCE_S, "")
    wait_for(lambda: calls)
    second = gevent.spawn(make_call, client, ctx(), PATIENCE_S, "")
    wait_for(lambda: len(calls) == 2)
    first.kill(TimedOut("as its time limit says"))
    with pytest.raises(TimedOut):
        first.get()
    with pytest.raises(KKP2PError, match="queue is full"):
        second.get()


RELAYS: dict[str, object] = {
    "nothing": None,
    "text": "x",
    "short": ["127.0.0.1", 1],
    "a bad host": ["a b\n", 1, TOKEN],
    "a bad port": ["127.0.0.1", 65536, TOKEN],
    "a bad token": ["127.0.0.1", 1, "!"],
    "nobody there": ["127.0.0.1", 1, TOKEN],
    "a name that is none": ["a..b", 1, TOKEN],
    "half a number": ["1.2.3", 1, TOKEN],
}


@pytest.mark.parametrize("relay", RELAYS.values(), ids=RELAYS)
def test_relays_that_are_none(make: Make, serve: Serve, relay: object) -> None:
    def script(visitor: Visitor) -> None:
        call = visitor.receive("call")["call"]
        visitor.send("calling", call=call, relay=relay)
        visitor.send("answer", call=call, answer="{}")
        visitor.wait_until_gone()

    with pytest.raises(KKP2PError) as caught:
        make_call(make(serve(all_here(script))), ctx(), PATIENCE_S, "")
    assert caught.value.code == kkp2p.KKP2P_ERROR_CONN_DISCONNECT


def test_the_end_while_links_are_being_opened(
    make: Make, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(lambda visitor: visitor.wait_until_gone())
    client = make(server)
    connect = Links._connect

    def slowly(self: Links, *address: Any) -> Any:
        link = connect(self, *address)
        self.close()
        return link

    monkeypatch.setattr(Links, "_connect", slowly)
    with pytest.raises(EngineClosed):
        make_call(client, ctx(), PATIENCE_S, "")
    assert client._links.all() == []


def test_a_resolver_that_fails_is_asked_now_and_then_only(
    make: Make, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fail(*_: object) -> list[str]:
        asked.append(1)
        raise KKP2PError("no resolver")

    monkeypatch.setattr(links_module, "resolve", fail)
    server = serve(all_here(lambda visitor: visitor.wait_until_gone()))
    client = make(server)
    client._links._names = ["cloud.test"]
    client._links._resolved_at -= links_module.RESOLVE_AGAIN_S + 1
    for _ in range(5):
        next(client.links_to("bob")).close()
    assert asked == [1]


def test_a_cloud_that_verified_once_must_always(
    make: Make, serve: Serve, tmp_path_factory: pytest.TempPathFactory, tmp_path: Any
) -> None:
    """With login_ca: another certificate is refused, whoever shows it."""
    other = load_identity(tmp_path)
    ca_file = str(next(path for path in tmp_path.iterdir() if b"CERTIFICATE" in path.read_bytes()))
    assert other.binding != serve(online).identity.binding
    client = make(serve(online), ca_file=ca_file)
    with pytest.raises(CloudUnreachable, match="certificate refused"):
        make_call(client, ctx(), PATIENCE_S, "")
    good = LineServer(other, all_here(lambda visitor: visitor.wait_until_gone()))
    with gevent.Timeout(PATIENCE_S):
        assert next(make(good, ca_file=ca_file).links_to("bob")) is not None
    good.close()


def signed_by_a_ca(name: str, folder: Path) -> tuple[TLSIdentity, str]:
    """A server's identity whose certificate names ``name``, and the file of the CA."""
    now = datetime.datetime.now(datetime.timezone.utc)
    day = datetime.timedelta(days=1)
    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test CA")])
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])

    def make(
        subject: x509.Name, public_key: ec.EllipticCurvePublicKey, extension: x509.ExtensionType
    ) -> bytes:
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - day)
            .not_valid_after(now + day)
            .add_extension(extension, critical=False)
        )
        return builder.sign(ca_key, SHA256()).public_bytes(Encoding.PEM)

    constraints = x509.BasicConstraints(ca=True, path_length=0)
    (folder / "ca.pem").write_bytes(make(issuer, ca_key.public_key(), constraints))
    named = x509.SubjectAlternativeName([x509.DNSName(name)])
    (folder / "server.pem").write_bytes(make(subject, key.public_key(), named))
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "server.key").write_bytes(secret)
    identity = load_identity(None, folder / "server.pem", folder / "server.key")
    return identity, str(folder / "ca.pem")


@pytest.mark.parametrize(("named", "refused"), [("here.test", False), ("elsewhere.test", True)])
def test_each_of_several_names_has_a_certificate_of_its_own(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str, refused: bool
) -> None:
    """A server is asked for the name that led to it, not for any other of the login domain."""
    places = {"elsewhere.test": "127.0.0.2", "here.test": "127.0.0.1"}
    monkeypatch.setattr(resolver, "look_up_name", lambda name, _: [places[name]])
    identity, ca_file = signed_by_a_ca(named, tmp_path)
    server = LineServer(identity, all_here(lambda visitor: visitor.wait_until_gone()))
    client = make(server, tuple(places), ca_file=ca_file)
    client.look_up(PATIENCE_S)
    assert client.addresses == ["127.0.0.2", "127.0.0.1"]
    with pytest.raises(CloudUnreachable, match="certificate refused") if refused else nullcontext():
        assert client._links.open(("127.0.0.1", server.address[1])).is_verified
    server.close()
