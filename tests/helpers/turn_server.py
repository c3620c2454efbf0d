"""A TURN server's core, as small as RFC 8656 allows, for one client: datagrams in, datagrams out.

What tests change of it makes it lie.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from kkp2p_compat._address import HostPort
from kkp2p_compat.traversal.channel_data import unwrap_untrusted, wrap
from kkp2p_compat.traversal.stun import Message, TurnKind, parse_untrusted

RELAYED = ("203.0.113.9", 50000)
USERNAME, PASSWORD, REALM = "2000000000:me", "a password", "example.org"


def long_term_key(realm: str = REALM, password: str = PASSWORD) -> bytes:
    return hashlib.md5(f"{USERNAME}:{realm}:{password}".encode()).digest()


class TurnServerCore:
    """``handle`` gives what goes back to the client; ``sent`` is what has gone to peers.

    ``refuse`` by kind of request: the error that it gets, though its credentials are right.
    """

    def __init__(self, *, realm: str = REALM, password: str = PASSWORD) -> None:
        self.realm = realm
        self.password = password
        self.nonce = b"nonce 1"
        self.relayed: HostPort | None = RELAYED
        self.lifetime_s: int | None = 600
        self.is_allocated = False
        self.permitted: set[str] = set()
        self.channels: dict[int, HostPort] = {}
        self.sent: list[tuple[bytes, HostPort]] = []
        self.requests: list[TurnKind] = []
        self.refuse: dict[TurnKind, int] = {}
        self.answer: Callable[[Message], Message] = lambda message: message

    def handle(self, data: bytes) -> list[bytes]:
        if data[0] >= 4:
            for channel, piece, size in unwrap_untrusted(data, len(data)):
                assert len(piece) == size
                if channel in self.channels:
                    self.sent.append((piece, self.channels[channel]))
            return []
        message = parse_untrusted(data, 65535, TurnKind)
        assert isinstance(message.kind, TurnKind)
        assert not message.unknown
        if message.kind is TurnKind.SEND:
            assert message.peer is not None
            assert message.data is not None
            if message.peer[0] in self.permitted:
                self.sent.append((message.data, message.peer))
            return []
        self.requests.append(message.kind)
        key = long_term_key(self.realm, self.password)
        return [self.answer(self.judge(message, key)).encode(key)]

    def judge(self, request: Message, key: bytes) -> Message:
        if request.nonce is None or not request.verify(key):
            return self._error(request, 401)
        if request.nonce != self.nonce:
            return self._error(request, 438)
        kind = TurnKind(request.kind)
        if kind in self.refuse:
            return self._error(request, self.refuse[kind])
        if kind is TurnKind.ALLOCATE:
            assert request.transport == 17
            self.is_allocated = True
        elif not self.is_allocated:
            return self._error(request, 437)
        elif kind is TurnKind.REFRESH:
            self.is_allocated = request.lifetime_s != 0
        else:
            assert request.peer is not None
            self.permitted.add(request.peer[0])
            if request.channel is not None:
                assert self.channels.get(request.channel, request.peer) == request.peer
                self.channels[request.channel] = request.peer
        is_allocation = kind in (TurnKind.ALLOCATE, TurnKind.REFRESH)
        return Message(
            TurnKind(kind | 0x100),
            request.transaction_id,
            lifetime_s=self.lifetime_s if is_allocation else None,
            relayed=self.relayed if kind is TurnKind.ALLOCATE else None,
        )

    def _error(self, request: Message, error: int) -> Message:
        answer = Message(TurnKind(request.kind | 0x110), request.transaction_id, error=error)
        if error in (401, 438):
            answer.realm, answer.nonce = self.realm, self.nonce
        return answer

    def from_peer(self, data: bytes, peer: HostPort) -> bytes:
        """What the client gets when a peer has sent this to its relayed address."""
        for channel, bound in self.channels.items():
            if bound == peer:
                return wrap(channel, data, len(data))
        return Message(TurnKind.DATA, bytes(12), peer=peer, data=data).encode(None, False)
