"""The parts of the cloud that need no network: limits, route, certificate, settings, flags."""

from __future__ import annotations

import argparse
import hashlib
import logging
import ssl
import stat
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from kkp2p_compat._bucket import Bucket
from kkp2p_compat.cli import main
from kkp2p_compat.cli.cloud import parse_address
from kkp2p_compat.cloud import counting
from kkp2p_compat.cloud import limits as limits_module
from kkp2p_compat.cloud.certificate import host_addresses, load_identity
from kkp2p_compat.cloud.counting import (
    Buckets,
    Different,
    Networks,
    Tally,
    address_key,
    address_keys,
)
from kkp2p_compat.cloud.limits import WORK_BURST_S, Deadlines, Gatekeeper, Shares
from kkp2p_compat.cloud.route import rank
from kkp2p_compat.cloud.settings import Limits, Settings
from kkp2p_compat.control.binding import end_point_binding


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


def test_a_home_is_not_256_addresses() -> None:
    """Whoever has a /56 could shut everybody else out, as could 2 of the kind with a /48."""
    gate = Gatekeeper(Limits(connections=600, connections_per_address=100))
    home = [f"2001:db8:0:{net:x}::{host:x}" for net in range(256) for host in range(3)]
    inside = [host for host in home if gate.enter(host)]
    assert len(inside) == 400
    assert gate.enter("2001:db8:0:100::1")
    assert gate.enter("192.0.2.1")
    for host in [*inside, "2001:db8:0:100::1", "192.0.2.1"]:
        gate.leave(host)
    assert not gate.connections_of


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


def test_a_part_of_the_places_is_for_those_with_few() -> None:
    gate = Gatekeeper(Limits(connections=400, connections_per_address=1000))
    assert sum(gate.enter("192.0.2.1") for _ in range(1000)) == 300
    others = [f"198.51.{net}.1" for net in range(100)]
    assert all(gate.enter(host) for host in others)
    assert not gate.enter("203.0.113.1")


def test_a_share_is_waited_for_and_others_have_theirs() -> None:
    shares = Shares(Limits(work_per_address=0.25, bytes_per_s_per_address=100.0, burst_s=1.0))
    greedy, same_network = "192.0.2.1", "192.0.2.2"
    shares.spend_work(greedy, 0.0, WORK_BURST_S)
    assert shares.wait_s(greedy, 0.0) == 0.0
    shares.spend_work(greedy, 0.0, 0.01)
    assert shares.wait_s(greedy, 0.0) == pytest.approx(0.04)
    assert shares.wait_s(same_network, 0.0) == 0.0
    shares.spend_work(greedy, 0.0, 0.01)  # the next of its connections waits for both
    assert shares.wait_s(greedy, 0.0) == pytest.approx(0.08)
    shares.spend_work(greedy, 0.0, -0.01)
    shares.spend_bytes(greedy, 0.0, 150)
    assert shares.wait_s(greedy, 0.0) == 0.5
    for loopback in ("127.0.0.1", "::1"):
        shares.spend_work(loopback, 0.0, 10.0)
        shares.spend_bytes(loopback, 0.0, 10**9)
        assert shares.wait_s(loopback, 0.0) == 0.0


def test_buckets_for_keys() -> None:
    buckets = Buckets(rate=2.0, burst=3)
    assert [buckets.take("a", 10.0) for _ in range(4)] == [True, True, True, False]
    assert buckets.take("b", 10.0)
    assert buckets.take("a", 10.5)
    assert buckets.level("a", 1000.0) == 3


def test_buckets_are_bounded_and_the_least_used_goes() -> None:
    buckets = Buckets(rate=0.0, burst=1, size=2)
    assert buckets.take("a", 0.0)
    assert buckets.take("b", 1.0)
    assert buckets.take("c", 2.0)
    assert len(buckets) == 2
    assert not buckets.take("c", 3.0)
    assert buckets.take("a", 4.0)  # forgotten, so it starts anew


def test_deadlines() -> None:
    class Item:
        def __init__(self, deadline: float) -> None:
            self.deadline = deadline
            self.expired = 0

        def expire(self) -> None:
            self.expired += 1
            deadlines.discard(self)
            deadlines.discard(last)  # one that ends takes another with it

        def shut_down(self) -> None:
            raise AssertionError

    deadlines = Deadlines()
    items = [Item(1.0), Item(2.0), Item(9.0)]
    last = items[2]
    for item in items:
        deadlines.add(item)
    deadlines.sweep(1.5)
    assert [item.expired for item in items] == [1, 0, 0]
    deadlines.sweep(10.0)
    assert [item.expired for item in items] == [1, 1, 0]
    assert deadlines.items() == []


def test_refusals_are_counted_after_the_first(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(limits_module.time, "monotonic", lambda: now)
    gate = Gatekeeper(Limits())
    for _ in range(5):
        gate.refused("192.0.2.7", "reason")
    gate.refused("192.0.2.8", "other")
    assert [record.getMessage() for record in caplog.records] == [
        "192.0.2.7 refused: reason",
        "192.0.2.8 refused: other",
    ]
    caplog.clear()
    gate.sweep(now + 31)
    assert [record.getMessage() for record in caplog.records] == [
        "192.0.2.7: 4 more refusals in 30 s"
    ]
    gate.sweep(now + 62)
    assert len(caplog.records) == 1


def test_the_log_table_is_bounded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limits_module, "TABLE_SIZE", 3)
    caplog.set_level(logging.CRITICAL)
    gate = Gatekeeper(Limits())
    for number in range(100):
        gate.refused(f"192.0.2.{number}", "reason")
    assert len(gate.refusals) == 3


def test_relay_sessions_are_told_sparingly(caplog: pytest.LogCaptureFixture) -> None:
    """A stranger's cost two lines each; of those that follow soon only the number is told."""
    caplog.set_level(logging.INFO)
    gate = Gatekeeper(Limits())
    for number in range(100):
        gate.paired.tell("192.0.2.7", "relay: %d: paired", number)
        gate.ended.tell("192.0.2.7", "relay: %d: ended", number)
    gate.sweep(limits_module.time.monotonic() + 31)
    assert [record.getMessage() for record in caplog.records] == [
        "relay: 0: paired",
        "relay: 0: ended",
        "192.0.2.7: 99 more relay sessions that began in 30 s",
        "192.0.2.7: 99 more relay sessions that ended in 30 s",
    ]


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


def test_loopback_is_exempt_unless_said_otherwise() -> None:
    for limit_loopback, admitted in ((False, 5), (True, 2)):
        limits = Limits(connections_per_address=2, limit_loopback=limit_loopback)
        for host in ("127.0.0.1", "::1"):
            gate = Gatekeeper(limits)
            assert sum(gate.enter(host) for _ in range(5)) == admitted
            while gate.connections:
                gate.leave(host)
            assert not gate.connections_of


def test_rank_is_rendezvous_hashing() -> None:
    tracks = [(f"track{number}", 3080) for number in range(5)]
    homes = {f"peer{number}": rank(tracks, f"peer{number}")[0] for number in range(500)}
    weights = {
        f"{host}:{port}": hashlib.sha256(f"peer7\0{host}:{port}".encode()).digest()
        for host, port in tracks
    }
    assert "{}:{}".format(*homes["peer7"]) == max(weights, key=lambda track: weights[track])
    assert min(Counter(homes.values()).values()) > 60  # 100 on average
    lost, left = tracks[2], tracks[:2] + tracks[3:]
    moved = {peer for peer, home in homes.items() if rank(left, peer)[0] != home}
    assert moved == {peer for peer, home in homes.items() if home == lost}


def test_the_certificate_is_made_once_and_kept(tmp_path: Path) -> None:
    first = load_identity(tmp_path / "data")
    again = load_identity(tmp_path / "data")
    assert (first.binding, first.fingerprint) == (again.binding, again.fingerprint)
    key, pem = tmp_path / "data" / "cloud.key", tmp_path / "data" / "cloud.crt"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    certificate = x509.load_pem_x509_certificate(pem.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "localhost" in names.get_values_for_type(x509.DNSName)
    addresses = {str(address) for address in names.get_values_for_type(x509.IPAddress)}
    assert addresses == set(host_addresses())
    assert "127.0.0.1" in addresses
    assert first.fingerprint == f"sha256:{certificate.fingerprint(hashes.SHA256()).hex()}"
    # It may stand for itself and for nothing else.
    assert ssl.create_default_context(cafile=str(pem)).cert_store_stats()["x509_ca"] == 1


def test_without_a_folder_the_certificate_is_another_each_time() -> None:
    assert load_identity(None).fingerprint != load_identity(None).fingerprint


def test_a_certificate_of_the_users_own(tmp_path: Path) -> None:
    load_identity(tmp_path)
    crt, key = tmp_path / "cloud.crt", tmp_path / "cloud.key"
    other = tmp_path / "other"
    load_identity(other)
    chain = tmp_path / "chain.pem"
    chain.write_text("a comment\n" + crt.read_text() + (other / "cloud.crt").read_text())
    assert load_identity(None, chain, key).fingerprint == load_identity(tmp_path).fingerprint
    with pytest.raises(ValueError, match="no pair"):
        load_identity(None, crt, other / "cloud.key")
    with pytest.raises(ValueError, match="no PEM certificate"):
        load_identity(None, key, key)
    with pytest.raises(OSError, match="missing"):
        load_identity(None, tmp_path / "missing", key)


def test_binding_of_our_certificate_is_sha256_of_it(tmp_path: Path) -> None:
    identity = load_identity(tmp_path)
    der = ssl.PEM_cert_to_DER_cert((tmp_path / "cloud.crt").read_text())
    assert identity.binding == end_point_binding(der) == hashlib.sha256(der).digest()
    with pytest.raises(ValueError, match="pars"):
        end_point_binding(b"garbage")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"role": "king"}, "none of"),
        ({"tls_cert": Path("x")}, "go together"),
        ({"role": "route"}, "at least one"),
        ({"tracks": [("a", 1)]}, "role route"),
        ({"role": "relay", "relays": [("a", 1)], "relay_key": b"k" * 16}, "track and all"),
        ({"role": "track", "relay_key": b"k" * 16}, "at least one relay"),
        ({"role": "track", "relays": [("a", 1)]}, "relay key"),
        ({"role": "relay"}, "relay key"),
        ({"relays": [("a", 1)]}, "relay key"),
        ({"role": "relay", "relay_key": b"short"}, "16 bytes"),
    ],
)
def test_settings_that_do_not_fit_together(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Settings(**fields)


def test_addresses_on_the_command_line() -> None:
    assert parse_address("0.0.0.0:3080") == ("0.0.0.0", 3080)
    assert parse_address("[::1]:0") == ("::1", 0)
    assert parse_address("cloud.example:443") == ("cloud.example", 443)
    for text in ("", "3080", ":3080", "host:", "host:x", "host:65536", "host:-1", "[]:1"):
        with pytest.raises(argparse.ArgumentTypeError, match="is not HOST:PORT"):
            parse_address(text)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--role", "king"],
        ["--beat-s", "-1"],
        ["--beat-s", "nan"],
        ["--open-calls", "1.5"],
        ["--account", "alice"],
        ["--listen", "nonsense"],
        ["--role", "route"],
        ["--role", "relay", "--relay-key", "/nonexistent"],
    ],
)
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = main(["cloud", *arguments])
    except SystemExit as error:
        status = int(error.code or 0)
    assert status == 2
    assert "Traceback" not in capsys.readouterr().err


def test_every_limit_is_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["cloud", "--help"])
    text = capsys.readouterr().out
    for name in Limits.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in text
