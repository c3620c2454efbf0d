"""A live connection with a peer: its life, and the path that it takes.

Runs in the engine's hub.  The endpoint calls from the callbacks of its watchers; nothing here
waits.  The channels on the connection are in link_channels.py.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from ..._codes import CONNECT_AUTO, CONNECT_P2P
from ..._errors import BadPacket, EngineClosed, KKP2PError, UnprovenPeer
from ...transport.udp import events as e
from ...transport.udp.endpoint import Endpoint
from ...transport.udp.lifecycle import CLOSE_NORMAL, CLOSE_UNPROVEN
from ...transport.udp.liveness import Hearing
from ...transport.udp.peer_connection import PeerConnection
from ..paths.meeting import Met
from ..paths.path_kind import PathKind
from ..paths.udp_use import UdpUse
from .link_channels import LinkChannels
from .link_paths import LinkPaths
from .pins import Pins
from .proving import PeerKey, Proving

__all__ = ["LinkInfo", "PeerLink"]

# Our choices.
IDLE_S = 60.0  # how long a link without channels is kept for the next one
SEEK_FIRST_S = 30.0  # from one call for a better path to the next, doubling
SEEK_MOST_S = 480.0
SLOW_LEAST, SLOW_MOST = 30_000, 300_000  # bytes a second, in both directions together


@dataclass(frozen=True, kw_only=True)
class LinkInfo:
    """How a link came to be.  ``name`` is for the log; decisions are made by the other fields.

    One of ``peer_id`` and ``own_id`` is set: the id of the side that was called.  The side that
    called is also the one that calls again when the path is dead: over the LAN if ``is_lan``, else
    over the cloud.  ``mode``: CONNECT_AUTO, CONNECT_P2P or CONNECT_RELAY, which its path obeys.
    """

    name: str
    peer_id: str = ""  # that we called; "": the peer called us
    own_id: str = ""  # that the peer called us by; "": we called
    is_lan: bool  # offer and answer went over the LAN, not over the cloud
    caller_id: str = ""  # of the peer that called us, if the cloud vouches for it
    share: str = ""  # whose part of our room it takes up, if the peer called us
    mode: int
    met: Met

    @property
    def is_caller(self) -> bool:
        return bool(self.peer_id)


class Roams(Protocol):
    """Looks for another path while a peer is not heard; see Roaming."""

    def handle_suspected(self, link: PeerLink) -> None: ...
    def handle_recovered(self, link: PeerLink) -> None: ...
    def handle_closed(self, link: PeerLink) -> None: ...
    def seek(self, link: PeerLink, needs_tcp: bool) -> None: ...


class PeerLink:
    """``on_offered(link, event)`` accepts or refuses a channel that the peer opens.

    ``on_closed(link)`` is called once, after ``close``, or when the peer is gone.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        connection: PeerConnection,
        info: LinkInfo,
        log: logging.Logger,
        on_offered: Callable[[PeerLink, e.ChannelOffered], object],
        on_closed: Callable[[PeerLink], object],
        roaming: Roams,
        udp: UdpUse,
        pins: Pins,
    ) -> None:
        self.connection = connection
        self.local_id = connection.local_id
        self.info = info
        self.name = info.name
        self.channels = LinkChannels(self)
        self.retired = False  # we are not the peer any more that was called
        self.closed: KKP2PError | None = None
        self.peer_key: PeerKey | None = None  # once the peer has proved it
        self._pins = pins
        self._proving = _proving(pins, info)
        self._call_id = ""
        self._endpoint = endpoint
        self._log = log
        self._on_offered = on_offered
        self._on_closed = on_closed
        self._roaming = roaming
        self._used = False
        self._seek_s = SEEK_FIRST_S
        self._seek_at = time.monotonic() + SEEK_FIRST_S
        self._passed = time.monotonic(), 0  # bytes, at the last sweep
        self.paths = LinkPaths(
            connection,
            info.met.path,
            info.met.reason,
            endpoint,
            self.wake,
            info.name,
            log,
            info.met.timeline.note,
            udp,
            is_caller=info.is_caller,
        )
        if self._proving is not None:
            connection.packer.queue_control(self._proving.proof)
        endpoint.add(self)

    @property
    def ids(self) -> tuple[int, int]:
        """The connection's, ours and the peer's."""
        met = self.info.met
        return met.ours.connection_id, met.theirs.connection_id

    @property
    def is_ipv6(self) -> bool:
        return ":" in self.connection.address[0]

    def wake(self) -> None:
        self._endpoint.wake(self)

    def describe(self) -> str:
        """Where the peer is, why there, and how long it took to find out."""
        ip, port = self.connection.address[:2]
        rtt, info, kind = self.connection.recovery.rtt, self.info, self.paths.kind
        trip = "" if rtt.latest_s is None else f", round trip {1000 * rtt.smoothed_s:.1f} ms"
        plan = f"{info.met.plan.kind}: " if kind is PathKind.DIRECT else ""
        why = f"{plan}{self.paths.reason}" if self.paths.reason else ""
        steps = info.met.timeline.summary
        where = f"{kind.value} with {ip} port {port}{trip}"
        return ", ".join(text for text in (where, why) if text) + f"; {steps}"

    def describe_use(self) -> str:
        """How the next channel comes to be: the first one tells of the link, too."""
        if self._used:
            return f"{self.paths.kind.value}, on the live connection"
        self._used = True
        return self.describe()

    # What the cloud says.

    def note_call(self, call_id: str) -> None:
        """We have answered this call of the peer; ``call_id``: what the track calls it."""
        self._call_id = call_id

    def is_of(self, peer_id: str, call_ids: list[str]) -> bool:
        """Whether the track means this link's peer: whom we called, or whose call we answered."""
        info = self.info
        if info.is_caller:
            return info.peer_id == peer_id and not info.is_lan
        return bool(self._call_id) and self._call_id in call_ids

    def handle_gone(self) -> None:
        """The cloud has lost the peer: is it there all the same?"""
        if self.connection.doubt(time.monotonic()):
            self._log.info("%s: the cloud says that it is gone: asking it", self.name)
            self.wake()

    def handle_back(self) -> None:
        self.connection.trust()

    def retire(self, own_id: str) -> None:
        """We are not this peer any more: whoever called it does not mean us."""
        self.retired = self.retired or own_id == self.info.own_id

    # The path.

    @property
    def is_fit(self) -> bool:
        """Whether a new channel would get on: the peer is heard, and reads what it is sent."""
        return not self._is_suspected and not self.connection.streams.clogged(time.monotonic())

    @property
    def _is_suspected(self) -> bool:
        return self.connection.liveness.hearing is Hearing.SUSPECTED

    def has_heard(self, stream_id: int) -> bool:
        """Whether the peer has acknowledged that we ask for this channel, and is not suspected to
        be gone since.

        Nothing else will do: a path may carry only what is smaller, or only packets towards us.
        """
        stream = self.connection.streams.by_id.get(stream_id)
        return stream is not None and stream.has_arrived and not self._is_suspected

    def ask(self) -> None:
        """Something may have happened to the path: find out whether the peer is there."""
        self.connection.ping()
        self.wake()

    def handle_network_changed(self) -> None:
        """Our addresses or routes are others: what was in the way may be gone, or be there."""
        self.paths.handle_network_changed()
        self._seek_s = SEEK_FIRST_S
        self._seek_at = 0.0
        self.ask()

    def _seek(self) -> None:
        """Look for a better path, or for a second one, where checks have not found it before.

        Where as little passes as a network lets through that throttles UDP, a way over TCP: whoever
        has more to send compares the two.
        """
        now, paths, mode = time.monotonic(), self.paths, self.info.mode
        is_slow = self._is_slow(now)
        lacks = mode == CONNECT_AUTO and (paths.kind.is_relay or not paths.has_relay)
        needs_tcp = is_slow and mode != CONNECT_P2P and not paths.has_tcp
        if not (lacks or needs_tcp) or not self.info.is_caller or not self.channels.carried:
            self._seek_at = min(self._seek_at, now + SEEK_FIRST_S)
        elif now >= self._seek_at or (needs_tcp and self._seek_s == SEEK_FIRST_S):
            self._seek_at = now + self._seek_s
            self._seek_s = min(2 * self._seek_s, SEEK_MOST_S)
            self._roaming.seek(self, needs_tcp)

    def _is_slow(self, now: float) -> bool:
        connection, (before, before_bytes) = self.connection, self._passed
        passed = connection.packer.sent_bytes + connection.received_bytes
        self._passed = now, passed
        return SLOW_LEAST <= (passed - before_bytes) / max(now - before, 1.0) <= SLOW_MOST

    # From the endpoint.

    def handle_event(self, event: e.Event) -> None:
        handler = self._handlers.get(type(event))
        if handler is not None:
            handler(self, event)
        elif self._proving is None:
            self.channels.handle_event(event)
        else:
            self._hold(self._proving, event)

    def _handle_offered(self, event: e.ChannelOffered) -> None:
        if self._proving is not None:
            self._hold(self._proving, event)
            return
        self.channels.offer(event.stream_id)
        self._on_offered(self, event)

    def _handle_of_a_path(self, event: e.Event) -> None:
        self.paths.handle_event(event)

    def _handle_path_suspected(self, event: e.PathSuspected) -> None:
        self._roaming.handle_suspected(self)

    def _handle_path_recovered(self, event: e.PathRecovered) -> None:
        self._roaming.handle_recovered(self)

    def _handle_closed(self, event: e.Closed) -> None:
        self.closed = error = self.closed or event.error
        level = logging.WARNING if self.channels.carried else logging.INFO
        self._log.log(level, "%s: connection ended: %s", self.name, error)
        self._roaming.handle_closed(self)
        self._endpoint.remove(self)
        self.paths.close()
        self.channels.handle_closed(error)
        self._on_closed(self)

    # Who the peer is.

    @property
    def is_proving(self) -> bool:
        """Whether the peer's proof has not come yet."""
        return self._proving is not None

    def _hold(self, proving: Proving, event: e.Event) -> None:
        try:
            proving.hold(event)
        except BadPacket as error:
            self._refuse(error)

    def _handle_proof(self, event: e.ProofReceived) -> None:
        proving = self._proving
        if proving is None or self.peer_key is not None or self.closed is not None:
            return  # it came before, or nobody asked for it
        try:
            self.peer_key, new_id = proving.check_untrusted(event.proof)
        except UnprovenPeer as error:
            self._refuse(error)
            return
        if new_id:
            fingerprint = self.peer_key.fingerprint
            self._pins.remember(new_id, fingerprint, self._handle_remembered)
        else:
            self._go_on(proving)

    def _handle_remembered(self, problem: KKP2PError | None) -> None:
        if self._proving is None or self.peer_key is None or self.closed is not None:
            return
        if problem is not None:
            self._refuse(problem)
            return
        self.peer_key = self.peer_key._replace(is_pinned=True)
        self._go_on(self._proving)

    def _go_on(self, proving: Proving) -> None:
        """The peer is who it says: what has waited for that happens now."""
        self._proving = None
        if self.peer_key is not None:
            pinned = "known" if self.peer_key.is_pinned else "not kept"
            self._log.info("%s: its key: %s, %s", self.name, self.peer_key.fingerprint, pinned)
        for event in proving.take():
            self.handle_event(event)
        self.wake()

    def _refuse(self, error: KKP2PError) -> None:
        """Nothing that has come is taken, nor anything that still comes."""
        if self.closed is not None:
            return
        self.closed = error
        self._log.error("%s: refused: %s", self.name, error)
        self.connection.close(CLOSE_UNPROVEN, "the proof is not accepted", time.monotonic())
        self.channels.handle_closed(error)
        self.wake()

    # All that are not about one channel.
    _handlers: dict[type, Callable[[Any, Any], None]] = {  # noqa: RUF012
        e.ChannelOffered: _handle_offered,
        e.PathChanged: _handle_of_a_path,
        e.PathProved: _handle_of_a_path,
        e.PathUnproved: _handle_of_a_path,
        e.PathSilent: _handle_of_a_path,
        e.PathSuspected: _handle_path_suspected,
        e.PathRecovered: _handle_path_recovered,
        e.ProofReceived: _handle_proof,
        e.Closed: _handle_closed,
    }

    # The end.

    def sweep(self) -> None:
        """Every few seconds: end what nobody uses."""
        if self._proving is not None and self._proving.is_late:
            self._refuse(UnprovenPeer("no proof of who the peer is has come"))
        self.channels.sweep()
        if self.channels.unused_for(IDLE_S):
            self.close("not in use")
        else:
            self._seek()

    def close(self, reason: str) -> None:
        """Tell the peer; ``on_closed`` follows."""
        self.connection.close(CLOSE_NORMAL, reason, time.monotonic())
        self.wake()

    def destroy(self) -> None:
        """The engine ends: the peer is told once, nothing is waited for."""
        self.close("the engine is destroyed")
        self._endpoint.remove(self)
        self._handle_closed(e.Closed(EngineClosed()))


def _proving(pins: Pins, info: LinkInfo) -> Proving | None:
    """None: one of the two sides proves nothing."""
    met = info.met
    if not (met.ours.proves and met.theirs.proves):
        return None
    return Proving(
        pins,
        met,
        own_id=info.own_id or (pins.lan_id if info.is_lan else pins.net_id),
        called_id=info.peer_id or info.own_id,
        claimed_id=info.peer_id or info.caller_id,
    )
