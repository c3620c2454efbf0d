"""A STUN responder on free ports of this host."""

from __future__ import annotations

import errno
import socket

from kkp2p_compat.cloud.limits import Gatekeeper
from kkp2p_compat.cloud.settings import Limits
from kkp2p_compat.cloud.stun import StunResponder

TRIES = 20  # somebody else may take the port that was free


def start_responder(
    host: str, second_ip: str | None = None, limits: Limits | None = None
) -> StunResponder:
    """Its ``ports`` tell where; the caller stops it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for tries_left in reversed(range(TRIES)):
        with socket.socket(family, socket.SOCK_DGRAM) as free:
            free.bind((host, 0))
            port = free.getsockname()[1]
        responder = StunResponder(Gatekeeper(limits or Limits()), second_ip)
        try:
            responder.start(host, port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not tries_left:
                raise
        else:
            return responder
    raise AssertionError
