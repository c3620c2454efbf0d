"""Many engines call one behind a NAT at once: what ``benchmarks calls`` measures, with fewer."""

from __future__ import annotations

import gevent
import pytest

from benchmarks.calls import Crowd
from kkp2p_compat.testing.lab import Lab
from kkp2p_compat.testing.programs import Run

LIMIT_S = 240
NATS, PROGRAMS, ENGINES = 2, 1, 12
CALLS = NATS * PROGRAMS * ENGINES


@pytest.mark.parametrize("mode", [1, 0])
def test_all_get_through_and_nothing_is_left(lab: Lab, run: Run, mode: int) -> None:
    """By mode 1 all by p2p; by auto also by the relay, where the machine is slow."""
    crowd = Crowd(lab, run, NATS, PROGRAMS, ENGINES)
    crowd.start()
    before = crowd.usage().descriptors
    calls = crowd.call(mode)
    assert [call["result"] for call in calls] == [0] * CALLS, calls
    if mode == 1:
        assert {call["path"] for call in calls} == {"p2p"}
    assert crowd.usage().descriptors >= CALLS
    assert not any(crowd.close().values())
    while crowd.usage().descriptors > before:  # by something else, such as a look at its NAT
        gevent.sleep(0.1)
