"""A Pair whose two sides choose between paths, as the engine lets them; and what comes of it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from kkp2p_compat._codes import KKP2P_UDP_CHANNEL
from kkp2p_compat.engine.links.path_choice import PathChoice
from kkp2p_compat.engine.links.path_option import ChoiceSettings
from kkp2p_compat.engine.paths.path_kind import PathKind

from .drive import Incoming
from .pair import Pair, SidePath
from .simnet import Conditions

__all__ = ["Choosing", "longest_pause_s"]


class Choosing:
    """It begins on a path of the first kind; ``add`` offers another to both sides."""

    def __init__(
        self,
        seed: object,
        kind: PathKind,
        conditions: Conditions,
        settings: ChoiceSettings | None = None,
        **transport: Any,
    ) -> None:
        self.pair = pair = Pair(seed, conditions, **transport)
        self.network = pair.network
        self.first = SidePath(pair.there, pair.back, pair.caller.address, pair.callee.address)
        for me, side in enumerate((pair.caller, pair.callee)):
            side.choice = PathChoice(
                side.connection,
                kind,
                is_caller=me == 0,
                now=pair.network.now,
                random=pair.network.random(f"choice {me}"),
                settings=settings,
            )
            side.drive()

    def add(self, kind: PathKind, there: Conditions, back: Conditions | None = None) -> SidePath:
        path = self.pair.add_path(there, back)
        self.offer(path, kind)
        return path

    def offer(self, path: SidePath, kind: PathKind) -> None:
        now = self.network.now
        self.pair.caller.choice.offer(path.of_callee, kind, now)
        self.pair.callee.choice.offer(path.of_caller, kind, now)
        self.pair.caller.drive()
        self.pair.callee.drive()

    def withdraw(self, path: SidePath) -> None:
        """From both sides."""
        for side, address in (
            (self.pair.caller, path.of_callee),
            (self.pair.callee, path.of_caller),
        ):
            side.choice.withdraw(address, self.network.now)
            side.drive()

    def uses(self, path: SidePath) -> bool:
        """Whether both sides do, and both choices know it."""
        caller, callee = self.pair.caller, self.pair.callee
        ends = (path.of_callee, path.of_caller)
        return (caller.connection.address, callee.connection.address) == ends and (
            caller.choice.current.address,
            callee.choice.current.address,
        ) == ends

    def run_until_uses(self, path: SidePath, limit_s: float) -> float:
        return self.pair.run(lambda: self.uses(path), limit_s)

    def moves_within(self, seconds: float) -> int:
        """The most moves of the caller that are so close together."""
        times = [move.at for move in self.pair.caller.choice.moves]
        return max((sum(at <= x < at + seconds for x in times) for at in times), default=0)

    def open_messages(self) -> int:
        """A UDP channel that is open; its stream id."""
        caller, callee = self.pair.caller, self.pair.callee
        stream_id: int = caller.connection.streams.open(KKP2P_UDP_CHANNEL, 0, 1)
        callee.on_offer = lambda offer: callee.connection.streams.accept(offer.stream_id)
        caller.drive()
        self.pair.run(None, 1.0)
        return stream_id

    def send_every(self, stream_id: int, seconds: float, count: int) -> list[bytes]:
        """``count`` messages from the caller, one every so many seconds; grows as they are sent."""
        caller, sent = self.pair.caller, list[bytes]()

        def tick() -> None:
            sent.append(b"%08d" % len(sent) * 12)
            caller.connection.streams.send_message(stream_id, sent[-1])
            caller.drive()
            if len(sent) < count:
                self.network.after(seconds, tick)

        tick()
        return sent


def longest_pause_s(reader: Incoming, since: float, until: float) -> float:
    """Between two reads that brought something, of those in that time."""
    times = [when for when, _ in reader.progress if since < when < until]
    return max((after - before for before, after in pairwise(times)), default=until - since)
