"""Direct connections: the network below them, the links to peers, and who gets a channel on one.

Runs in the engine's hub.  A link serves all channels to its peer: the first call makes it, those
that come meanwhile wait for it, later ones open a channel on it in one round trip.

The way to a path is the same over the cloud and over the LAN; only the carrier of offer and answer
differs.  The caller's side (``Caller``) sends an offer, gets the answer, looks for a path
(``Meeting``), and opens channels on it.  The callee's (``Callee``) answers, looks, and takes what
is opened.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from random import SystemRandom
from typing import TYPE_CHECKING

from .._errors import (
    CallRefused,
    EngineClosed,
    KKP2PError,
    LinkLost,
    NotSupported,
    OurFault,
    TimedOut,
)
from .._io import time_limit
from .._structs import connect_ctx_t
from ..control.client import CloudClient
from ..transport.udp.events import ChannelOffered
from ..transport.udp.first_hop import first_hop_datagram_bytes
from ..transport.udp.peer_connection import PeerConnection
from ..transport.udp.stream_table import REFUSED_UNSUPPORTED
from ..transport.udp.transport_settings import TransportSettings
from ..traversal.nat import UNKNOWN, NatBehaviour
from .calls.attempts import Attempt
from .calls.callee import Callee
from .calls.caller import ATTEMPT_S, Caller, head_start_s
from .calls.cloud_call import may_be_relayed
from .links.peer_link import LinkInfo, PeerLink
from .links.roaming import Roaming
from .links.streams import DirectStream, RelayedStream
from .paths.path_finder import Path
from .paths.underlay import Underlay
from .runtime.timeline import Timeline
from .signalling.keys import CallKeys

if TYPE_CHECKING:
    from .engine import Engine

__all__ = ["Direct"]

# Our choices.
REUSE_S = 2.0  # how long a live link may take to open a channel; half of the time is a new one's
RETRY_S = 1.0  # with less time a failed attempt is not followed by another
MAX_RECENT = 16  # attempts, of which it is remembered how they went

_random = SystemRandom()


class Direct:
    """``offered`` takes a channel that a peer opens, or refuses it."""

    def __init__(
        self, engine: Engine, offered: Callable[[PeerLink, ChannelOffered], object]
    ) -> None:
        self.engine = engine
        self.links: set[PeerLink] = set()
        self.recent: dict[str, Timeline] = {}
        """Of the last attempts to reach peers, by peer id, or "ID (LAN)"; whatever came of them."""
        self.caller = Caller(self)
        self.callee = Callee(self)
        self._log = engine.log
        self._offered = offered
        self._underlay: Underlay | None = None
        self._roaming = Roaming(
            self.caller.redial, self._check_cloud, self._log, engine.thread.spawn
        )
        self._by_peer: dict[str, PeerLink] = {}
        # By whether the relay may be taken, too: who may must not wait for as long as others.
        self._making: dict[tuple[str, bool], Attempt] = {}
        self._closed = False

    # The caller's side.

    def connect(
        self, client: CloudClient, ctx: connect_ctx_t, deadline: float
    ) -> DirectStream | RelayedStream:
        """A channel to a peer over the cloud's introduction; in auto mode perhaps by the relay.

        Where the relay is a way, NotSupported, TimedOut, LinkLost and OurFault mean: call by it.
        """

        def make(attempt: Attempt) -> PeerLink:
            return self.caller.call(client, ctx, deadline, attempt)

        return self._open(ctx.peer_id, ctx, make, may_be_relayed(ctx), deadline)

    def connect_lan(self, ctx: connect_ctx_t, deadline: float) -> DirectStream | RelayedStream:
        """A channel to a peer that answers on the LAN."""
        name = f"{ctx.peer_id} (LAN)"

        def make(attempt: Attempt) -> PeerLink:
            return self.caller.search(ctx.peer_id, ctx, deadline, attempt)

        return self._open(name, ctx, make, False, deadline)

    def _open(
        self, key: str, ctx: connect_ctx_t, make: Callable[[Attempt], PeerLink], auto: bool,
        deadline: float,
    ) -> DirectStream | RelayedStream:  # fmt: skip
        link = self._by_peer.get(key)
        if link is not None and not link.is_fit:
            del self._by_peer[key]  # it goes on with the channels it has
            link = None
        if link is not None:
            try:
                return self._open_soon(key, link, ctx, deadline)
            except CallRefused:
                raise
            except KKP2PError as error:
                self._log.info("%s: the link is not used any more: %s", key, error)
        while True:
            attempt = self._making.get((key, auto))
            mine = attempt is None
            if attempt is None:
                if auto:
                    self._see_if_worth_it(key)
                attempt = self._making[key, auto] = Attempt()
                self._remember(key, attempt.timeline)
                self.engine.thread.spawn(self._make, key, auto, make, attempt)
            elif attempt.relay_taken:
                raise NotSupported("a path is still being looked for")
            try:
                outcome = attempt.wait() if mine else self._join(attempt, auto, deadline)
                if isinstance(outcome, RelayedStream):
                    return outcome
                if auto:  # the path may carry checks and nothing more
                    return self._open_first(key, outcome, ctx, deadline)
                return self._open_on(outcome, ctx)
            except TimedOut:
                quick = attempt.timeline.elapsed_s < ATTEMPT_S / 2
                if auto or (mine and (quick or deadline - time.monotonic() < RETRY_S)):
                    raise

    def _join(self, attempt: Attempt, auto: bool, deadline: float) -> PeerLink:
        """What somebody else's attempt leads to; the relay is not kept waiting for it."""
        if not auto:
            return attempt.link.get()
        late = NotSupported("a path is still being looked for")
        with time_limit(head_start_s(deadline), late):
            return attempt.link.get()

    def _open_first(
        self, key: str, link: PeerLink, ctx: connect_ctx_t, deadline: float
    ) -> DirectStream:
        try:
            return self._open_soon(key, link, ctx, deadline)
        except (TimedOut, LinkLost) as error:
            self.caller.memory.failed(key, f"a path was found, but it carries nothing: {error}")
            raise

    def _open_soon(
        self, key: str, link: PeerLink, ctx: connect_ctx_t, deadline: float
    ) -> DirectStream:
        """Leave time for another way; what does not answer is not used again."""
        late = TimedOut("the link does not answer")
        try:
            with time_limit(min(REUSE_S, (deadline - time.monotonic()) / 2), late):
                return self._open_on(link, ctx)
        except CallRefused:
            raise
        except KKP2PError:
            if self._by_peer.get(key) is link:
                del self._by_peer[key]
            raise

    def _remember(self, key: str, timeline: Timeline) -> None:
        self.recent.pop(key, None)
        self.recent[key] = timeline
        if len(self.recent) > MAX_RECENT:
            del self.recent[next(iter(self.recent))]

    def _see_if_worth_it(self, peer_id: str) -> None:
        """Raises NotSupported where auto mode should take the relay at once."""
        reason = self.caller.memory.blocked(peer_id)
        if reason:
            raise NotSupported(f"could not be met directly a moment ago: {reason}")

    def _open_on(self, link: PeerLink, ctx: connect_ctx_t) -> DirectStream:
        stream_id = link.channels.open(ctx.channel_type, ctx.encrypt_data, ctx.connect_desc)
        return DirectStream(link, stream_id, ctx.channel_type, ctx.encrypt_data, ctx.connect_desc)

    def _make(
        self, key: str, auto: bool, make: Callable[[Attempt], PeerLink], attempt: Attempt
    ) -> None:
        error: KKP2PError = EngineClosed()  # when killed
        try:
            self._by_peer[key] = make(attempt)
        except KKP2PError as caught:
            error = caught
        except Exception as bug:  # noqa: BLE001 - logged; whoever waits may have another way
            self._log.exception("bug in the search for a path to %s", key)
            error = OurFault(f"a fault of ours: {bug!r}")
        finally:
            del self._making[key, auto]
            attempt.settle(self._by_peer.get(key) or error)

    def retire(self, own_id: str) -> None:
        """Who calls this peer does not mean us any more, not even on a live link."""
        for link in self.links:
            link.retire(own_id)

    # When the cloud loses a peer.

    def handle_gone(self, peer_id: str, calls: list[str], back: bool) -> None:
        """Whom we had called, or who had called us: is it there all the same?"""
        for link in list(self.links):
            if link.is_of(peer_id, calls):
                if back:
                    link.handle_back()
                else:
                    link.handle_gone()

    # When the network changes.

    def _handle_network_change(self) -> None:
        self.caller.memory.forget_blocked()
        self._check_cloud()
        for link in list(self.links):
            link.ask()

    def handle_login(self) -> None:
        """The cloud is there (again), and its STUN server.  What we know may be from before."""
        if self._underlay is not None:
            self._underlay.look_again()

    def _check_cloud(self) -> None:
        """And what a STUN server there sees of us."""
        client = self.engine.client
        if self._underlay is not None:
            self._underlay.own.doubt()
        if client is not None:
            client.check_links()

    def _handle_addresses(self) -> None:
        client, underlay = self.engine.client, self._underlay
        if client is not None and underlay is not None:
            client.set_nat(underlay.own.nat.fields(), lambda: underlay.own.tickets)

    # Both sides.

    def start(self) -> None:
        """Get to know our addresses before the first call."""
        try:
            self.underlay()
        except KKP2PError as error:
            self._log.error("no p2p: %s", error)

    @property
    def nat(self) -> NatBehaviour:
        """Ours, as far as it is known by now."""
        return UNKNOWN if self._underlay is None else self._underlay.own.nat

    def underlay(self) -> Underlay:
        if self._closed:
            raise EngineClosed
        if self._underlay is None:
            try:
                self._underlay = Underlay(
                    self.engine.stun_servers, not self.engine.conf.disable_upnp, self._log,
                    self.engine.thread.spawn, self._handle_network_change, self._handle_addresses,
                )  # fmt: skip
            except LinkLost as error:
                raise NotSupported(f"this host has no UDP: {error}") from error
        return self._underlay

    def add_link(self, info: LinkInfo, keys: CallKeys, path: Path) -> PeerLink:
        address, rtt_s = path
        callee = info.theirs if info.is_caller else info.ours
        settings = TransportSettings(max_datagram_bytes=first_hop_datagram_bytes(address))
        connection = PeerConnection(
            send_secret=keys.send, receive_secret=keys.receive, cipher=callee.cipher,
            is_caller=info.is_caller, local_id=info.ours.connection_id,
            remote_id=info.theirs.connection_id, address=address, now=time.monotonic(),
            random=_random, settings=settings, rtt_s=rtt_s,
        )  # fmt: skip
        link = PeerLink(
            self.underlay().endpoint, connection, info, self._log,
            self._refuse if info.is_caller else self._offered, self._forget, self._roaming,
        )  # fmt: skip
        self.links.add(link)
        self._log.info("%s: %s, %s", info.name, link.describe(), callee.cipher)
        return link

    def _refuse(self, link: PeerLink, offered: ChannelOffered) -> None:
        """Only the side that was called is one that accepts."""
        link.channels.refuse(offered.stream_id, REFUSED_UNSUPPORTED)

    def _forget(self, link: PeerLink) -> None:
        self.links.discard(link)
        for key, other in list(self._by_peer.items()):
            if other is link:
                del self._by_peer[key]

    # The end.

    @property
    def busy(self) -> bool:
        """Whether something is on its way, or a path is being looked for."""
        return bool(self._making) or any(not link.channels.drained.is_set() for link in self.links)

    def drain(self) -> None:
        """Wait until no channel has anything on its way."""
        for link in list(self.links):
            link.channels.drained.wait()

    def sweep(self) -> None:
        for link in list(self.links):
            link.sweep()
        client = self.engine.client
        if client is not None and any(
            link.info.is_caller and link.connection.streams.by_id for link in self.links
        ):
            client.keep_links()

    def close(self) -> None:
        """Calls that are still under way fail: nothing is opened again."""
        self._closed = True
        self.callee.close()
        for link in list(self.links):
            link.destroy()
        if self._underlay is not None:
            self._underlay.close()
