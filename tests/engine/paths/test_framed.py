"""A TCP connection as one more address of an endpoint."""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator

import gevent
import pytest
from gevent import socket as gsocket

from helpers.support import PATIENCE_S
from kkp2p_compat._errors import EngineClosed, LinkLost
from kkp2p_compat.engine.paths.framed import adopt_connection
from kkp2p_compat.transport.udp.endpoint import Endpoint

log = logging.getLogger(__name__)


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    made = Endpoint(log)
    yield made
    made.close()


@pytest.fixture
def pair() -> Iterator[tuple[gsocket.socket, gsocket.socket]]:
    with gsocket.create_server(("127.0.0.1", 0)) as listener:
        near = gsocket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    yield near, far
    far.close()


def test_it_is_an_address_until_it_breaks(
    endpoint: Endpoint, pair: tuple[gsocket.socket, gsocket.socket]
) -> None:
    near, far = pair
    place = near.getpeername()
    broken: list[object] = []
    address = adopt_connection(endpoint, near, log, broken.append)
    assert address[:2] == place
    far.close()
    with gevent.Timeout(PATIENCE_S):
        while not broken:
            gevent.sleep(0.001)
    assert broken == [address]


def test_one_that_was_reset_is_closed(
    endpoint: Endpoint, pair: tuple[gsocket.socket, gsocket.socket]
) -> None:
    near, far = pair
    far.setsockopt(gsocket.SOL_SOCKET, gsocket.SO_LINGER, struct.pack("ii", 1, 0))
    far.close()
    with pytest.raises(LinkLost):
        adopt_connection(endpoint, near, log, print)
    assert near.fileno() == -1


def test_one_that_comes_too_late_is_closed(
    endpoint: Endpoint, pair: tuple[gsocket.socket, gsocket.socket]
) -> None:
    endpoint.close()
    with pytest.raises(EngineClosed):
        adopt_connection(endpoint, pair[0], log, print)
    assert pair[0].fileno() == -1
