"""Startup and Drain: find the bandwidth by doubling, then empty the queue that this made.

Follows draft-ietf-ccwg-bbr, sections "Startup" and "Drain".
"""

from __future__ import annotations

from . import params
from .bounds import Bounds
from .model import Model
from .modes import Mode

__all__ = ["Drain", "Startup"]


class Startup:
    """Left when the pipe is full: the rate stands still, or a queue overflows.

    A round in which the application was short of data says nothing of the pipe.
    """

    def __init__(self, model: Model, bounds: Bounds) -> None:
        self._model = model
        self._bounds = bounds

    def update(self) -> Mode:
        model = self._model
        ended = model.round_ended
        if ended is not None and self._bounds.startup_lost_too_much(ended):
            model.full_bw_reached = True
        return Mode.DRAIN if model.full_bw_reached else Mode.STARTUP


class Drain:
    """Left when no more is in flight than fills the path, or after ``DRAIN_ROUNDS``."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._began_in_round = 0

    def enter(self) -> None:
        self._began_in_round = self._model.round_count

    def update(self) -> Mode:
        model = self._model
        drained = model.in_flight <= model.drained_bytes(model.bytes_per_s)
        if drained or model.round_count > self._began_in_round + params.DRAIN_ROUNDS:
            return Mode.DOWN
        return Mode.DRAIN
