"""What NATs do is found out, behind every kind of NAT."""

from __future__ import annotations

import itertools
from dataclasses import replace
from random import Random

import pytest

from helpers.nat_simulation import (
    DELAY_S,
    EXTRA,
    HOST_IP,
    MAIN_PORT,
    PUBLIC_IP,
    SECOND,
    SERVER,
    Simulation,
)
from kkp2p_compat._address import HostPort
from kkp2p_compat.testing.nat import (
    ADDRESS_AND_PORT_DEPENDENT,
    ADDRESS_DEPENDENT,
    ENDPOINT_INDEPENDENT,
    FIREWALL,
    FULL_CONE,
    PORT_RESTRICTED,
    SYMMETRIC_RANDOM,
    SYMMETRIC_SEQUENTIAL,
    NatType,
)
from kkp2p_compat.traversal import nat_discovery as discovery_module
from kkp2p_compat.traversal.nat import BLOCKED, UNKNOWN, NatBehaviour, judge_allocation
from kkp2p_compat.traversal.nat_discovery import EXTRA_SOCKETS, Discovery
from kkp2p_compat.traversal.stun import CHANGE_REQUEST, Kind, Message, parse_untrusted

BEHAVIOURS = (ENDPOINT_INDEPENDENT, ADDRESS_DEPENDENT, ADDRESS_AND_PORT_DEPENDENT)
ALLOCATIONS = (("preserved", 1), ("sequential", 1), ("sequential", -2), ("random", 1))


def discover(
    world: Simulation, servers: tuple[HostPort, ...] = (SERVER,), extra: dict[int, int] = EXTRA
) -> Discovery:
    """All there is to find out."""
    found = start(world, servers, extra)
    world.run(found, lambda: found.done)
    return found


def start(
    world: Simulation, servers: tuple[HostPort, ...] = (SERVER,), extra: dict[int, int] = EXTRA
) -> Discovery:
    return Discovery(
        servers,
        port=MAIN_PORT,
        open_fresh=lambda count: dict(list(extra.items())[:count]),
        local=[world.ip],
        now=world.now,
        random=Random(7),
    )


@pytest.mark.parametrize("hairpin", [False, True], ids=["", "hairpin"])
@pytest.mark.parametrize(("allocation", "step"), ALLOCATIONS)
@pytest.mark.parametrize("filtering", BEHAVIOURS)
@pytest.mark.parametrize("mapping", BEHAVIOURS)
def test_every_nat(mapping: str, filtering: str, allocation: str, step: int, hairpin: bool) -> None:
    nat_type = NatType(mapping, filtering, allocation, step, hairpin)
    for seed in range(3):
        found = discover(Simulation(nat_type, seed=seed))
        behaviour = found.behaviour
        assert (behaviour.mapping, behaviour.filtering) == (mapping, filtering)
        assert behaviour.allocation == allocation
        assert behaviour.step == (step if allocation == "sequential" else 0)
        told = ENDPOINT_INDEPENDENT in (mapping, filtering)
        assert behaviour.hairpin == (hairpin if told else None)
        assert behaviour.symmetric == (mapping != ENDPOINT_INDEPENDENT)
        assert all(ip == PUBLIC_IP for ip, _ in found.mapped)
        assert len(found.mapped) == (1 if mapping == ENDPOINT_INDEPENDENT else 2)


@pytest.mark.parametrize("loss", [0.1, 0.3])
@pytest.mark.parametrize("mapping", BEHAVIOURS)
def test_over_a_path_that_loses(mapping: str, loss: float) -> None:
    """Four transmissions of 0.3 loss each way fail in 7 %; what was not answered is not guessed."""
    wrong = 0
    for filtering, seed in itertools.product(BEHAVIOURS, range(10)):
        world = Simulation(NatType(mapping, filtering, "sequential"), seed=seed)
        world.loss, world.jitter_s = loss, 0.005
        behaviour = discover(world).behaviour
        assert behaviour.allocation in ("sequential", "unknown"), seed
        assert abs(behaviour.step) <= 3
        wrong += behaviour.mapping != mapping or behaviour.filtering not in (filtering, "unknown")
    assert wrong <= (2 if loss < 0.2 else 10), wrong


@pytest.mark.parametrize("mapping", BEHAVIOURS)
def test_a_server_with_one_address(mapping: str) -> None:
    """What depends on the address alone is not seen, and counts as its neighbour."""
    for filtering in BEHAVIOURS:
        found = discover(Simulation(NatType(mapping, filtering), two_addresses=False))
        seen = ENDPOINT_INDEPENDENT if mapping == ADDRESS_DEPENDENT else mapping
        assert found.behaviour.mapping == seen
        open_too = ADDRESS_DEPENDENT if filtering == ENDPOINT_INDEPENDENT else filtering
        assert found.behaviour.filtering == open_too


@pytest.mark.parametrize(
    "nat_type", [FULL_CONE, PORT_RESTRICTED, SYMMETRIC_SEQUENTIAL, SYMMETRIC_RANDOM]
)
def test_the_verdict_takes_a_round_trip(nat_type: NatType) -> None:
    world = Simulation(nat_type)
    began = world.now
    found = start(world)
    world.run(found, lambda: found.verdict)
    assert world.now - began == pytest.approx(2 * DELAY_S)
    assert found.behaviour.mapping == nat_type.mapping
    assert found.mapped
    assert found.round_trip_s == pytest.approx(2 * DELAY_S)
    assert found.server == SERVER


@pytest.mark.parametrize("filtering", BEHAVIOURS)
def test_no_nat(filtering: str) -> None:
    world = Simulation(replace(FIREWALL, filtering=filtering))
    found = discover(world)
    assert found.mapped == [(PUBLIC_IP, MAIN_PORT)]
    assert found.behaviour == NatBehaviour("none", filtering, "preserved")
    assert len({to[2] for _, to, _ in world.sent if len(to) == 3}) == 1  # fresh sockets that ask
    assert discover(Simulation()).behaviour == NatBehaviour("none", BEHAVIOURS[0], "preserved")


def test_one_nat_behind_another() -> None:
    """Together they are as strict as the strictest."""
    for inner, outer in itertools.permutations((FULL_CONE, PORT_RESTRICTED, SYMMETRIC_RANDOM), 2):
        found = discover(Simulation(inner, outer))
        symmetric = SYMMETRIC_RANDOM in (inner, outer)
        assert found.behaviour.symmetric == symmetric
        assert found.behaviour.filtering == ADDRESS_AND_PORT_DEPENDENT
        assert found.mapped[0][0] == PUBLIC_IP


def test_two_servers_of_one_port_each() -> None:
    for mapping in BEHAVIOURS:
        world = Simulation(NatType(mapping))
        world.others = {SERVER: SERVER, SECOND: SECOND}
        found = discover(world, (SERVER, SECOND))
        assert found.behaviour.symmetric == (mapping != ENDPOINT_INDEPENDENT)
        assert found.behaviour.filtering == "unknown"


def test_one_server_of_one_port() -> None:
    world = Simulation(PORT_RESTRICTED)
    world.others = {SERVER: SERVER}
    began = world.now
    found = start(world)
    world.run(found, lambda: found.verdict)
    assert world.now - began < 0.5
    assert found.behaviour.mapping == "unknown"
    world.run(found, lambda: found.done)
    assert found.mapped == [(PUBLIC_IP, MAIN_PORT)]
    assert found.behaviour.allocation == "preserved"


def test_the_second_port_is_where_the_server_says() -> None:
    world = Simulation(SYMMETRIC_RANDOM)
    ip, port = SERVER
    world.others = {SERVER: (ip, 9999), (ip, 9999): (ip, port)}
    assert discover(world).behaviour.mapping == ADDRESS_AND_PORT_DEPENDENT


def test_the_first_server_is_down() -> None:
    found = discover(Simulation(PORT_RESTRICTED), (SECOND, SERVER))
    assert found.server == SERVER
    assert found.behaviour.mapping == ENDPOINT_INDEPENDENT
    assert found.behaviour.filtering == ADDRESS_AND_PORT_DEPENDENT


def test_blocked() -> None:
    """Nothing came back in a second and a half of asking again and again."""
    world = Simulation(PORT_RESTRICTED)
    world.others = {}
    began = world.now
    found = discover(world)
    assert found.verdict
    assert found.behaviour == BLOCKED
    assert found.mapped == []
    assert world.now - began == pytest.approx(1.5)
    assert len(world.sent) == 8  # two ports, four times each


def test_before_the_first_answer() -> None:
    found = start(Simulation(PORT_RESTRICTED))
    assert not found.verdict
    assert found.behaviour == UNKNOWN
    assert found.server is None


def test_without_extra_sockets() -> None:
    found = discover(Simulation(PORT_RESTRICTED), extra={})
    assert found.behaviour == NatBehaviour(ENDPOINT_INDEPENDENT)


@pytest.mark.parametrize(("behind", "count"), [(None, 1), (PORT_RESTRICTED, EXTRA_SOCKETS)])
def test_fresh_sockets_are_opened_when_the_mapping_is_known(
    behind: NatType | None, count: int
) -> None:
    world = Simulation(*([] if behind is None else [behind]))
    opened: list[int] = []

    def open_fresh(count: int) -> dict[int, int]:
        assert found.verdict
        opened.append(count)
        return dict(list(EXTRA.items())[:count])

    found = Discovery(
        [SERVER],
        port=MAIN_PORT,
        open_fresh=open_fresh,
        local=[world.ip],
        now=world.now,
        random=Random(7),
    )
    world.run(found, lambda: found.done)
    assert opened == [count]


def test_other_hosts_use_the_nat_too() -> None:
    """A port between two of ours is taken by somebody else, and once a hundred are."""
    world = Simulation(replace(SYMMETRIC_SEQUENTIAL, step=2))
    nat, outbound = world.nats[0], world.nats[0].outbound
    strangers = itertools.count(20000)

    def busy(protocol: int, inner: HostPort, remote: HostPort, now: float) -> HostPort | None:
        if inner[1] in (EXTRA[2], EXTRA[3]) and (inner, remote) not in seen:
            seen.add((inner, remote))
            for _ in range(1 if inner[1] == EXTRA[2] else 100):
                outbound(protocol, ("192.168.1.9", next(strangers)), remote, now)
        return outbound(protocol, inner, remote, now)

    seen: set[tuple[HostPort, HostPort]] = set()
    nat.outbound = busy  # type: ignore[method-assign]
    found = discover(world)
    assert (found.behaviour.allocation, found.behaviour.step) == ("sequential", 2)


def test_the_questions_are_few_and_never_shorter_than_answers() -> None:
    world = Simulation(SYMMETRIC_RANDOM)
    answers: list[tuple[int, int]] = []
    respond = world.answered_by

    def watch(data: bytes, source: HostPort, asked: HostPort) -> object:
        replies = respond(data, source, asked)
        answers.extend((len(data), len(answer)) for answer, _ in replies)
        return replies

    world.answered_by = watch  # type: ignore[assignment]
    discover(world)
    assert answers
    assert all(asked >= answer for asked, answer in answers)
    assert len(world.sent) <= 40


# Hostile servers, and strangers.


def lie(world: Simulation, **told: object) -> None:
    """The server answers with this instead of the truth."""

    def answer(data: bytes, source: HostPort, asked: HostPort) -> list[tuple[bytes, HostPort]]:
        message = Message(Kind.RESPONSE, parse_untrusted(data).transaction_id, mapped=source)
        return [(replace(message, **told).encode(None), asked)]  # type: ignore[arg-type]

    world.answered_by = answer


@pytest.mark.parametrize(
    "mapped",
    [
        "10.0.0.1",
        "192.168.1.2",
        "127.0.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "0.0.0.0",
        "::1",
        "2001:db8::1",
    ],
)
def test_a_server_that_lies_about_our_address(mapped: str) -> None:
    world = Simulation(PORT_RESTRICTED)
    lie(world, mapped=(mapped, 5000))
    found = discover(world)
    assert found.mapped == []
    assert found.behaviour == UNKNOWN


def test_a_server_that_says_nothing() -> None:
    world = Simulation(PORT_RESTRICTED)
    lie(world, mapped=None)
    assert discover(world).behaviour == UNKNOWN
    world = Simulation(PORT_RESTRICTED)
    lie(world, kind=Kind.ERROR, error=400)
    assert discover(world).behaviour == UNKNOWN


def test_a_private_address_counts_in_a_private_network() -> None:
    world = Simulation(PORT_RESTRICTED)
    server = ("10.9.9.9", 3080)
    lie(world, mapped=("10.0.0.7", 5000))
    assert discover(world, (server,)).mapped == [("10.0.0.7", 5000)]


@pytest.mark.parametrize("other", ["127.0.0.1", "10.0.0.1", "224.0.0.1", "::1", "255.255.255.255"])
def test_an_other_address_that_is_none(other: str) -> None:
    world = Simulation(PORT_RESTRICTED)
    lie(world, other=(other, 53))
    discover(world)
    assert {to[0] for _, to, _ in world.sent} <= {SERVER[0], PUBLIC_IP}


def test_an_other_address_of_a_victim() -> None:
    """It gets one question, sent four times."""
    world = Simulation(PORT_RESTRICTED)
    lie(world, other=("203.0.113.99", 53))
    discover(world)
    assert sum(to[0] == "203.0.113.99" for _, to, _ in world.sent) <= 4


def test_a_new_address_in_every_answer() -> None:
    world = Simulation(PORT_RESTRICTED)

    def answer(data: bytes, source: HostPort, asked: HostPort) -> list[tuple[bytes, HostPort]]:
        told = (f"198.51.100.{world.random.randint(1, 254)}", 5000)
        message = Message(Kind.RESPONSE, parse_untrusted(data).transaction_id, mapped=told)
        return [(message.encode(None), asked)] * 3

    world.answered_by = answer
    found = discover(world, (SERVER, SECOND, ("203.0.113.4", 1), ("203.0.113.5", 1)))
    assert len(found.mapped) == 2
    assert not any(to[0] == "203.0.113.5" for _, to, _ in world.sent)


def test_what_strangers_send_does_not_count() -> None:
    world = Simulation(PORT_RESTRICTED)
    found = start(world)
    transmit = found.poll_transmit()
    assert transmit is not None
    data, to = transmit
    asked = parse_untrusted(data)
    forged = Message(Kind.RESPONSE, asked.transaction_id, mapped=("198.51.100.66", 6))
    strange = replace(forged, transaction_id=bytes(12))
    mirrored = replace(asked, kind=Kind.REQUEST)
    indication = replace(forged, kind=Kind.INDICATION)
    for message, source in (
        (forged, ("203.0.113.66", 3080)),  # from elsewhere
        (forged, (to[0], to[1] + 7)),
        (forged, (to[0], to[1], 1)),  # to another socket
        (strange, to),
        (mirrored, to),
        (indication, to),
    ):
        assert not found.handle_datagram_untrusted(message.encode(None), source, world.now)
    for junk in (b"", bytes(20), data[:19], forged.encode(None)[:-1]):
        assert not found.handle_datagram_untrusted(junk, to, world.now)
    assert found.mapped == []
    assert found.handle_datagram_untrusted(forged.encode(None), to, world.now)
    assert found.mapped == [("198.51.100.66", 6)]
    assert not found.handle_datagram_untrusted(forged.encode(None), to, world.now)  # a copy


def test_the_host_is_not_the_one_that_a_neighbour_is() -> None:
    """The address alone does not make it "no NAT": another host's port may have it."""
    world = Simulation(PORT_RESTRICTED)
    lie(world, mapped=(HOST_IP, MAIN_PORT + 1))
    assert discover(world, (("10.9.9.9", 3080),)).behaviour.mapping == ENDPOINT_INDEPENDENT


INNER = "10.0.0.5"  # of a cloud behind a 1:1 NAT


def answer_with(world: Simulation, **told: HostPort) -> None:
    """Answers say this instead, the rest is as it was."""
    respond = world.respond

    def answer(data: bytes, source: HostPort, asked: HostPort) -> list[tuple[bytes, HostPort]]:
        return [(_changed(reply, told), sender) for reply, sender in respond(data, source, asked)]

    world.answered_by = answer


def _changed(reply: bytes, told: dict[str, HostPort]) -> bytes:
    message = parse_untrusted(reply)
    if "other" in told and message.other is not None:
        told = {"other": (told["other"][0], message.other[1])}
    changed: Message = replace(message, **told)  # type: ignore[arg-type]
    return changed.encode(None)


@pytest.mark.parametrize("seen_at", ["192.168.1.1", "172.17.0.1", "198.51.100.7"])
def test_a_cloud_that_does_not_see_who_asks(seen_at: str) -> None:
    """Behind a router or a cluster that hides the source, or behind a NAT64, whose answers are of
    IPv4: UDP gets through, even if what it says of us is of no use."""
    world = Simulation(PORT_RESTRICTED)
    answer_with(
        world, mapped=(seen_at, 5000) if seen_at != "198.51.100.7" else ("2001:db8::7", 5000)
    )
    found = discover(world)
    assert found.verdict
    assert found.mapped == []
    assert found.behaviour == UNKNOWN


@pytest.mark.parametrize("filtering", [ADDRESS_DEPENDENT, ADDRESS_AND_PORT_DEPENDENT])
def test_a_cloud_behind_a_1_to_1_nat(filtering: str) -> None:
    """As the large providers have it: it knows its inner address only, and tells that one."""
    world = Simulation(NatType(filtering=filtering), two_addresses=False)
    answer_with(world, other=(INNER, 0))
    found = discover(world)
    assert found.behaviour.filtering == filtering
    assert all(to[0] != INNER for _, to, _ in world.sent)


def test_an_open_nat_and_a_cloud_behind_a_1_to_1_nat() -> None:
    """With one address it cannot show that a NAT is open to all."""
    world = Simulation(FULL_CONE, two_addresses=False)
    answer_with(world, other=(INNER, 0))
    assert discover(world).behaviour.filtering == ADDRESS_DEPENDENT


def test_a_server_that_names_another_address_and_answers_from_none() -> None:
    """Its refusal comes from where it was asked, and says nothing of our NAT."""
    world = Simulation(FULL_CONE)
    respond = world.respond

    def answer(data: bytes, source: HostPort, asked: HostPort) -> list[tuple[bytes, HostPort]]:
        request = parse_untrusted(data)
        if not (request.change_ip or request.change_port):
            return respond(data, source, asked)
        refusal = Message(
            Kind.ERROR, request.transaction_id, error=420, not_understood=(CHANGE_REQUEST,)
        )
        return [(refusal.encode(None), asked)]

    world.answered_by = answer
    assert discover(world).behaviour.filtering == "unknown"


def test_what_is_known_is_judged_once_until_something_new_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A call asks for it dozens of times."""
    judged: list[object] = []
    judge = judge_allocation
    monkeypatch.setattr(
        discovery_module,
        "judge_allocation",
        lambda samples: judged.append(samples) or judge(samples),
    )
    world = Simulation(PORT_RESTRICTED)
    found = start(world)
    for _ in range(3):
        assert found.behaviour == UNKNOWN
    world.run(found, lambda: found.verdict)
    judged.clear()
    first = {found.behaviour for _ in range(5)}
    assert [behaviour.mapping for behaviour in first] == [ENDPOINT_INDEPENDENT]
    assert len(judged) == 1
    world.run(found, lambda: found.done)
    assert {found.behaviour for _ in range(5)} != first
    assert found.behaviour.filtering == ADDRESS_AND_PORT_DEPENDENT
    assert len(judged) == 2
