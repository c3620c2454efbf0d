"""A connection with known keys: a test plays its peer, or is the network between two of them."""

from __future__ import annotations

from random import Random

from kkp2p_compat.transport.udp.peer_connection import PeerConnection
from kkp2p_compat.transport.udp.protection import PacketOpener, PacketSealer

__all__ = ["PEER", "SECRETS", "keyed_connection", "played_peer"]

CIPHER = "aes-128-gcm"
SECRETS = bytes(range(32)), bytes(range(32, 64))
PEER = ("192.0.2.1", 4000)
IDS = (9, 8)  # the keyed connection's, and its peer's


def keyed_connection(
    now: float,
    *,
    is_caller: bool,
    rtt_s: float | None = None,
    address: tuple[str, int] = PEER,
    is_other: bool = False,
) -> PeerConnection:
    """``is_other``: the peer of one that is not."""
    one, other = (1, 0) if is_other else (0, 1)
    return PeerConnection(
        send_secret=SECRETS[other],
        receive_secret=SECRETS[one],
        cipher=CIPHER,
        is_caller=is_caller,
        local_id=IDS[one],
        remote_id=IDS[other],
        address=address,
        now=now,
        random=Random(other),
        rtt_s=rtt_s,
    )


def played_peer() -> tuple[PacketSealer, PacketOpener]:
    """What seals packets for a keyed connection, and opens its own."""
    return PacketSealer(SECRETS[0], CIPHER), PacketOpener(SECRETS[1], CIPHER)
