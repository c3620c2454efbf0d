"""The mapper against routers on loopback.  A real one is in tests/lab/test_lab_port_mapping.py."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

import gevent
import pytest
from gevent.event import Event

from helpers.router import LOOPBACK, OUTSIDE, Igd, Router, until
from kkp2p_compat._errors import BadPacket, KKP2PError, LinkLost, TimedOut
from kkp2p_compat.traversal import gateway, port_mapping, upnp
from kkp2p_compat.traversal.gateway import Mapping, PcpSession, PmpSession, Refused, Session
from kkp2p_compat.traversal.port_mapping import PortMapper
from kkp2p_compat.traversal.upnp import UpnpSession

LOG = logging.getLogger("test.port_mapping")
NONCE = b"a secret one"
INSIDE = 5555
NO_PORT = 9  # of loopback, with nobody there


class Mapper(PortMapper):
    """One that a test can wait for."""

    def __init__(self, sessions: Callable[[str, bytes], Sequence[Session]], **fields: object):
        self.here = [LOOPBACK]
        self.changed = Event()
        self.changes: list[tuple[str, int] | None] = []
        super().__init__(
            LOG,
            gevent.spawn,
            self._note,
            gateways=lambda: self.here,
            sessions=sessions,
            **fields,  # type: ignore[arg-type]
        )

    def _note(self) -> None:
        self.changes.append(self.mapped)
        self.changed.set()

    def wait(self, expected: tuple[str, int] | None) -> None:
        until(lambda: self.changes and self.mapped == expected, self.changed)


MakeMapper = Callable[..., Mapper]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers on loopback take no time: silence is noticed at once."""
    monkeypatch.setattr(gateway, "FIRST_REPEAT_S", 0.02)
    monkeypatch.setattr(port_mapping, "MIN_RENEW_S", 0.05)


@pytest.fixture
def router() -> Iterator[Router]:
    made = Router()
    yield made
    made.close()


@pytest.fixture
def make_mapper(router: Router) -> Iterator[MakeMapper]:
    made: list[Mapper] = []

    def sessions(ip: str, nonce: bytes) -> list[Session]:
        return [PcpSession(ip, nonce, router.port), PmpSession(ip, router.port)]

    def make(
        sessions: Callable[[str, bytes], Sequence[Session]] = sessions, **fields: object
    ) -> Mapper:
        mapper = Mapper(sessions, **fields)
        made.append(mapper)
        mapper.start(INSIDE)
        return mapper

    yield make
    for mapper in made:
        mapper.close()


def test_maps_by_pcp_and_removes_it(router: Router, make_mapper: MakeMapper) -> None:
    mapper = make_mapper()
    mapper.wait((OUTSIDE, INSIDE))
    assert (mapper.method, mapper.problem) == ("pcp", "")
    assert router.mapped == {INSIDE: ("pcp", INSIDE)}
    assert router.requests == [("pcp", INSIDE, port_mapping.LEASE_S)]
    mapper.close()
    assert router.mapped == {}
    assert (mapper.mapped, mapper.method) == (None, "")
    assert mapper.changes == [(OUTSIDE, INSIDE)]


def test_maps_by_nat_pmp_where_there_is_no_pcp(router: Router, make_mapper: MakeMapper) -> None:
    router.speaks = ("nat-pmp",)
    mapper = make_mapper()
    mapper.wait((OUTSIDE, INSIDE))
    assert mapper.method == "nat-pmp"
    mapper.close()
    assert router.requests[-1] == ("nat-pmp", INSIDE, 0)
    assert router.mapped == {}


def test_only_one_way_maps(router: Router, make_mapper: MakeMapper) -> None:
    """All three are there: the others have asked the router for nothing."""
    igd = Igd()
    try:
        mapper = make_mapper(
            lambda ip, nonce: [
                PcpSession(ip, nonce, router.port),
                PmpSession(ip, router.port),
                _upnp(ip, igd),
            ]
        )
        mapper.wait((OUTSIDE, INSIDE))
        assert {by for by, _, _ in router.requests} <= {mapper.method}
        assert len(router.mapped) + len(igd.mapped) == 1
        mapper.close()
        assert len(router.mapped) + len(igd.mapped) == 0
    finally:
        igd.close()


def _upnp(ip: str, igd: Igd) -> UpnpSession:
    pytest.importorskip("miniupnpc")
    return UpnpSession(ip, igd.port)


def test_maps_by_upnp_where_there_is_nothing_else(router: Router, make_mapper: MakeMapper) -> None:
    router.speaks = ()
    igd = Igd()
    try:
        mapper = make_mapper(
            lambda ip, nonce: [PcpSession(ip, nonce, router.port), _upnp(ip, igd)], lease_s=7200
        )
        mapper.wait((OUTSIDE, INSIDE))
        assert mapper.method == "upnp"
        assert igd.mapped == {INSIDE: (LOOPBACK, INSIDE, 7200)}
        mapper.close()
        assert igd.mapped == {}
    finally:
        igd.close()


def test_takes_another_port_and_keeps_asking_for_it(
    router: Router, make_mapper: MakeMapper
) -> None:
    router.other_port = 40001
    mapper = make_mapper()
    mapper.wait((OUTSIDE, 40001))
    router.other_port = None  # it gives what it is asked for
    mapper.refresh()
    until(lambda: len(router.requests) > 1, router.seen)
    assert router.mapped == {INSIDE: ("pcp", 40001)}


def test_renews_at_half_the_lease_under_one_nonce(router: Router, make_mapper: MakeMapper) -> None:
    router.lease_s = 1
    mapper = make_mapper()
    until(lambda: len(router.requests) == 3, router.seen)
    assert router.requests == [("pcp", INSIDE, port_mapping.LEASE_S)] * 3
    assert len(router.nonces) == 1
    assert mapper.changes == [(OUTSIDE, INSIDE)]


def test_lost_datagrams_are_repeated(router: Router, make_mapper: MakeMapper) -> None:
    router.deaf_to = 3
    make_mapper().wait((OUTSIDE, INSIDE))


def test_a_new_outside_address_is_told(router: Router, make_mapper: MakeMapper) -> None:
    mapper = make_mapper()
    mapper.wait((OUTSIDE, INSIDE))
    router.outside = "203.0.113.8"
    mapper.refresh()
    mapper.wait(("203.0.113.8", INSIDE))


def test_a_router_that_forgets_the_protocol_is_asked_by_the_other(
    router: Router, make_mapper: MakeMapper
) -> None:
    mapper = make_mapper()
    mapper.wait((OUTSIDE, INSIDE))
    router.speaks = ("nat-pmp",)
    mapper.refresh()
    until(lambda: router.mapped.get(INSIDE) == ("nat-pmp", INSIDE), router.seen)
    mapper.close()
    assert router.mapped == {}


def test_a_router_that_goes_away_takes_the_mapping_along(
    router: Router, make_mapper: MakeMapper
) -> None:
    mapper = make_mapper()
    mapper.wait((OUTSIDE, INSIDE))
    mapper.here = []
    mapper.refresh()
    mapper.wait(None)
    assert mapper.problem == "no router is known"
    mapper.here = [LOOPBACK]
    mapper.refresh()
    mapper.wait((OUTSIDE, INSIDE))


def test_tries_again_by_itself(
    router: Router, make_mapper: MakeMapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(port_mapping, "FIRST_RETRY_S", 0.05)
    router.result = 8
    mapper = make_mapper()
    until(lambda: len(router.requests) > 2, router.seen)
    router.result = 0
    mapper.wait((OUTSIDE, INSIDE))


def test_a_second_nat_is_reported_and_the_mapping_removed(
    router: Router, make_mapper: MakeMapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(port_mapping, "FIRST_RETRY_S", 0.05)
    router.outside = "192.168.0.2"
    mapper = make_mapper()
    until(lambda: ("nat-pmp", INSIDE, 0) in router.requests, router.seen)
    until(lambda: "behind another NAT" in mapper.problem, router.seen)
    mapper.close()
    assert mapper.changes == []
    assert router.mapped == {}


@pytest.mark.parametrize("result", [2, 8, 77])
def test_a_refusal_says_why(router: Router, make_mapper: MakeMapper, result: int) -> None:
    router.result = result
    session = PcpSession(LOOPBACK, NONCE, router.port)
    with pytest.raises(Refused, match=r"not authorised|no resources|result 77"):
        session.map(INSIDE, INSIDE, 60)
    with pytest.raises(Refused, match=r"not authorised|result"):
        PmpSession(LOOPBACK, router.port).map(INSIDE, INSIDE, 60)


def test_close_while_the_router_is_silent(router: Router, make_mapper: MakeMapper) -> None:
    """What was asked for may be mapped: the removal is sent, and not waited for in vain."""
    mapper = make_mapper()
    mapper.wait((OUTSIDE, INSIDE))
    router.seen.clear()
    router.deaf_to = 1
    mapper.close(timeout_s=0.01)
    until(lambda: router.deaf_to == 0, router.seen)
    assert mapper.mapped is None


def test_close_while_the_request_is_under_way(router: Router, make_mapper: MakeMapper) -> None:
    """The router has mapped, but its answer is not read any more."""
    mapper = make_mapper(lambda ip, nonce: [PcpSession(ip, nonce, router.port)])
    router.wrong_nonce = True  # the true answer comes after it, and a turn of the hub later

    def close_at_once() -> None:
        until(lambda: router.mapped, router.seen)
        mapper.close()

    gevent.spawn(close_at_once).join()
    assert router.mapped == {}


def test_answers_under_another_nonce_and_garbage_count_for_nothing(router: Router) -> None:
    router.wrong_nonce = True
    session = PcpSession(LOOPBACK, NONCE, router.port)
    assert session.map(INSIDE, INSIDE, 60) == Mapping(OUTSIDE, INSIDE, 60)
    assert router.nonces == {NONCE}
    router.wrong_nonce = False
    router.garbage = [b"", b"\x02", bytes(2000), b"\x00\x81"]
    assert session.map(INSIDE, INSIDE, 60) == Mapping(OUTSIDE, INSIDE, 60)
    assert PmpSession(LOOPBACK, router.port).map(INSIDE, 7777, 60) == Mapping(OUTSIDE, 7777, 60)


def test_an_answer_from_elsewhere_does_not_arrive(router: Router) -> None:
    """The kernel drops it: the socket is connected."""
    router.voice = other = Router()
    try:
        with pytest.raises(TimedOut):
            PmpSession(LOOPBACK, router.port).map(INSIDE, INSIDE, 60)
        with pytest.raises(TimedOut):
            PcpSession(LOOPBACK, NONCE, router.port).map(INSIDE, INSIDE, 60)
    finally:
        other.close()
    assert router.requests == [("pcp", INSIDE, 60)] * gateway.TRANSMISSIONS


def test_nobody_there_is_known_at_once() -> None:
    """By ICMP, not by silence: one transmission."""
    with pytest.raises(LinkLost):
        PcpSession(LOOPBACK, NONCE, NO_PORT).probe()


def test_a_server_of_nat_pmp_only(router: Router) -> None:
    router.speaks = ("nat-pmp",)
    with pytest.raises(Refused, match="version"):
        PcpSession(LOOPBACK, NONCE, router.port).probe()
    PmpSession(LOOPBACK, router.port).probe()


@pytest.mark.parametrize(
    "outside", ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "240.0.0.1"]
)
def test_an_outside_address_that_nobody_can_have(router: Router, outside: str) -> None:
    router.outside = outside
    for session in (PcpSession(LOOPBACK, NONCE, router.port), PmpSession(LOOPBACK, router.port)):
        with pytest.raises(BadPacket):
            session.map(INSIDE, INSIDE, 60)
        session.unmap()
    assert router.mapped == {}


def test_what_a_router_says_is_bounded() -> None:
    assert gateway.checked("198.51.100.1", 1, 2**32 - 1).lease_s == gateway.MAX_LEASE_S
    for ip, port, lease_s in [
        ("", 1, 1),
        ("::1", 1, 1),
        ("198.51.100.1", 0, 1),
        ("198.51.100.1", 65536, 1),
        ("198.51.100.1", 1, 0),
        ("not an address", 1, 1),
    ]:
        with pytest.raises(BadPacket):
            gateway.checked(ip, port, lease_s)


def test_a_short_lease_is_not_renewed_without_pause(
    router: Router, make_mapper: MakeMapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float | None] = []
    waiting = Event()

    class Wake(Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout)
            waiting.set()
            return bool(super().wait())

    monkeypatch.setattr(port_mapping, "Event", Wake)
    monkeypatch.setattr(port_mapping, "MIN_RENEW_S", 3.0)
    router.lease_s = 1
    mapper = make_mapper()
    mapper.wait((OUTSIDE, INSIDE))
    until(lambda: waits, waiting)
    assert waits == [3.0]


def test_a_failing_session_does_not_stop_the_search(
    router: Router, make_mapper: MakeMapper
) -> None:
    """The answer that comes first is of one that cannot map: the next one does."""

    class Boastful(PmpSession):
        def probe(self) -> None:
            return

        def map(self, internal_port: int, external_port: int, lease_s: int) -> Mapping:
            raise KKP2PError("no")

    mapper = make_mapper(
        lambda ip, nonce: [Boastful(ip, router.port), PcpSession(ip, nonce, router.port)]
    )
    mapper.wait((OUTSIDE, INSIDE))
    assert mapper.method == "pcp"


def test_without_miniupnpc(
    router: Router,
    make_mapper: MakeMapper,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(upnp, "miniupnpc", None)
    ways = port_mapping.sessions_of(LOOPBACK, NONCE)
    assert [session.method for session in ways] == ["pcp", "nat-pmp"]
    caplog.set_level(logging.INFO, LOG.name)
    mapper = make_mapper()
    mapper.wait((OUTSIDE, INSIDE))
    mapper.refresh()
    until(lambda: len(router.requests) == 2, router.seen)
    assert caplog.text.count("UPnP is off") == 1
