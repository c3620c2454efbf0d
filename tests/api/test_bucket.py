"""A bucket that fills at a rate: what may be taken of it, and how long that takes."""

from __future__ import annotations

from kkp2p_compat._bucket import Bucket


def test_a_bucket_refills() -> None:
    bucket = Bucket(rate=2.0, burst=3, now=10.0)
    assert [bucket.take(10.0) for _ in range(4)] == [True, True, True, False]
    assert not bucket.take(10.4)
    assert bucket.take(10.5)
    assert bucket.level(1000.0) == 3


def test_a_bucket_below_zero() -> None:
    bucket = Bucket(rate=2.0, burst=3, now=10.0)
    bucket.spend(10.0, 5)
    assert bucket.level(10.0) == -2
    assert (bucket.wait_s(10.0), bucket.wait_s(10.0, 1)) == (1.0, 1.5)
    bucket.spend(10.0, -1)
    assert bucket.wait_s(10.25) == 0.25
    assert bucket.wait_s(9.0) == 0.25  # a clock that goes back gives nothing
    assert Bucket(rate=0.0, burst=0, now=0.0).wait_s(5.0, 1) == float("inf")
