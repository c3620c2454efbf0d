"""A TCP connection that carries the packets of a link, as one more address of the endpoint."""

from __future__ import annotations

from collections.abc import Callable
from logging import Logger
from typing import Any

from ..._address import Address
from ..._errors import KKP2PError, LinkLost
from ...transport.udp.endpoint import Endpoint
from ...transport.udp.framed_socket import FramedSocket

__all__ = ["adopt_connection"]


def adopt_connection(
    endpoint: Endpoint, sock: Any, log: Logger, on_broken: Callable[[Address], object]
) -> tuple[str, int, int]:
    """The other end's address, and the number of the endpoint's socket for it.

    ``sock`` is taken over, also when that fails: raises LinkLost, OutOfDescriptors, EngineClosed.
    """
    try:
        place = sock.getpeername()[:2]  # fails if it is reset
        number = endpoint.adopt(
            lambda number: FramedSocket(sock, place, number, log),
            lambda number: on_broken((*place, number)),
        )
    except KKP2PError:
        sock.close()
        raise
    except OSError as error:
        sock.close()
        raise LinkLost(f"a connection that was made: {error}") from error
    return *place, number
