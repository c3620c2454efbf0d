"""The paths of one link, with real sockets: what breaks is noticed without waiting for silence."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import gevent
import pytest

from helpers.endpoint_support import make
from helpers.framed_pair import FramedPair, Talker, tcp_pair
from helpers.support import PATIENCE_S
from kkp2p_compat.engine.links.link_paths import LEAVE_S, LinkPaths
from kkp2p_compat.engine.links.path_choice import LOOK_S, State
from kkp2p_compat.engine.links.path_meter import Measured
from kkp2p_compat.engine.links.path_option import ChoiceSettings
from kkp2p_compat.engine.paths.path_finder import Path
from kkp2p_compat.engine.paths.path_kind import PathKind
from kkp2p_compat.engine.paths.udp_use import UdpUse
from kkp2p_compat.transport.udp import events as e
from kkp2p_compat.transport.udp.endpoint import Endpoint

__all__ = ["make"]

PLACE = ("192.0.2.1", 443)
HOUR = 3600
log = logging.getLogger("test")
OF_PATHS = (e.PathChanged, e.PathProved, e.PathUnproved, e.PathSilent)


class Link:
    """One end of a pair, on a path by TCP."""

    def __init__(self, pair: FramedPair, me: int) -> None:
        self.talker, self._endpoint = pair.ends[me], pair.endpoints[me]
        self.first = Path((*PLACE, pair.numbers[me]), None, PathKind.TCP)
        self.paths = LinkPaths(
            self.talker.connection,
            self.first,
            "",
            self._endpoint,
            self._wake,
            f"end {me}",
            log,
            lambda *_: None,
            UdpUse(False, log),
            is_caller=me == 0,
        )
        handle = self.talker.handle_event

        def handle_event(event: e.Event) -> None:
            if isinstance(event, OF_PATHS):
                self.paths.handle_event(event)
            handle(event)

        self.talker.handle_event = handle_event  # type: ignore[method-assign]

    def _wake(self) -> None:
        self._endpoint.wake(self.talker)


@pytest.fixture
def pair(make: Callable[[], Endpoint]) -> FramedPair:
    """Nothing is sent on it that nobody asks for, so silence says nothing."""
    return FramedPair(make, keepalive_s=HOUR)


@pytest.fixture
def links(pair: FramedPair) -> Iterator[list[Link]]:
    links = [Link(pair, me) for me in (0, 1)]
    yield links
    for link in links:
        link.paths.close()


def until(condition: Callable[[], object]) -> None:
    with gevent.Timeout(PATIENCE_S):
        while not condition():
            gevent.sleep(0.001)


def is_idle(talker: Talker) -> bool:
    return not talker.connection.recovery.in_flight


def test_a_broken_path_is_left_at_once(pair: FramedPair, links: list[Link]) -> None:
    """For one that is ready, by a connection that has nothing to send."""
    seconds = []
    for me, (link, sock) in enumerate(zip(links, tcp_pair(), strict=True)):
        seconds.append(Path((*PLACE, pair.adopt(me, sock)), None, PathKind.FRAMED))
        link.paths.offer(seconds[-1])
    pair.one.open()
    pair.one.write(b"before")
    pair.other.wait_for(lambda: pair.other.read == b"before")
    until(lambda: is_idle(pair.one) and is_idle(pair.other))
    pair.endpoints[1].close_sockets([pair.numbers[1]])
    until(lambda: all(link.paths.kind is PathKind.FRAMED for link in links))
    assert [link.talker.connection.address for link in links] == [each.address for each in seconds]
    assert "the path before has ended" in str(links[0].paths.moves[-1])
    pair.one.write(b", and after")
    pair.other.wait_for(lambda: pair.other.read == b"before, and after")


def test_one_that_broke_before_the_link_was_made(pair: FramedPair) -> None:
    pair.endpoints[0].close_sockets([pair.numbers[0]])
    link = Link(pair, 0)
    assert link.paths._choice.current.is_gone
    link.paths.close()


def test_the_lack_of_any_path_is_noticed(pair: FramedPair, links: list[Link]) -> None:
    """So that another one is looked for."""
    pair.endpoints[1].close_sockets([pair.numbers[1]])
    until(lambda: any(isinstance(event, e.PathSuspected) for event in pair.one.events))


def add(pair: FramedPair, links: list[Link], kind: PathKind) -> Path:
    """Another path between the two, as the first one has it."""
    paths = [Path((*PLACE, pair.adopt(me, sock)), None, kind) for me, sock in enumerate(tcp_pair())]
    for link, path in zip(links, paths, strict=True):
        link.paths.offer(path)
    return paths[0]


class Relays:
    """RelayPaths that have found these."""

    def __init__(self, *paths: Path) -> None:
        self.paths = {path.address: path for path in paths}
        self.is_closed = False

    def close(self) -> None:
        self.is_closed = True


def test_relays_that_led_nowhere_are_closed_when_they_are_asked_anew(links: list[Link]) -> None:
    lane = Relays(Path(PLACE, None, PathKind.LANE))
    taken = [Relays(), Relays(), lane, Relays(), Relays()]
    for relays in taken:
        links[0].paths.take_relays(relays)  # type: ignore[arg-type]
    assert [relays.is_closed for relays in taken] == [True, True, False, True, False]
    links[0].paths.close()
    assert all(relays.is_closed for relays in taken)


def test_a_trial_keeps_the_socket_that_it_goes_home_to(
    pair: FramedPair, links: list[Link], monkeypatch: pytest.MonkeyPatch
) -> None:
    add(pair, links, PathKind.TCP)  # checks have found this one last
    relay = add(pair, links, PathKind.FRAMED)
    paths = links[0].paths
    choice = paths._choice
    monkeypatch.setattr(choice._meter, "measured", lambda *_: Measured(1e6, 0.0))
    choice._wanted = choice._options[relay.address]
    paths._handle_timer()
    until(lambda: choice.state is State.TRYING)
    paths._close_unused()
    assert pair.numbers[0] in pair.endpoints[0]._doors.extra


def test_a_path_that_was_left_is_kept_for_as_long_as_a_trial_of_the_peers() -> None:
    settings = ChoiceSettings()
    assert settings.settle_s + settings.trial_s + LOOK_S < LEAVE_S


def test_a_path_whose_socket_is_closed_is_none_to_choose(
    pair: FramedPair, links: list[Link]
) -> None:
    second, third = (add(pair, links, PathKind.TCP) for _ in range(2))
    paths = links[0].paths
    paths._close_unused()
    assert set(pair.endpoints[0]._doors.extra) == {pair.numbers[0], third.address[2]}
    assert second.address not in paths._choice._options
