"""What a proxy may answer to CONNECT, cut anywhere, and what it may not."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from gevent import socket

from kkp2p_compat.transport import http_connect
from kkp2p_compat.transport.http_connect import ProxyRefuses, connect_request, read_answer


@pytest.fixture
def ends() -> Iterator[tuple[Any, Any]]:
    one, other = socket.socketpair()
    yield one, other
    one.close()
    other.close()


def test_the_request() -> None:
    assert connect_request(("cloud.example", 443), None) == (
        b"CONNECT cloud.example:443 HTTP/1.1\r\nHost: cloud.example:443\r\n\r\n"
    )
    secret = base64.b64encode("me:pä:ss".encode())
    assert connect_request(("2001:db8::1", 3080), "me:pä:ss") == (
        b"CONNECT [2001:db8::1]:3080 HTTP/1.1\r\nHost: [2001:db8::1]:3080\r\n"
        b"Proxy-Authorization: Basic " + secret + b"\r\n\r\n"
    )
    assert connect_request(("x", 1), "\r\n:\udcff").count(b"\r\n") == 4


GOOD = {
    "usual": b"HTTP/1.1 200 Connection established\r\n\r\n",
    "old": b"HTTP/1.0 200 OK\r\nProxy-Agent: x/1\r\n\r\n",
    "no reason": b"HTTP/1.1 200\r\n\r\n",
    "another success": b"HTTP/1.1 299 \r\n\r\n",
    "a length that says nothing": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
    "line feeds": b"HTTP/1.1 200 OK\nVia: x\n\n",
    "interim": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 \r\nA: b\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
    "long": b"HTTP/1.1 200 OK\r\nX: " + b"y" * 15_000 + b"\r\n\r\n",
}


@pytest.mark.parametrize("step", [1, 2, 3, 5, 100_000])
@pytest.mark.parametrize("answer", list(GOOD.values()), ids=list(GOOD))
def test_good_answers(ends: tuple[Any, Any], answer: bytes, step: int) -> None:
    """Not a byte behind them is taken."""
    ours, proxy = ends

    def send() -> None:
        data = answer + b"\r\n\r\ntunnel"
        for start in range(0, len(data), step):
            proxy.sendall(data[start : start + step])
            if len(data) < 1000:
                gevent.sleep(0)

    sending = gevent.spawn(send)
    read_answer(ours)
    sending.join()
    assert ours.recv(100) == b"\r\n\r\ntunnel"


BAD = {
    "closes": (b"", "closed"),
    "closes in the middle": (b"HTTP/1.1 200 OK\r\nX: ", "closed"),
    "no HTTP": (b"220 mail ESMTP\r\n\r\n", "not answer in HTTP"),
    "HTTP/2": (b"HTTP/2 200\r\n\r\n", "not answer in HTTP"),
    "no status": (b"HTTP/1.1 2000 OK\r\n\r\n", "not answer in HTTP"),
    "password": (b"HTTP/1.1 407 Authenticate\r\n\r\n", "name and a password"),
    "forbidden": (b"HTTP/1.1 403 Not \x1b[31m\r\n\r\n", "not answer in HTTP"),
    "refused": (b"HTTP/1.1 403 Fo\xffrbidden" + b"!" * 900 + b"\r\n\r\n", r"403 'Fo\\xffrb"),
    "moved": (b"HTTP/1.1 302 Found\r\nLocation: x\r\n\r\n", "302"),
    "too long": (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 30_000, "longer than"),
    "without an end": (b"HTTP/1.1 100 C\r\n\r\n" * 100, "not come to an answer"),
}


@pytest.mark.parametrize(("answer", "reason"), list(BAD.values()), ids=list(BAD))
def test_bad_answers(ends: tuple[Any, Any], answer: bytes, reason: str) -> None:
    ours, proxy = ends
    gevent.spawn(lambda: (proxy.sendall(answer), proxy.shutdown(socket.SHUT_WR)))
    with pytest.raises(ProxyRefuses, match=reason) as caught:
        read_answer(ours)
    assert len(str(caught.value)) < 300
    assert str(caught.value).isprintable()
    assert len(answer) < http_connect.MAX_HEADER_BYTES + 20_000
