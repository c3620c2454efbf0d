"""What is counted by address: of an address more than of its networks, and in bounded memory."""

from __future__ import annotations

import pytest

from kkp2p_compat.cloud import counting
from kkp2p_compat.cloud.counting import Different, Networks, Tally, address_key, address_keys


@pytest.mark.parametrize(
    ("host", "keys"),
    [
        ("192.0.2.7", ("192.0.2.7", "192.0.2.0/24")),
        (
            "2001:db8:1:2345:3:4:5:6",
            ("2001:db8:1:2345::/64", "2001:db8:1:2300::/56", "2001:db8:1::/48"),
        ),
        ("fe80::1%eth0", ("fe80::/64", "fe80::/56", "fe80::/48")),
        ("::ffff:192.0.2.7", ("192.0.2.7", "192.0.2.0/24")),
        ("::1", ("::1",)),
        ("127.0.0.9", ("127.0.0.9",)),
    ],
)
def test_address_keys(host: str, keys: tuple[str, ...]) -> None:
    assert address_keys(host) == keys
    assert address_key(host) == keys[0]


def test_networks_have_more_than_an_address_and_less_than_all_of_theirs() -> None:
    networks = Networks(rate=0.0, burst=10)

    def passed(first: int, count: int) -> int:
        hosts = [f"2001:db8:0:{net:x}::1" for net in range(first, first + count)]
        tries = [address_keys(host) for host in hosts for _ in range(20)]
        return sum(networks.take(keys, 0.0) for keys in tries)

    assert passed(0, 1) == 10  # a /64
    assert passed(1, 255) == 40 - 10  # the rest of its /56
    assert passed(256, 10 * 256) == 160 - 40  # its /48
    assert networks.take(address_keys("2001:db8:1::1"), 0.0)


def test_a_tally_counts_what_is_there_now() -> None:
    tally = Tally()
    for host in ("2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"):
        tally.add(host)
    assert tally.full("2001:db8::9", 2) == "2 of 2001:db8::/64"
    assert tally.full("2001:db8::9", 3) == tally.full("2001:db8:0:1::9", 2) == ""
    for net in range(2, 7):
        tally.add(f"2001:db8:0:{net}::1")
    assert tally.full("2001:db8:0:9::1", 2) == "8 of 2001:db8::/56"
    assert tally.full("2001:db8:0:100::1", 2) == ""
    for host in ("2001:db8::1", "2001:db8::2", *(f"2001:db8:0:{net}::1" for net in range(1, 7))):
        tally.remove(host)
    assert not tally


def test_buckets_for_keys() -> None:
    buckets = Networks(rate=2.0, burst=3, wider=(1,))
    assert [buckets.take(("a",), 10.0) for _ in range(4)] == [True, True, True, False]
    assert buckets.take(("b",), 10.0)
    assert buckets.take(("a",), 10.5)
    assert buckets.wait_s(("a",), 1000.0, 3) == 0
    assert buckets.wait_s(("a",), 1000.0, 4) == 0.5


def test_buckets_are_bounded_and_the_least_used_goes() -> None:
    buckets = Networks(rate=0.0, burst=1, wider=(1,), size=2)
    assert buckets.take(("a",), 0.0)
    assert buckets.take(("b",), 1.0)
    assert buckets.take(("c",), 2.0)
    assert not buckets.take(("b",), 3.0)
    assert not buckets.take(("c",), 3.0)
    assert buckets.take(("a",), 4.0)  # forgotten, so it starts anew


def test_different_things_in_a_minute() -> None:
    named = Different(2, (1, 2))
    keys = ("192.0.2.1", "192.0.2.0/24")
    assert [named.take(keys, what, 0.0) for what in "abacab"] == [
        True,
        True,
        True,
        False,
        *[True] * 2,
    ]
    other = ("192.0.2.2", "192.0.2.0/24")
    assert [named.take(other, what, 30.0) for what in "acdb"] == [True, True, False, False]
    third = ("192.0.2.3", "192.0.2.0/24")
    assert [named.take(third, what, 30.0) for what in "abcdef"] == [True, True, *[False] * 4]
    assert named.take(keys, "e", 60.0)
    assert not named.take(other, "e", 60.0)  # its minute began later
    assert named.take(other, "e", 90.0)


def test_different_things_are_remembered_of_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "NAMES_SIZE", 3)
    named = Different(1, (1,))
    for number in range(10):
        assert named.take((str(number),), "x", 0.0)
    assert len(named._tables[0]) == 3
    assert not named.take(("9",), "y", 0.0)
