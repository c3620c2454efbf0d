"""One link to the cloud, and all that a server can do to it: an error in time, and nothing left."""

from __future__ import annotations

import os
import socket
import ssl
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.event import Event

from helpers.line_server import Gone, LineServer, MakeLink, OpenLink, RawServer, Visitor, wait_for
from helpers.support import PATIENCE_S, SECRET
from kkp2p_compat._errors import BadPacket, CallRefused, CloudUnreachable, LinkLost
from kkp2p_compat.cloud.certificate import load_identity
from kkp2p_compat.control import link as link_module
from kkp2p_compat.control.link import Link
from kkp2p_compat.control.wire import Message, encode
from kkp2p_compat.transport import tcp

# Opening.

NO_TLS = {
    "silence": lambda sock: gevent.sleep(PATIENCE_S),
    "closed at once": lambda sock: sock.close(),
    "text": lambda sock: sock.sendall(b"SSH-2.0-OpenSSH_9.9\r\n"),
    "half a hello": lambda sock: (sock.recv(1000), sock.sendall(b"\x16\x03\x03\x00"), sock.close()),
    "rubbish": lambda sock: (sock.recv(1000), sock.sendall(bytes(range(256)) * 100)),
}


@pytest.mark.usefixtures("quick_link")
@pytest.mark.parametrize("script", NO_TLS.values(), ids=NO_TLS)
def test_a_server_without_tls(make_link: MakeLink, script: Callable[[Any], object]) -> None:
    server = RawServer(script)
    link = make_link(server.address)
    with pytest.raises(CloudUnreachable, match=r"127\.0\.0\.1"):
        link.open()
    server.close()


def test_nobody_listens(make_link: MakeLink) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(CloudUnreachable, match="refused"):
            make_link(unused.getsockname()).open()


def test_reset_before_the_handshake(make_link: MakeLink, monkeypatch: pytest.MonkeyPatch) -> None:
    """gevent's wrap_socket drops a socket without closing it then, which is a warning."""
    connect = tcp.connect

    def slowly(host: str, port: int) -> Any:
        sock = connect(host, port)
        while not tcp.ended(sock):
            gevent.sleep(0.001)
        return sock

    monkeypatch.setattr(tcp, "connect", slowly)
    reset = struct.pack("ii", 1, 0)
    server = RawServer(
        lambda sock: (
            gevent.sleep(0.02),
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset),
            sock.close(),
        )
    )
    with pytest.raises(CloudUnreachable):
        make_link(server.address).open()
    server.close()


def test_an_old_tls(make_link: MakeLink, tmp_path: Path) -> None:
    identity = load_identity(tmp_path)
    identity.context.minimum_version = ssl.TLSVersion.TLSv1_2
    identity.context.maximum_version = ssl.TLSVersion.TLSv1_2
    server = LineServer(identity, lambda _: None)
    with pytest.raises(CloudUnreachable, match=r"(?i)version|alert"):
        make_link(server.address).open()
    server.close()


def test_the_caller_s_own_time_out_passes_while_opening(make_link: MakeLink) -> None:
    server = RawServer(NO_TLS["silence"])
    with pytest.raises(gevent.Timeout) as caught, gevent.Timeout(0.05) as mine:
        make_link(server.address).open()
    assert caught.value is mine
    server.close()


# Questions.


def test_route(open_link: OpenLink) -> None:
    def script(visitor: Visitor) -> None:
        assert visitor.receive() == {"op": "route", "v": 1, "peer": "bob"}
        visitor.send("track", tracks=[["10.0.0.1", 1], ["track.example", 65535]])
        visitor.receive("route")
        visitor.send("track", tracks=[["10.0.0.1", 1]] * 100)
        visitor.wait_until_gone()

    link = open_link(script)
    assert link.route("bob") == [("10.0.0.1", 1), ("track.example", 65535)]
    assert len(link.route("bob")) == link_module.MAX_TRACKS


def test_who_waited_for_another_question_need_not_ask(open_link: OpenLink) -> None:
    """As at the start of an engine, which asks by itself; a round trip less for the first call."""

    def script(visitor: Visitor) -> None:
        visitor.receive("route")
        visitor.send("track", tracks=[])
        assert visitor.receive("beat")
        visitor.send("beat")
        visitor.wait_until_gone()

    link = open_link(script)
    asking = [gevent.spawn(link.route, peer) for peer in ("anybody", "bob", "carol")]
    assert [question.get() for question in asking] == [[], [], []]
    link.check_alive()
    assert not link.closed.is_set()


BAD_TRACKS = [
    None,
    {},
    "x",
    5,
    [1],
    [[]],
    [["h"]],
    [["h", 1, 2]],
    [["h", "1"]],
    [["h", 0]],
    [["h", 65536]],
    [["h", 1.5]],
    [["h", True]],
    [["h", None]],
    [[None, 1]],
    [["", 1]],
    [["a b", 1]],
    [["a\nb", 1]],
    [["x" * 254, 1]],
    [["\u00e9", 1]],
    ["ab"],
]


@pytest.mark.parametrize("tracks", BAD_TRACKS, ids=repr)
def test_bad_tracks(open_link: OpenLink, tracks: object) -> None:
    link = open_link(lambda visitor: (visitor.receive(), visitor.send("track", tracks=tracks)))
    with pytest.raises(BadPacket):
        link.route("bob")


@pytest.mark.usefixtures("quick_link")
def test_no_answer_ends_the_link_for_everybody(open_link: OpenLink) -> None:
    link = open_link(lambda visitor: visitor.wait_until_gone())
    call = link.calls.make("bob", "{}", 1000)
    asking = [gevent.spawn(link.route, "bob") for _ in range(20)]
    for ask in asking:
        with pytest.raises(LinkLost, match="no track in time"):
            ask.get()
    with pytest.raises(LinkLost):
        call.answer.get()
    assert link.closed.is_set()


def test_the_server_is_told_of_the_end_although_a_copy_is_open(open_link: OpenLink) -> None:
    """Such as a forked child has: the peer must not count as online until its heartbeat fails."""
    gone = Event()
    link = open_link(lambda visitor: (gone_after(visitor), gone.set()))

    def gone_after(visitor: Visitor) -> None:
        with pytest.raises(Gone):
            visitor.wait_until_gone()

    with socket.socket(fileno=os.dup(link._sock.fileno())):
        link.close()
        assert gone.wait(PATIENCE_S)


def test_a_late_answer_is_not_taken_for_the_next_one(open_link: OpenLink) -> None:
    def script(visitor: Visitor) -> None:
        visitor.receive("route")
        visitor.receive("route")
        visitor.send("track", tracks=[["late.example", 1]])
        visitor.send("track", tracks=[["right.example", 1]])
        visitor.wait_until_gone()

    link = open_link(script)
    with gevent.Timeout(0.05, False):
        link.route("alice")
    assert link.route("bob") == [("right.example", 1)]


def test_answers_that_nobody_asked_for_are_dropped(open_link: OpenLink) -> None:
    def script(visitor: Visitor) -> None:
        for op in ("track", "challenge", "welcome", "beat", "calling", "answer", "declined"):
            visitor.send(op, call=99, tracks=[["wrong.example", 1]])
        visitor.send("what", is_="this")
        visitor.send("declined", call=visitor.receive("call")["call"], reason="busy")
        visitor.receive("route")
        visitor.send("track", tracks=[["right.example", 1]])
        visitor.send("track", tracks=[["again.example", 1]])
        visitor.wait_until_gone()

    link = open_link(script)
    with pytest.raises(CallRefused):
        link.calls.make("bob", "{}", 1000).answer.get()
    assert link.route("bob") == [("right.example", 1)]


@pytest.mark.parametrize("op", ["challenge", "welcome", "beat", "error"])
def test_the_answer_to_another_question(open_link: OpenLink, op: str) -> None:
    link = open_link(lambda visitor: (visitor.receive(), visitor.send(op, re="route", reason="no")))
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
    "a trickle without a text": encode("trickle", call="x"),
    "a long trickle": encode("trickle", call="x", text="x" * 4097),
    "a trickle into a long call": encode("trickle", call="x" * 129, text="x"),
}


@pytest.mark.parametrize("line", BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_line_ends_the_link(open_link: OpenLink, line: bytes) -> None:
    link = open_link(lambda visitor: (visitor.receive(), visitor.send_raw(line), visitor.receive()))
    with pytest.raises(BadPacket):
        link.route("bob")
    assert isinstance(link.close_reason, BadPacket)
    with pytest.raises(BadPacket):
        link.calls.make("bob", "{}", 1)


@pytest.mark.parametrize("ending", ["", "half a line"])
def test_the_server_closes(open_link: OpenLink, ending: str) -> None:
    link = open_link(lambda visitor: (visitor.receive(), visitor.send_raw(ending.encode())))
    with pytest.raises(LinkLost, match="closed by the cloud"):
        link.route("bob")


def test_good_bye(open_link: OpenLink, caplog: pytest.LogCaptureFixture) -> None:
    link = open_link(lambda visitor: visitor.send("bye", reason="idle\n\x1b[2J" + "x" * 9999))
    link.closed.wait()
    assert isinstance(link.close_reason, LinkLost)
    assert "\n" not in str(link.close_reason)
    assert len(str(link.close_reason)) < 200


def test_a_server_that_does_not_read(open_link: OpenLink, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it makes us hold is bounded, and nobody waits for it."""
    monkeypatch.setattr(link_module, "MAX_UNSENT_BYTES", 100_000)
    link = open_link(lambda visitor: gevent.sleep(PATIENCE_S))
    with pytest.raises(LinkLost, match="does not read"):
        flood(link, 0)
    assert link.calls._calls == {}
    assert link._unsent == []


@pytest.mark.usefixtures("quick_link")
def test_a_server_that_takes_no_line_in_time(open_link: OpenLink) -> None:
    link = open_link(lambda visitor: gevent.sleep(PATIENCE_S))
    with pytest.raises(LinkLost, match="does not read"):
        flood(link, 0.001)


def flood(link: Link, pause_s: float) -> None:
    while True:
        link.calls.make("bob", "x" * 30000, 1000)
        gevent.sleep(pause_s)


def test_a_caller_that_is_killed_leaves_no_half_line(open_link: OpenLink) -> None:
    lines: list[Message] = []

    def script(visitor: Visitor) -> None:
        gevent.sleep(0.05)  # so that the client's buffers are full for a while
        while True:
            lines.append(visitor.receive("call"))

    link = open_link(script)
    callers = [gevent.spawn(link.calls.make, "bob", "x" * 30000, 1000) for _ in range(30)]
    gevent.sleep(0)
    gevent.killall(callers)
    link.calls.make("bob", "last", 1000)
    wait_for(lambda: lines and lines[-1]["offer"] == "last")


def test_closing_wakes_everybody_at_once(open_link: OpenLink) -> None:
    link = open_link(lambda visitor: visitor.wait_until_gone())
    call = link.calls.make("bob", "{}", 1000)
    waiting = [gevent.spawn(link.route, "bob"), gevent.spawn(call.relay.get)]
    waiting += [gevent.spawn(link.login, "me", SECRET), gevent.spawn(call.answer.get)]
    gevent.sleep(0.01)
    link.close()
    link.close()
    for greenlet in waiting:
        with pytest.raises(LinkLost, match="closed by us"):
            greenlet.get()
