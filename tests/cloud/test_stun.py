"""The cloud's STUN responder: what it answers, from where, and what it does not."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from gevent import monkey
from gevent import socket as gsocket
from hypothesis import given
from hypothesis import strategies as st

from helpers.cloud_client import until
from helpers.ports import free_port
from helpers.stun_support import open_at, start_responder
from helpers.support import PATIENCE_S, CloudProcess
from kkp2p_compat._address import HostPort
from kkp2p_compat._errors import BadPacket
from kkp2p_compat.cloud import udp_port
from kkp2p_compat.cloud.limits import Gatekeeper
from kkp2p_compat.cloud.server import Cloud
from kkp2p_compat.cloud.settings import CloudSettings, Limits
from kkp2p_compat.cloud.stun import Reply, StunResponder, respond_untrusted
from kkp2p_compat.traversal.stun import Kind, Message, parse_untrusted

ID = bytes(range(12))
SOURCE, ASKED, OTHER = ("192.0.2.9", 4000), ("203.0.113.1", 3080), ("203.0.113.2", 3081)
SIX = ("2001:db8::9", 4000), ("2001:db8:1::1", 3080), ("2001:db8:1::2", 3081)


def padded(size: int, request: Message) -> bytes:
    bare = len(request.encode(None))
    return replace(request, software="." * max(0, size - bare - 4)).encode(None)


def respond(
    request: Message, size: int = 100, asked: HostPort = ASKED, other: HostPort = OTHER
) -> tuple[Message, Reply]:
    reply = respond_untrusted(padded(size, request), SOURCE, asked, other)
    return parse_untrusted(reply.data), reply


REQUEST = Message(Kind.REQUEST, ID)


def test_the_whole_answer() -> None:
    message, reply = respond(REQUEST)
    assert message == Message(Kind.RESPONSE, ID, mapped=SOURCE, origin=ASKED, other=OTHER)
    assert message.has_fingerprint
    assert reply[1:] == (ASKED, SOURCE)
    answer = parse_untrusted(respond_untrusted(padded(100, REQUEST), *SIX).data)
    assert answer == Message(Kind.RESPONSE, ID, mapped=SIX[0], origin=SIX[1], other=SIX[2])


@pytest.mark.parametrize(
    ("size", "answer"), [(64, 64), (60, 40), (40, 40), (36, 32), (28, 0), (20, 0)]
)
def test_an_answer_is_never_longer_than_its_request(size: int, answer: int) -> None:
    request = REQUEST.encode(None, fingerprint=False)
    wire = request if size == 20 else padded(size, REQUEST)
    assert len(wire) == size
    if answer:
        assert len(respond_untrusted(wire, SOURCE, ASKED, OTHER).data) == answer
    else:
        with pytest.raises(BadPacket):
            respond_untrusted(wire, SOURCE, ASKED, OTHER)


@pytest.mark.parametrize("change_ip", [False, True])
@pytest.mark.parametrize("change_port", [False, True])
def test_answers_from_elsewhere(change_ip: bool, change_port: bool) -> None:
    message, reply = respond(replace(REQUEST, change_ip=change_ip, change_port=change_port))
    sender = (OTHER if change_ip else ASKED)[0], (OTHER if change_port else ASKED)[1]
    assert reply.sender == message.origin == sender
    assert reply.to == SOURCE


def test_answers_to_another_port() -> None:
    message, reply = respond(replace(REQUEST, response_port=5000))
    assert reply.to == (SOURCE[0], 5000)
    assert message.mapped == SOURCE
    for port in (0, 53, 1023):
        with pytest.raises(BadPacket):
            respond(replace(REQUEST, response_port=port))


def test_what_it_cannot_do() -> None:
    """420, with what is not understood; as RFC 5780 says of a server with one address."""
    message, _ = respond(replace(REQUEST, change_ip=True), other=(ASKED[0], 3081))
    assert (message.kind, message.error, message.not_understood) == (Kind.ERROR, 420, (3,))
    unknown = REQUEST.encode(None, fingerprint=False) + b"\x70\x01\0\x1c" + bytes(28)
    wire = unknown[:2] + (len(unknown) - 20).to_bytes(2, "big") + unknown[4:]
    message = parse_untrusted(respond_untrusted(wire, SOURCE, ASKED, OTHER).data)
    assert (message.error, message.not_understood) == (420, (0x7001,))


def test_without_knowing_what_was_asked() -> None:
    message, _ = respond(REQUEST, asked=("", 3080), other=("", 3081))
    assert message == Message(Kind.RESPONSE, ID, mapped=SOURCE)
    message, _ = respond(replace(REQUEST, change_ip=True), asked=("", 3080), other=("", 3081))
    assert message.error == 420


@pytest.mark.parametrize("kind", [Kind.RESPONSE, Kind.ERROR, Kind.INDICATION])
def test_only_requests_are_answered(kind: Kind) -> None:
    """Or two servers could answer each other for ever."""
    with pytest.raises(BadPacket):
        respond(replace(REQUEST, kind=kind))


@pytest.mark.parametrize(
    "source", [("255.255.255.255", 5), ("224.0.0.1", 5), ("0.0.0.0", 5), ("192.0.2.1", 0)]
)
def test_nobody_to_answer(source: HostPort) -> None:
    with pytest.raises(BadPacket):
        respond_untrusted(padded(100, REQUEST), source, ASKED, OTHER)


@given(
    st.binary(max_size=200)
    | st.builds(
        padded,
        st.integers(20, 600),
        st.builds(
            Message,
            st.sampled_from(Kind),
            st.just(ID),
            username=st.none() | st.text(max_size=9),
            change_ip=st.booleans(),
            change_port=st.booleans(),
            response_port=st.none() | st.integers(0, 65535),
        ),
    )
)
def test_anything(data: bytes) -> None:
    for source, asked, other in ((SOURCE, ASKED, OTHER), SIX, (SOURCE, ASKED, ASKED)):
        with contextlib.suppress(BadPacket):
            reply = respond_untrusted(data, source, asked, other)
            assert len(reply.data) <= len(data)
            assert reply.to[0] == source[0]
            assert reply.sender[0] in (asked[0], other[0])


# Over real sockets.

Start = Callable[..., StunResponder]


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[StunResponder] = []

    def start(host: str, second_ip: str | None = None, **limits: object) -> StunResponder:
        started.append(start_responder(host, second_ip, Limits(**limits)))  # type: ignore[arg-type]
        return started[-1]

    yield start
    for made in started:
        made.stop()


@contextlib.contextmanager
def client(ip: str = "127.0.0.1") -> Iterator[gsocket.socket]:
    with gsocket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.bind((ip, 0))
        s.settimeout(PATIENCE_S)
        yield s


def ask(sock: gsocket.socket, to: HostPort, request: Message = REQUEST) -> tuple[Message, HostPort]:
    sock.sendto(padded(100, request), to)
    data, source = sock.recvfrom(2048)
    return parse_untrusted(data), (source[0], source[1])


@pytest.mark.parametrize(
    ("host", "asked"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("::1", "::1"),
        ("0.0.0.0", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.77"),
        ("::", "::1"),
        ("::", "127.0.0.77"),
    ],
)
def test_from_the_address_that_was_asked(start: Start, host: str, asked: str) -> None:
    ports = start(host).ports
    with client("::1" if ":" in asked else "127.0.0.1") as sock:
        own = sock.getsockname()[:2]
        for index in (0, 1):
            message, source = ask(sock, (asked, ports[index]))
            assert source == message.origin == (asked, ports[index])
            assert message.mapped == own
            assert message.other == (asked, ports[1 - index])
            changed = replace(REQUEST, change_port=True)
            message, source = ask(sock, (asked, ports[index]), changed)
            assert source == message.origin == (asked, ports[1 - index])


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_two_addresses(start: Start, host: str) -> None:
    first, second = start(host, "127.0.0.2").ports
    with client() as sock:
        message, _ = ask(sock, ("127.0.0.1", first))
        assert message.other == ("127.0.0.2", second)
        both = replace(REQUEST, change_ip=True, change_port=True)
        assert ask(sock, ("127.0.0.1", first), both)[1] == ("127.0.0.2", second)
        only_ip = replace(REQUEST, change_ip=True)
        assert ask(sock, ("127.0.0.1", second), only_ip)[1] == ("127.0.0.2", second)
        message, source = ask(sock, ("127.0.0.2", second))
        assert source == ("127.0.0.2", second)
        there = "127.0.0.2" if host == "0.0.0.0" else "127.0.0.1"
        assert message.other == (there, first)


def test_a_second_address_is_taken_as_the_system_writes_it() -> None:
    """Or it would be taken for a third one, and named as the other address of itself."""
    assert CloudSettings(stun_address="2001:DB8:0::2").stun_address == "2001:db8::2"
    for text in ("stun.example.org", "192.0.2.256", "", "fe80::1%eth0"):
        with pytest.raises(ValueError, match="STUN address"):
            CloudSettings(stun_address=text)


def test_a_second_address_of_another_host(start: Start) -> None:
    for host in ("127.0.0.1", "0.0.0.0"):
        with pytest.raises(OSError, match="assign"):
            start(host, "203.0.113.1")


def test_the_next_port_is_taken(start: Start) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(50):
            taken = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            taken.bind(("127.0.0.1", 0))
            port = taken.getsockname()[1] - 1
            made = StunResponder(Gatekeeper(Limits()))
            try:
                open_at(made, "127.0.0.1", port)
            except OSError:
                continue  # so is this one
            break
        stack.callback(made.stop)
        assert made.ports[0] == port
        assert made.ports[1] not in (0, port, port + 1)
        with client() as sock:
            assert ask(sock, ("127.0.0.1", port))[0].other == ("127.0.0.1", made.ports[1])


def test_a_taken_port_leaves_nothing_open(start: Start) -> None:
    made = StunResponder(Gatekeeper(Limits()))
    with client() as sock, pytest.raises(OSError, match="in use"):
        open_at(made, "127.0.0.1", sock.getsockname()[1])
    made.stop()


def settled(made: StunResponder, count: int) -> None:
    """It has dealt with so many datagrams."""
    until(lambda: made.counts.total() == count)


@pytest.mark.parametrize("limit", ["stun_per_s", "stun_total_per_s"])
def test_limits(start: Start, limit: str) -> None:
    """What is over a limit is dropped; from other addresses more is taken if that is the limit."""
    made = start("127.0.0.1", limit_loopback=True, burst_s=1.0, **{limit: 3.0})
    to = "127.0.0.1", made.ports[0]
    dropped = f"over the limit of {'all' if 'total' in limit else 'an address'}"
    with client() as sock:
        sent = 0
        while not made.counts[dropped]:  # on a slow host tokens come back meanwhile
            sock.sendto(padded(100, REQUEST), to)
            sent += 1
            settled(made, sent)
        assert sent > 3
    if limit == "stun_per_s":
        with client("127.0.0.9") as sock:
            ask(sock, to)


def test_garbage_takes_nothing_from_the_limit_in_all(start: Start) -> None:
    """It is cheap to send, from forged addresses too; all would go without answers."""
    made = start("127.0.0.1", stun_total_per_s=1.0)
    with client() as sock:
        for junk in (b"x", bytes(100), Message(Kind.RESPONSE, ID, mapped=SOURCE).encode(None)) * 5:
            sock.sendto(junk, ("127.0.0.1", made.ports[0]))
        settled(made, 15)
        ask(sock, ("127.0.0.1", made.ports[0]))
    assert made.counts["answered"] == 1


def test_junk_is_counted(start: Start) -> None:
    made = start("127.0.0.1")
    to = "127.0.0.1", made.ports[0]
    with client() as sock:
        for junk in (b"", b"x", bytes(3000), bytes(60000), REQUEST.encode(None)):
            sock.sendto(junk, to)
        ask(sock, to)  # it came last
    assert made.counts["answered"] == 1
    assert sum(made.counts.values()) == 6


def test_a_turn_is_bounded(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flood leaves the hub its turns, and is all read in the end."""
    monkeypatch.setattr(udp_port, "TURN_S", 0.0)
    monkeypatch.setattr(udp_port, "JOINED_CALLS", 1)
    made = start("127.0.0.1")
    plain = monkey.get_original("socket", "socket")
    with client() as sock, plain(socket.AF_INET, socket.SOCK_DGRAM) as flood:
        for _ in range(21):
            flood.sendto(b"junk", ("127.0.0.1", made.ports[0]))
        ask(sock, ("127.0.0.1", made.ports[0]))
    assert sum(made.counts.values()) == 22


# In a cloud.


def test_in_a_cloud(tmp_path: Path) -> None:
    cloud = CloudProcess(tmp_path, "--stun-address", "127.0.0.2")
    try:
        with client() as sock:
            message, _ = ask(sock, ("127.0.0.1", cloud.port))
            assert message.mapped == sock.getsockname()
            assert message.other is not None
            assert message.other[0] == "127.0.0.2"
            ports = f"UDP ports {cloud.port} and {message.other[1]}"
    finally:
        assert cloud.end() == 0
    assert ports in "".join(cloud.output)


def test_a_cloud_without(tmp_path: Path) -> None:
    cloud = CloudProcess(tmp_path, "--no-stun", "--no-lane", listen=f"127.0.0.1:{free_port()}")
    try:
        with gsocket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", cloud.port))  # the port is free
    finally:
        cloud.end()
    assert "STUN" not in "".join(cloud.output)


def test_a_port_that_udp_has_not(caplog: pytest.LogCaptureFixture) -> None:
    """The rest of the cloud is there all the same: two clouds on a host may have ports 1 apart."""
    for _ in range(50):
        with client() as sock:
            port = sock.getsockname()[1]
            cloud = Cloud(CloudSettings("127.0.0.1", port))
            try:
                cloud.start()
            except OSError:  # another program has it by TCP
                continue
            try:
                assert cloud.stun is None
                assert cloud.address == ("127.0.0.1", port)
                assert f"no UDP at 127.0.0.1:{port}: Address already in use" in caplog.text
            finally:
                cloud.stop(0)
            return
    raise AssertionError("no port is free for TCP")


def test_settings() -> None:
    with pytest.raises(ValueError, match="STUN"):
        CloudSettings(stun_address="127.0.0.2", stun=False)
