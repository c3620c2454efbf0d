"""A link's life: whose it is, whether it is fit for more, and what its end takes with it."""

from __future__ import annotations

import logging
import math
from types import SimpleNamespace
from typing import Any

import gevent
import pytest

from helpers.line_server import wait_for
from kkp2p_compat._errors import LinkLost
from kkp2p_compat.engine.links import link_paths
from kkp2p_compat.engine.links.peer_link import LinkInfo, PeerLink
from kkp2p_compat.engine.links.pins import Pins
from kkp2p_compat.engine.paths.path_finder import Path
from kkp2p_compat.engine.paths.path_kind import PathKind
from kkp2p_compat.engine.paths.udp_use import UdpUse
from kkp2p_compat.transport.udp import events as e
from kkp2p_compat.transport.udp.liveness import Hearing

HOME = ("192.0.2.1", 5)
# What the link asks for here.
MET: Any = SimpleNamespace(
    path=Path(HOME, 0.01),
    reason="",
    timeline=SimpleNamespace(note=lambda *_, **__: None),
    ours=SimpleNamespace(proves=False),
)


class Stays:
    """A PathChoice that decides nothing."""

    def __init__(self, connection: Any, kind: PathKind, **_: object) -> None:
        self.moves: list[Any] = []
        self.is_udp_throttled = False
        self.current = SimpleNamespace(address=connection.address, kind=kind)
        self.home = None
        self.addresses: list[Any] = []

    def offer(self, *_: object, hold_s: float) -> None: ...
    def handle_event(self, *_: object) -> None: ...
    def next_timer(self) -> float:
        return math.inf


@pytest.fixture(autouse=True)
def _no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_paths, "PathChoice", Stays)


class Case:
    """A link, and what it asks of its endpoint and of Roaming, in order."""

    def __init__(self, **info: Any) -> None:
        self.asked: list[Any] = []
        self.streams = SimpleNamespace(by_id={}, clogged=lambda now: False)
        self.connection = SimpleNamespace(
            local_id=7,
            address=HOME,
            streams=self.streams,
            liveness=SimpleNamespace(hearing=Hearing.HEARD),
        )
        endpoint = SimpleNamespace(
            add=lambda link: None,
            wake=lambda link: None,
            remove=lambda link: self.asked.append("remove"),
            close_sockets=lambda numbers: self.asked.append(sorted(numbers)),
            watch=lambda number, on_broken: True,
        )
        roaming = SimpleNamespace(
            handle_suspected=lambda link: self.asked.append("suspected"),
            handle_recovered=lambda link: self.asked.append("recovered"),
            handle_closed=lambda link: self.asked.append("closed"),
        )
        self.link = PeerLink(
            endpoint,  # type: ignore[arg-type]
            self.connection,  # type: ignore[arg-type]
            LinkInfo(name="of the log", mode=1, met=MET, **info),
            logging.getLogger("test"),
            lambda link, event: self.asked.append(event),
            lambda link: self.asked.append("forget"),
            roaming,
            UdpUse(False, logging.getLogger("test")),
            Pins(None, None, False, logging.getLogger("test"), gevent.spawn),
        )


@pytest.mark.parametrize(
    ("info", "peer_id", "call_ids", "meant"),
    [
        ({"peer_id": "peer", "is_lan": False}, "peer", [], True),
        ({"peer_id": "peer", "is_lan": False}, "other", ["call"], False),
        ({"peer_id": "peer", "is_lan": True}, "peer", [], False),
        ({"peer_id": "of the log", "is_lan": True}, "of the log", [], False),
        ({"own_id": "peer", "is_lan": False}, "peer", [], False),
        ({"own_id": "peer", "is_lan": False}, "", ["another", "call"], True),
        ({"own_id": "peer", "is_lan": False}, "of the log", ["another"], False),
    ],
)
def test_whom_the_cloud_means(
    info: dict[str, Any], peer_id: str, call_ids: list[str], meant: bool
) -> None:
    link = Case(**info).link
    if not link.info.is_caller:
        assert not link.is_of("", [""])  # no call of it was answered yet
        link.note_call("an earlier one")
        link.note_call("call")
    assert link.is_of(peer_id, call_ids) == meant


def test_only_the_id_that_was_called_retires_a_link() -> None:
    link = Case(own_id="old", is_lan=False).link
    link.retire("other")
    assert not link.retired
    link.retire("old")
    link.retire("other")
    assert link.retired


def test_a_link_is_fit_while_its_peer_is_heard_and_reads() -> None:
    case = Case(peer_id="peer", is_lan=False)
    for hearing in Hearing:
        case.connection.liveness.hearing = hearing
        assert case.link.is_fit == (hearing is not Hearing.SUSPECTED)
    case.connection.liveness.hearing = Hearing.HEARD
    case.streams.clogged = lambda now: True
    assert not case.link.is_fit


def test_a_peer_has_heard_what_it_acknowledges() -> None:
    case = Case(peer_id="peer", is_lan=False)
    stream = case.streams.by_id[4] = SimpleNamespace(has_arrived=False)
    assert not case.link.has_heard(4)
    stream.has_arrived = True
    assert case.link.has_heard(4)
    assert not case.link.has_heard(6)
    case.connection.liveness.hearing = Hearing.SUSPECTED
    assert not case.link.has_heard(4)


def test_sockets_of_paths_that_are_left_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_paths, "LEAVE_S", 0.01)
    case = Case(peer_id="peer", is_lan=False)
    choice: Any = case.link.paths._choice
    for number in (1, 2):
        case.link.paths.offer(Path((*HOME, number), 0.01))
    for number, closed in ((1, []), (2, [1])):  # the one that was tried last may still be wanted
        choice.current.address = (*HOME, number)
        case.link.handle_event(e.PathChanged((*HOME, number)))
        wait_for(lambda: case.asked)  # until what is on its way to the old one has come
        assert case.asked.pop() == closed


def test_the_end_of_a_link() -> None:
    case = Case(peer_id="peer", is_lan=False)
    case.link.paths.offer(Path((*HOME, 3), 0.01))
    case.link.handle_event(e.PathSuspected())
    case.link.handle_event(e.PathRecovered())
    error = LinkLost("silent")
    case.link.handle_event(e.Closed(error))
    assert case.asked == ["suspected", "recovered", "closed", "remove", [3], "forget"]
    assert case.link.closed is error
    case.link.paths.offer(Path((*HOME, 4), 0.01))  # found by checks that were under way
    assert case.asked[-1] == [3, 4]
