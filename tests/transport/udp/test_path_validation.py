"""Which addresses are asked when there are too many, or the peer seems to be at several."""

from __future__ import annotations

from random import Random

from kkp2p_compat._address import Address
from kkp2p_compat.transport.udp.acks import Received
from kkp2p_compat.transport.udp.path_validation import MAX_CHECKS, PathValidation

INTERVAL_S = 0.2


def _address(number: int) -> Address:
    return f"192.0.2.{number}", 1000


def _validation() -> PathValidation:
    return PathValidation(Random("validation"))


def test_of_too_many_none_is_forgotten_to_which_we_are_to_move() -> None:
    validation = _validation()
    validation.search(_address(1), 0.0, INTERVAL_S)
    validation.follow(_address(2), 0.0, INTERVAL_S)
    for number in range(3, 30):
        validation.ask(_address(number), 0.0, INTERVAL_S)
    last = [_address(number) for number in range(32 - MAX_CHECKS, 30)]
    assert list(validation.checks) == [_address(1), _address(2), *last]


def test_one_that_is_asked_again_is_not_the_oldest() -> None:
    validation = _validation()
    for number in (*range(1, 1 + MAX_CHECKS), 1, 100):
        validation.ask(_address(number), 0.0, INTERVAL_S)
    assert _address(1) in validation.checks
    assert _address(2) not in validation.checks


def test_only_the_address_of_the_newest_packet_is_followed() -> None:
    validation = _validation()
    validation.ask(_address(2), 0.0, INTERVAL_S)
    validation.follow(_address(1), 0.0, INTERVAL_S)
    validation.follow(_address(2), 0.0, INTERVAL_S)
    assert list(validation.checks) == [_address(2)]


def test_where_the_peer_seems_to_be_does_not_end_a_search() -> None:
    validation = _validation()
    validation.search(_address(1), 0.0, INTERVAL_S)
    validation.follow(_address(1), 0.0, INTERVAL_S)
    validation.follow(_address(2), 0.0, INTERVAL_S)
    assert list(validation.checks) == [_address(1), _address(2)]


def test_a_search_that_found_nobody_is_over() -> None:
    """Who is asked there later is only asked."""
    validation, received, now = _validation(), Received(), 0.0
    validation.search(_address(1), now, INTERVAL_S)
    while validation.checks:
        now = validation.next_at
        assert validation.expire(now) or validation.poll(now, received)
    validation.ask(_address(1), now, INTERVAL_S)
    assert validation.searched is None
