"""STUN over TCP: a connection is told where it is seen, once; and what else may come."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from gevent import socket as gsocket

from helpers.cloud_client import running_cloud, time_passes, until
from helpers.shared_directory import running_node
from kkp2p_compat.cloud.server import Cloud
from kkp2p_compat.traversal.stun import HEADER, Kind, Message, parse_untrusted, size_untrusted

TAG = b"transaction."
REQUEST = Message(Kind.REQUEST, TAG).encode(None)


@pytest.fixture
def cloud() -> Iterator[Cloud]:
    with running_cloud() as made:
        yield made


def visit(cloud: Cloud) -> Any:
    return gsocket.create_connection(cloud.address)


def ends(sock: Any) -> None:
    with contextlib.suppress(ConnectionResetError):  # where some was not read
        assert sock.recv(1000) == b""


def gone(cloud: Cloud) -> bool:
    return not cloud.gate.deadlines.items() and cloud.gate.empty.is_set()


@pytest.mark.parametrize("step", [1, 7, 100])
def test_where_a_connection_is_seen(cloud: Cloud, step: int) -> None:
    with visit(cloud) as sock:
        for start in range(0, len(REQUEST), step):
            sock.sendall(REQUEST[start : start + step])
            gevent.sleep(0)
        answer = parse_untrusted(sock.recv(1000))
        assert (answer.kind, answer.transaction_id) == (Kind.RESPONSE, TAG)
        assert answer.mapped == sock.getsockname()
        sock.sendall(REQUEST)  # a second answer there is none
        time_passes(cloud, cloud.settings.limits.handshake_s + 1)
        ends(sock)
    until(lambda: gone(cloud))


def test_by_ipv4_at_a_socket_for_both() -> None:
    with running_cloud(host="::") as cloud:
        with gsocket.create_connection(("127.0.0.1", cloud.address[1])) as sock:
            sock.sendall(REQUEST)
            assert parse_untrusted(sock.recv(1000)).mapped == sock.getsockname()
        until(lambda: gone(cloud))


BAD = {
    "no STUN": b"\0" * 100,
    "too long": HEADER.pack(1, 60_000, 0x2112A442, TAG),
    "an answer": Message(Kind.RESPONSE, TAG, mapped=("192.0.2.1", 9)).encode(None),
    "of another method": HEADER.pack(3, 0, 0x2112A442, TAG),
    "a bad attribute": HEADER.pack(1, 4, 0x2112A442, TAG) + b"\0\x06\0\x09",
}


@pytest.mark.parametrize("sent", list(BAD.values()), ids=list(BAD))
def test_anything_else_is_closed(cloud: Cloud, sent: bytes) -> None:
    with visit(cloud) as sock:
        sock.sendall(sent)
        ends(sock)
    until(lambda: gone(cloud))


def test_who_says_little_goes(cloud: Cloud) -> None:
    with visit(cloud) as ended, visit(cloud) as silent, visit(cloud) as done:
        for sock in ended, silent:
            sock.sendall(REQUEST[:10])
        done.sendall(REQUEST)
        ended.shutdown(socket.SHUT_WR)
        assert ended.recv(10) == b""
        assert done.recv(1000)
        done.close()
        until(lambda: len(cloud.gate.deadlines.items()) == 1)
        time_passes(cloud, cloud.settings.limits.handshake_s + 1)
        assert silent.recv(10) == b""
    until(lambda: gone(cloud))


def test_a_relay_alone_answers_too_if_it_is_to() -> None:
    """Peers measure how far it is."""
    with running_node("relay") as cloud, visit(cloud) as sock:
        sock.sendall(REQUEST)
        assert sock.recv(1000)[:2] == b"\x01\x01"
    with running_node("relay", stun=False) as cloud, visit(cloud) as sock:
        sock.sendall(REQUEST)
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(1000) == b""


def test_how_long_a_message_is() -> None:
    assert size_untrusted(b"") == size_untrusted(REQUEST[:19]) == 20
    assert size_untrusted(REQUEST[:20]) == size_untrusted(REQUEST + b"more") == len(REQUEST)
