"""How much may be in flight and how fast it may leave: BBR, or CUBIC.

The transport keeps one ``DeliveryRate``, one ``Controller`` and one ``Pacer`` for a path.  A new
path begins with new ones; what was sent on the old path is not reported to them.

controller.py     what a controller is told, and what it answers
bbr/              BBR
cubic.py          CUBIC
delivery_rate.py  how fast the path delivers
pacer.py          spreads what is sent over time
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .bbr import Bbr
from .controller import Controller, Update
from .cubic import Cubic
from .delivery_rate import DeliveryRate, RateSample, Snapshot
from .pacer import Pacer

if TYPE_CHECKING:
    from random import Random

__all__ = [
    "Controller",
    "DeliveryRate",
    "Pacer",
    "RateSample",
    "Snapshot",
    "Update",
    "make_controller",
]

_MAKERS: dict[str, Callable[[int, float, Random], Controller]] = {
    "bbr": Bbr,
    "cubic": lambda datagram_bytes, now, random: Cubic(datagram_bytes, now),
}


def make_controller(name: str, datagram_bytes: int, now: float, random: Random) -> Controller:
    """``name`` is "bbr" or "cubic"; anything else raises KeyError."""
    return _MAKERS[name](datagram_bytes, now, random)
