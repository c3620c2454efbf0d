"""Who looks for a new path when a peer is not heard any more, and for how long."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from gevent.event import Event

from helpers.support import PATIENCE_S
from kkp2p_compat._errors import KKP2PError, LinkLost, PeerOffline
from kkp2p_compat.engine.links import roaming
from kkp2p_compat.engine.links.roaming import Roaming


class FakeLink:
    """As much of a PeerLink as Roaming sees."""

    def __init__(self, is_caller: bool = True) -> None:
        self.name = "peer"
        self.info = SimpleNamespace(is_caller=is_caller)
        self.closed: KKP2PError | None = None
        self.paths = SimpleNamespace(has_second=True)
        self.on_try = Event()


class Case:
    """``answers``: what each search gives, in order; the last one for ever."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.redials = self.checks = 0
        self.greenlets: list[Any] = []
        log = logging.getLogger("test")
        self.roaming = Roaming(self.redial, self.check, log, self.spawn)

    def redial(self, link: Any, budget_s: float, needs_tcp: bool) -> None:
        self.redials += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, Event):
            answer.wait()
        link.on_try.set()  # paths were found, and offered to it

    def check(self) -> None:
        self.checks += 1

    def spawn(self, function: Callable[..., Any], *args: Any) -> Any:
        self.greenlets.append(gevent.spawn(function, *args))
        return self.greenlets[-1]


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(roaming, "PROVE_S", 0.001)
    monkeypatch.setattr(roaming, "RELAY_S", 0.001)
    monkeypatch.setattr(roaming, "PAUSE_FIRST_S", 0.001)
    monkeypatch.setattr(roaming, "PAUSE_SPREAD_S", 0.001)
    monkeypatch.setattr(roaming, "PAUSE_MOST_S", 0.001)
    with gevent.Timeout(PATIENCE_S):
        yield


def test_the_caller_looks_until_a_path_is_found_and_the_peer_heard() -> None:
    case, link = Case(PeerOffline(), LinkLost("the cloud is gone"), None), FakeLink()
    case.roaming.handle_suspected(link)  # type: ignore[arg-type]
    case.roaming.handle_suspected(link)  # type: ignore[arg-type]  # one search is enough
    assert len(case.greenlets) == 1
    link.on_try.wait()
    assert case.redials == 3
    link.on_try.clear()
    link.on_try.wait()  # not heard yet: again
    case.roaming.handle_recovered(link)  # type: ignore[arg-type]
    case.greenlets[0].join()
    assert case.checks == 2  # when it was suspected, and when it lives again
    case.roaming.handle_suspected(link)  # type: ignore[arg-type]
    assert len(case.greenlets) == 2
    case.roaming.handle_closed(link)  # type: ignore[arg-type]
    case.greenlets[1].join()


def test_a_search_under_way_ends_when_the_peer_is_heard() -> None:
    case, link = Case(Event()), FakeLink()
    case.roaming.handle_suspected(link)  # type: ignore[arg-type]
    while not case.redials:
        gevent.sleep(0)
    case.roaming.handle_recovered(link)  # type: ignore[arg-type]
    case.greenlets[0].join()
    assert not link.on_try.is_set()


def test_the_callee_waits_to_be_called() -> None:
    case, link = Case(None), FakeLink(is_caller=False)
    case.roaming.handle_suspected(link)  # type: ignore[arg-type]
    assert case.greenlets == []
    assert case.checks == 1
    case.roaming.handle_recovered(link)  # type: ignore[arg-type]
    assert case.checks == 2


def test_a_link_that_is_closed_is_not_looked_after() -> None:
    case, link = Case(PeerOffline()), FakeLink()
    case.roaming.handle_suspected(link)  # type: ignore[arg-type]
    while case.redials < 3:
        gevent.sleep(0)
    link.closed = LinkLost("silent")
    case.greenlets[0].join()
    case.roaming.handle_closed(link)  # type: ignore[arg-type]
    assert case.checks == 1


def test_hundreds_of_links_that_die_and_live_together_ask_the_cloud_once() -> None:
    case, links = Case(PeerOffline()), [FakeLink() for _ in range(300)]
    for link in links:
        case.roaming.handle_suspected(link)  # type: ignore[arg-type]
    assert case.checks == 1
    assert len(case.greenlets) == 300
    for link in links:
        case.roaming.handle_recovered(link)  # type: ignore[arg-type]
    assert case.checks == 2
    gevent.joinall(case.greenlets)
