"""One link to the cloud, and all that a server can do to it: an error in time, and nothing left."""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import ssl as gssl
from line_server import Gone, LineServer, RawServer, Script, Visitor, wait_for
from support import PATIENCE_S, SECRET

from kkp2p_compat._errors import (
    BadPacket,
    CallRefused,
    CloudUnreachable,
    DuplicateLogin,
    KKP2PError,
    LinkLost,
    LoginRefused,
    PeerOffline,
    TimedOut,
)
from kkp2p_compat.cloud.certificate import load_identity
from kkp2p_compat.control import link as link_module
from kkp2p_compat.control.link import Link
from kkp2p_compat.control.wire import Message, encode

Serve = Callable[[Script], LineServer]
Open = Callable[..., Link]


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_identity(tmp_path_factory.mktemp("identity"))


@pytest.fixture
def serve(identity: Any) -> Iterator[Serve]:
    servers: list[LineServer] = []

    def start(script: Script) -> LineServer:
        servers.append(LineServer(identity, script))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def client_context() -> gssl.SSLContext:
    context = gssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class Offers(list[Message]):
    def take(self, _: Link, message: Message) -> None:
        self.append(message)


@pytest.fixture
def offers() -> Offers:
    return Offers()


@pytest.fixture
def make(offers: Offers) -> Iterator[Open]:
    links: list[Link] = []

    def make(address: tuple[str, int]) -> Link:
        log = logging.getLogger("test")
        links.append(Link(address, log, offers.take, client_context(), None))
        return links[-1]

    yield make
    for link in links:
        link.close()


@pytest.fixture
def opened(make: Open, serve: Serve) -> Open:
    """A link to a server that runs the script."""

    def open_(script: Script) -> Link:
        link = make(serve(script).address)
        link.open()
        return link

    return open_


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "OPEN_TIMEOUT_S", 0.1)
    monkeypatch.setattr(link_module, "ANSWER_TIMEOUT_S", 0.1)


# Opening.

NO_TLS = {
    "silence": lambda sock: gevent.sleep(PATIENCE_S),
    "closed at once": lambda sock: sock.close(),
    "text": lambda sock: sock.sendall(b"SSH-2.0-OpenSSH_9.9\r\n"),
    "half a hello": lambda sock: (sock.recv(1000), sock.sendall(b"\x16\x03\x03\x00"), sock.close()),
    "rubbish": lambda sock: (sock.recv(1000), sock.sendall(bytes(range(256)) * 100)),
}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("script", NO_TLS.values(), ids=NO_TLS)
def test_a_server_without_tls(make: Open, script: Callable[[Any], object]) -> None:
    server = RawServer(script)
    link = make(server.address)
    with pytest.raises(CloudUnreachable, match=r"127\.0\.0\.1"):
        link.open()
    server.close()


def test_nobody_listens(make: Open) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(CloudUnreachable, match="refused"):
            make(unused.getsockname()).open()


def test_an_old_tls(make: Open, tmp_path: Path) -> None:
    identity = load_identity(tmp_path)
    identity.context.minimum_version = ssl.TLSVersion.TLSv1_2
    identity.context.maximum_version = ssl.TLSVersion.TLSv1_2
    server = LineServer(identity, lambda _: None)
    with pytest.raises(CloudUnreachable, match=r"(?i)version|alert"):
        make(server.address).open()
    server.close()


def test_the_caller_s_own_time_out_passes_while_opening(make: Open) -> None:
    server = RawServer(NO_TLS["silence"])
    with pytest.raises(gevent.Timeout) as caught, gevent.Timeout(0.05) as mine:
        make(server.address).open()
    assert caught.value is mine
    server.close()


# Questions.


def test_route(opened: Open) -> None:
    def script(visitor: Visitor) -> None:
        assert visitor.receive() == {"op": "route", "v": 1, "peer": "bob"}
        visitor.send("track", tracks=[["10.0.0.1", 1], ["track.example", 65535]])
        visitor.receive("route")
        visitor.send("track", tracks=[["10.0.0.1", 1]] * 100)
        visitor.wait_until_gone()

    link = opened(script)
    assert link.route("bob") == [("10.0.0.1", 1), ("track.example", 65535)]
    assert len(link.route("bob")) == link_module.MAX_TRACKS


BAD_TRACKS = [
    None, {}, "x", 5, [1], [[]], [["h"]], [["h", 1, 2]], [["h", "1"]], [["h", 0]], [["h", 65536]],
    [["h", 1.5]], [["h", True]], [["h", None]], [[None, 1]], [["", 1]], [["a b", 1]],
    [["a\nb", 1]], [["x" * 254, 1]], [["\u00e9", 1]], ["ab"],
]  # fmt: skip


@pytest.mark.parametrize("tracks", BAD_TRACKS, ids=repr)
def test_bad_tracks(opened: Open, tracks: object) -> None:
    link = opened(lambda visitor: (visitor.receive(), visitor.send("track", tracks=tracks)))
    with pytest.raises(BadPacket):
        link.route("bob")


@pytest.mark.usefixtures("quick")
def test_no_answer_ends_the_link_for_everybody(opened: Open) -> None:
    link = opened(lambda visitor: visitor.wait_until_gone())
    call = link.call("bob", "{}", 1000)
    asking = [gevent.spawn(link.route, "bob") for _ in range(20)]
    for ask in asking:
        with pytest.raises(LinkLost, match="no track in time"):
            ask.get()
    with pytest.raises(LinkLost):
        call.answer.get()
    assert link.closed.is_set()


def test_a_late_answer_is_not_taken_for_the_next_one(opened: Open) -> None:
    def script(visitor: Visitor) -> None:
        visitor.receive("route")
        visitor.receive("route")
        visitor.send("track", tracks=[["late.example", 1]])
        visitor.send("track", tracks=[["right.example", 1]])
        visitor.wait_until_gone()

    link = opened(script)
    with gevent.Timeout(0.05, False):
        link.route("alice")
    assert link.route("bob") == [("right.example", 1)]


def test_answers_that_nobody_asked_for_are_dropped(opened: Open) -> None:
    def script(visitor: Visitor) -> None:
        for op in ("track", "challenge", "welcome", "beat", "calling", "answer", "declined"):
            visitor.send(op, call=99, tracks=[["wrong.example", 1]])
        visitor.send("what", is_="this")
        visitor.send("declined", call=visitor.receive("call")["call"], reason="busy")
        visitor.receive("route")
        visitor.send("track", tracks=[["right.example", 1]])
        visitor.send("track", tracks=[["again.example", 1]])
        visitor.wait_until_gone()

    link = opened(script)
    with pytest.raises(CallRefused):
        link.call("bob", "{}", 1000).answer.get()
    assert link.route("bob") == [("right.example", 1)]


@pytest.mark.parametrize("op", ["challenge", "welcome", "beat", "error"])
def test_the_answer_to_another_question(opened: Open, op: str) -> None:
    link = opened(lambda visitor: (visitor.receive(), visitor.send(op, re="route", reason="no")))
    with pytest.raises(BadPacket, match=f"'{op}' instead of track"):
        link.route("bob")


# Bad lines.

BAD_LINES = {
    "rubbish": b"\0\xff\n",
    "no op": b"{}\n",
    "oversized": b"x" * 70000,
    "oversized, ended": b'{"op":"beat","x":"' + b"x" * 65536 + b'"}\n',
    "an offer without a call": encode("offer", offer="{}"),
    "a call of the wrong type": encode("offer", call=1),
    "an empty call": encode("cancel", call=""),
    "a long call": encode("offer", call="x" * 129),
}


@pytest.mark.parametrize("line", BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_line_ends_the_link(opened: Open, line: bytes) -> None:
    link = opened(lambda visitor: (visitor.receive(), visitor.send_raw(line), visitor.receive()))
    with pytest.raises(BadPacket):
        link.route("bob")
    assert isinstance(link.close_reason, BadPacket)
    with pytest.raises(BadPacket):
        link.call("bob", "{}", 1)


@pytest.mark.parametrize("ending", ["", "half a line"])
def test_the_server_closes(opened: Open, ending: str) -> None:
    link = opened(lambda visitor: (visitor.receive(), visitor.send_raw(ending.encode())))
    with pytest.raises(LinkLost, match="closed by the cloud"):
        link.route("bob")


def test_good_bye(opened: Open, caplog: pytest.LogCaptureFixture) -> None:
    link = opened(lambda visitor: visitor.send("bye", reason="idle\n\x1b[2J" + "x" * 9999))
    link.closed.wait()
    assert isinstance(link.close_reason, LinkLost)
    assert "\n" not in str(link.close_reason)
    assert len(str(link.close_reason)) < 200


def test_a_server_that_does_not_read(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it makes us hold is bounded, and nobody waits for it."""
    monkeypatch.setattr(link_module, "MAX_UNSENT_BYTES", 100_000)
    link = opened(lambda visitor: gevent.sleep(PATIENCE_S))
    with pytest.raises(LinkLost, match="does not read"):
        flood(link, 0)
    assert link._calls == {}
    assert link._unsent == []


@pytest.mark.usefixtures("quick")
def test_a_server_that_takes_no_line_in_time(opened: Open) -> None:
    link = opened(lambda visitor: gevent.sleep(PATIENCE_S))
    with pytest.raises(LinkLost, match="does not read"):
        flood(link, 0.001)


def flood(link: Link, pause_s: float) -> None:
    while True:
        link.call("bob", "x" * 30000, 1000)
        gevent.sleep(pause_s)


def test_a_caller_that_is_killed_leaves_no_half_line(opened: Open) -> None:
    lines: list[Message] = []

    def script(visitor: Visitor) -> None:
        gevent.sleep(0.05)  # so that the client's buffers are full for a while
        while True:
            lines.append(visitor.receive("call"))

    link = opened(script)
    callers = [gevent.spawn(link.call, "bob", "x" * 30000, 1000) for _ in range(30)]
    gevent.sleep(0)
    gevent.killall(callers)
    link.call("bob", "last", 1000)
    wait_for(lambda: lines and lines[-1]["offer"] == "last")


# Calls.


def test_calls(opened: Open) -> None:
    def script(visitor: Visitor) -> None:
        first, second = visitor.receive("call"), visitor.receive("call")
        assert (first["to"], first["ms"], first["offer"]) == ("bob", 700, "offer 1")
        for number in (True, "1", 1.0, None, [1], 99):
            visitor.send("declined", call=number, reason="busy")
        visitor.send("answer", call=second["call"], answer="answer 2")
        visitor.send("calling", call=first["call"], relay=["r", 1, "t"])
        visitor.send("calling", call=first["call"], relay=["again"])
        visitor.send("answer", call=first["call"], answer="answer 1")
        visitor.send("declined", call=first["call"], reason="too late")
        assert visitor.receive() == {"op": "cancel", "call": second["call"]}
        visitor.send("error", re="cancel", reason="x")
        visitor.wait_until_gone()

    link = opened(script)
    first, second = (link.call("bob", f"offer {i}", 700) for i in (1, 2))
    assert first.relay.get() == ["r", 1, "t"]
    assert (first.answer.get(), second.answer.get()) == ("answer 1", "answer 2")
    link.forget(first, cancel=False)
    link.forget(second, cancel=True)
    link.forget(second, cancel=True)
    assert link._calls == {}


@pytest.mark.parametrize(
    ("reason", "kind", "code"),
    [
        ("offline", PeerOffline, -109),
        ("timeout", TimedOut, -109),
        ("busy", CallRefused, -108),
        ("left", CallRefused, -108),
        ("relay", CallRefused, -108),
        ("unsupported", CallRefused, -106),
        ("limit", LinkLost, -107),
        ("never heard of", CallRefused, -108),
        (None, CallRefused, -108),
        (["busy"], CallRefused, -108),
    ],
)
def test_declined(opened: Open, reason: object, kind: type[KKP2PError], code: int) -> None:
    def script(visitor: Visitor) -> None:
        visitor.send("declined", call=visitor.receive("call")["call"], reason=reason)
        visitor.wait_until_gone()

    call = opened(script).call("bob", "{}", 1000)
    for result in (call.relay, call.answer):
        with pytest.raises(KKP2PError) as caught:
            result.get()
        assert (type(caught.value), caught.value.code) == (kind, code)


@pytest.mark.parametrize("answer", [None, 5, ["x"], {"key": "x"}])
def test_an_answer_that_is_no_text(opened: Open, answer: object) -> None:
    def script(visitor: Visitor) -> None:
        visitor.send("answer", call=visitor.receive("call")["call"], answer=answer)
        visitor.wait_until_gone()

    link = opened(script)
    with pytest.raises(BadPacket):
        link.call("bob", "{}", 1000).answer.get()


# Logging in.

LOGIN_STEPS = ["login", "proof"]


def test_login_offers_and_heartbeats(opened: Open, offers: Offers) -> None:
    def script(visitor: Visitor) -> None:
        visitor.send("offer", call="too early")
        visitor.receive("route")
        visitor.send("track", tracks=[])
        visitor.log_in(beat=0.1)
        visitor.send("offer", call="right behind the welcome")
        for _ in range(3):
            visitor.receive("beat")
            visitor.send("beat")
        visitor.send("cancel", call="over")
        visitor.wait_until_gone()

    link = opened(script)
    assert link.route("me") == []
    link.login("me", SECRET)
    wait_for(lambda: len(offers) == 2)
    assert [message["call"] for message in offers] == ["right behind the welcome", "over"]


@pytest.mark.usefixtures("quick")
def test_no_heartbeat(opened: Open) -> None:
    link = opened(lambda visitor: (visitor.log_in(beat=0.1), visitor.wait_until_gone()))
    link.login("me", SECRET)
    link.closed.wait()
    assert "beat" in str(link.close_reason)


@pytest.mark.parametrize("beat", [None, "1", -1, 0, 1e9, True, [1]])
def test_odd_heartbeats(opened: Open, beat: object) -> None:
    link = opened(lambda visitor: (visitor.log_in(beat=beat), visitor.wait_until_gone()))
    link.login("me", SECRET)
    assert not link.closed.is_set()


def hostile(step: str, act: Script) -> Script:
    """A good cloud until it has received ``step``."""

    def script(visitor: Visitor) -> None:
        scram = visitor.scram()
        scram.set_client_first(visitor.receive("login")["scram"])
        if step == "proof":
            visitor.send("challenge", scram=scram.get_server_first())
            visitor.receive("proof")
        act(visitor)

    return script


ACTS: dict[str, Script] = {
    "closes": lambda visitor: None,
    "is silent": lambda visitor: visitor.wait_until_gone(),
    "sends rubbish": lambda visitor: visitor.send_raw(b"rubbish\n"),
    "answers something else": lambda visitor: visitor.send("track", tracks=[]),
    "reports an error": lambda visitor: visitor.send("error", re="login", reason="no"),
    "says good-bye": lambda visitor: visitor.send("bye", reason="shutdown"),
    "has enough": lambda visitor: visitor.send("refused", reason="limit"),
}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("step", LOGIN_STEPS)
@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
def test_a_login_that_may_be_tried_again(opened: Open, step: str, act: Script) -> None:
    link = opened(hostile(step, act))
    with pytest.raises((LinkLost, BadPacket)):
        link.login("me", SECRET)
    assert link.closed.is_set()


@pytest.mark.parametrize("step", LOGIN_STEPS)
@pytest.mark.parametrize(
    ("reason", "kind", "code"),
    [
        ("unknown-peer", LoginRefused, -110),
        ("removed", LoginRefused, -110),
        ("bad-secret", LoginRefused, -111),
        ("bad-binding", LoginRefused, -111),
        ("duplicate", DuplicateLogin, -117),
        ("limit", LinkLost, -107),
        ("never heard of", LinkLost, -107),
        (None, LinkLost, -107),
    ],
)
def test_refused(
    opened: Open, step: str, reason: object, kind: type[KKP2PError], code: int
) -> None:
    link = opened(hostile(step, lambda visitor: visitor.send("refused", reason=reason)))
    with pytest.raises(KKP2PError) as caught:
        link.login("me", SECRET)
    assert (type(caught.value), caught.value.code) == (kind, code)


NONCE = "r={client}server"
CHALLENGES: dict[str, tuple[object, type[KKP2PError]]] = {
    "ten million iterations": ("r={nonce}x,s=c2FsdHNhbHRzYWx0,i=10000000", BadPacket),
    "just over the limit": ("r={nonce}x,s=c2FsdHNhbHRzYWx0,i=100001", BadPacket),
    "a huge number": ("r={nonce}x,s=c2FsdHNhbHRzYWx0,i=" + "9" * 5000, BadPacket),
    "two numbers": ("r={nonce}x,s=c2FsdHNhbHRzYWx0,i=4096,i=10000000", LoginRefused),
    "hardly any iterations": ("r={nonce}x,s=c2FsdHNhbHRzYWx0,i=1", LoginRefused),
    "a negative number": ("r={nonce}x,s=c2FsdHNhbHRzYWx0,i=-5", BadPacket),
    "no number": ("r={nonce}x,s=c2FsdHNhbHRzYWx0", BadPacket),
    "another nonce": ("r=other,s=c2FsdHNhbHRzYWx0,i=4096", LoginRefused),
    "no nonce": ("s=c2FsdHNhbHRzYWx0,i=4096", LoginRefused),
    "no base64": ("r={nonce}x,s=!!!,i=4096", LoginRefused),
    "an extension": ("m=x,r={nonce}x,s=c2FsdHNhbHRzYWx0,i=4096", LoginRefused),
    "an error": ("e=other-error,i=4096", LoginRefused),
    "rubbish": (",,,=,i=4096,", LoginRefused),
    "not text": (5, BadPacket),
    "a list": ([",i=4096,"], LoginRefused),
    "nothing": (None, BadPacket),
}


@pytest.mark.parametrize(("challenge", "kind"), CHALLENGES.values(), ids=CHALLENGES)
def test_hostile_challenges(opened: Open, challenge: Any, kind: type[KKP2PError]) -> None:
    def script(visitor: Visitor) -> None:
        nonce = visitor.receive("login")["scram"].rpartition("r=")[2]
        text = challenge.replace("{nonce}", nonce) if isinstance(challenge, str) else challenge
        visitor.send("challenge", scram=text)
        with pytest.raises(Gone):
            visitor.receive()

    link = opened(script)
    with pytest.raises(KKP2PError) as caught:
        link.login("me", SECRET)
    assert type(caught.value) is kind
    assert len(str(caught.value)) < 400
    assert link.closed.is_set()


@pytest.mark.parametrize(
    "final", ["v=" + "A" * 43 + "=", "v=", "v=!", "e=other-error", "e=x", "", "rubbish", None, 5]
)
def test_a_server_that_does_not_know_the_secret(opened: Open, final: object) -> None:
    link = opened(lambda visitor: (visitor.log_in(scram=final), visitor.wait_until_gone()))
    with pytest.raises(LoginRefused, match="somebody is in the middle") as caught:
        link.login("me", SECRET)
    assert caught.value.code == -111
    assert link.closed.is_set()


@pytest.mark.parametrize("secret", ["\x07", "a\ue000b", "\u0627a", "\U000e0001"])
def test_secrets_that_no_cloud_takes(opened: Open, secret: str) -> None:
    link = opened(lambda visitor: visitor.wait_until_gone())
    with pytest.raises(LoginRefused):
        link.login("me", secret)


def test_a_certificate_that_cannot_be_read(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: bytes) -> bytes:
        raise ValueError("an odd certificate")

    monkeypatch.setattr(link_module, "end_point_binding", fail)
    link = opened(lambda visitor: visitor.wait_until_gone())
    with pytest.raises(BadPacket, match="an odd certificate"):
        link.login("me", SECRET)


def test_closing_wakes_everybody_at_once(opened: Open) -> None:
    link = opened(lambda visitor: visitor.wait_until_gone())
    call = link.call("bob", "{}", 1000)
    waiting = [gevent.spawn(link.route, "bob"), gevent.spawn(call.relay.get)]
    waiting += [gevent.spawn(link.login, "me", SECRET), gevent.spawn(call.answer.get)]
    gevent.sleep(0.01)
    link.close()
    link.close()
    for greenlet in waiting:
        with pytest.raises(LinkLost, match="closed by us"):
            greenlet.get()
