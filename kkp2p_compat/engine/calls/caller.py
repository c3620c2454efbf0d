"""The caller's ways to a path: by the cloud, by a LAN search, and again when a path is dead.

Runs in the engine's hub.  An offer goes out, an answer comes back, and a ``Meeting`` looks for the
path.  In auto mode that is a race: the path has a head start; meanwhile both sides prepare the
relay, and the caller takes it when the head start is over.  The path is looked for on: the next
channel will be p2p.
"""

from __future__ import annotations

import functools
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import gevent

from ... import _codes
from ..._errors import KKP2PError, NotSupported, TimedOut
from ..._io import time_limit
from ..._structs import connect_ctx_t
from ...control.client import CloudClient
from ...control.link import Link
from ...control.outgoing import OutgoingCall
from ...control.wire import MAX_BUDGET_MS
from ...traversal import lan
from ..links.peer_link import LinkInfo, PeerLink
from ..links.prepared_relay import PreparedRelay
from ..links.streams import RelayedStream, relayed_stream
from ..paths.meeting import Meeting
from ..paths.path_finder import Path
from ..runtime.timeline import Timeline
from ..signalling.direct_offer import DirectOffer
from ..signalling.keys import CallKeys
from ..signalling.offer import parse_direct_answer_untrusted, vouched_untrusted
from ..signalling.own_side import Half
from .attempts import Attempt, Memory
from .cloud_call import (
    call_peer,
    go_as_caller,
    may_be_relayed,
)

if TYPE_CHECKING:
    from ..direct import Direct

__all__ = ["ATTEMPT_S", "Caller", "head_start_s"]

# Our choices.
HEAD_START_S = 1.0  # in auto mode; half of the caller's time is the relay's, however
ATTEMPT_S = MAX_BUDGET_MS / 1000  # then the callee has long given up: whoever has time calls again
FIRST_LOOK_S = 0.5  # how long a call waits for what STUN says of our own addresses


def head_start_s(deadline: float) -> float:
    """How long a path is waited for before the relay is taken."""
    return max(0.0, min(HEAD_START_S, (deadline - time.monotonic()) / 2))


class Caller:
    """``call`` and ``search`` make a link; ``redial`` finds a new path for one."""

    def __init__(self, direct: Direct) -> None:
        self._direct = direct
        self._engine = direct.engine
        self._log = direct.engine.log
        self.memory = Memory()

    def call(
        self, client: CloudClient, ctx: connect_ctx_t, deadline: float, attempt: Attempt
    ) -> PeerLink:
        deadline = min(deadline, time.monotonic() + ATTEMPT_S)
        timeline, peer_id = attempt.timeline, ctx.peer_id
        underlay = self._direct.underlay()
        own = underlay.own
        own.ready.wait(max(0.0, min(FIRST_LOOK_S, (deadline - time.monotonic()) / 4)))
        half = Half(own.candidates(), own.nat, worked=self.memory.worked(peer_id))
        timeline.step("own addresses")
        timeline.note(f"our NAT: {own.nat.text}")
        offer = half.offer(ctx, ctx.connect_mode)
        searching_since: list[float] = []

        def finish(link: Link, call: OutgoingCall) -> PeerLink | str:
            answer = call.answer.get()
            timeline.step("answer")
            searching_since.append(time.monotonic())
            public, theirs = parse_direct_answer_untrusted(answer)
            theirs = replace(theirs, vouched=vouched_untrusted(call.peer_seen))
            keys = half.keys(public, offer, answer)
            trickle = functools.partial(link.trickle, call)
            with underlay.meeting(half, theirs, keys, timeline, trickle) as meeting:
                call.hear(meeting.handle_text_untrusted)
                if may_be_relayed(ctx):
                    self._race(meeting, attempt, link, call, ctx, keys, deadline)
                    if meeting.plan.kind == "relay" and not meeting.found.ready():
                        return meeting.plan.reason
                path = meeting.take().path
            info = LinkInfo(
                name=peer_id,
                peer_id=peer_id,
                is_lan=False,
                timeline=timeline,
                plan=meeting.plan,
                ours=half.direct,
                theirs=theirs,
            )
            return self._direct.add_link(info, keys, path)

        late = TimedOut("the peer did not answer in time")
        try:
            left_s = deadline - time.monotonic()
            with time_limit(left_s, late):
                link = call_peer(client, peer_id, offer, left_s, finish)
            if isinstance(link, str):
                raise NotSupported(link)
        except (TimedOut, NotSupported) as error:
            if error is late and searching_since:
                late.args = ("no path to the peer was found",)
            searched_s = time.monotonic() - searching_since[0] if searching_since else 0.0
            # A short search says nothing about the path, but a plan that there can be none does.
            if isinstance(error, NotSupported) or searched_s >= HEAD_START_S / 4:
                self.memory.failed(peer_id, str(error))
            raise
        self.memory.succeeded(peer_id, link.info.plan.kind)
        return link

    def _race(
        self, meeting: Meeting, attempt: Attempt, link: Link, call: OutgoingCall,
        ctx: connect_ctx_t, keys: CallKeys, deadline: float,
    ) -> None:  # fmt: skip
        """Wait for the path, or take the relay when its head start is over, or when it must."""
        hopeless = meeting.plan.kind == "relay"
        go = functools.partial(go_as_caller, call, link)
        relay = PreparedRelay(self._engine.thread.spawn, go, is_caller=True)
        try:
            if hopeless:
                attempt.why_relay = meeting.plan.reason
            else:
                meeting.found.wait(head_start_s(deadline))
            relay.hurry()
            gevent.wait([meeting.found, relay.ready], count=1)
            if not meeting.found.ready():
                try:
                    attempt.take_relay(relay, lambda sock: _relayed(sock, ctx, keys))
                    call.settle()  # a word by the track must not overtake the relay's
                except KKP2PError as error:
                    attempt.timeline.note(f"no relay: {error}")
                    self._log.info("%s: no relay: %s", ctx.peer_id, error)
        finally:
            relay.close()

    def search(
        self, peer_id: str, ctx: connect_ctx_t, deadline: float, attempt: Attempt
    ) -> PeerLink:
        """A link to a peer that answers on the LAN."""
        budget_s = min(deadline - time.monotonic(), ATTEMPT_S)
        half = Half(self._direct.underlay().own.host_candidates())
        offer = half.fit(lambda: half.offer(ctx, _codes.CONNECT_P2P))
        path, meeting, theirs, keys = self._meet_on_lan(
            peer_id, half, offer, budget_s, attempt.timeline
        )
        info = LinkInfo(
            name=f"{peer_id} (LAN)",
            peer_id=peer_id,
            is_lan=True,
            timeline=attempt.timeline,
            plan=meeting.plan,
            ours=half.direct,
            theirs=theirs,
        )
        return self._direct.add_link(info, keys, path)

    def _meet_on_lan(
        self, peer_id: str, half: Half, offer: str, budget_s: float, timeline: Timeline
    ) -> tuple[Path, Meeting, DirectOffer, CallKeys]:
        deadline = time.monotonic() + budget_s
        port = self._engine.conf.lan_search_port
        answer, _ = lan.search(peer_id, offer, port, budget_s, self._log)
        timeline.step("answer")
        public, theirs = parse_direct_answer_untrusted(answer)
        keys = half.keys(public, offer, answer)
        late = TimedOut("no path to the peer was found")
        with (
            self._direct.underlay().meeting(half, theirs, keys, timeline, None) as meeting,
            time_limit(deadline - time.monotonic(), late),
        ):
            path = meeting.take().path
        return path, meeting, theirs, keys

    def redial(self, link: PeerLink, budget_s: float) -> Path:
        """A new path to the peer of a link that we made."""
        info, underlay, timeline = link.info, self._direct.underlay(), Timeline()
        underlay.own.make_sure(FIRST_LOOK_S)  # a NAT that started anew tells nobody
        connection_id = info.theirs.connection_id
        client = self._engine.client
        if info.is_lan or client is None:
            half = Half(underlay.own.host_candidates())
            offer = half.fit(lambda: half.restart(connection_id))
            return self._meet_on_lan(info.peer_id, half, offer, budget_s, timeline)[0]
        half = Half(underlay.own.candidates(), underlay.own.nat, worked=info.plan.kind)
        offer = half.restart(connection_id)

        def finish(carrier: Link, call: OutgoingCall) -> Path:
            answer = call.answer.get()
            public, theirs = parse_direct_answer_untrusted(answer)
            theirs = replace(theirs, vouched=vouched_untrusted(call.peer_seen))
            keys = half.keys(public, offer, answer)
            trickle = functools.partial(carrier.trickle, call)
            with underlay.meeting(half, theirs, keys, timeline, trickle) as meeting:
                call.hear(meeting.handle_text_untrusted)
                return meeting.take().path

        with time_limit(budget_s, TimedOut("no new path was found")):
            return call_peer(client, info.peer_id, offer, budget_s, finish)


def _relayed(sock: Any, ctx: connect_ctx_t, keys: CallKeys) -> RelayedStream:
    return relayed_stream(sock, ctx.connect_desc, keys.sealed if ctx.encrypt_data else None)
