"""Searching and being found, on loopback only.  The rest is in tests/lab/test_lan_hosts.py."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import gevent
import pytest
from gevent import socket
from gevent.event import Event

from helpers.support import PATIENCE_S
from kkp2p_compat import _codes
from kkp2p_compat._errors import BadPacket, CallRefused, KKP2PError, TimedOut, UnprovenPeer
from kkp2p_compat.traversal import lan
from kkp2p_compat.traversal.interfaces import Interface
from kkp2p_compat.traversal.lan_wire import (
    ANSWER,
    MAX_SOURCE_SEARCHES,
    RESEND_S,
    SEARCH,
    Message,
    encode,
    parse_untrusted,
)

LOG = logging.getLogger("test.lan")
LOOPBACK = Interface("lo", "127.0.0.1", 8)
NOWHERE = Interface("eth7", "203.0.113.5", 24)  # RFC 5737: no network of ours
Address = tuple[str, int]
Start = Callable[..., lan.Responder]


@pytest.fixture(autouse=True)
def interfaces(monkeypatch: pytest.MonkeyPatch) -> list[Interface]:
    """Those of this host.  A test run broadcasts nothing on the network that it runs in."""
    found = [LOOPBACK]
    monkeypatch.setattr(lan, "interfaces", lambda: list(found))
    return found


@pytest.fixture
def start() -> Iterator[Start]:
    made: list[lan.Responder] = []

    def start(
        answer: Callable[[str, Address], str | None] | str = "an answer",
        peer_id: str = "peer",
        port: int = 0,
    ) -> lan.Responder:
        function = (lambda offer, source: answer) if isinstance(answer, str) else answer
        responder = lan.Responder(peer_id, port, function, LOG)
        responder.start()
        made.append(responder)
        return responder

    yield start
    for responder in made:
        responder.close()


class Host:
    """A socket that sends and receives LAN messages by hand."""

    def __init__(self, ip: str = "127.0.0.1", port: int = 0) -> None:
        self.sock: Any = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.sock.bind((ip, port))
        self.sock.settimeout(PATIENCE_S)
        self.address = self.sock.getsockname()

    def search(self, responder: lan.Responder, number: int, peer_id: str = "peer") -> None:
        message = Message(SEARCH, number.to_bytes(16, "big"), peer_id, "an offer")
        self.sock.sendto(encode(message), ("127.0.0.1", responder.port))

    def receive(self) -> tuple[Message, Address]:
        data, source = self.sock.recvfrom(2000)
        return parse_untrusted(data), source

    def close(self) -> None:
        self.sock.close()


def search(
    port: int, peer_id: str = "peer", seconds: float = PATIENCE_S, take: Callable[[str], str] = str
) -> tuple[str, str]:
    return lan.search(peer_id, "an offer", port, seconds, LOG, take)


def until(condition: Callable[[], object]) -> None:
    with gevent.Timeout(PATIENCE_S):
        while not condition():
            gevent.sleep(0.001)  # counters have no event


def count(caplog: pytest.LogCaptureFixture, text: str) -> int:
    return sum(text in record.getMessage() for record in caplog.records)


# Found.


def test_a_peer_is_found(start: Start) -> None:
    calls = []

    def answer(offer: str, source: Address) -> str:
        calls.append((offer, source[0]))
        return "ä" * 500

    assert search(start(answer).port) == ("ä" * 500, "127.0.0.1")
    assert calls == [("an offer", "127.0.0.1")]


def test_each_of_several_peers_on_a_host_is_found(start: Start) -> None:
    port = start("answer 0", "peer0").port
    for number in range(1, 8):
        start(f"answer {number}", f"peer{number}", port)
    searches = [gevent.spawn(search, port, f"peer{number}") for number in range(8)]
    assert [found.get()[0] for found in searches] == [f"answer {number}" for number in range(8)]


def test_a_peer_that_comes_later_is_found(start: Start) -> None:
    with closing(Host("")) as witness:
        searching = gevent.spawn(search, witness.address[1])
        witness.receive()
        start(port=witness.address[1])
        assert searching.get() == ("an answer", "127.0.0.1")


def test_an_interface_that_comes_later_is_used(
    start: Start, interfaces: list[Interface], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = Event()
    interfaces.clear()
    monkeypatch.setattr(lan, "interfaces", lambda: looked.set() or list(interfaces))
    responder = start()
    searching = gevent.spawn(search, responder.port)
    assert looked.wait(PATIENCE_S)
    interfaces.append(LOOPBACK)
    assert searching.get() == ("an answer", "127.0.0.1")


def test_an_unusable_interface_is_logged_once_and_harms_no_other(
    start: Start, interfaces: list[Interface], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    interfaces += [NOWHERE, Interface("tun7", "203.0.113.77", 32)]
    with closing(Host("")) as witness:
        searching = gevent.spawn(search, witness.address[1])
        for _ in range(3):
            witness.receive()
        start(port=witness.address[1])
        assert searching.get() == ("an answer", "127.0.0.1")
    assert count(caplog, "peer: LAN: cannot search 203.0.113.255: ") == 1
    assert count(caplog, "no search on tun7: 203.0.113.77/32 has no broadcast address") == 1


# Firewalls that let in the search port, and what is an answer to somebody who was asked.


def test_every_second_answer_is_broadcast_to_the_search_port(start: Start) -> None:
    responder = start()
    with closing(Host()) as host, closing(Host("", responder.port)) as behind:
        host.sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        search = encode(Message(SEARCH, bytes(16), "peer", "an offer"))
        heard: list[str] = []

        def listen(name: str, receive: Callable[[], tuple[Message, Address]]) -> None:
            while True:
                if receive()[0].kind == ANSWER:
                    heard.append(name)

        listening = [
            gevent.spawn(listen, "the searcher", host.receive),
            gevent.spawn(listen, "all", behind.receive),
        ]
        with gevent.Timeout(PATIENCE_S):
            while min(heard.count("the searcher"), heard.count("all")) < 2:
                host.sock.sendto(search, ("127.255.255.255", responder.port))
                gevent.sleep(RESEND_S)
        gevent.killall(listening)


def test_a_broadcast_answer_is_heard_by_the_search_that_it_is_for() -> None:
    with closing(Host("")) as callee:
        port = callee.address[1]
        searches = [gevent.spawn(search, port, peer_id) for peer_id in ("one", "two", "one")]
        ids: dict[bytes, str] = {}
        while len(ids) < len(searches):
            question, _ = callee.receive()
            ids[question.search_id] = question.peer_id
        callee.sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        for number, (search_id, peer_id) in enumerate(ids.items()):
            answer = Message(ANSWER, search_id, peer_id, f"{peer_id} {number}")
            callee.sock.sendto(encode(answer), ("127.255.255.255", port))
        found = [searching.get()[0] for searching in searches]
    assert sorted(text.split()[1] for text in found) == ["0", "1", "2"]
    assert [text.split()[0] for text in found] == ["one", "two", "one"]


def test_a_search_port_that_another_program_has_for_itself(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """The answer to the search's own port is heard."""
    caplog.set_level(logging.INFO)
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as other:
        other.bind(("", 0))
        port = other.getsockname()[1]
        searching = gevent.spawn(search, port)
        data, source = other.recvfrom(2000)
        question = parse_untrusted(data)
        other.sendto(encode(question._replace(kind=ANSWER, text="found")), source)
        assert searching.get()[0] == "found"
    assert count(caplog, f"answers to port {port} are not heard") == 1


# Not found.


def test_nobody_answers(start: Start) -> None:
    with pytest.raises(TimedOut, match="nobody answered") as caught:
        search(start().port, "another", 0.15)
    assert caught.value.code == _codes.KKP2P_ERROR_CONNECT_TIMEOUT


def test_no_time_to_search(start: Start) -> None:
    responder = start()
    with pytest.raises(TimedOut):
        search(responder.port, seconds=0)
    assert search(responder.port)[0] == "an answer"
    assert not responder.dropped


def test_no_interfaces_to_be_had(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As when the process is out of descriptors."""

    def fail() -> list[Interface]:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(lan, "interfaces", fail)
    with pytest.raises(TimedOut):
        search(9, seconds=0.2)
    assert count(caplog, "cannot list the interfaces: [Errno 24]") == 1


def test_the_callers_own_timeout_passes_through() -> None:
    with pytest.raises(gevent.Timeout) as caught, gevent.Timeout(0.05) as own:
        search(9)
    assert caught.value is own


def test_the_wrong_answers_are_ignored(caplog: pytest.LogCaptureFixture) -> None:
    with closing(Host("")) as stranger:
        searching = gevent.spawn(search, stranger.address[1])
        question, source = stranger.receive()
        good = question._replace(kind=ANSWER, text="right")
        for wrong in (
            good._replace(search_id=bytes(16), text="a guess"),
            good._replace(peer_id="other", text="another peer"),
            question,
        ):
            stranger.sock.sendto(encode(wrong), source)
        for junk in (b"", b"junk", encode(good)[:-1], bytes(9000)):
            stranger.sock.sendto(junk, source)
        stranger.sock.sendto(encode(good), source)
        assert searching.get() == ("right", "127.0.0.1")
    assert count(caplog, "sent a LAN message of a bad length") == 1


def only_right(text: str) -> str:
    if text != "right":
        raise BadPacket(f"not right: {text}")
    return text.upper()


def test_an_answer_that_is_refused_does_not_end_the_search(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with closing(Host("")) as stranger, closing(Host("")) as peer:
        searching = gevent.spawn(search, stranger.address[1], take=only_right)
        question, source = stranger.receive()
        for text in ("garbage", "more of it"):
            stranger.sock.sendto(encode(question._replace(kind=ANSWER, text=text)), source)
        until(lambda: count(caplog, "not right: garbage"))
        peer.sock.sendto(encode(question._replace(kind=ANSWER, text="right")), source)
        assert searching.get() == ("RIGHT", "127.0.0.1")
        text = f"peer: LAN: the answer of 127.0.0.1:{stranger.address[1]} is not taken, "
        assert count(caplog, text + "the search goes on: not right: garbage") == 1
    assert count(caplog, "not right") == 1


def unproven(text: str) -> str:
    raise UnprovenPeer(f"no proof: {text}")


def test_when_no_answer_has_the_proof_that_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The peer itself may have lost its key: its caller is told, long before the time is over."""
    monkeypatch.setattr(lan, "UNPROVEN_S", 0.01)
    with closing(Host("")) as peer:
        searching = gevent.spawn(search, peer.address[1], take=unproven)
        question, source = peer.receive()
        for text in ("one", "two"):
            peer.sock.sendto(encode(question._replace(kind=ANSWER, text=text)), source)
        with pytest.raises(UnprovenPeer, match="no proof: one"):
            searching.get()


def test_answers_that_are_refused_do_not_hold_up_the_time_out() -> None:
    with closing(Host("")) as stranger:
        searching = gevent.spawn(search, stranger.address[1], seconds=0.3, take=only_right)
        question, source = stranger.receive()
        wrong = encode(question._replace(kind=ANSWER, text="garbage"))
        while not searching.ready():
            stranger.sock.sendto(wrong, source)
            gevent.sleep(0)
        assert isinstance(searching.exception, TimedOut)


def test_a_flood_does_not_hold_up_the_time_out() -> None:
    with closing(Host("")) as stranger:
        searching = gevent.spawn(search, stranger.address[1], seconds=0.3)
        _, source = stranger.receive()
        while not searching.ready():
            for _ in range(20):
                stranger.sock.sendto(b"junk", source)
            gevent.sleep(0)
        assert isinstance(searching.exception, TimedOut)


# Answering.


def test_a_slow_answer_is_made_once(start: Start) -> None:
    calls, go_on = [], Event()

    def answer(offer: str, source: Address) -> str:
        calls.append(source)
        go_on.wait()
        return "an answer"

    responder = start(answer)
    searching = gevent.spawn(search, responder.port)
    until(lambda: responder.dropped.total() >= 3)
    go_on.set()
    assert searching.get() == ("an answer", "127.0.0.1")
    assert len(calls) == 1


def test_a_repeat_gets_the_same_answer_and_another_source_none(start: Start) -> None:
    calls = []

    def answer(offer: str, source: Address) -> str:
        calls.append(source)
        return f"answer {len(calls)}"

    responder = start(answer)
    with closing(Host()) as host, closing(Host()) as elsewhere:
        answers = []
        host.search(responder, 1)
        answers.append(host.receive())
        elsewhere.search(responder, 1)
        host.sock.settimeout(0.05)
        while len(answers) < 3:
            host.search(responder, 1)
            try:
                answers.append(host.receive())
            except TimeoutError:
                assert responder.dropped["repeated too soon"]
        assert {message.text for message, _ in answers} == {"answer 1"}
        assert responder.dropped["heard from another address of the same host before"] == 1
        assert calls == [host.address]
        elsewhere.sock.settimeout(0.05)
        with pytest.raises(TimeoutError):
            elsewhere.receive()


@pytest.mark.parametrize("end", [None, CallRefused("busy")])
def test_a_refusal_is_silent_and_final(start: Start, end: Exception | None) -> None:
    calls = []

    def answer(offer: str, source: Address) -> None:
        calls.append(source)
        if end is not None:
            raise end

    responder = start(answer)
    with pytest.raises(TimedOut):
        search(responder.port, seconds=0.3)
    assert responder.dropped["its answer is being made, or there is none"]
    assert len(calls) == 1


def test_a_bug_in_one_answer_leaves_the_responder(start: Start) -> None:
    def answer(offer: str, source: Address) -> str:
        return "x" * (2000 if not responder.dropped else 5)

    responder = start(answer)
    with closing(Host()) as host:
        host.search(responder, 1)
        until(lambda: host.search(responder, 1) or responder.dropped.total())
        host.search(responder, 2)
        assert host.receive()[0].text == "xxxxx"


def test_more_answers_at_once_than_there_are_places_for(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    go_on = Event()

    def answer(offer: str, source: Address) -> str:
        go_on.wait()
        return "an answer"

    responder = start(answer)
    with closing(Host()) as host:
        for number in range(lan.MAX_ANSWERING + 3):
            host.search(responder, number)
        until(lambda: responder.dropped["too many answers are being made"] == 3)
        assert count(caplog, "is dropped: too many answers are being made") == 1
        go_on.set()
        for _ in range(lan.MAX_ANSWERING):
            host.receive()
        host.search(responder, lan.MAX_ANSWERING)
        assert host.receive()[0].search_id == lan.MAX_ANSWERING.to_bytes(16, "big")


def test_one_address_that_searches_too_much(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    responder = start()
    with closing(Host()) as host, closing(Host("127.0.0.2")) as other:
        for number in range(MAX_SOURCE_SEARCHES):
            host.search(responder, number)
            host.receive()
        for number in range(MAX_SOURCE_SEARCHES, MAX_SOURCE_SEARCHES + 5):
            host.search(responder, number)
        until(lambda: responder.dropped["too many searches from one address"] == 5)
        assert count(caplog, "is dropped: too many searches from one address") == 1
        other.search(responder, 9999)
        assert other.receive()[0].text == "an answer"


def test_what_is_not_for_us(start: Start) -> None:
    responder = start()
    with closing(Host()) as host:
        host.search(responder, 1, "another")
        answer = encode(Message(ANSWER, bytes(16), "peer", "an answer"))
        for data in (b"", b"junk", bytes(1056), bytes(60000), answer):
            host.sock.sendto(data, ("127.0.0.1", responder.port))
        until(lambda: responder.dropped.total() == 6)
        assert responder.dropped == {
            "for another peer": 2,
            "a LAN message of a bad length": 3,
            "not a LAN message of this version": 1,
        }
        host.search(responder, 1)
        assert host.receive()[0].text == "an answer"


def test_a_search_from_no_network_of_this_host(
    start: Start, interfaces: list[Interface], caplog: pytest.LogCaptureFixture
) -> None:
    interfaces[:] = [NOWHERE]
    calls: list[Address] = []
    responder = start(lambda offer, source: calls.append(source))
    with closing(Host()) as host:
        for number in range(3):
            host.search(responder, number)
        until(lambda: responder.dropped["not from a network of this host"] == 3)
    assert not calls
    assert count(caplog, f"peer: LAN: a search from 127.0.0.1:{host.address[1]} is dropped") == 1


# Start and end.


def test_a_port_that_another_program_has_for_itself() -> None:
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as other:
        other.bind(("", 0))
        responder = lan.Responder("peer", other.getsockname()[1], lambda *_: None, LOG)
        with pytest.raises(KKP2PError, match="LAN search port") as caught:
            responder.start()
        responder.close()
    assert caught.value.code == _codes.KKP2P_ERROR_SOCKET_BIND
    responder.start()
    responder.close()


def test_close_gives_up_the_answers_that_are_being_made(start: Start) -> None:
    asked, never = Event(), Event()

    def answer(offer: str, source: Address) -> None:
        asked.set()
        never.wait()

    responder = start(answer)
    with closing(Host()) as host:
        host.search(responder, 1)
        assert asked.wait(PATIENCE_S)
        responder.close()
        responder.close()
    with pytest.raises(TimedOut):
        search(responder.port, seconds=0.1)
