"""The delivery rate alone, with the sums beside the expected numbers."""

from __future__ import annotations

from kkp2p_compat.transport.udp.congestion import DeliveryRate, RateSample

SIZE = 1_000  # bytes of a datagram


def sample_of(rate: DeliveryRate, now: float, min_rtt_s: float = 0.0) -> RateSample:
    sample = rate.sample(now, min_rtt_s)
    assert sample is not None
    return sample


def test_a_flight_that_is_alone_is_measured_from_when_it_left() -> None:
    rate = DeliveryRate()
    flight = rate.sent(4 * SIZE, 0, 10.0)
    rate.acked(flight, 4 * SIZE, 10.5)
    sample = sample_of(rate, 10.5)
    assert sample.bytes_per_s == 8_000  # 4,000 bytes in 0.5 s
    assert (sample.delivered, sample.total_delivered, sample.in_flight) == (4_000, 4_000, 4_000)


def test_bunched_acknowledgements_do_not_look_like_bandwidth() -> None:
    rate = DeliveryRate()
    flights = [rate.sent(SIZE, n * SIZE, n * 0.1) for n in range(10)]  # 1,000 bytes in 0.1 s
    rate.acked(flights[0], SIZE, 1.0)
    sample_of(rate, 1.0)
    late = rate.sent(SIZE, 9 * SIZE, 1.0)
    for flight in flights[1:]:
        rate.acked(flight, SIZE, 1.01)  # nine at once
    sample_of(rate, 1.01)
    rate.acked(late, SIZE, 1.02)
    # The path seems to deliver 10,000 bytes in 0.02 s; but sending them took 1.0 - 0.0 s.
    assert sample_of(rate, 1.02).bytes_per_s == 10_000


def test_pieces_of_a_flight_are_samples_of_their_own() -> None:
    rate = DeliveryRate()
    flight = rate.sent(4 * SIZE, 0, 0.0)
    rate.acked(flight, SIZE, 1.0)
    assert sample_of(rate, 1.0).bytes_per_s == 1_000  # 1,000 bytes in 1 s
    rate.acked(flight, 3 * SIZE, 2.0)
    assert sample_of(rate, 2.0).bytes_per_s == 2_000  # 4,000 bytes in 2 s


def test_an_interval_below_the_smallest_round_trip_says_nothing() -> None:
    rate = DeliveryRate()
    rate.acked(rate.sent(SIZE, 0, 0.0), SIZE, 0.1)
    assert sample_of(rate, 0.1, min_rtt_s=0.2).bytes_per_s == 0.0


def test_there_is_no_sample_without_an_acknowledgement() -> None:
    rate = DeliveryRate()
    rate.sent(SIZE, 0, 0.0)
    assert rate.sample(1.0, 0.1) is None


def test_what_was_lost_since_the_flight_left_is_counted() -> None:
    rate = DeliveryRate()
    rate.lost(5 * SIZE)
    flight = rate.sent(SIZE, SIZE, 0.0)
    rate.lost(2 * SIZE)
    rate.acked(flight, SIZE, 1.0)
    assert sample_of(rate, 1.0).lost == 2 * SIZE


def test_samples_are_app_limited_until_the_gap_has_been_delivered() -> None:
    rate = DeliveryRate()
    first = rate.sent(SIZE, 0, 0.0)
    rate.app_limited(SIZE)  # the gap comes behind the first 1,000 bytes
    second = rate.sent(SIZE, SIZE, 0.5)
    rate.acked(first, SIZE, 1.0)
    assert not sample_of(rate, 1.0).is_app_limited
    rate.acked(second, SIZE, 1.5)
    assert sample_of(rate, 1.5).is_app_limited
    third = rate.sent(SIZE, 0, 1.5)
    rate.acked(third, SIZE, 2.0)
    assert not sample_of(rate, 2.0).is_app_limited


def test_an_older_flight_in_the_same_frame_does_not_replace_the_newer() -> None:
    rate = DeliveryRate()
    old = rate.sent(SIZE, 0, 0.0)
    new = rate.sent(SIZE, SIZE, 0.5)
    rate.acked(new, SIZE, 1.0)
    rate.acked(old, SIZE, 1.0)
    assert sample_of(rate, 1.0).sent_at == 0.5
