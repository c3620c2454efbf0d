"""The time, as a connection knows it, and what it waits for."""

from __future__ import annotations

from enum import Enum

__all__ = ["Clock", "Timer"]


class Clock:
    """``now`` is that of the last input or ``poll_transmit``, on any clock that does not go back.

    The parts of a connection share it: an application that reads or writes does not say when.
    """

    __slots__ = ("now",)

    def __init__(self, now: float) -> None:
        self.now = now


class Timer(Enum):
    """What an open connection waits for; PeerConnection has a table with the deadline of each."""

    IDLE = "the peer has been silent for too long"
    DOUBT = "ask a doubted peer again, or find that it is gone"
    LOSS = "give a packet up, or send a probe because nothing was acknowledged"
    SUSPICION = "nothing was acknowledged for so long that the path may be dead"
    SILENCE = "ask a peer that was sending, and has stopped"
    KEEPALIVE = "ask for something, so that NATs keep the path open"
    VALIDATION = "ask an address of the peer again, or forget it"
    LEFT = "give up what was sent over a path that was left"
    ACK = "send an acknowledgement"
    PACING = "send more data"
    MTU = "try a larger datagram"
