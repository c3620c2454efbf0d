"""One call's connectivity checks: which of the peer's addresses packets get through to.

Sans-IO.  Both peers probe each other's addresses by STUN requests with the call's credentials, and
the caller (the *controlling* side) chooses.  Follows RFC 8445 (ICE); we depart from it where one
socket for each family, fixed roles and a path that the transport can move later make it simpler:

- A pair is a remote address: the kernel picks the local one.  Its priority is the remote
  candidate's, as only the caller compares them.  An answer from another address than the probed one
  (of a host with several) does not verify the probed one (7.2.5.2.1), but we learn its source.
- There is no role conflict (7.3.1.1): the caller controls.  A request with our own role is dropped.
- Nomination takes no round trip of its own.  The caller selects the first verified address at once,
  unless a better one is still in its first round trip, and sends USE-CANDIDATE until that is
  answered.  The callee selects the nominated address when its own check of it has been answered
  (7.3.1.5).  There is one nomination, so both sides end on the same path.
- Timing: an offer has a few candidates, so the first checks leave at once and the first
  retransmissions soon, instead of at Ta = 50 ms and RTO = 500 ms (14.2, 14.3).

On a path without loss the caller has its address one round trip after it got the answer, the callee
half a round trip later.  A better address that is dead costs GRACE_S more.

The callee's first check of an address behind a NAT gets no further than the callee's own NATs
(LOW_TTL): it is only to open their filters, as the caller's filter is still closed.  If it arrived,
a router that is a Linux host might take it for a connection of its own, and then give the caller's
packets another port.

Whatever the peer names gets few packets: at most MAX_CANDIDATES addresses, MAX_PORTS_PER_IP of
one ip, MAX_PROBES_PER_ADDRESS and MAX_PROBES in all.  Beyond the list, at most MAX_LEARNT addresses
from which authentic messages came.  A request that is replayed changes nothing.
``Courtesy`` bounds what all calls of an engine send together.  Where a plan says so, ``guesses``
are probed beside the list, within bounds of their own.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from random import Random

from .._address import Address, text_of
from .candidates import (
    MAX_CANDIDATES,
    Candidate,
    family_of,
    is_private,
    may_be_peer,
    plausible,
    reflexive_priority,
)
from .check_pairs import FIRST_INTERVAL_S, Pair, Probe
from .courtesy import Courtesy
from .credentials import UFRAG_BYTES, Credentials
from .guesses import LOW_TTL, Guesses
from .notes import Note, NoteKind
from .stun import UNKNOWN_ATTRIBUTE, Kind, Message
from .stun_client import at

__all__ = ["Checks", "Credentials"]

# Our choices: pace.
BURST = 8  # checks that may leave at once: the addresses of an ordinary peer
PACE_S = 0.005  # then one in this time; 124-byte datagrams, so 0.2 Mbit/s
MAX_INTERVAL_S = 2.0
TRIGGER_GAP_S = 0.01  # after a check that is still under way, another one tells nothing new
# Our choices: patience with a better address when one is verified.
GRACE_S = 0.005  # beyond twice the round trip of the verified one
MAX_WAIT_S = 0.1  # in all: on a short path long enough for one retransmission
# Our choices: bounds.
MAX_PROBES_PER_ADDRESS = 40  # 70 s at the intervals above: more than the longest call's 60
MAX_PROBES = 800  # 100 KB in all, to addresses from which the peer has not been heard
MAX_PORTS_PER_IP = 4  # or a list would be a port scan
MAX_LEARNT = 16
MAX_REQUESTS = 4608  # remembered; a peer of our kind sends fewer: 4,460 at most
MAX_NOTES = 400


class Checks:
    """Feed ``handle_message`` and ``handle_timer``; after each, send all that ``poll_transmit``
    gives, look at ``selected``, and come back at ``next_timer``.  The first checks are ready at
    once.  Time is in seconds of a monotonic clock.

    Add it to a CheckTable, which authenticates every message.  Keep it there after the choice:
    until ``settled``, and then for as long as the peer may have missed our last answer.
    The caller's time-out is not kept here.
    """

    def __init__(
        self,
        *,
        controlling: bool,
        local: Credentials,
        remote: Credentials,
        local_candidates: Sequence[Candidate],
        candidates: Iterable[Candidate],
        now: float,
        random: Random,
        courtesy: Courtesy | None = None,
        vouched: Collection[str] | None = None,
        number: int = 0,
    ) -> None:
        """``controlling``: we are the caller.  ``candidates``: the peer's, of ``parse_untrusted``.

        ``local_candidates``: our own, whether or not the peer knows them.
        ``random``: a SystemRandom outside tests.
        ``courtesy``: of the engine; None: of this call alone.  ``vouched``: ips where the cloud
        has seen the peer; None: it cannot tell.  ``number``: the socket that all checks go by.
        """
        self.local = local
        self.remote = remote
        self.selected: Address | None = None
        self.settled = False  # both sides know; nothing more to send but answers
        self.ignored = 0  # candidates of the peer that we do not try
        self.notes: list[Note] = []  # whoever reads them may clear the list
        self._notes_left = MAX_NOTES
        self._controlling = controlling
        self._own = local_candidates
        self._number = number
        self._random = random
        self._courtesy = courtesy or Courtesy()
        self._tie_breaker = random.getrandbits(64)  # 16.1 asks for it; never compared
        self._pairs: dict[Address, Pair] = {}
        self._listed: dict[Address, Candidate] = {}
        self._learnt = 0
        self._budget = MAX_PROBES
        self.guesses = Guesses(self._listed, self._note, vouched)
        self._probes: dict[bytes, Probe] = {}
        self._requests: dict[bytes, Address] = {}  # transaction ids seen, and where from
        self._outbox: deque[tuple[bytes, Address, int | None]] = deque()
        self._now = now
        self._low_ttl_until = now
        self._pace_at = -math.inf
        self._nominee: Pair | None = None
        self._first_valid_at = math.inf
        self._nominate_at = math.inf
        self.add_candidates(candidates)
        self.handle_timer(now)

    @property
    def round_trip_s(self) -> float | None:
        """Of the check that verified the selected address."""
        return self._pairs[self.selected].round_trip_s if self.selected else None

    def add_candidates(self, candidates: Iterable[Candidate]) -> None:
        """Try these too, from the next ``handle_timer`` on, which is due at once."""
        for candidate in candidates:
            address = at((candidate.address, candidate.port), self._number)
            if address in self._listed:
                continue
            if (
                len(self._listed) >= MAX_CANDIDATES
                or sum(ip == candidate.address for ip, *_ in self._listed) >= MAX_PORTS_PER_IP
                or not may_be_peer(candidate.address, candidate.port)
                or not plausible(candidate.address, self._own)
            ):
                self.ignored += 1
                self._note("{kind} {address} is not tried", candidate.kind, text_of(address))
                continue
            self._listed[address] = candidate
            fresh = Pair(candidate.kind, address, candidate.priority, self._now)
            known = self._pairs.setdefault(address, fresh)
            known.priority = candidate.priority  # of one that was learnt: 7.3.1.3

    def guessable(self) -> list[Candidate]:
        """The peer's candidates near which ports may be guessed."""
        return [each for each in self._listed.values() if self.guesses.may_be_at(each.address)]

    def stay_low(self, seconds: float) -> None:
        """For so long the callee's checks need not arrive, as the caller's will."""
        self._low_ttl_until = self._now + seconds

    # Input.

    def handle_message(self, message: Message, source: Address, now: float) -> str | None:
        """A message of this call that is authentic: the CheckTable has seen to that.

        Returns why it was dropped, or None.
        """
        self._now = max(self._now, now)
        if message.kind is Kind.REQUEST:
            return self._handle_request(message, source)
        if message.kind is Kind.INDICATION:
            return "an indication"
        return self._handle_answer(message, source)

    def handle_timer(self, now: float) -> None:
        self._now = max(self._now, now)
        if self._choice_is_made():
            self._repeat_nomination()
            return
        self._consider_nominating()
        if self._choice_is_made():
            return
        due = [p for p in self._pairs.values() if p.next_probe_at <= self._now and self._may(p)]
        for pair in sorted(due, key=lambda pair: (pair.probes, -pair.priority)):
            # An earlier check of this loop may have used up the budget.
            if self._pace_at <= self._now and self._may(pair):
                self._probe(pair)
        while (guess := self.guesses.poll(self._now)) is not None:
            self._send_check(*guess)

    # Output.

    def poll_transmit(self) -> tuple[bytes, Address, int | None] | None:
        """A datagram, where to, and how many hops it may take (None: as usual)."""
        return self._outbox.popleft() if self._outbox else None

    def next_timer(self) -> float | None:
        """When to call ``handle_timer``; None: never, unless something else happens."""
        if self._choice_is_made():
            nominee = self._nominee
            waits = nominee and not self.settled and nominee.probes < MAX_PROBES_PER_ADDRESS
            return nominee.next_probe_at if nominee and waits else None
        probe_at = min(
            (pair.next_probe_at for pair in self._pairs.values() if self._may(pair)),
            default=math.inf,
        )
        due_at = min(max(probe_at, self._pace_at), self._nominate_at, self.guesses.next_at())
        return due_at if due_at < math.inf else None

    # Requests of the peer.

    def _handle_request(self, message: Message, source: Address) -> str | None:
        ours, theirs = message.controlling, message.controlled
        if not self._controlling:
            ours, theirs = theirs, ours
        if ours is not None or theirs is None:
            return "a request with the wrong role"
        if message.priority is None:
            return "a request without a priority"
        if not may_be_peer(source[0], source[1]):
            return "a request from an address that no peer has"
        seen_from = self._requests.get(message.transaction_id)
        if seen_from not in (None, source):
            return "a replayed request"
        if seen_from is None and len(self._requests) >= MAX_REQUESTS:
            return "too many requests"
        self._requests[message.transaction_id] = source
        self._answer(message, source)
        if seen_from is None and not message.unknown:
            self._take_request(message, source)
        return None

    def _answer(self, request: Message, source: Address) -> None:
        if request.unknown:  # RFC 8489 section 6.3.1
            answer = Message(
                Kind.ERROR,
                request.transaction_id,
                error=UNKNOWN_ATTRIBUTE,
                not_understood=request.unknown,
            )
        else:
            answer = Message(Kind.RESPONSE, request.transaction_id, mapped=source[:2])
        self._send(answer.encode(self.local.key), source)

    def _take_request(self, message: Message, source: Address) -> None:
        pair = self._pair_of(source, message.priority or 0)
        if pair is None:
            return
        if message.use_candidate and not self._controlling:
            pair.nominated = True
            self._select_if_nominated(pair)
        self._hear(pair)

    def _pair_of(self, source: Address, priority: int) -> Pair | None:
        """The pair of an address that an authentic message came from; None: too many are learnt."""
        pair = self._pairs.get(source)
        if pair is None and self._learnt < MAX_LEARNT:
            self._learnt += 1
            pair = self._add_learnt(source, priority)
        return pair

    def _add_learnt(self, source: Address, priority: int) -> Pair:
        pair = self._pairs[source] = Pair("prflx", source, priority, self._now)
        self._note("learnt {address}", text_of(source), kind=NoteKind.LEARNT)
        return pair

    def _hear(self, pair: Pair) -> None:
        """The peer is there: a triggered check (7.3.1.4), unless one is under way."""
        gap_s = TRIGGER_GAP_S
        if not pair.heard:
            # What we sent before was most likely too early: the peer's NAT was closed, or it had
            # not heard of the call yet.
            gap_s = 0.0
            pair.heard = True
            self._note("a check came from {kind} {address}", pair.kind, text_of(pair.address))
            pair.interval_s = FIRST_INTERVAL_S
        if self._choice_is_made() or not self._may(pair):
            return
        pair.next_probe_at = min(pair.next_probe_at, pair.last_sent_at + gap_s)
        if pair.next_probe_at <= self._now:
            self._probe(pair)

    # Answers to our checks.

    def _handle_answer(self, message: Message, source: Address) -> str | None:
        probe = self._probes.pop(message.transaction_id, None)
        if probe is None:
            return "an answer to no check of ours"
        if message.kind is Kind.ERROR or message.unknown:
            return "a refusal"
        pair = self._pairs.get(probe.address)
        if source != probe.address:
            if not may_be_peer(source[0], source[1]):
                return "an answer from an address that no peer has"
            other = self._pair_of(source, pair.priority if pair else 0)
            if other is not None:
                self._hear(other)
            return None
        if pair is None:  # a guess was right
            pair = self._add_learnt(source, reflexive_priority(self._own, family_of(source[0])))
        pair.heard = True
        if not pair.valid:
            pair.valid = True
            self._courtesy.met(source[0])
            pair.round_trip_s = self._now - probe.sent_at
            self._first_valid_at = min(self._first_valid_at, self._now)
            self.guesses.stop()
            self._note(
                "{kind} {address} answered after {took_ms:.1f} ms",
                pair.kind,
                text_of(source),
                1000 * pair.round_trip_s,
                kind=NoteKind.ANSWER,
            )
        if probe.nominates:
            self.settled = True
        self._select_if_nominated(pair)
        self._consider_nominating()
        return None

    # The choice.

    def _choice_is_made(self) -> bool:
        return self.selected is not None

    def _select_if_nominated(self, pair: Pair) -> None:
        if pair.nominated and pair.valid and not self._choice_is_made():
            self.selected = pair.address
            self.settled = True
            self._note("the caller chose {kind} {address}", pair.kind, text_of(pair.address))

    def _consider_nominating(self) -> None:
        """As the caller, take the best verified address, or wait a little for a better one."""
        valid = [pair for pair in self._pairs.values() if pair.valid]
        if not self._controlling or self._choice_is_made() or not valid:
            return
        best = max(valid, key=lambda pair: pair.priority)
        self._nominate_at = min(
            max((self._patience_with(p, best) for p in self._pairs.values()), default=-math.inf),
            self._first_valid_at + MAX_WAIT_S,
        )
        if self._nominate_at > self._now:
            return
        self.selected = best.address
        self._nominee = best
        self._note("chose {kind} {address}", best.kind, text_of(best.address))
        best.probes = 0
        best.interval_s = FIRST_INTERVAL_S
        self._probe(best)

    def _patience_with(self, pair: Pair, best: Pair) -> float:
        """Until when this one may still turn out better than the best verified one."""
        if pair.valid or pair.priority <= best.priority or not self._may(pair):
            return -math.inf
        # An address in our own network would have answered sooner than one beyond our NATs.
        is_near = is_private(pair.address[0]) and not is_private(best.address[0])
        round_trips = 1 if is_near else 2
        return pair.first_sent_at + round_trips * best.round_trip_s + GRACE_S

    def _repeat_nomination(self) -> None:
        pair = self._nominee
        if pair is None or self.settled or pair.probes >= MAX_PROBES_PER_ADDRESS:
            return
        if pair.next_probe_at <= self._now:
            self._probe(pair)

    # Checks.

    def _may(self, pair: Pair) -> bool:
        """Whether another check of this pair is within the bounds and of any use."""
        return (
            not pair.valid
            and pair.probes < MAX_PROBES_PER_ADDRESS
            and (pair.heard or self._budget > 0)
        )

    def _probe(self, pair: Pair) -> None:
        ttl = LOW_TTL if self._need_not_arrive(pair) else None
        what = pair.probes + 1, pair.kind, text_of(pair.address)
        if ttl:
            self._note(
                "check {number} of {kind} {address}, {hops} hops", *what, ttl, kind=NoteKind.CHECK
            )
        else:
            self._note("check {number} of {kind} {address}", *what, kind=NoteKind.CHECK)
        self._send_check(pair.address, ttl, pair is self._nominee)
        if not pair.heard:
            self._budget -= 1
        self._pace_at = max(self._pace_at, self._now - BURST * PACE_S) + PACE_S
        pair.probes += 1
        pair.first_sent_at = min(pair.first_sent_at, self._now)
        pair.last_sent_at = self._now
        pair.next_probe_at = self._now + pair.interval_s
        pair.interval_s = min(2 * pair.interval_s, MAX_INTERVAL_S)

    def _need_not_arrive(self, pair: Pair) -> bool:
        if self._controlling or pair.heard or pair.kind != "srflx":
            return False
        return pair.probes == 0 or self._now < self._low_ttl_until

    def _send_check(self, address: Address, ttl: int | None, nominates: bool = False) -> None:
        pair = self._pairs.get(address)
        if pair is None or not pair.valid:
            heard = pair is not None and pair.heard
            if not self._courtesy.may_send(address[0], heard, self._now):
                self._note("{address} gets no more packets from us for now", text_of(address))
                return
        transaction_id = self.local.tag + self._random.randbytes(12 - UFRAG_BYTES)
        self._probes[transaction_id] = Probe(address, self._now, nominates)
        request = Message(
            Kind.REQUEST,
            transaction_id,
            username=f"{self.remote.ufrag}:{self.local.ufrag}",
            priority=reflexive_priority(self._own, family_of(address[0])),
            use_candidate=nominates,
            controlling=self._tie_breaker if self._controlling else None,
            controlled=None if self._controlling else self._tie_breaker,
        )
        self._send(request.encode(self.remote.key), address, ttl)

    def _send(self, data: bytes, address: Address, ttl: int | None = None) -> None:
        self._outbox.append((data, address, ttl))

    def _note(
        self, template: str, *values: object, kind: NoteKind = NoteKind.OTHER, amount: int = 1
    ) -> None:
        if self._notes_left > 0:
            self._notes_left -= 1
            self.notes.append(Note(self._now, template, kind, amount, values))
