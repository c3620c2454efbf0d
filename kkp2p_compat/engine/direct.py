"""Meeting peers directly: one UDP endpoint, connectivity checks, and the links that come of them.

Runs in the engine's hub.  A link serves all channels to its peer: the first call makes it, those
that come meanwhile wait for it, later ones open a channel on it in one round trip.

The way to a path is the same over the cloud and over the LAN; only the carrier of offer and answer
differs.  The caller's side sends an offer, gets the answer, checks the addresses in it, and opens
channels on the path that works.  The callee's side answers, checks, and takes what is opened.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from random import SystemRandom
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from gevent.event import AsyncResult

from .. import _codes
from .._errors import (
    BadPacket,
    CallRefused,
    EngineClosed,
    KKP2PError,
    LinkLost,
    NotSupported,
    TimedOut,
)
from .._io import time_limit
from .._structs import connect_ctx_t
from ..control.client import CloudClient
from ..control.link import Link, OutgoingCall
from ..transport.sealed import agree
from ..transport.udp.channel_table import REFUSED_UNSUPPORTED
from ..transport.udp.connection import Connection, Settings
from ..transport.udp.endpoint import Endpoint
from ..transport.udp.events import Address, ChannelOffered
from ..transport.udp.route import route_datagram_bytes
from ..traversal import lan
from ..traversal.candidates import Candidate, host_candidates
from .calls import (
    Offer,
    call_peer,
    encode_text,
    parse_direct_answer_untrusted,
    parse_offer_untrusted,
)
from .direct_offer import DirectOffer
from .path_finder import Path, PathFinder
from .peer_link import PeerLink

if TYPE_CHECKING:
    from .engine import Engine

__all__ = ["Direct", "DirectConnection"]

# Our choices.
# In auto mode: how long a path is looked for; half of the caller's time is the relay's, however.
HEAD_START_S = 1.0
BLOCKED_S = 60.0  # in auto mode: how long a peer that could not be met counts as such
MAX_BLOCKED = 1024  # peers remembered so
REUSE_S = 2.0  # how long a live link may take to open a channel; half of the time is a new one's
MAX_LINKS = 8192  # that peers made; more are declined
MAX_MEETING = 2048  # calls of others whose path is being looked for
ANSWER_GRACE_S = 2.0  # for the callee of a call whose time is over, if the caller was just in time
LAN_MEETING_S = 10.0  # for the callee of a LAN search, which does not know the caller's budget
MAX_TEXT_BYTES = 1000  # of an offer or answer: a LAN search is one datagram
SECRETS_BYTES = 64

_random = SystemRandom()


class DirectConnection:
    """An open channel on a link that nobody uses yet."""

    def __init__(self, link: PeerLink, stream_id: int, offered: ChannelOffered | connect_ctx_t):
        self.link = link
        self.stream_id = stream_id
        self.channel_type = offered.channel_type
        self.encrypt = offered.encrypt_data
        self.desc = offered.desc if isinstance(offered, ChannelOffered) else offered.connect_desc


class _Half:
    """Our side of a call: what we tell the peer, and what stays secret."""

    def __init__(self, layer: Direct, asked: DirectOffer | None = None) -> None:
        self._private = X25519PrivateKey.generate()
        self.direct = DirectOffer.make(layer.candidates(), asked)

    @property
    def public(self) -> bytes:
        return self._private.public_key().public_bytes_raw()

    def offer(self, ctx: connect_ctx_t, mode: int) -> str:
        return encode_text(
            type=ctx.channel_type, mode=mode, encrypt=ctx.encrypt_data, desc=ctx.connect_desc,
            key=self.public, direct=self.direct.fields(),
        )  # fmt: skip

    def secrets(self, public: bytes, offer: str, answer: str) -> tuple[bytes, bytes]:
        """The caller's direction, the callee's."""
        block = agree(self._private, public, offer, answer, b"kkp2p udp 1", SECRETS_BYTES)
        return block[:32], block[32:]


class Direct:
    """``offered`` takes a channel that a peer opens, or refuses it."""

    def __init__(
        self, engine: Engine, offered: Callable[[PeerLink, ChannelOffered], object]
    ) -> None:
        self._engine = engine
        self._log = engine.log
        self._offered = offered
        self._endpoint: Endpoint | None = None
        self._finder: PathFinder | None = None
        self._links: set[PeerLink] = set()
        self._by_peer: dict[str, PeerLink] = {}
        # By mode, too: auto must not wait for as long as somebody else's mode 1 takes.
        self._making: dict[tuple[str, bool], AsyncResult[PeerLink]] = {}
        self._blocked: dict[str, float] = {}
        self._responder: lan.Responder | None = None
        self._lan_id = ""
        self._closed = False

    # The caller's side.

    def connect(self, client: CloudClient, ctx: connect_ctx_t, budget_s: float) -> DirectConnection:
        """A channel to a peer over the cloud's introduction.

        In auto mode NotSupported means: take the relay.
        """
        auto = ctx.connect_mode == _codes.CONNECT_AUTO
        if auto and self._blocked.get(ctx.peer_id, 0.0) > time.monotonic():
            raise NotSupported("could not be met directly a moment ago")

        def make() -> PeerLink:
            return self._call(client, ctx, budget_s)

        return self._open(ctx.peer_id, ctx, make, auto, budget_s)

    def connect_lan(self, ctx: connect_ctx_t, budget_s: float) -> DirectConnection:
        """A channel to a peer that answers on the LAN."""
        name = f"{ctx.peer_id} (LAN)"
        return self._open(name, ctx, lambda: self._search(ctx, budget_s), False, budget_s)

    def _open(
        self, key: str, ctx: connect_ctx_t, make: Callable[[], PeerLink], auto: bool,
        budget_s: float,
    ) -> DirectConnection:  # fmt: skip
        link = self._by_peer.get(key)
        if link is not None and link.connection.clogged(time.monotonic()):
            del self._by_peer[key]  # it goes on with the channels it has
            link = None
        if link is not None:
            try:
                late = TimedOut("the link does not answer")
                with time_limit(min(REUSE_S, budget_s / 2), late):
                    return self._open_on(link, ctx)
            except CallRefused:
                raise
            except KKP2PError as error:
                self._log.info("%s: the link is not used any more: %s", key, error)
                if self._by_peer.get(key) is link:
                    del self._by_peer[key]
        while True:
            making = self._making.get((key, auto))
            mine = making is None
            if making is None:
                making = self._making[key, auto] = AsyncResult()
                self._engine.thread.spawn(self._make, key, auto, make, making)
            try:
                return self._open_on(making.get(), ctx)
            except TimedOut:
                if mine or auto:
                    raise

    def _open_on(self, link: PeerLink, ctx: connect_ctx_t) -> DirectConnection:
        stream_id = link.open(ctx.channel_type, ctx.encrypt_data, ctx.connect_desc)
        return DirectConnection(link, stream_id, ctx)

    def _make(
        self, key: str, auto: bool, make: Callable[[], PeerLink], result: AsyncResult[PeerLink]
    ) -> None:
        error: KKP2PError = EngineClosed()  # when killed
        try:
            self._by_peer[key] = make()
        except KKP2PError as caught:
            error = caught
        finally:
            del self._making[key, auto]
            if (link := self._by_peer.get(key)) is not None:
                result.set(link)
            else:
                result.set_exception(error)

    def _call(self, client: CloudClient, ctx: connect_ctx_t, budget_s: float) -> PeerLink:
        started = time.monotonic()
        half = _Half(self)
        offer = half.offer(ctx, ctx.connect_mode)
        late = TimedOut("the peer did not answer in time")

        def finish(link: Link, call: OutgoingCall) -> str:
            return call.answer.get()

        with time_limit(budget_s, late):
            answer = call_peer(client, ctx.peer_id, offer, budget_s, finish)
        left_s = budget_s - (time.monotonic() - started)
        if ctx.connect_mode == _codes.CONNECT_AUTO:
            left_s = min(left_s / 2, HEAD_START_S)
        try:
            link = self._meet_callee(ctx.peer_id, half, offer, answer, left_s)
        except TimedOut:
            if left_s >= HEAD_START_S / 4:  # less says nothing about the path
                self._blocked[ctx.peer_id] = time.monotonic() + BLOCKED_S
                while len(self._blocked) > MAX_BLOCKED:
                    del self._blocked[next(iter(self._blocked))]
            raise
        self._blocked.pop(ctx.peer_id, None)
        return link

    def _search(self, ctx: connect_ctx_t, budget_s: float) -> PeerLink:
        deadline = time.monotonic() + budget_s
        half = _Half(self)
        offer = _fit(half, lambda: half.offer(ctx, _codes.CONNECT_P2P))
        answer, _ = lan.search(
            ctx.peer_id, offer, self._engine.conf.lan_search_port, budget_s, self._log
        )
        left_s = deadline - time.monotonic()
        return self._meet_callee(f"{ctx.peer_id} (LAN)", half, offer, answer, left_s)

    def _meet_callee(
        self, name: str, half: _Half, offer: str, answer: str, budget_s: float
    ) -> PeerLink:
        public, theirs = parse_direct_answer_untrusted(answer)
        ours, back = half.secrets(public, offer, answer)  # of the directions: the caller's first
        late = TimedOut("no path to the peer was found")
        finder = self._need_finder()
        with (
            finder.searching(half.direct, theirs, controlling=True) as found,
            time_limit(budget_s, late),
        ):
            path = found.get()
        return self._link(name, half.direct, theirs, ours, back, path)

    # The callee's side.

    def answer(
        self, offer: Offer, own_text: str, own_id: str, name: str, budget_s: float,
        send: Callable[[str], object],
    ) -> None:  # fmt: skip
        """Answer by ``send``, and wait for the path; raises KKP2PError."""
        if offer.direct is None or offer.key is None:
            raise BadPacket("a direct offer without a key")
        finder = self._need_finder()
        half = _Half(self, offer.direct)
        if len(self._links) >= MAX_LINKS or len(finder) >= MAX_MEETING:
            raise CallRefused("too many connections with peers")

        def text() -> str:
            return encode_text(key=half.public, direct=half.direct.fields())

        answer = _fit(half, text)
        theirs, ours = half.secrets(offer.key, own_text, answer)
        late = TimedOut("no path to the caller was found")
        with finder.searching(half.direct, offer.direct, controlling=False) as found:
            send(answer)
            with time_limit(budget_s + ANSWER_GRACE_S, late):
                path = found.get()
        self._link(name, half.direct, offer.direct, ours, theirs, path, own_id)

    def join_lan(self, peer_id: str) -> None:
        """Be found on the LAN under this id, instead of any other."""
        self._need_finder()
        self.leave_lan()
        if peer_id != self._lan_id:
            self.retire(self._lan_id)
        self._lan_id = peer_id
        responder = lan.Responder(
            peer_id, self._engine.conf.lan_search_port,
            lambda text, source: self._answer_search(peer_id, text, source), self._log,
        )  # fmt: skip
        responder.start()
        self._responder = responder
        self._log.warning("%s: found on the LAN by port %d", peer_id, responder.port)

    def leave_lan(self) -> None:
        responder, self._responder = self._responder, None
        if responder is not None:
            responder.close()

    def retire(self, own_id: str) -> None:
        """Who calls this peer does not mean us any more, not even on a live link."""
        for link in self._links:
            link.retired |= link.own_id == own_id

    def _answer_search(self, peer_id: str, text: str, source: Address) -> str | None:
        offer = parse_offer_untrusted(text)
        answered: AsyncResult[str] = AsyncResult()
        name = f"{source[0]} (LAN)"

        def answer() -> None:
            try:
                self.answer(offer, text, peer_id, name, LAN_MEETING_S, answered.set)
            except KKP2PError as error:
                if not answered.ready():
                    answered.set_exception(error)
                self._log.info("%s: not met: %s", name, error)

        self._engine.thread.spawn(answer)
        return answered.get()

    # Both.

    def candidates(self) -> list[Candidate]:
        ports = self._need_endpoint().ports()
        return host_candidates({int(family): port for family, port in ports.items()})

    def _need_endpoint(self) -> Endpoint:
        if self._closed:
            raise EngineClosed
        if self._endpoint is None:
            try:
                self._endpoint = Endpoint(self._log)
            except LinkLost as error:
                raise NotSupported(f"this host has no UDP: {error}") from error
        return self._endpoint

    def _need_finder(self) -> PathFinder:
        endpoint = self._need_endpoint()
        if self._finder is None:
            self._finder = PathFinder(endpoint)
        return self._finder

    def _link(
        self, name: str, ours: DirectOffer, theirs: DirectOffer, send_secret: bytes,
        receive_secret: bytes, path: Path, own_id: str = "",
    ) -> PeerLink:  # fmt: skip
        """``own_id``: under which we were called; none: we are the caller."""
        is_caller = not own_id
        address, rtt_s = path
        callee = theirs if is_caller else ours
        settings = Settings(max_datagram_bytes=route_datagram_bytes(address))
        connection = Connection(
            send_secret=send_secret, receive_secret=receive_secret, cipher=callee.cipher,
            is_caller=is_caller, local_id=ours.connection_id, remote_id=theirs.connection_id,
            address=address, now=time.monotonic(), random=_random, settings=settings, rtt_s=rtt_s,
        )  # fmt: skip
        offered = self._refuse if is_caller else self._offered
        link = PeerLink(
            self._need_endpoint(), connection, name, own_id, self._log, offered, self._forget
        )
        self._links.add(link)
        self._log.info(
            "%s: p2p connection with %s port %d, round trip %.1f ms, %s",
            name, *address, 1000 * rtt_s, callee.cipher,
        )  # fmt: skip
        return link

    def _refuse(self, link: PeerLink, offered: ChannelOffered) -> None:
        """Only the side that was called is one that accepts."""
        link.refuse(offered.stream_id, REFUSED_UNSUPPORTED)

    def _forget(self, link: PeerLink) -> None:
        self._links.discard(link)
        for key, other in list(self._by_peer.items()):
            if other is link:
                del self._by_peer[key]

    # The end.

    @property
    def busy(self) -> bool:
        """Whether something is on its way, or a path is being looked for."""
        return bool(self._making) or any(not link.drained.is_set() for link in self._links)

    def drain(self) -> None:
        """Wait until no channel has anything on its way."""
        for link in list(self._links):
            link.drained.wait()

    def sweep(self) -> None:
        for link in list(self._links):
            link.sweep()

    def close(self) -> None:
        """Calls that are still under way fail: nothing is opened again."""
        self._closed = True
        self.leave_lan()
        for link in list(self._links):
            link.destroy()
        if self._finder is not None:
            self._finder.close()
        if self._endpoint is not None:
            self._endpoint.close()


def _fit(half: _Half, make_text: Callable[[], str]) -> str:
    """A text that a LAN search can carry: the least wanted candidates go first."""
    while len((text := make_text()).encode()) > MAX_TEXT_BYTES and half.direct.candidates:
        half.direct.candidates.pop()
    return text
