"""A STUN responder on free ports of this host."""

from __future__ import annotations

import errno
import socket

from kkp2p_compat.cloud.limits import Gatekeeper
from kkp2p_compat.cloud.settings import Limits
from kkp2p_compat.cloud.stun import StunResponder
from kkp2p_compat.cloud.udp_port import UdpPort, homes_of

TRIES = 20  # somebody else may take the port that was free


def open_at(
    responder: StunResponder, host: str, port: int, second_ip: str | None = None
) -> UdpPort:
    """Its first port, which has an owner of its own in a cloud; here it goes with the responder."""
    first = UdpPort(homes_of(host, second_ip), port)
    stop = responder.stop

    def stop_both() -> None:
        stop()
        first.stop()

    try:
        responder.start(first, host)
    except BaseException:
        stop_both()
        raise
    responder.stop = stop_both  # type: ignore[method-assign]
    first.start()
    return first


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
            open_at(responder, host, port, second_ip)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not tries_left:
                raise
        else:
            return responder
    raise AssertionError
