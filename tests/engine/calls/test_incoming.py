"""What a cloud brings to an engine: offers that are odd, too many or none of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest

import kkp2p_compat as kkp2p
from helpers.line_server import RawServer, Script, Serve, Visitor, all_here, wait_for
from helpers.support import PATIENCE_S, SECRET, in_thread
from kkp2p_compat._errors import LinkLost
from kkp2p_compat.control import link as link_module
from kkp2p_compat.engine.calls import incoming
from kkp2p_compat.transport.relay_wire import CALLEE, make_token, token_to_text

pytestmark = pytest.mark.usefixtures("quick_backoff")

TOKEN = token_to_text(make_token(b"key", bytes(16), CALLEE, 2**32 - 1))


def ctx(timeout: int = PATIENCE_S * 1000) -> kkp2p.connect_ctx_t:
    return kkp2p.connect_ctx_t("bob", timeout=timeout)


def offer(number: int, **fields: Any) -> dict[str, Any]:
    text = '{"type":0,"mode":2,"encrypt":0,"desc":1}'
    return {
        "call": str(number),
        "ms": 5000,
        "offer": text,
        "relay": ["127.0.0.1", 1, TOKEN],
    } | fields


@pytest.fixture
def joined(engine_conf: Callable[..., Any], serve: Serve) -> Iterator[Callable[..., Any]]:
    engines: list[kkp2p.engine_t] = []

    def join(script: Script) -> kkp2p.engine_t:
        port = serve(all_here(lambda visitor: (visitor.log_in(), script(visitor)))).address[1]
        engine = kkp2p.engine_init(engine_conf(login_domain="127.0.0.1", login_port=port), 0)
        assert engine is not None
        engines.append(engine)
        assert kkp2p.join_net(engine, "me", SECRET) == 0
        return engine

    yield join
    for engine in engines:
        kkp2p.engine_destroy(engine)


ODD_OFFERS: dict[str, tuple[dict[str, Any], str]] = {
    "no relay": ({"relay": None}, "bad-message"),
    "nobody at the relay": ({}, "relay"),
    "a budget of no time": ({"ms": 0}, "bad-message"),
    "an endless budget": ({"ms": 10**9}, "bad-message"),
    "a budget in words": ({"ms": "long"}, "bad-message"),
    "no offer": ({"offer": None}, "bad-message"),
    "no JSON": ({"offer": "x" * 30000}, "bad-message"),
    "deep JSON": ({"offer": "[" * 30000}, "bad-message"),
    "another type": ({"offer": '{"type":1,"mode":2,"encrypt":0,"desc":1}'}, "unsupported"),
    "p2p only": ({"offer": '{"type":0,"mode":1,"encrypt":0,"desc":1}'}, "unsupported"),
    "a type that is none": ({"offer": '{"type":9,"mode":2,"encrypt":0,"desc":1}'}, "bad-message"),
    "a truth for a number": (
        {"offer": '{"type":false,"mode":2,"encrypt":0,"desc":1}'},
        "bad-message",
    ),
    "too large a number": (
        {"offer": '{"type":0,"mode":2,"encrypt":0,"desc":2147483648}'},
        "bad-message",
    ),
}


def test_odd_offers_are_declined_one_by_one(joined: Callable[..., Any]) -> None:
    reasons: dict[str, str] = {}

    def script(visitor: Visitor) -> None:
        for number, (fields, _) in enumerate(ODD_OFFERS.values()):
            visitor.send("offer", **offer(number, **fields))
        visitor.send("cancel", call="never heard of")
        while True:
            message = visitor.receive("decline")
            reasons[message["call"]] = message["reason"]

    engine = joined(script)
    wait_for(lambda: len(reasons) == len(ODD_OFFERS))
    expected = {str(number): reason for number, (_, reason) in enumerate(ODD_OFFERS.values())}
    assert reasons == expected
    assert kkp2p.accept(engine, 0, kkp2p.channel_t()) == 0


@pytest.mark.tuned(accept_queue_places=1)
def test_a_place_to_be_accepted_is_for_callers_that_are_there(joined: Callable[..., Any]) -> None:
    """A stranger's call has one only when he has come to the relay, or the track says that."""
    came: list[Any] = []

    def stay(sock: Any) -> None:
        came.append(sock)
        gevent.sleep(PATIENCE_S)

    hole = RawServer(stay)
    declined: list[Any] = []

    def script(visitor: Visitor) -> None:
        for number in range(4):
            shown = {"shown": True} if number > 2 else {}
            visitor.send("offer", **offer(number, relay=[*hole.address, TOKEN], **shown))
            visitor.receive("answer")
        visitor.send("offer", **offer(4, relay=[*hole.address, TOKEN]))
        declined.append(visitor.receive("decline"))
        visitor.wait_until_gone()

    joined(script)
    wait_for(lambda: declined)
    hole.close()
    assert len(came) == 4
    assert declined == [{"op": "decline", "call": "4", "reason": "busy"}]


def test_a_flood_of_offers(joined: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """From a cloud that reads nothing.  The engine holds a bounded number, and lives on."""
    monkeypatch.setattr(incoming, "MAX_ANSWERING", 50)
    monkeypatch.setattr(link_module, "MAX_UNSENT_BYTES", 20_000)
    hole = RawServer(lambda sock: gevent.sleep(PATIENCE_S))
    held: list[int] = []
    handle_message = incoming.IncomingCalls.handle_message

    def noted(calls: incoming.IncomingCalls, *args: Any) -> None:
        handle_message(calls, *args)
        held.append(len(calls._answering))

    monkeypatch.setattr(incoming.IncomingCalls, "handle_message", noted)

    def script(visitor: Visitor) -> None:
        for number in range(3000):
            visitor.send("offer", **offer(number, relay=[*hole.address, TOKEN]))
            if number % 50 == 0:
                gevent.sleep(0)

    engines: list[kkp2p.engine_t] = []
    engines.append(joined(script))
    errors = []
    link = None
    while link is None or not link.closed.is_set():
        client = engines[0].client
        link = link or client._home_link
        gevent.sleep(0.001)
    errors.append(link.close_reason)
    assert isinstance(errors[0], LinkLost)
    assert 0 < max(held) <= 50
    assert in_thread(lambda: kkp2p.accept(engines[0], 0, kkp2p.channel_t())) == 0
    kkp2p.engine_destroy(engines[0])
    hole.close()


def test_calls_from_a_cloud_that_we_have_not_joined(
    engine_conf: Callable[..., Any], serve: Serve
) -> None:
    seen = []

    def script(visitor: Visitor) -> None:
        for number in range(10):
            visitor.send("offer", **offer(number))
        call = visitor.receive("call")
        visitor.send("declined", call=call["call"], reason="offline")
        seen.append(visitor.receive())

    port = serve(all_here(script)).address[1]
    engine = kkp2p.engine_init(engine_conf(login_domain="127.0.0.1", login_port=port), 0)
    assert engine is not None
    assert kkp2p.connect(engine, ctx(), kkp2p.channel_t()) == -109
    kkp2p.engine_destroy(engine)
    assert seen == []


def test_destroy_in_the_middle_of_everything(engine_conf: Callable[..., Any], serve: Serve) -> None:
    """A login, calls and offers under way; none of it is left, which the leak check looks at."""
    hole = RawServer(lambda sock: gevent.sleep(PATIENCE_S))

    def script(visitor: Visitor) -> None:
        scram = visitor.scram()
        while (message := visitor.receive())["op"] != "proof":
            if message["op"] == "login":
                scram.set_client_first(message["scram"])
                visitor.send("challenge", scram=scram.get_server_first())
        scram.set_client_final(message["scram"])
        visitor.send("welcome", scram=scram.get_server_final(), beat=60)
        for number in range(20):
            visitor.send("offer", **offer(number, relay=[*hole.address, TOKEN]))
        visitor.wait_until_gone()

    port = serve(all_here(script)).address[1]
    for pause_s in (0, 0.001, 0.003, 0.01, 0.03, 0.1):
        engine = kkp2p.engine_init(engine_conf(login_domain="127.0.0.1", login_port=port), 0)
        assert engine is not None
        joining = gevent.spawn(kkp2p.join_net, engine, "me", SECRET)
        calls = [gevent.spawn(kkp2p.connect, engine, ctx(), kkp2p.channel_t()) for _ in range(5)]
        gevent.sleep(pause_s)
        kkp2p.engine_destroy(engine)
        assert {call.get() for call in calls} <= {-1, -107, -109}
        assert joining.get() in (0, -1)
    hole.close()
