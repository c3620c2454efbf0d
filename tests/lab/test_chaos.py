"""The chaos benchmark: its schedule, its judgement, and a short run of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmark_runs import run_benchmark
from benchmarks import chaos
from helpers.support import PATIENCE_S

LIMIT_S = 15 * PATIENCE_S
COUNTS = {"peer": 8, "relay": 2, "cloud": 1, "all": 1, "box": 7}


def test_the_seed_alone_makes_the_schedule() -> None:
    one = chaos.schedule(7, 3600, COUNTS)
    assert one == chaos.schedule(7, 3600, COUNTS)
    assert one != chaos.schedule(8, 3600, COUNTS)
    assert {fault.kind for fault in one} == set(chaos.FAULTS)
    assert all(fault.target < COUNTS[chaos.FAULTS[fault.kind][0]] for fault in one)
    assert {fault.target for fault in one if fault.kind == "kill peer"} == {4, 5, 6, 7}


def test_a_transfer_is_hit_while_it_lasts_and_at_its_own_ends() -> None:
    results = chaos.Results(hits=[(100.0, 105.0, {"peer1", "peer2"})])
    record = {"by": "peer1", "to": "peer3", "began": 101.0, "ended": 102.0}
    assert results.was_hit(record)
    assert results.was_hit({**record, "by": "peer3", "to": "peer2"})
    assert not results.was_hit({**record, "by": "peer3", "to": "peer4"})
    assert not results.was_hit({**record, "began": 90.0, "ended": 99.0})
    after = 105.0 + chaos.AFTER_S
    assert results.was_hit({**record, "began": after - 1, "ended": after})
    assert not results.was_hit({**record, "began": after + 1, "ended": after + 2})


@pytest.mark.usefixtures("lab")  # which says whether there can be one
def test_a_short_run(tmp_path: Path) -> None:
    """Nothing is wrong in it, all that it says is there, and it leaves nothing behind."""
    options = ("--minutes", "0.5", "--transfers", "20", "--peers", "3", "--seed", "3")
    output = run_benchmark(tmp_path, "chaos", *options)
    found = re.search(r"^(\d+) transfers and (\d+) faults in ", output, re.M)
    assert found is not None, output
    assert int(found[1]) > 0
    assert "wrong bytes: 0\n" in output
