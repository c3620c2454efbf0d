"""What a peer names gets few packets, whatever it names."""

from __future__ import annotations

import collections

import pytest

from helpers.check_network import Host, Network, candidate, fresh_request, lan
from kkp2p_compat.traversal import checks as checks_module
from kkp2p_compat.traversal.candidates import MAX_CANDIDATES
from kkp2p_compat.traversal.checks import MAX_PORTS_PER_IP, MAX_PROBES, MAX_PROBES_PER_ADDRESS
from kkp2p_compat.traversal.stun import Kind, parse_untrusted


def test_a_list_of_third_parties() -> None:
    network = lan()
    hostile = [candidate(f"198.51.100.{n}", priority=n + 9) for n in range(20)]
    hostile += [candidate("203.0.113.1", port) for port in range(1, 30)]
    checks = network.start(network.caller, hostile)
    network.run(200)
    assert checks.ignored == 29 - MAX_PORTS_PER_IP
    counts = collections.Counter(target for target, _ in network.sent_by(network.caller))
    assert len(counts) == 20 + MAX_PORTS_PER_IP
    assert max(counts.values()) <= MAX_PROBES_PER_ADDRESS
    assert counts.total() <= MAX_PROBES
    assert checks.next_timer() is None


def test_one_address_that_never_answers() -> None:
    network = lan()
    checks = network.start(network.caller, [candidate("198.51.100.1")])
    network.run(60)
    assert checks.next_timer() is not None, "the longest call is no longer"
    network.run(1000)
    assert len(network.sent) == MAX_PROBES_PER_ADDRESS
    assert checks.next_timer() is None


def test_lists_without_end() -> None:
    network = lan()
    checks = network.start(network.caller, [])
    for n in range(200):
        checks.add_candidates([candidate(f"198.51.100.{n}")] * 2)
    assert checks.ignored == 2 * (200 - MAX_CANDIDATES)
    network.run(10)
    assert len({target for target, _ in network.sent_by(network.caller)}) == MAX_CANDIDATES


def test_the_peers_own_address_among_third_parties() -> None:
    """When those have used up what the list may cost, an address that was heard is still probed."""
    network = lan()
    hostile = [candidate(f"198.51.100.{n}", priority=n + 9) for n in range(32)]
    network.start(network.caller, hostile)
    network.run(300)
    assert len(network.sent) == MAX_PROBES
    network.start(network.callee)
    network.run_to_the_end()


def test_the_pace_of_a_long_list() -> None:
    network = lan()
    network.start(network.caller, [candidate(f"198.51.100.{n}") for n in range(32)])
    network.run(0.02)
    assert len(network.sent) <= checks_module.BURST + 1 + 0.02 / checks_module.PACE_S
    first = {target for _, _, target, _ in network.sent}
    assert len(first) == len(network.sent), "each once before any again"


@pytest.mark.parametrize(
    ("ours", "named"),
    [
        ("192.0.2.1", "127.0.0.1"),
        ("192.0.2.1", "10.0.0.1"),
        ("192.0.2.1", "2001:db8::1"),
        ("192.0.2.1", "224.0.0.1"),
        ("10.0.0.1", "::1"),
    ],
)
def test_targets_that_are_not_plausible(ours: str, named: str) -> None:
    network = Network(Host(ours), Host("192.0.2.2"))
    checks = network.start(network.caller, [candidate(named)])
    network.run(60)
    assert network.sent == []
    assert checks.ignored == 1
    assert checks.next_timer() is None


def test_a_peer_that_shows_itself_at_many_addresses() -> None:
    network = lan()
    network.start(network.callee)
    for n in range(1, 200):
        network.receive(network.callee, fresh_request(network), ("203.0.113.5", n))
    network.run(100)
    probed = {
        target
        for target, data in network.sent_by(network.callee)
        if parse_untrusted(data).kind is Kind.REQUEST and target[0] == "203.0.113.5"
    }
    assert len(probed) == checks_module.MAX_LEARNT


def test_requests_without_end() -> None:
    network = lan()
    network.start(network.callee)
    for _ in range(checks_module.MAX_REQUESTS + 10):
        network.receive(network.callee, fresh_request(network), ("192.0.2.1", 4000))
    assert network.callee.table.drops == {"too many requests": 10}
