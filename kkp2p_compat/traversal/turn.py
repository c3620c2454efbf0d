"""TURN (RFC 8656): an address at a server, by which peers reach us and we reach them.

Sans-IO: time is passed in, in seconds of a monotonic clock.  The rules:

- What the server grants is for a time: the allocation, a permission for each IP address that may
  send to it, and channels.  Each is asked for in the same way, and again well before it ends; the
  allocation so often that a NAT in front of us keeps its binding, and that we notice if it has not.
- A permission is asked for when we first send to an address.  The datagram follows behind the
  request, in a Send indication: the server handles one after the other.
- A peer that has answered, and that we send to again, gets a channel, which costs 4 bytes instead
  of 36 in each datagram.
- Everybody whom we have not sent to, and every answer without our transaction id or (success) our
  integrity, is dropped and counted.  Errors are believed without: whoever sees the transaction id
  could as well swallow the answer.
- A server that cannot be trusted costs a bounded number of requests: after a few challenges, or a
  refusal, there is a pause.  We follow no ALTERNATE-SERVER: we go where our cloud has sent us only.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from random import Random

from .._address import Address, HostPort
from .._errors import BadPacket
from .candidates import family_of, is_private, may_be_peer
from .stun import Message, TurnKind, parse_untrusted
from .stun_client import INTERVALS_S

__all__ = ["Grant", "TurnClient", "TurnState"]

# RFC 8656.
PERMISSION_S = 300.0  # section 9
CHANNEL_S = 600.0  # section 12
FIRST_CHANNEL, LAST_CHANNEL = 0x4000, 0x4FFF  # section 12
UDP = 17  # 18.8
UNAUTHORIZED, ALLOCATION_MISMATCH, STALE_NONCE = 401, 437, 438
# What the log says of errors (RFC 8489 section 14.8, RFC 8656 section 19).
ERRORS = {
    300: "Try Alternate",
    UNAUTHORIZED: "Unauthorized",
    403: "Forbidden",
    ALLOCATION_MISMATCH: "Allocation Mismatch",
    440: "Address Family not Supported",
    441: "Wrong Credentials",
    486: "Allocation Quota Reached",
    508: "Insufficient Capacity",
}

# Our choices.
RENEW_ALLOCATION_S = 25.0  # as often as we ask a STUN server behind a NAT
RENEW_S = 240.0  # permissions and channels: a channel's renewal is its address's, too (section 12)
MIN_LIFETIME_S, MAX_LIFETIME_S = 2 * RENEW_ALLOCATION_S, 3600.0
IDLE_S = 600.0  # a peer with whom nothing was exchanged for so long is forgotten
RETRY_S = 5.0  # after a request without an answer
REFUSED_S = 60.0  # after one that was refused
MAX_CHALLENGES = 3  # of one request, until it is answered otherwise
MAX_PERMISSIONS = 64  # addresses of all peers together
MAX_CHANNELS = 32  # further peers are served by indications
MAX_MESSAGE_BYTES = 65535  # a Data indication has a peer's datagram in it

_ERROR, _DONE = 0x0110, 0x0100  # bits of a message type (RFC 8489 section 5)


class TurnState(Enum):
    ALLOCATING = "asking for an allocation"
    ALLOCATED = "allocated"
    OVER = "over"


@dataclass(eq=False)
class Grant:
    """Something that the server grants for a time, and the request for it."""

    kind: TurnKind  # of the request
    lasts_s: float
    renew_s: float
    due_at: float  # when to ask for it, or to ask again, or to send the request again
    peer: HostPort | None = None
    channel: int | None = None
    until: float = -math.inf
    used_at: float = 0.0  # when something was exchanged with the peer, or with its address
    heard_port: int = 0  # of a permission: where something came from last

    # The request under way; without a transaction id there is none.
    transaction_id: bytes = b""
    wire: bytes = b""
    sent: int = 0
    challenges: int = 0

    def is_usable(self, now: float) -> bool:
        """Granted, or asked for: the server has the request before what follows it."""
        return now < self.until or bool(self.transaction_id)


class TurnClient:
    """One allocation.  It is asked for at once: send all that ``poll_transmit`` gives, after every
    other call; feed ``handle_datagram_untrusted``, and ``handle_timer``, due at ``next_timer``.

    ``state`` and ``reason`` tell how it is; ``relayed`` is our address at the server, once
    allocated.  ``channels`` by peer and ``numbers`` by number: the bound ones, to be used instead
    of ``indication`` (set ``used_at``).  ``dropped`` counts by reason what was not believed.
    ``random``: a SystemRandom outside tests.
    """

    def __init__(
        self, server: Address, username: str, password: str, now: float, random: Random
    ) -> None:
        self.state = TurnState.ALLOCATING
        self.reason = ""
        self.relayed: HostPort | None = None
        self.channels: dict[HostPort, Grant] = {}
        self.numbers: dict[int, Grant] = {}
        self.dropped: Counter[str] = Counter()
        self._server = server
        self._username = username
        self._password = password
        self._random = random
        self._realm = ""
        self._nonce = b""
        self._key: bytes | None = None  # once the server has challenged us
        self._outbox: deque[bytes] = deque()
        self._last_channel = FIRST_CHANNEL - 1
        self._permissions: dict[str, Grant] = {}
        self._asked: dict[HostPort, Grant] = {}  # channels, bound or not yet
        self._allocation = Grant(TurnKind.ALLOCATE, MAX_LIFETIME_S, RENEW_ALLOCATION_S, now)
        self._ask(self._allocation, now)

    # Sending.

    def indication(self, data: bytes, peer: HostPort, now: float) -> bytes | None:
        """What carries a datagram to a peer without a channel; None: it cannot be sent.

        To be sent behind what ``poll_transmit`` gives.
        """
        if self.relayed is None or self.state is not TurnState.ALLOCATED:
            return None
        if not may_be_peer(*peer) or family_of(peer[0]) != family_of(self.relayed[0]):
            return None
        permission = self._permissions.get(peer[0])
        if permission is None:
            if len(self._permissions) >= MAX_PERMISSIONS:
                return None
            permission = Grant(TurnKind.CREATE_PERMISSION, PERMISSION_S, RENEW_S, now, peer)
            self._permissions[peer[0]] = permission
            self._ask(permission, now)
        permission.used_at = now
        if permission.heard_port == peer[1]:
            self._bind(peer, now)
        if not permission.is_usable(now):
            return None
        message = Message(TurnKind.SEND, self._random.randbytes(12), peer=peer, data=data)
        return message.encode(None, fingerprint=False)

    def _bind(self, peer: HostPort, now: float) -> None:
        """Ask for a channel, if there is none."""
        known = self._asked.get(peer)
        if known is not None:
            known.used_at = now
        elif len(self._asked) < MAX_CHANNELS:
            # Consecutive ones: a number may not be another peer's for minutes after its end.
            self._last_channel += 1
            if self._last_channel > LAST_CHANNEL:
                self._last_channel = FIRST_CHANNEL
            grant = Grant(
                TurnKind.CHANNEL_BIND,
                CHANNEL_S,
                RENEW_S,
                now,
                peer,
                self._last_channel,
                used_at=now,
            )
            self._asked[peer] = grant
            self._ask(grant, now)

    def close(self) -> None:
        """Give the allocation back; ``poll_transmit`` has the last request, which is sent once."""
        if self.state is not TurnState.OVER and self._key is not None:
            self._outbox.append(self._request(TurnKind.REFRESH, lifetime_s=0))
        self._end("closed by us")

    # What the server says.

    def handle_datagram_untrusted(self, data: bytes, now: float) -> tuple[bytes, HostPort] | None:
        """A datagram of a peer, and whose it is, if the message has one in it.  Never raises."""
        try:
            message = parse_untrusted(data, MAX_MESSAGE_BYTES, TurnKind)
        except BadPacket:
            self.dropped["not a TURN message"] += 1
            return None
        if message.kind is TurnKind.DATA:
            return self._take_data(message, now)
        grant = self._under_way(message.transaction_id)
        if grant is None or message.kind & ~_ERROR != grant.kind:
            self.dropped["an answer to nothing"] += 1
        elif message.kind & _ERROR == _ERROR:
            self._handle_error(grant, message, now)
        elif self._key is None or not message.verify(self._key):
            self.dropped["an answer without our integrity"] += 1
        elif message.kind & _ERROR == _DONE:
            self._handle_granted(grant, message, now)
        return None

    def _take_data(self, message: Message, now: float) -> tuple[bytes, HostPort] | None:
        peer = message.peer
        permission = None if peer is None else self._permissions.get(peer[0])
        if peer is None or message.data is None or permission is None:
            self.dropped["data of somebody whom we have not sent to"] += 1
            return None
        permission.used_at = now
        permission.heard_port = peer[1]
        return message.data, peer

    def _under_way(self, transaction_id: bytes) -> Grant | None:
        asking = (each for each in self._grants() if each.transaction_id == transaction_id)
        return next(asking, None)

    def _handle_granted(self, grant: Grant, message: Message, now: float) -> None:
        lasts_s = grant.lasts_s
        if grant is self._allocation:
            lasts_s = min(float(message.lifetime_s or 0), MAX_LIFETIME_S)
            if lasts_s < MIN_LIFETIME_S:
                self._end(f"the server keeps it for {lasts_s:.0f} s only")
                return
        grant.transaction_id = b""
        grant.challenges = 0
        grant.until = now + lasts_s
        grant.due_at = now + grant.renew_s
        if grant.kind is TurnKind.ALLOCATE:
            self._handle_allocated(message)
        elif grant.peer is not None and grant.channel is not None:
            self.channels[grant.peer] = grant
            self.numbers[grant.channel] = grant

    def _handle_allocated(self, message: Message) -> None:
        relayed = message.relayed
        if relayed is None or not may_be_peer(*relayed):
            self._end("the server names an address that cannot be")
            return
        if is_private(relayed[0]) and not is_private(self._server[0]):
            self._end("the server names an address of its own network")  # coturn: external-ip
            return
        self._allocation.kind = TurnKind.REFRESH
        self.relayed = relayed
        self.state = TurnState.ALLOCATED

    def _handle_error(self, grant: Grant, message: Message, now: float) -> None:
        is_first = message.error == UNAUTHORIZED and self._key is None
        if (is_first or message.error == STALE_NONCE) and message.nonce:
            grant.challenges += 1
            if grant.challenges > MAX_CHALLENGES:
                self._fail(grant, "the server challenges without end", REFUSED_S, now)
                return
            self._nonce = message.nonce
            if message.realm is not None:
                self._realm = message.realm
            # RFC 8489 section 9.2.2.  An older nonce may have been of another realm.
            text = f"{self._username}:{self._realm}:{self._password}".encode()
            self._key = hashlib.md5(text, usedforsecurity=False).digest()
            self._ask(grant, now)
        elif message.error == ALLOCATION_MISMATCH and grant is not self._allocation:
            self._end("the server has forgotten it")
        else:
            name = ERRORS.get(message.error or 0, "")
            self._fail(grant, f"the server refuses: {message.error} {name}", REFUSED_S, now)

    # Time.

    def handle_timer(self, now: float) -> None:
        for grant in [each for each in self._grants() if each.due_at <= now]:
            if self.state is TurnState.OVER:
                return
            if not grant.transaction_id:
                if grant is not self._allocation and self._is_idle(grant, now):
                    self._forget(grant)
                else:
                    self._ask(grant, now)
            elif grant.sent < len(INTERVALS_S):
                self._transmit(grant, now)
            else:
                self._fail(grant, "the server does not answer", RETRY_S, now)

    def next_timer(self) -> float | None:
        return min((grant.due_at for grant in self._grants()), default=None)

    def poll_transmit(self) -> tuple[bytes, Address] | None:
        return (self._outbox.popleft(), self._server) if self._outbox else None

    # Requests.

    def _grants(self) -> Iterator[Grant]:
        if self.state is not TurnState.OVER:
            yield self._allocation
            yield from self._permissions.values()
            yield from self._asked.values()

    def _ask(self, grant: Grant, now: float) -> None:
        grant.transaction_id = self._random.randbytes(12)
        grant.wire = self._request(
            grant.kind,
            grant.transaction_id,
            peer=grant.peer,
            channel=grant.channel,
            transport=UDP if grant.kind is TurnKind.ALLOCATE else None,
        )
        grant.sent = 0
        self._transmit(grant, now)

    def _request(
        self,
        kind: TurnKind,
        transaction_id: bytes | None = None,
        *,
        peer: HostPort | None = None,
        channel: int | None = None,
        transport: int | None = None,
        lifetime_s: int | None = None,
    ) -> bytes:
        message = Message(
            kind,
            transaction_id or self._random.randbytes(12),
            peer=peer,
            channel=channel,
            transport=transport,
            lifetime_s=lifetime_s,
        )
        if self._key is not None:
            message.username, message.realm = self._username, self._realm
            message.nonce = self._nonce
        return message.encode(self._key)

    def _transmit(self, grant: Grant, now: float) -> None:
        grant.due_at = now + INTERVALS_S[grant.sent]
        grant.sent += 1
        self._outbox.append(grant.wire)

    def _fail(self, grant: Grant, reason: str, pause_s: float, now: float) -> None:
        """Ask again after a pause; what had been granted before still holds until it ends."""
        grant.transaction_id = b""
        grant.challenges = 0
        grant.due_at = now + pause_s
        if now < grant.until:
            grant.due_at = min(grant.due_at, grant.until)
        elif grant is self._allocation:
            self._end(reason)
        elif grant.peer is not None and grant.channel is not None:
            self.channels.pop(grant.peer, None)
            self.numbers.pop(grant.channel, None)

    def _is_idle(self, grant: Grant, now: float) -> bool:
        """A permission is as busy as the channels of its address: they live on it, too."""
        uses = [grant.used_at]
        if grant.peer is not None and grant.channel is None:
            uses += [each.used_at for peer, each in self._asked.items() if peer[0] == grant.peer[0]]
        return now - max(uses) > IDLE_S

    def _forget(self, grant: Grant) -> None:
        if grant.peer is None:
            return
        if grant.channel is None:
            del self._permissions[grant.peer[0]]
        else:
            del self._asked[grant.peer]
            self.channels.pop(grant.peer, None)
            self.numbers.pop(grant.channel, None)

    def _end(self, reason: str) -> None:
        self.state = TurnState.OVER
        self.reason = reason
        self.channels.clear()
        self.numbers.clear()
        self._permissions.clear()
        self._asked.clear()
