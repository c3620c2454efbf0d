"""Our side of one call: what we tell the peer, and the keys that come of both sides' texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..._structs import connect_ctx_t
from ...transport.sealed import DirectionKeys, agree, derive_keys, make_private_key
from ...traversal.candidates import Candidate
from ...traversal.nat import UNKNOWN, NatBehaviour
from ..calls.cloud_call import encode_text
from .direct_offer import DirectOffer

__all__ = ["CallKeys", "Half"]

# docs/protocol.rst: the caller's direction, the callee's, and the texts that follow.
SECRET_BYTES = 32
MAX_LAN_TEXT_BYTES = 1000  # our choice: of an offer or answer, as a LAN search is one datagram


@dataclass(frozen=True)
class CallKeys:
    """What both sides share once the callee has answered."""

    send: bytes
    receive: bytes
    trickle: bytes
    sealed: tuple[DirectionKeys, DirectionKeys]  # (ours, the peer's), if it goes by the relay


class Half:
    """Make one, tell the peer of it by ``offer`` or ``answer``, then derive the ``keys``."""

    def __init__(
        self, candidates: Sequence[Candidate], nat: NatBehaviour = UNKNOWN, *,
        asked: DirectOffer | None = None, worked: str = "", to_stranger: bool = False,
    ) -> None:  # fmt: skip
        """``to_stranger``: candidates that are learnt later are told as to one, too.
        ``asked``: the caller's, when we answer.  ``worked``: the kind of plan that last did.

        Raises NotSupported, as ``make_private_key``.
        """
        self._private = make_private_key()
        self._is_caller = asked is None
        self.direct = DirectOffer.make(list(candidates), nat, worked, asked, to_stranger)

    @property
    def _public(self) -> bytes:
        return self._private.public_key().public_bytes_raw()

    def offer(self, ctx: connect_ctx_t, mode: int) -> str:
        return encode_text(
            type=ctx.channel_type, mode=mode, encrypt=ctx.encrypt_data, desc=ctx.connect_desc,
            key=self._public, direct=self.direct.fields(),
        )  # fmt: skip

    def restart(self, connection_id: int) -> str:
        """An offer of no channel, only of new addresses for a connection that both have."""
        return encode_text(
            restart=f"{connection_id:016x}", key=self._public, direct=self.direct.fields()
        )

    def answer(self) -> str:
        return encode_text(key=self._public, direct=self.direct.fields())

    def fit(self, make_text: Callable[[], str]) -> str:
        """A text that a LAN search can carry: the least wanted candidates go first."""
        while len((text := make_text()).encode()) > MAX_LAN_TEXT_BYTES and self.direct.candidates:
            self.direct.candidates.pop()
        return text

    def keys(self, public: bytes, offer: str, answer: str) -> CallKeys:
        """BadPacket if the peer's key is not usable."""
        size = 3 * SECRET_BYTES
        block = agree(self._private, public, offer, answer, b"kkp2p udp 1", size)
        pair = block[:SECRET_BYTES], block[SECRET_BYTES : 2 * SECRET_BYTES]
        callers, callees = derive_keys(self._private, public, offer, answer)
        send, receive = pair if self._is_caller else pair[::-1]
        sealed = (callers, callees) if self._is_caller else (callees, callers)
        return CallKeys(send, receive, block[2 * SECRET_BYTES :], sealed)
