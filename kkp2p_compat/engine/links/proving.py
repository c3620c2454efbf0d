"""Who is at the other end of a link: each side shows it, and nothing else passes before.

Runs in the engine's hub.  Our proof is the first frame of the connection, and goes with whatever
goes first.  What the peer says of channels waits until its own has come and is right: no channel is
opened or accepted, and no byte of one is taken, before.  With a peer that proves nothing, or for an
engine that has no key, there is no such wait.
"""

from __future__ import annotations

import time
from typing import NamedTuple

from ..._errors import BadPacket, UnprovenPeer
from ...transport.udp import events as e
from ...transport.udp.frames import Proof
from ..paths.meeting import Met
from .pins import Pins

__all__ = ["PeerKey", "Proving"]

# Our choices.
PROOF_S = 10.0  # for the peer's proof to come
MAX_HELD = 8192  # events that wait for it
MAX_HELD_MESSAGES = 16  # of UDP channels; more are lost

_OF_DATA = (e.Readable, e.Writable)  # whoever wants it looks by himself


class PeerKey(NamedTuple):
    """What is known of who the peer is."""

    fingerprint: str  # of the key that it has proved to have
    is_pinned: bool  # it is the known one


class Proving:
    """``proof`` is ours to send; ``hold`` what comes before ``check_untrusted``."""

    def __init__(
        self, pins: Pins, met: Met, *, own_id: str, called_id: str, claimed_id: str
    ) -> None:
        """``own_id``: ours, ``called_id``: of who was called, ``claimed_id``: that the peer has
        for the cloud, or that we have called; "": none.
        """
        if pins.identity is None:
            raise ValueError("who has no key proves nothing")
        self._pins = pins
        self._secret = met.keys.proof
        self._is_caller = met.is_caller
        self._called_id = called_id
        self._claimed_id = claimed_id
        self._since = time.monotonic()
        self._held: list[e.Event] = []
        self._messages = 0
        self.proof: Proof = pins.identity.prove(self._secret, met.is_caller, own_id, called_id)

    @property
    def is_late(self) -> bool:
        return time.monotonic() - self._since >= PROOF_S

    def hold(self, event: e.Event) -> None:
        """Keep it for ``take``; raises BadPacket for too much."""
        if isinstance(event, _OF_DATA):
            return
        if isinstance(event, e.MessageReceived):
            if self._messages == MAX_HELD_MESSAGES:
                return
            self._messages += 1
        if len(self._held) == MAX_HELD:
            raise BadPacket("more before the peer's proof than can be kept")
        self._held.append(event)

    def take(self) -> list[e.Event]:
        held, self._held = self._held, []
        return held

    def check_untrusted(self, proof: Proof) -> tuple[PeerKey, str]:
        """Who the peer is, and the id to remember it by, if it is to be; raises UnprovenPeer."""
        from ..signalling.identity import verify_untrusted  # loaded by who has a key

        fingerprint, name = verify_untrusted(
            proof, self._secret, not self._is_caller, self._called_id
        )
        if self._claimed_id and name != self._claimed_id:
            raise UnprovenPeer(
                "the cloud says {claimed!r}, and the peer's proof {proved!r}",
                claimed=self._claimed_id,
                proved=name,
            )
        if self._pins.check(name, fingerprint):
            return PeerKey(fingerprint, True), ""
        # A name that only its bearer vouches for is not remembered.
        return PeerKey(fingerprint, False), self._claimed_id if self._pins.keeps_keys else ""
