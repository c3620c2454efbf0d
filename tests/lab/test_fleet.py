"""A cloud of three nodes, with Redis and sentinels, of which one after the other is hit."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest

from benchmark_runs import run_benchmark
from benchmarks import fleet_chaos
from helpers.support import PATIENCE_S
from kkp2p_compat.testing.plugin import need

LIMIT_S = 15 * PATIENCE_S


def test_the_seed_alone_makes_the_schedule() -> None:
    one = fleet_chaos.schedule(7, 3600)
    assert one == fleet_chaos.schedule(7, 3600)
    assert one != fleet_chaos.schedule(8, 3600)
    assert {fault.kind for fault in one} == set(fleet_chaos.FAULTS)


@pytest.mark.parametrize("sort", ["node", "redis"])
def test_one_of_a_sort_is_hit_at_a_time(sort: str) -> None:
    faults = fleet_chaos.schedule(3, 3600)
    hit = [fault for fault in faults if fleet_chaos.FAULTS[fault.kind][0] == sort]
    assert len(hit) > 60
    for before, after in pairwise(hit):
        assert after.at_s >= before.at_s + before.lasts_s + fleet_chaos.WELL_S


@pytest.mark.usefixtures("lab")  # which says whether there can be one
def test_a_short_run(tmp_path: Path) -> None:
    """No call fails that is made once more, no peer is lost, no byte is wrong."""
    need("redis-server")
    options = ("--minutes", "0.4", "--peers", "8", "--seed", "4", "--verbose")
    output = run_benchmark(tmp_path, "fleet", "--only", "chaos", *options)
    assert re.search(r"^calls: [1-9]\d*; .*; after one retry: 0$", output, re.M), output
    assert re.search(r"^faults: \{'", output, re.M), output
