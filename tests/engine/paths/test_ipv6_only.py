"""Whether a host has IPv6 only, and what the engine makes of it."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import gevent
import pytest

from helpers.direct_support import until
from kkp2p_compat._nat64 import Nat64
from kkp2p_compat.engine.paths import ipv6_only
from kkp2p_compat.engine.paths.ipv6_only import Ipv6Only
from kkp2p_compat.transport.udp.endpoint import Endpoint

log = logging.getLogger("test")
OURS = "2001:db8::7"
NAT64 = Nat64(bytes.fromhex("20010db8").ljust(12, b"\0"))


class Host:
    """A host whose network is as it is set; ``said``: what the engine was told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.addresses_of_ipv4 = 0
        self.sources = [OURS]  # of its default routes
        self.nat64s = [NAT64]
        self.asked = 0
        self.said: list[str] = []
        self.endpoint = Endpoint(log)
        monkeypatch.setattr(ipv6_only, "source_addresses", lambda: self.sources)
        monkeypatch.setattr(ipv6_only, "nat64s", self._ask)
        self.looks = Ipv6Only(
            self.endpoint, lambda: bool(self.addresses_of_ipv4), self.said.append, log, gevent.spawn
        )

    def _ask(self) -> list[Nat64]:
        self.asked += 1
        gevent.sleep(0)
        return self.nat64s

    def start(self) -> None:
        self.looks.start(lambda: self.said.append("started"))
        until(lambda: self.said)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    made = Host(monkeypatch)
    yield made
    made.looks.close()
    made.endpoint.close()


def test_first_the_way_then_the_rest(host: Host) -> None:
    host.start()
    assert (host.said, host.endpoint.nat64) == (["started"], NAT64)


@pytest.mark.parametrize("has", ["an address", "a route to IPv4", "no network"])
def test_a_host_that_is_not_one_asks_nobody(host: Host, has: str) -> None:
    host.addresses_of_ipv4 = int(has == "an address")
    host.sources = {"an address": [OURS], "a route to IPv4": [OURS, "192.0.2.7"]}.get(has, [])
    host.looks.start(lambda: host.said.append("started"))
    assert (host.said, host.asked, host.endpoint.nat64) == (["started"], 0, None)


def test_it_moves_to_a_network_with_ipv4_and_back(host: Host) -> None:
    host.start()
    host.addresses_of_ipv4 = 1
    host.looks.look()
    until(lambda: host.endpoint.nat64 is None)
    host.addresses_of_ipv4 = 0
    host.looks.look()
    until(lambda: host.endpoint.nat64 is NAT64)
    until(lambda: len(host.said) == 3)
    assert len(set(host.said[1:])) == 1
    host.looks.look()  # nothing is new
    until(lambda: host.asked == 3)
    gevent.idle()
    assert len(host.said) == 3


def test_the_network_changes_during_the_first_look(host: Host) -> None:
    """What waits for it begins all the same, and once."""
    host.looks.start(lambda: host.said.append("started"))
    host.looks.look()
    until(lambda: host.endpoint.nat64 is NAT64)
    until(lambda: host.said)
    assert host.said == ["started"]


def test_the_resolver_comes_up_later(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ipv6_only, "LOOK_AGAIN_S", 0.0)
    host.nat64s = []
    host.start()
    until(lambda: host.asked > 2)
    assert host.endpoint.nat64 is None
    host.nat64s = [NAT64]
    until(lambda: host.endpoint.nat64 is NAT64)
    until(lambda: len(host.said) == 2)


def test_it_ends_during_a_look(host: Host) -> None:
    host.looks.start(lambda: host.said.append("started"))
    host.looks.close()
    gevent.idle()
    assert (host.said, host.endpoint.nat64) == ([], None)


def test_a_host_that_cannot_look(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_descriptors() -> list[str]:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(ipv6_only, "source_addresses", out_of_descriptors)
    host.looks.start(lambda: host.said.append("started"))
    assert (host.said, host.asked, host.endpoint.nat64) == (["started"], 0, None)
