"""Our side of one call: what we tell the peer, and the keys that both sides' texts lead to."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..._structs import connect_ctx_t
from ...traversal.candidates import Candidate
from ...traversal.nat import UNKNOWN, NatBehaviour
from .direct_offer import DirectOffer, id_text
from .keys import CallKeys, make_private_key
from .offer import encode_text

__all__ = ["OwnSide"]

MAX_LAN_TEXT_BYTES = 1000  # our choice: of an offer or answer, as a LAN search is one datagram


class OwnSide:
    """Make one, send the peer its ``offer`` or ``answer``, then derive the ``keys``."""

    def __init__(
        self,
        candidates: Sequence[Candidate],
        nat: NatBehaviour = UNKNOWN,
        *,
        asked: DirectOffer | None = None,
        worked: str = "",
        to_stranger: bool = False,
        proves: bool = False,
    ) -> None:
        """``asked``: the caller's direct part, when we answer.  ``worked``: the kind of plan that
        last led to this peer.  ``to_stranger``: only what everybody may know, also later.
        ``proves``: we show who we are, if the peer does.

        Raises NotSupported as ``make_private_key``.
        """
        self._private = make_private_key()
        self.is_caller = asked is None
        self.direct = DirectOffer.make(list(candidates), nat, worked, asked, to_stranger, proves)

    @property
    def _public(self) -> bytes:
        return self._private.public_key().public_bytes_raw()

    def offer(self, ctx: connect_ctx_t, mode: int) -> str:
        return encode_text(
            type=ctx.channel_type,
            mode=mode,
            encrypt=ctx.encrypt_data,
            desc=ctx.connect_desc,
            key=self._public,
            direct=self.direct.fields(),
        )

    def restart(self, connection_id: int, mode: int, needs_tcp: bool = False) -> str:
        """An offer that asks for no channel, only for new paths of a connection that both have."""
        return encode_text(
            restart=id_text(connection_id),
            mode=mode,
            tcp=needs_tcp or None,
            key=self._public,
            direct=self.direct.fields(),
        )

    def answer(self) -> str:
        return encode_text(key=self._public, direct=self.direct.fields())

    def fit(self, make_text: Callable[[], str]) -> str:
        """A text that a LAN search can carry: the least preferred candidates are left out.

        They are those of the IP family that has more: all of IPv6 are preferred, but a peer may
        have IPv4 only.
        """
        candidates = self.direct.candidates
        while len((text := make_text()).encode()) > MAX_LAN_TEXT_BYTES and candidates:
            del candidates[_least_needed(candidates)]
        return text

    def keys(self, public: bytes, offer: str, answer: str) -> CallKeys:
        """BadPacket if the peer's key is not usable."""
        return CallKeys.derive(self._private, public, offer, answer, self.is_caller)


def _least_needed(candidates: Sequence[Candidate]) -> int:
    """The index of the last one of the IP family that has more."""
    last_first = [":" in candidate.address for candidate in reversed(candidates)]
    commoner = max(last_first, key=last_first.count)
    return len(candidates) - 1 - last_first.index(commoner)
