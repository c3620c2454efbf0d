"""Where a peer is: what a route has said is believed for a while, and only while it helps."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import pytest

from helpers.line_server import LineServer, RawServer, Serve, Visitor
from helpers.support import PATIENCE_S
from kkp2p_compat._errors import CloudUnreachable
from kkp2p_compat._io import time_limit
from kkp2p_compat.control import tracks as tracks_module
from kkp2p_compat.control.link import Link
from kkp2p_compat.control.links import Links
from kkp2p_compat.control.tracks import Tracks

Make = Callable[[LineServer], Tracks]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[Links] = []

    def make(entry: LineServer) -> Tracks:
        log = logging.getLogger("test")
        links = Links("127.0.0.1", entry.address[1], ["127.0.0.1"], log, print, None, frozenset())
        made.append(links)
        return Tracks(links, log, on_relays=lambda link: None)

    yield make
    for links in made:
        links.close()


@pytest.fixture
def track(serve: Serve) -> LineServer:
    return serve(Visitor.wait_until_gone)


class Route:
    """Says that every peer is at ``tracks``; ``asked``: for whom."""

    def __init__(self, serve: Serve, *tracks: tuple[str, int]) -> None:
        self.tracks = tracks
        self.asked: list[str] = []
        self.server = serve(self._answer)

    def _answer(self, visitor: Visitor) -> None:
        while True:
            self.asked.append(visitor.receive("route")["peer"])
            visitor.send("track", tracks=self.tracks)


def find(tracks: Tracks, peer_id: str) -> list[tuple[str, int]]:
    with time_limit(PATIENCE_S, TimeoutError()):
        return [link.address for link in tracks.find(peer_id, for_calls=True)]


def first(tracks: Tracks, peer_id: str) -> Link:
    with time_limit(PATIENCE_S, TimeoutError()):
        return next(tracks.find(peer_id, for_calls=True))


def test_a_route_is_asked_once_as_long_as_its_answer_leads_there(
    make: Make, serve: Serve, track: LineServer
) -> None:
    route = Route(serve, track.address)
    tracks = make(route.server)
    assert first(tracks, "bob") is first(tracks, "bob")
    assert route.asked == ["bob"]
    assert find(tracks, "bob") == [track.address]  # to the end: it was not there
    first(tracks, "bob")
    assert route.asked == ["bob", "bob"]
    tracks.forget("bob")
    first(tracks, "bob")
    assert route.asked == ["bob"] * 3


def test_what_is_remembered_is_bounded(
    make: Make, serve: Serve, track: LineServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracks_module, "CACHE_SIZE", 2)
    route = Route(serve, track.address)
    tracks = make(route.server)
    for peer_id in ("ann", "bob", "cid", "bob", "ann"):
        first(tracks, peer_id)
    assert route.asked == ["ann", "bob", "cid", "ann"]


def test_a_dead_track_is_passed_over_and_two_live_ones_are_enough(
    make: Make, serve: Serve, track: LineServer
) -> None:
    dead = RawServer(lambda sock: sock.close())
    second, third = (serve(Visitor.wait_until_gone) for _ in range(2))
    live = [track.address, second.address, third.address]
    tracks = make(Route(serve, dead.address, *live).server)
    assert find(tracks, "bob") == live[:2]
    dead.close()


def test_all_tracks_of_a_peer_are_dead(make: Make, serve: Serve) -> None:
    dead = RawServer(lambda sock: sock.close())
    tracks = make(Route(serve, dead.address).server)
    with pytest.raises(CloudUnreachable, match=f":{dead.address[1]}: "):
        find(tracks, "bob")
    dead.close()
