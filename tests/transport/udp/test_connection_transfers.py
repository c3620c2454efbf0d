"""Whatever a path does to packets, what is written arrives byte for byte, both ways at once."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from helpers.sim.pair import Pair, mbit_per_s
from helpers.sim.simnet import Conditions

FAST = Conditions(rate_bytes_per_s=mbit_per_s(100), delay_s=0.005)
KIB = 1024
# Of a full packet of the first and of the largest datagram: what is left to the stream.
SMALL, LARGE = 1200 - 32 - 13, 1472 - 32 - 13
SIZES = [
    0,
    1,
    SMALL - 4,
    SMALL - 1,
    SMALL,
    SMALL + 1,
    2 * SMALL,
    LARGE,
    LARGE + 1,
    10 * LARGE,
    65_535,
    65_536,
    256 * KIB - 1,
    256 * KIB,
    512 * KIB - 1,
    512 * KIB,
    512 * KIB + 1,
    1024 * KIB,
    1024 * KIB + 1,
]

# One way; the other way is the same, or what ONE_WAY says.
PATHS = {
    "clean": FAST,
    "loss 1 %": replace(FAST, loss=0.01),
    "loss 5 %": replace(FAST, loss=0.05),
    "loss 20 %": replace(FAST, loss=0.2),
    "loss 20 %, RTT 200 ms": replace(FAST, loss=0.2, delay_s=0.1),
    "bursts": replace(FAST, burst_enter=0.005, burst_leave=0.1),
    "long bursts": replace(FAST, burst_enter=0.01, burst_leave=0.02),
    "reordering": replace(FAST, reorder=0.2, reorder_s=0.01),
    "wild reordering": replace(FAST, reorder=0.5, reorder_s=0.05),
    "jitter": replace(FAST, jitter_s=0.02),
    "duplication": replace(FAST, duplicate=0.3),
    "corruption": replace(FAST, corrupt=0.05),
    "all at once": replace(
        FAST,
        loss=0.05,
        burst_enter=0.002,
        burst_leave=0.2,
        reorder=0.1,
        reorder_s=0.02,
        duplicate=0.05,
        corrupt=0.02,
        jitter_s=0.005,
    ),
    "RTT 1 ms": replace(FAST, delay_s=0.0005),
    "RTT 600 ms": replace(FAST, delay_s=0.3),
    "RTT 600 ms, loss 5 %": replace(FAST, delay_s=0.3, loss=0.05),
    "a queue of ten packets": replace(FAST, queue_bytes=15_000),
    "1 Mbit/s with a queue of seconds": Conditions(
        rate_bytes_per_s=mbit_per_s(1), queue_bytes=512 * KIB, delay_s=0.02
    ),
    "200 kbit/s": Conditions(rate_bytes_per_s=mbit_per_s(0.2), queue_bytes=30_000, delay_s=0.05),
    "no bottleneck": Conditions(delay_s=0.001),
    "MTU 1228": replace(FAST, mtu_bytes=1228),
    "MTU 1400": replace(FAST, mtu_bytes=1400, loss=0.02),
}
ONE_WAY = {
    "half of the ACKs are lost": replace(FAST, loss=0.5),
    "ACKs are lost in bursts": replace(FAST, burst_enter=0.02, burst_leave=0.05),
    "ACKs overtake each other": replace(FAST, reorder=0.5, reorder_s=0.05),
    "ACKs come late": replace(FAST, delay_s=0.3),
    "a slow way back": Conditions(rate_bytes_per_s=mbit_per_s(0.3), delay_s=0.02),
    "a narrow way back": replace(FAST, mtu_bytes=1228),
}


@pytest.mark.parametrize("size", SIZES)
def test_every_size(size: int) -> None:
    pair = Pair(size, FAST)
    pair.transfer(size, size // 3)
    pair.finish()


def test_sixteen_megabytes_and_back() -> None:
    pair = Pair("16 MB", replace(FAST, loss=0.003))
    pair.transfer(16_000_000, 1_000_000)


@pytest.mark.parametrize("congestion", ["bbr", "cubic"])
@pytest.mark.parametrize("path", PATHS)
def test_every_path(path: str, congestion: str) -> None:
    size = 60_000 if path == "200 kbit/s" else 400_000
    pair = Pair(path, PATHS[path], congestion=congestion)
    pair.transfer(size, size // 4, 60)
    pair.finish()


@pytest.mark.parametrize("path", ONE_WAY)
def test_paths_that_differ_by_direction(path: str) -> None:
    pair = Pair(path, FAST, ONE_WAY[path])
    pair.transfer(400_000, 0)
    pair.finish()


@pytest.mark.parametrize("wake_s", [0.0, 0.01], ids=["packet by packet", "in large batches"])
def test_every_way_to_be_delivered(wake_s: float) -> None:
    pair = Pair(wake_s, replace(FAST, loss=0.02, reorder=0.02, reorder_s=0.01), wake_s=wake_s)
    pair.transfer(500_000, 500_000)
    pair.finish()


chance = st.sampled_from([0.0, 0.0, 0.02, 0.1, 0.2])
any_conditions = st.builds(
    Conditions,
    rate_bytes_per_s=st.sampled_from([None, mbit_per_s(1), mbit_per_s(10), mbit_per_s(1000)]),
    queue_bytes=st.sampled_from([4_000, 30_000, 1_000_000]),
    delay_s=st.sampled_from([0.0002, 0.01, 0.1, 0.3]),
    jitter_s=st.sampled_from([0.0, 0.001, 0.1]),
    reorder=chance,
    reorder_s=st.sampled_from([0.001, 0.05]),
    loss=chance,
    burst_enter=st.sampled_from([0.0, 0.0, 0.01]),
    burst_leave=st.sampled_from([0.05, 0.5]),
    duplicate=chance,
    corrupt=chance,
    mtu_bytes=st.sampled_from([1228, 1300, 1500]),
)


# The seed says all, and to shrink whole transfers would take minutes.
@settings(max_examples=40, phases=[Phase.generate])
@given(
    st.integers(0, 1000),
    any_conditions,
    any_conditions,
    st.integers(0, 60_000),
    st.integers(0, 60_000),
    st.sampled_from([0.0, 0.00025, 0.02]),
)
def test_any_path_at_all(
    seed: int, there: Conditions, back: Conditions, up: int, down: int, wake_s: float
) -> None:
    pair = Pair(seed, there, back, wake_s=wake_s)
    pair.transfer(up, down)
    pair.finish()
