"""A call through the cloud as the caller makes it: what is told and what is left at its end."""

from __future__ import annotations

import contextlib
import logging
from typing import cast

import gevent
import pytest
from gevent.event import Event

import kkp2p_compat as kkp2p
from helpers.cloud_client import running_scene, tcp_pair, until
from helpers.line_server import MakeLink, OpenLink, Serve, Visitor
from kkp2p_compat._errors import LinkLost, TimedOut
from kkp2p_compat._io import time_limit
from kkp2p_compat.control.client import CloudClient
from kkp2p_compat.control.link import Link
from kkp2p_compat.control.outgoing import OutgoingCall
from kkp2p_compat.control.wire import Message
from kkp2p_compat.engine.calls import cloud_call as calls
from kkp2p_compat.engine.calls.cloud_call import call_peer, make_call
from kkp2p_compat.transport.relay import Visit


def test_the_socket_is_closed_when_the_link_breaks_with_the_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, theirs = tcp_pair()

    class Broken:
        """A link that breaks while the call is being given up."""

        @property
        def calls(self) -> Broken:
            return self

        def make(self, to: str, offer: str, budget_ms: int) -> OutgoingCall:
            call = OutgoingCall(1)
            call.relay.set({})
            return call

        def forget(self, call: object, cancel: bool) -> None:
            raise LinkLost("the cloud does not read")

    class Client:
        def links_to(self, peer_id: str) -> list[Broken]:
            return [Broken()]

    visit = Visit([("127.0.0.1", 1)], b"", True)
    visit.sock = ours
    monkeypatch.setattr(calls.RelayPlaces, "visit", lambda *_, **__: visit)
    ctx = kkp2p.connect_ctx_t("peer", timeout=10)
    with pytest.raises((LinkLost, TimedOut)), time_limit(0.01, TimedOut()):
        make_call(Client(), ctx, 0.01, "")  # type: ignore[arg-type]
    assert ours.fileno() == -1
    theirs.close()


class OneTrack:
    """As much of a CloudClient as ``call_peer`` uses."""

    log = logging.getLogger("test")

    def __init__(self, link: Link) -> None:
        self.link = link

    def links_to(self, _: str) -> list[Link]:
        return [self.link]


@pytest.mark.parametrize(
    ("answers", "fails", "told"),
    [(True, False, ["over"]), (True, True, ["cancel"]), (False, True, ["cancel"])],
)
def test_the_callee_hears_of_a_call_that_failed_after_its_answer(
    open_link: OpenLink, answers: bool, fails: bool, told: list[str]
) -> None:
    heard: list[str] = []

    def script(visitor: Visitor) -> None:
        number = visitor.receive("call")["call"]
        visitor.send("calling", call=number, relay=[])
        if answers:
            visitor.send("answer", call=number, answer="{}")
        while (message := visitor.receive())["op"] != "route":
            heard.append(message["op"])
        visitor.send("track", tracks=[])
        visitor.wait_until_gone()

    link = open_link(script)
    client = cast(CloudClient, OneTrack(link))
    failure = pytest.raises(TimedOut, match="no path") if fails else contextlib.nullcontext()

    def fail(*_: object) -> None:
        raise TimedOut("no path")

    meanwhile = fail if not answers else lambda *_: None
    with failure, call_peer(client, "bob", "{}", 1.0, meanwhile) as (_, call):
        assert call.answer.get() == "{}"
        if fails:
            fail()
    link.route("x")
    assert heard == told


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AGAIN_FIRST_S", "AGAIN_SPREAD_S", "AGAIN_MOST_S"):
        monkeypatch.setattr(calls, name, 0.001)


@pytest.mark.parametrize("named", [False, True])
def test_a_call_that_is_put_off_is_made_again_while_there_is_time(
    short_pauses: None, open_link: OpenLink, named: bool
) -> None:
    """``named``: the track has named the relay already, and then needs the room for others."""
    made: list[Message] = []

    def script(visitor: Visitor) -> None:
        for _ in range(3):
            made.append(visitor.receive("call"))
            again = {"call": made[-1]["call"], "reason": "limit", "again": True}
            if named:
                visitor.send("calling", call=made[-1]["call"], relay=[])
            visitor.send("declined", **again)
        made.append(visitor.receive("call"))
        visitor.send("calling", call=made[-1]["call"], relay=[])
        visitor.send("answer", call=made[-1]["call"], answer="{}")
        visitor.wait_until_gone()

    client = cast(CloudClient, OneTrack(open_link(script)))
    with call_peer(client, "bob", "{}", 60.0) as (_, call):
        assert call.answer.get() == "{}"
        assert call.relay.get()["call"] == call.number
    assert len({message["call"] for message in made}) == 4
    times = [message["ms"] for message in made]
    assert times == sorted(times, reverse=True)
    assert times[-1] < 60_000


@pytest.mark.parametrize(("again", "budget_s"), [(True, 0.5), (None, 60.0)])
def test_a_call_that_meets_a_limit_fails_when_time_is_short_or_the_limit_is_its_own(
    open_link: OpenLink, again: bool | None, budget_s: float
) -> None:
    def script(visitor: Visitor) -> None:
        visitor.send("declined", call=visitor.receive("call")["call"], reason="limit", again=again)
        visitor.wait_until_gone()

    client = cast(CloudClient, OneTrack(open_link(script)))
    with (
        pytest.raises(LinkLost, match="limit of the cloud"),
        call_peer(client, "bob", "{}", budget_s) as (_, call),
    ):
        call.relay.get()


def test_a_call_whose_track_is_lost_before_the_answer_is_made_by_another(
    short_pauses: None, make_link: MakeLink, serve: Serve
) -> None:
    made: list[Message] = []

    def script(visitor: Visitor) -> None:
        made.append(visitor.receive("call"))
        if len(made) == 1:
            visitor.send("calling", call=made[0]["call"], relay=[])
            return  # it is lost
        visitor.send("calling", call=made[1]["call"], relay=[])
        visitor.send("answer", call=made[1]["call"], answer="{}")
        visitor.wait_until_gone()

    server = serve(script)

    class Anew(OneTrack):
        def links_to(self, _: str) -> list[Link]:
            link = make_link(server.address)
            link.open()
            return [link]

    client = cast(CloudClient, Anew(make_link(server.address)))
    with call_peer(client, "bob", "{}", 60.0) as (_, call):
        assert call.answer.get() == "{}"
    assert [message["to"] for message in made] == ["bob", "bob"]


def test_of_500_calls_at_once_by_strangers_none_fails(
    short_pauses: None, make_link: MakeLink
) -> None:
    """A peer has room for 256.  Three addresses take it all; two that come then get their share of
    it, for which calls that waited already have to go, and are made again.
    """
    # Each connection counts as an address, and with pauses so short each makes many calls.
    with running_scene(limit_loopback=False, calls_per_s=100_000.0) as scene:
        most = scene.cloud.gate.limits.strangers_to_a_peer
        links = [make_link(scene.cloud.address) for _ in range(5)]
        named: list[OutgoingCall] = []
        displaced = Event()

        def call(link: Link) -> str:
            client = cast(CloudClient, OneTrack(link))
            with call_peer(client, "callee", "{}", 60.0, note) as (_, made):
                return made.answer.get()

        def note(_: Link, made: OutgoingCall) -> None:
            named.append(made)
            if len(named) > most:
                displaced.set()  # nothing was answered yet, so it has the place of another

        def answer() -> None:
            displaced.wait()
            while True:
                message = scene.callee.receive()
                if message["op"] == "offer":
                    scene.callee.send("answer", call=message["call"], answer="{}")

        callee = gevent.spawn(answer)
        calls = []
        for link in links:
            link.open()
            calls += [gevent.spawn(call, link) for _ in range(100)]
            expected = min(len(calls), most)
            until(lambda: len(named) >= expected)  # noqa: B023
        gevent.joinall(calls)
        callee.kill()
    assert [each.value for each in calls] == ["{}"] * 500
