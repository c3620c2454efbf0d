"""Logging in to the cloud: the steps, each refusal, and servers that are not what they say."""

from __future__ import annotations

from typing import Any

import pytest

from helpers.line_server import Gone, Offers, OpenLink, Script, Visitor, wait_for
from helpers.support import SECRET
from kkp2p_compat._errors import BadPacket, DuplicateLogin, KKP2PError, LinkLost, LoginRefused
from kkp2p_compat.control import scram
from kkp2p_compat.control.wire import encode

LOGIN_STEPS = ["login", "proof"]


def test_login_offers_and_heartbeats(open_link: OpenLink, offers: Offers) -> None:
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

    link = open_link(script)
    assert link.route("me") == []
    link.login("me", SECRET)
    wait_for(lambda: len(offers) == 2)
    assert [message["call"] for message in offers] == ["right behind the welcome", "over"]


def offer(visitor: Visitor, call: str) -> None:
    visitor.send("offer", call=call, ms=5000, offer="{}", relay=["127.0.0.1", 1, "x"])


@pytest.mark.parametrize("step", ["login", "proof", "welcome"])
def test_a_server_that_has_proved_nothing_calls_nobody(
    open_link: OpenLink, offers: Offers, step: str
) -> None:
    """Whenever it sends them, also right behind a welcome that does not verify."""

    def script(visitor: Visitor) -> None:
        scram = visitor.scram()
        scram.set_client_first(visitor.receive("login")["scram"])
        if step == "login":
            offer(visitor, "instead of a challenge")
        visitor.send("challenge", scram=scram.get_server_first())
        visitor.receive("proof")
        if step == "proof":
            offer(visitor, "instead of a welcome")
        welcome = encode("welcome", scram="v=AAAA", beat=60)
        visitor.send_raw(welcome + encode("offer", call="behind a false welcome", offer="{}"))
        visitor.wait_until_gone()

    link = open_link(script)
    with pytest.raises(LoginRefused):
        link.login("me", SECRET)
    assert offers == []


def test_what_comes_right_behind_a_true_welcome_counts(open_link: OpenLink, offers: Offers) -> None:
    """In the very same record, and as much as there may be."""
    calls = [str(number) for number in range(300)]

    def script(visitor: Visitor) -> None:
        offer(visitor, "too early")
        scram = visitor.scram()
        scram.set_client_first(visitor.receive("login")["scram"])
        visitor.send("challenge", scram=scram.get_server_first())
        scram.set_client_final(visitor.receive("proof")["scram"])
        welcome = encode("welcome", scram=scram.get_server_final(), beat=60)
        visitor.send_raw(welcome + b"".join(encode("offer", call=call) for call in calls))
        visitor.wait_until_gone()

    open_link(script).login("me", SECRET)
    wait_for(lambda: len(offers) == len(calls))
    assert [message["call"] for message in offers] == calls


def test_nobody_is_called_where_we_only_call(open_link: OpenLink, offers: Offers) -> None:
    def script(visitor: Visitor) -> None:
        visitor.log_in()
        offer(visitor, "by an old cloud")
        visitor.receive("beat")
        visitor.send("beat")
        visitor.wait_until_gone()

    link = open_link(script)
    link.login("me", SECRET, call_only=True)
    link.check_alive()
    assert (link.peer_id, link.takes_offers, offers) == ("me", False, [])


def test_fewer_iterations_than_the_last_time_are_refused(open_link: OpenLink) -> None:
    """Whoever is in the middle would make guessing the secret cheaper."""

    def script(visitor: Visitor) -> None:
        visitor.log_in(iterations=8192)
        visitor.wait_until_gone()

    link = open_link(script)
    link.login("me", SECRET, least_iterations=8192)
    assert link.iterations == 8192
    with pytest.raises(BadPacket, match="under 8193"):
        open_link(script).login("me", SECRET, least_iterations=8193)


@pytest.mark.usefixtures("quick_link")
def test_no_heartbeat(open_link: OpenLink) -> None:
    link = open_link(lambda visitor: (visitor.log_in(beat=0.1), visitor.wait_until_gone()))
    link.login("me", SECRET)
    link.closed.wait()
    assert "beat" in str(link.close_reason)


def test_a_heartbeat_behind_other_things(open_link: OpenLink) -> None:
    """The link is busy, not dead; it is dead when nothing at all comes."""

    def script(visitor: Visitor) -> None:
        visitor.log_in()
        visitor.receive("beat")
        visitor.send("news")
        visitor.receive("beat")
        visitor.send("beat")
        visitor.send("beat")
        visitor.wait_until_gone()

    link = open_link(script)
    link.login("me", SECRET)
    link.check_alive(1.0)
    assert not link.closed.is_set()
    link.check_alive(0.1)
    assert "no answer in time" in str(link.close_reason)


@pytest.mark.parametrize("beat", [None, "1", -1, 0, 1e9, True, [1]])
def test_odd_heartbeats(open_link: OpenLink, beat: object) -> None:
    link = open_link(lambda visitor: (visitor.log_in(beat=beat), visitor.wait_until_gone()))
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


@pytest.mark.usefixtures("quick_link")
@pytest.mark.parametrize("step", LOGIN_STEPS)
@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
def test_a_login_that_may_be_tried_again(open_link: OpenLink, step: str, act: Script) -> None:
    link = open_link(hostile(step, act))
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
    open_link: OpenLink, step: str, reason: object, kind: type[KKP2PError], code: int
) -> None:
    link = open_link(hostile(step, lambda visitor: visitor.send("refused", reason=reason)))
    with pytest.raises(KKP2PError) as caught:
        link.login("me", SECRET)
    assert (type(caught.value), caught.value.code) == (kind, code)


NONCE = "r={client}server"
CHALLENGES: dict[str, tuple[object, type[KKP2PError]]] = {
    "ten million iterations": ("r={nonce}x,s=c2FsdHNhbHRzYWx0,i=10000000", BadPacket),
    "just over the limit": ("r={nonce}x,s=c2FsdHNhbHRzYWx0,i=100001", BadPacket),
    "a huge number": ("r={nonce}x,s=c2FsdHNhbHRzYWx0,i=" + "9" * 5000, BadPacket),
    "two numbers": ("r={nonce}x,s=c2FsdHNhbHRzYWx0,i=4096,i=10000000", BadPacket),
    "hardly any iterations": ("r={nonce}x,s=c2FsdHNhbHRzYWx0,i=1", BadPacket),
    "a negative number": ("r={nonce}x,s=c2FsdHNhbHRzYWx0,i=-5", BadPacket),
    "no number": ("r={nonce}x,s=c2FsdHNhbHRzYWx0", BadPacket),
    "another nonce": ("r=other,s=c2FsdHNhbHRzYWx0,i=4096", LoginRefused),
    "no nonce": ("s=c2FsdHNhbHRzYWx0,i=4096", BadPacket),
    "base64 cut short": ("r={nonce}x,s=c2FsdHNhbHRzYWx,i=4096", LoginRefused),
    "no base64": ("r={nonce}x,s=!!!,i=4096", BadPacket),
    "an extension": ("m=x,r={nonce}x,s=c2FsdHNhbHRzYWx0,i=4096", BadPacket),
    "an error": ("e=other-error,i=4096", BadPacket),
    "rubbish": (",,,=,i=4096,", BadPacket),
    "not text": (5, BadPacket),
    "a list": ([",i=4096,"], BadPacket),
    "nothing": (None, BadPacket),
}


@pytest.mark.parametrize(("challenge", "kind"), CHALLENGES.values(), ids=CHALLENGES)
def test_hostile_challenges(open_link: OpenLink, challenge: Any, kind: type[KKP2PError]) -> None:
    def script(visitor: Visitor) -> None:
        nonce = visitor.receive("login")["scram"].rpartition("r=")[2]
        text = challenge.replace("{nonce}", nonce) if isinstance(challenge, str) else challenge
        visitor.send("challenge", scram=text)
        with pytest.raises(Gone):
            visitor.receive()

    link = open_link(script)
    with pytest.raises(KKP2PError) as caught:
        link.login("me", SECRET)
    assert type(caught.value) is kind
    assert len(str(caught.value)) < 400
    assert link.closed.is_set()


@pytest.mark.parametrize(
    "final",
    ["v=" + "A" * 43 + "=", "v=", "v=!", "v=A", "e=other-error", "e=x", "", "rubbish", None, 5],
)
def test_a_server_that_does_not_know_the_secret(open_link: OpenLink, final: object) -> None:
    link = open_link(lambda visitor: (visitor.log_in(scram=final), visitor.wait_until_gone()))
    with pytest.raises(
        LoginRefused,
        match=r"cloud [0-9.]+:\d+ does not know the secret itself, or somebody is in the middle",
    ) as caught:
        link.login("me", SECRET)
    assert caught.value.code == -111
    assert link.closed.is_set()


@pytest.mark.parametrize("secret", ["\x07", "a\ue000b", "\u0627a", "\U000e0001"])
def test_secrets_that_no_cloud_takes(open_link: OpenLink, secret: str) -> None:
    link = open_link(Visitor.log_in)  # scramp 1.4 finds out when it makes the proof
    with pytest.raises(LoginRefused):
        link.login("me", secret)


def test_a_certificate_that_cannot_be_read(
    open_link: OpenLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: bytes) -> bytes:
        raise ValueError("an odd certificate")

    monkeypatch.setattr(scram, "end_point_binding", fail)
    link = open_link(lambda visitor: visitor.wait_until_gone())
    with pytest.raises(BadPacket, match="an odd certificate"):
        link.login("me", SECRET)
