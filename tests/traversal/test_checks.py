"""A call's checks on a virtual network: both sides end on the same path, or go on trying."""

from __future__ import annotations

import select
import socket
import time
from random import Random

import pytest

from helpers.check_network import DELAY_S, Host, Network, candidate, lan, nominates
from helpers.support import PATIENCE_S
from kkp2p_compat._address import HostPort
from kkp2p_compat.traversal import checks as checks_module
from kkp2p_compat.traversal.candidates import host_candidates
from kkp2p_compat.traversal.check_pairs import FIRST_INTERVAL_S
from kkp2p_compat.traversal.check_table import CheckTable
from kkp2p_compat.traversal.checks import GRACE_S, MAX_WAIT_S, Checks, Credentials
from kkp2p_compat.traversal.stun import Kind, parse_untrusted

ROUND_TRIP_S = 2 * DELAY_S


# Ends on a path.


def test_one_round_trip_on_a_clean_lan() -> None:
    network = lan()
    network.start(network.callee)  # it has sent its answer, which takes a while to come
    network.run(0.2)
    network.sent.clear()
    start = network.now
    network.start(network.caller)
    network.run(60, lambda: network.caller.checks.selected)
    assert network.now - start == pytest.approx(ROUND_TRIP_S)
    assert network.caller.checks.selected == ("2001:db8::2", 4000)
    assert network.caller.checks.round_trip_s == pytest.approx(ROUND_TRIP_S)
    network.run(60, lambda: network.callee.checks.selected)
    assert network.now - start == pytest.approx(1.5 * ROUND_TRIP_S)
    network.run_to_the_end()
    assert network.now - start == pytest.approx(2 * ROUND_TRIP_S)
    network.run(60)
    assert len(network.sent_by(network.caller)) <= 6, "quiet when both know"
    assert network.caller.checks.next_timer() is network.callee.checks.next_timer() is None


def test_a_check_that_was_too_early_is_not_waited_for() -> None:
    """The callee probes when it has answered, but the caller hears of it a moment later."""
    network = lan()
    one_way_s = 0.001
    network.delay = lambda host, target: one_way_s
    network.start(network.callee)
    network.run(2 * one_way_s)
    assert network.sent_by(network.callee), "and nobody was there to take it"
    start = network.now
    network.start(network.caller)
    network.run(60, lambda: network.callee.checks.selected)
    assert network.now - start == pytest.approx(3 * one_way_s)


def test_how_long_it_takes_where_every_twentieth_packet_is_lost() -> None:
    """From the caller's start until both sides have the path, in 400 simulated calls."""
    took_s = sorted(_took_with_losses(seed) for seed in range(400))
    shortest_s = 1.5 * ROUND_TRIP_S
    assert took_s[200] == pytest.approx(shortest_s)
    assert took_s[380] <= shortest_s + FIRST_INTERVAL_S + 1e-6, "one loss costs one interval"
    assert took_s[-1] <= shortest_s + 3 * FIRST_INTERVAL_S + 1e-6, "two in a row cost three"


def _took_with_losses(seed: int) -> float:
    network = Network(Host("192.0.2.1"), Host("192.0.2.2"), seed)
    dice = Random(seed)
    network.lose = lambda host, target, data: dice.random() < 0.05
    network.start(network.callee)  # a moment earlier, as its answer has to arrive
    network.run(ROUND_TRIP_S / 2)
    start = network.now
    network.start(network.caller)
    network.run(60, lambda: all(host.checks.selected for host in network.hosts))
    return network.now - start


@pytest.mark.parametrize("seed", range(40))
def test_whatever_the_network_does(seed: int) -> None:
    """Loss, jitter that reorders, dead addresses, one start after the other, a NAT now and then."""
    dice = Random(seed)
    network = lan(seed)
    network.caller = Host("10.0.0.1", "192.0.2.1", "2001:db8::1", "fd00::1")
    network.callee = Host("10.0.0.2", "192.0.2.2", "2001:db8::2", "fd00::2", port=5000)
    for host in network.hosts:
        host.credentials = Credentials.make(dice)
        network.dead |= set(dice.sample(host.addresses, dice.randint(0, 1)))
    if seed % 3 == 0:
        network.caller.outside[("10.0.0.1", 4000)] = "198.51.100.7", 61000
    if seed % 2:
        network.dead |= {"2001:db8::1", "2001:db8::2", "fd00::1", "fd00::2"}
        network.dead -= {"10.0.0.1", "10.0.0.2"}
    loss = dice.choice([0.0, 0.1, 0.3])
    base = dice.choice([0.0001, 0.01, 0.15])
    network.lose = lambda host, target, data: dice.random() < loss
    network.delay = lambda host, target: base * dice.uniform(1, 1.5)
    network.start(network.hosts[seed % 2])
    network.run(dice.uniform(0, 2 * base))
    network.start(network.hosts[1 - seed % 2])
    network.run_to_the_end()


@pytest.mark.parametrize("silent", ["caller", "callee"])
def test_one_sides_packets_do_not_arrive(silent: str) -> None:
    network = lan()
    network.lose = lambda host, target, data: host is getattr(network, silent)
    network.start_both()
    network.run(20)
    assert network.caller.checks.selected is network.callee.checks.selected is None
    for host in network.hosts:
        due = host.checks.next_timer()
        assert due is not None
        assert network.now < due <= network.now + checks_module.MAX_INTERVAL_S
    network.lose = lambda host, target, data: False
    network.run_to_the_end()


def test_a_better_address_that_is_dead_costs_little() -> None:
    network = lan()
    network.dead = {"2001:db8::1", "2001:db8::2"}
    start = network.now
    network.start_both()
    network.run(60, lambda: network.caller.checks.selected)
    assert network.now - start <= 2 * ROUND_TRIP_S + GRACE_S + 1e-6
    assert network.caller.checks.selected == ("192.0.2.2", 4000)
    network.run_to_the_end()


@pytest.mark.parametrize(
    ("round_trip_s", "slower_s", "chosen"),
    [
        (0.02, 0.019, "2001:db8::2"),
        (0.02, 0.02 + GRACE_S + 0.001, "192.0.2.2"),
        (0.5, MAX_WAIT_S - 0.001, "2001:db8::2"),
        (0.5, MAX_WAIT_S + 0.001, "192.0.2.2"),
    ],
)
def test_a_better_address_that_is_slower(round_trip_s: float, slower_s: float, chosen: str) -> None:
    network = lan()
    network.delay = lambda host, target: (round_trip_s + (":" in target[0]) * slower_s) / 2
    network.start_both()
    network.run_to_the_end()
    assert network.caller.checks.selected == (chosen, 4000)


def test_an_address_that_no_list_has() -> None:
    """The caller is behind a NAT: its own list is of no use, its checks tell where it is."""
    network = Network(Host("10.0.0.1"), Host("192.0.2.2"))
    network.caller.outside[("10.0.0.1", 4000)] = "198.51.100.7", 61000
    network.start_both()
    network.run_to_the_end()
    assert network.callee.checks.selected == ("198.51.100.7", 61000)


def test_an_answer_from_another_address_than_the_one_probed() -> None:
    """A host with two addresses of which the kernel prefers the unlisted one."""
    network = Network(Host("192.0.2.1"), Host("192.0.2.9", "192.0.2.2"))
    network.start(network.callee)
    network.start(network.caller, [candidate("192.0.2.2")])
    network.run_to_the_end()
    assert network.caller.checks.selected == ("192.0.2.9", 4000)


def test_candidates_that_come_later() -> None:
    network = lan()
    network.dead = {"192.0.2.1", "2001:db8::1"}
    for host in network.hosts:
        network.start(host, [])
    network.run(5)
    assert network.sent == []
    network.dead = set()
    network.caller.checks.add_candidates(network.callee.listed)
    due = network.caller.checks.next_timer()
    assert due is not None
    assert due <= network.now
    network.run_to_the_end()


@pytest.mark.parametrize("listed_late", [True, False])
def test_an_address_that_is_learnt_first_and_listed_later(listed_late: bool) -> None:
    """It gets the priority of the list, and then is better than the one that was listed first."""
    network = lan()
    six, four = network.callee.listed
    network.delay = lambda host, target: DELAY_S if ":" in target[0] else 2 * DELAY_S
    network.start(network.caller, [four])
    network.start(network.callee)
    network.run(1.5 * DELAY_S)
    network.caller.checks.add_candidates([six] * listed_late)
    network.run_to_the_end()
    assert network.caller.checks.selected == ((six if listed_late else four).address, 4000)


def test_a_peer_that_comes_late() -> None:
    """Once it is heard, checks of it are as frequent again as those of a new address."""
    network = Network(Host("192.0.2.1"), Host("192.0.2.2"))
    network.start(network.callee)
    network.run(20)
    lost = []

    def lose(host: Host, target: HostPort, data: bytes) -> bool:
        if host is network.callee and parse_untrusted(data).kind is Kind.REQUEST and len(lost) < 3:
            lost.append(data)
        return data in lost

    network.lose = lose
    start = network.now
    network.start(network.caller)
    network.run_to_the_end()
    assert network.now - start < 1


def test_a_nomination_after_a_minute() -> None:
    """The checks before have not used up what it may take."""
    network = Network(Host("192.0.2.1"), Host("192.0.2.2"))
    network.lose = lambda host, target, data: True
    network.start_both()
    network.run(62)
    lost = []
    network.lose = lambda host, target, data: (
        nominates(data) and (len(lost) < 10 and not lost.append(data))
    )
    network.run_to_the_end()
    assert len(lost) == 10


def test_a_lost_nomination_is_repeated() -> None:
    network = lan()
    lost = []

    def lose(host: Host, target: HostPort, data: bytes) -> bool:
        if nominates(data) and len(lost) < 5:
            lost.append(data)
        return data in lost

    network.lose = lose
    network.start_both()
    network.run(60, lambda: len(lost) == 5)
    assert network.caller.checks.selected
    assert not network.caller.checks.settled
    assert network.callee.checks.selected is None
    network.run_to_the_end()


def test_a_lost_answer_to_the_nomination() -> None:
    network = lan()
    network.start_both()
    network.lose = lambda host, target, data: bool(
        network.callee.checks.selected and host is network.callee
    )
    network.run(5)
    assert network.callee.checks.settled
    assert not network.caller.checks.settled
    network.lose = lambda host, target, data: False
    network.run_to_the_end()


@pytest.mark.parametrize(
    "addresses",
    [["127.0.0.1"], ["::1"], ["127.0.0.1", "::1"], ["192.0.2.1"], ["10.0.0.1", "fd00::1", "::1"]],
)
def test_two_on_one_host(addresses: list[str]) -> None:
    network = Network(Host(*addresses), Host(*addresses, port=5000))
    network.start_both()
    network.run_to_the_end()


def test_an_interface_comes_up_between_the_two_lists() -> None:
    for late in (0, 1):
        hosts = Host("127.0.0.1", "::1"), Host("127.0.0.1", "::1", port=5000)
        hosts[late].listed = host_candidates({int(socket.AF_INET): hosts[late].port}, ["10.0.0.1"])
        for host in hosts:
            host.addresses = ("10.0.0.1", "127.0.0.1", "::1")
        network = Network(*hosts)
        network.start_both()
        network.run_to_the_end()


def test_a_peer_that_calls_itself() -> None:
    """Both ends of the call are in one engine: one table, one port."""
    network = Network(Host("192.0.2.1"), Host("192.0.2.1"))
    table = network.callee.table = network.caller.table
    network.start_both()
    for _, _, target, data in network.sent:  # grows meanwhile
        table.handle_datagram_untrusted(data, target, network.now)
        for host in network.hosts:
            network.flush(host)
    assert [host.checks.selected for host in network.hosts] == [("192.0.2.1", 4000)] * 2
    assert all(host.checks.settled for host in network.hosts)


def test_real_sockets_of_this_host() -> None:
    """Two engines' wildcard sockets, told apart by their ports only."""
    ends = [RealEnd(), RealEnd()]
    random = Random(1)
    credentials = [Credentials.make(random), Credentials.make(random)]
    try:
        for end, other, mine, theirs, caller in (
            (*ends, *credentials, True),
            (*ends[::-1], *credentials[::-1], False),
        ):
            end.start(other, mine, theirs, caller, random)
        deadline = time.monotonic() + PATIENCE_S
        while not all(end.checks.settled for end in ends):
            assert time.monotonic() < deadline, [end.table.drops for end in ends]
            for end in ends:
                end.turn()
        for end, other in (ends, ends[::-1]):
            assert end.checks.selected in [(c.address, c.port) for c in other.candidates]
    finally:
        for end in ends:
            end.close()


class RealEnd:
    def __init__(self) -> None:
        self.sockets = {}
        for family, wildcard in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
            self.sockets[int(family)] = made = socket.socket(family, socket.SOCK_DGRAM)
            if family == socket.AF_INET6:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            made.bind((wildcard, 0))
        self.table = CheckTable()
        self.candidates = host_candidates(
            {family: made.getsockname()[1] for family, made in self.sockets.items()}
        )

    def start(
        self, other: RealEnd, mine: Credentials, theirs: Credentials, caller: bool, random: Random
    ) -> None:
        self.checks = Checks(
            controlling=caller,
            local=mine,
            remote=theirs,
            local_candidates=self.candidates,
            candidates=other.candidates,
            now=time.monotonic(),
            random=random,
        )
        self.table.add(self.checks)

    def turn(self) -> None:
        while transmit := self.checks.poll_transmit():
            data, address, _ = transmit
            self.sockets[int(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)].sendto(
                data, address
            )
        for readable in select.select([*self.sockets.values()], [], [], 0.01)[0]:
            data, source = readable.recvfrom(2000)
            self.table.handle_datagram_untrusted(data, source[:2], time.monotonic())
        self.checks.handle_timer(time.monotonic())

    def close(self) -> None:
        for each in self.sockets.values():
            each.close()
