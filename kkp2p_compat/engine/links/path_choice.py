"""Which of its paths a connection takes: the policy, without sockets, greenlets or a clock.

The rules:

- The side that called moves to a better kind of path when one has proved itself.  Both sides ask
  the better ones, so that NATs on both sides open, seldom and seldomer.
- Whoever finds that nothing is acknowledged on the path in use asks all others, and takes the best
  of those that answer.  A path that failed is held for a while: see PathOption.
- Whoever has more to send than the path in use takes, while another has carried far more, or this
  one itself did, or it loses much, *tries* another: uses it for some seconds, measures, and keeps
  the better one.  The loser is not tried again for minutes.
- The other side follows each move (``transport/udp/paths.py``).  A path that the peer has left for
  a worse one is held, too; if the peer was still heard there, and the path had been used for a
  while, the peer has measured, as we would have.

The driver's loop: ``offer`` and ``withdraw`` as paths become known and break, ``handle_event`` with
each event of the connection about paths, ``handle_timer`` when ``next_timer`` is due; then the
connection has something to send.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from enum import Enum
from typing import TYPE_CHECKING

from ..._address import Address
from ..._sentence import Sentence
from ...transport.udp import events as e
from ...transport.udp.path_validation import MAX_CHECKS
from ...transport.udp.peer_connection import PeerConnection
from ..paths.path_kind import PathKind
from .path_meter import PathMeter, rate_text
from .path_move import Move
from .path_option import ChoiceSettings, PathOption
from .path_trial import Trial, Worth

if TYPE_CHECKING:
    from random import Random

__all__ = ["FOLLOWERS", "PathChoice", "Sign", "State"]

# Our choices.
MAX_OPTIONS = 32  # a peer's network may change all the time
MAX_MOVES = 100  # that are remembered
DECIDE_S = 0.03  # after the first answer while all is silent: a better one, or the old path itself
MAX_ASKED = MAX_CHECKS - 2  # at once: the connection itself may ask where the peer seems to be
TURN_S = 0.2  # when those have been asked that were as many: whether others have their turn
ASK_SILENT_S = 0.5  # between questions to a path that did not answer, while all is silent
FRESH_S = 5.0  # an answer that may be acted on
SPREAD = 0.2  # of the time between questions: many links ask when a server is back
LOOK_S = 1.0  # how often the load is looked at ...
LOOK_IDLE_S = 4.0  # ... and while there is none
HEARD_S = 0.1  # a path that was heard so lately, and half a round trip, was alive


class State(Enum):
    SETTLED = "the path in use will do"
    SILENT = "nothing is acknowledged on it"
    TRYING = "another path is being measured"


class Sign(Enum):
    """What changes the state."""

    SILENCE = "nothing is acknowledged, or the path is withdrawn"
    HEARD = "something is acknowledged again"
    MOVED = "another path is used, for good"
    TRIAL = "another path is used, to measure it"


# A sign that is missing here is a bug and raises.
FOLLOWERS = {
    (State.SETTLED, Sign.SILENCE): State.SILENT,
    (State.SETTLED, Sign.MOVED): State.SETTLED,
    (State.SETTLED, Sign.TRIAL): State.TRYING,
    (State.SILENT, Sign.SILENCE): State.SILENT,
    (State.SILENT, Sign.HEARD): State.SETTLED,
    (State.SILENT, Sign.MOVED): State.SETTLED,
    (State.TRYING, Sign.SILENCE): State.SILENT,
    (State.TRYING, Sign.MOVED): State.SETTLED,
}


class PathChoice:
    """``moves``: what was done, the last ones; ``current``: the path in use."""

    def __init__(
        self,
        connection: PeerConnection,
        kind: PathKind,
        *,
        is_caller: bool,
        now: float,
        random: Random,
        settings: ChoiceSettings | None = None,
        on_move: Callable[[Move], object] = lambda move: None,
    ) -> None:
        """``kind``: of the path that the connection begins with."""
        self.state = State.SETTLED
        self.moves: list[Move] = []
        self.is_udp_throttled = False  # a path over TCP has carried far more than one over UDP
        self._connection = connection
        self._is_caller = is_caller
        self._random = random
        self._on_move = on_move
        self._settings = settings = settings or ChoiceSettings()
        self.current = PathOption(connection.address, kind, settings)
        self.current.handle_used(now)
        self._options: dict[Address, PathOption] = {self.current.address: self.current}
        self._ask_s = settings.ask_first_s
        self._decide_at = math.inf  # between the paths that have answered while all was silent
        self._look_at = now + LOOK_S
        self._sent_bytes = 0
        self._meter = PathMeter()
        self._worth = Worth()
        self._trial: Trial | None = None
        self._wanted: PathOption | None = None  # to be tried when it has answered

    @property
    def home(self) -> Address | None:
        """Where a trial goes back to; None: there is none."""
        return None if self._trial is None else self._trial.home.address

    @property
    def addresses(self) -> Sequence[Address]:
        """All that may be taken."""
        return tuple(self._options)

    # What there is.

    def offer(self, address: Address, kind: PathKind, now: float, *, hold_s: float = 0.0) -> None:
        """The peer may be reached there, too; ``hold_s``: but not by our own wish before."""
        option = self._options.get(address)
        if option is None:
            self._make_room()
            option = self._options[address] = PathOption(address, kind, self._settings)
            option.held_until = now + hold_s
            self._connection.paths.know(address)
        option.kind = kind
        option.is_gone = False
        if option is self.current and self.state is State.SILENT:
            self._connection.try_path(address, now)  # our own address may be another one
            return
        option.ask_at = now
        self._ask_s = self._settings.ask_first_s
        self._ask(now)

    def _make_room(self) -> None:
        if len(self._options) >= MAX_OPTIONS:
            needed = self.current.address, self.home
            others = (option for option in self._options.values() if option.address not in needed)
            self._drop(max(others, key=lambda option: option.doubt))

    def _drop(self, option: PathOption) -> None:
        del self._options[option.address]
        if self._wanted is option:
            self._wanted = None

    def withdraw(self, address: Address, now: float) -> None:
        """The peer is not there any more, or our way there has ended."""
        option = self._options.get(address)
        if option is None:
            return
        if option is self.current:
            option.is_gone = True
            self._connection.ping()  # so that the lack of any path is noticed, too
            self._handle_silence(now)
            return
        if address == self.home:
            self._keep(Sentence("the path before has ended"), now)
        self._drop(option)

    def handle_network_changed(self, now: float) -> None:
        """Our own addresses are others: what was learnt is void, and all paths are asked."""
        self._connection.paths.forget()
        self.is_udp_throttled = False
        self._ask_s = self._settings.ask_first_s
        for option in self._options.values():
            option.forgive()
            option.hasten(now)
        self._ask(now)

    # What happens.

    def handle_event(self, event: e.Event, now: float) -> None:
        """Ignores what is not about paths."""
        if isinstance(event, e.PathProved):
            self._handle_proved(event.address, now)
        elif isinstance(event, e.PathUnproved):
            self._handle_unproved(event.address, now)
        elif isinstance(event, e.PathSilent):
            self._handle_silence(now)
        elif isinstance(event, e.PathChanged) and event.address != self.current.address:
            self._handle_followed(event.address, now)

    def _handle_proved(self, address: Address, now: float) -> None:
        option = self._options.get(address)
        if option is None:
            return
        option.handle_proved(now, self._next_wait_s())
        if self.state is State.SILENT:
            self._decide_at = min(self._decide_at, now + DECIDE_S)
        elif self._wanted is option:
            self._begin_trial(option, now)
        else:
            self._improve(now)

    def _handle_unproved(self, address: Address, now: float) -> None:
        option = self._options.get(address)
        if option is None:
            return
        wait_s = ASK_SILENT_S if self.state is State.SILENT else self._next_wait_s()
        option.handle_unproved(now, wait_s)
        if self._wanted is option:
            self._wanted = None  # another one may be

    def _next_wait_s(self) -> float:
        wait_s = self._ask_s * self._random.uniform(1 - SPREAD, 1 + SPREAD)
        self._ask_s = min(1.5 * self._ask_s, self._settings.ask_most_s)
        return wait_s

    def _handle_silence(self, now: float) -> None:
        self._move_on(Sign.SILENCE)
        self._trial = None
        for option in self._options.values():
            option.hasten(now)
        self._ask(now)

    def _handle_followed(self, address: Address, now: float) -> None:
        """The peer has moved, and the connection has followed it."""
        before, option = self.current, self._options.get(address)
        heard_s = HEARD_S + self._connection.recovery.rtt.least_s / 2
        if option is None:  # the address of a peer that has moved; relays have told us theirs
            kind = PathKind.DIRECT if before.kind.is_relay else before.kind
            self._make_room()
            option = self._options[address] = PathOption(address, kind, self._settings)
        if option.kind.rank <= before.kind.rank:
            option.handle_rehabilitated()
        elif self._connection.paths.unheard_s <= heard_s and before.used_s(now) >= LOOK_S:
            before.handle_lost_trial(now)
        else:
            before.handle_failed(now)
        self._enter(option, Sentence("the peer has moved there"), now, Sign.MOVED)

    # Decisions.

    def _move_on(self, sign: Sign) -> None:
        self.state = FOLLOWERS[self.state, sign]

    def _enter(self, option: PathOption, why: Sentence, now: float, sign: Sign) -> None:
        """``option`` is the one in use from now on."""
        before, self.current = self.current, option
        before.rest(now)
        if before.is_gone:
            del self._options[before.address]
        option.handle_used(now)
        self._move_on(sign)
        if sign is not Sign.TRIAL:
            self._trial = None
        self._wanted = None
        self._decide_at = math.inf
        self._meter.restart()
        self._worth.restart()
        self._ask_s = self._settings.ask_first_s
        self._note(Move(now, before.address, option.address, before.kind, option.kind, why))

    def _note(self, move: Move) -> None:
        self.moves = [*self.moves[1 - MAX_MOVES :], move]
        self._on_move(move)

    def _move(
        self,
        option: PathOption,
        why: Sentence,
        now: float,
        *,
        lossless: bool,
        sign: Sign = Sign.MOVED,
    ) -> bool:
        measured = self._meter.measured(LOOK_S)
        if measured is not None:
            self.current.note_carried(measured.bytes_per_s, now)
        moved = self._connection.move_to(option.address, now, lossless=lossless)
        if moved:
            self._enter(option, why, now, sign)
        return moved

    def _improve(self, now: float) -> None:
        """The caller takes the best path that is better than the one in use."""
        if not self._is_caller or self.state is not State.SETTLED:
            return
        fit = [
            option
            for option in self._options.values()
            if option.kind.rank < self.current.kind.rank
            and now - option.proved_at <= FRESH_S
            and option.is_fit(now)
        ]
        if fit:
            best = min(fit, key=lambda option: option.kind.rank)
            self._move(best, Sentence("a better path"), now, lossless=True)

    @property
    def _is_silent(self) -> bool:
        return self.current.is_gone or self._connection.recovery.silent

    def _decide(self, now: float) -> None:
        """All was silent, and something has answered."""
        self._decide_at = math.inf
        answered = [
            option
            for option in self._options.values()
            if option is not self.current and now - option.proved_at <= 2 * DECIDE_S
        ]
        if not answered:
            return
        before = self.current
        best = min(answered, key=lambda option: (now < option.free_at, option.kind.rank))
        hold_s = before.handle_failed(now)
        if before.is_gone:
            why = Sentence("the path before has ended")
        else:
            why = Sentence(
                "no answer on the path before, which is left alone for {hold_s:.0f} s",
                hold_s=hold_s,
            )
        self._move(best, why, now, lossless=False)

    # Trials.

    def _look(self, now: float) -> None:
        """Is the path in use worth staying on, for who has more to send than it takes?"""
        sent_bytes, before = self._connection.packer.sent_bytes, self._sent_bytes
        self._sent_bytes = sent_bytes
        self._look_at = now + (LOOK_S if sent_bytes - before > 16_384 else LOOK_IDLE_S)
        self._meter.look(self._connection.load(), now)
        measured = self._meter.measured()
        if measured is not None:
            self.current.note_carried(measured.bytes_per_s, now)
        if self._trial is not None:
            self._judge(self._trial, now)
        elif measured is not None and self.state is State.SETTLED and self._wanted is None:
            others = [option for option in self._options.values() if option is not self.current]
            self._wanted = self._worth.find(self.current, others, measured, now)
            if self._wanted is not None:
                self._wanted.ask_at = now
                self._ask(now)

    def _begin_trial(self, option: PathOption, now: float) -> None:
        measured = self._meter.measured(LOOK_S)
        self._wanted = None
        if measured is None or self.state is not State.SETTLED:
            return
        rate, settings = measured.bytes_per_s, self._settings
        begin = now + settings.settle_s
        self._trial = Trial(self.current, rate, begin, begin + settings.trial_s)
        why = Sentence(
            "only {rate} on the path before: to see what this one carries", rate=rate_text(rate)
        )
        self._move(option, why, now, lossless=True, sign=Sign.TRIAL)
        self._look_at = begin

    def _judge(self, trial: Trial, now: float) -> None:
        """Keep the path that is tried, or go home."""
        rate = trial.rate(self._connection.load().delivered_bytes, now)
        if rate is None:
            self._look_at = min(now + LOOK_S, trial.until)
            return
        home, tried = trial.home, self.current
        if not trial.is_won(rate):
            tried.handle_lost_trial(now)
            why = Sentence(
                "the path that was tried carried no more than {rate}", rate=rate_text(rate)
            )
            if not self._move(home, why, now, lossless=True):
                self._keep(Sentence("the path before has ended"), now)
            return
        tried.note_carried(rate, now)
        wait_s = home.handle_lost_trial(now)
        self.is_udp_throttled |= tried.kind.is_tcp and not home.kind.is_tcp
        why = Sentence(
            "{rate} instead of {before}, so the path before is left alone for {wait_s:.0f} s",
            rate=rate_text(rate),
            before=rate_text(trial.home_bytes_per_s),
            wait_s=wait_s,
        )
        self._keep(why, now)

    def _keep(self, why: Sentence, now: float) -> None:
        """The trial is over, and its path is used for good."""
        self._trial = None
        self._move_on(Sign.MOVED)
        kept = self.current
        self._note(Move(now, kept.address, kept.address, kept.kind, kept.kind, why))

    # Time.

    def _ask(self, now: float) -> None:
        """Ask those whose turn it is, the likeliest first, and no more than may be at once."""
        due = [
            option
            for option in self._options.values()
            if now >= option.ask_at and self._is_wanted(option)
        ]
        due.sort(key=lambda option: option.doubt)
        room = MAX_ASKED - sum(now < option.asked_until for option in self._options.values())
        for place, option in enumerate(due):
            if place < room:
                option.handle_asked(now)
                self._connection.probe_path(option.address, now)
            else:
                option.ask_at = now + TURN_S

    def _is_wanted(self, option: PathOption) -> bool:
        """Whether an answer would change anything."""
        if option is self.current:
            return False
        is_better = option.kind.rank < self.current.kind.rank and self._trial is None
        return is_better or option is self._wanted or self.state is State.SILENT

    def next_timer(self) -> float:
        ask_at = min(
            (option.ask_at for option in self._options.values() if self._is_wanted(option)),
            default=math.inf,
        )
        return min(self._decide_at, self._look_at, ask_at)

    def handle_timer(self, now: float) -> None:
        if self.state is State.SILENT and not self._is_silent:
            self._decide_at = math.inf
            self._move_on(Sign.HEARD)
        if now >= self._decide_at:
            self._decide(now)
        if now >= self._look_at:
            self._look(now)
        self._ask(now)
        self._improve(now)
