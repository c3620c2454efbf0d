"""A peer that is gone, and one that only the cloud has lost: the other side of a direct connection.

The track tells those who have met it; they ask the peer itself.
"""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import gevent
import pytest

import kkp2p_compat as kkp2p
from helpers.cloud_client import Client, Scene, running_cloud, running_scene, time_passes
from helpers.direct_support import (
    accept,
    check_carries,
    close,
    connect,
    links,
    log_of,
    settled,
    until,
)
from helpers.support import PATIENCE_S, SECRET, CloudProcess, Program, read_all, write_all
from kkp2p_compat.cloud import correspondents
from kkp2p_compat.control import client as client_module
from kkp2p_compat.engine.links import link_table

# The engines.


@pytest.fixture
def _endless(monkeypatch: pytest.MonkeyPatch, on_loopback: None) -> None:
    """Silence alone ends nothing within a test."""
    endless = functools.partial(link_table.TransportSettings, idle_timeout_s=100 * PATIENCE_S)
    monkeypatch.setattr(link_table, "TransportSettings", endless)


@pytest.mark.usefixtures("_endless")
@pytest.mark.parametrize("doing", ["writing", "nothing"])
def test_a_callee_that_is_killed(
    cloud: CloudProcess, engine: kkp2p.engine_t, start_program: Callable[..., Program], doing: str
) -> None:
    server = start_program("server", str(cloud.port), "peer", SECRET)
    channel = connect(engine)
    if doing == "writing":
        write_all(channel.fd, bytes(100_000))
    server.kill()
    read_all(channel.fd)
    close(channel)
    until(lambda: settled(engine) and not links(engine))


@pytest.mark.usefixtures("_endless")
def test_a_caller_that_is_killed(
    cloud: CloudProcess, peer: kkp2p.engine_t, start_program: Callable[..., Program]
) -> None:
    """One without a login: only the call's name tells which."""
    program = start_program("proxy", str(cloud.port), "peer", "1", "0")
    with gevent.socket.create_connection(("127.0.0.1", int(program.first_line))):
        channel = accept(peer)
        program.kill()
        assert read_all(channel.fd) == b""
        close(channel)
    until(lambda: settled(peer) and not links(peer))


@pytest.mark.usefixtures("_endless")
def test_a_host_that_lost_its_power_is_replaced(
    cloud: CloudProcess, engine: kkp2p.engine_t, start_program: Callable[..., Program]
) -> None:
    """It cannot even close its connections; the cloud sees that another has come."""
    server = start_program("server", str(cloud.port), "peer", SECRET)
    channel = connect(engine)
    server.process.send_signal(signal.SIGSTOP)
    start_program("server", str(cloud.port), "peer", SECRET)
    assert read_all(channel.fd) == b""
    server.kill()
    close(channel)
    again = connect(engine)
    write_all(again.fd, b"hello")
    close(again)
    until(lambda: settled(engine))


@pytest.mark.usefixtures("_endless")
@pytest.mark.parametrize("whose", ["caller", "callee"])
def test_a_control_connection_that_breaks_cuts_nothing(
    engine: kkp2p.engine_t, peer: kkp2p.engine_t, tmp_path: Path, whose: str
) -> None:
    mine, theirs = connect(engine), accept(peer)
    client, told = (engine, 1) if whose == "caller" else (peer, 0)

    def break_links() -> None:
        for link in list(client.client._links.all()):
            link.close()

    client.thread.call(break_links)
    until(lambda: "the cloud says that it is gone: asking it" in log_of(tmp_path, told))
    (link,) = links(peer if whose == "caller" else engine)
    until(lambda: not link.connection.liveness.doubt)
    assert link.closed is None
    check_carries(mine, theirs)


@pytest.mark.usefixtures("on_loopback")
def test_a_caller_without_a_login_stays_to_be_told(
    make_engine: Callable[..., kkp2p.engine_t], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For as long as it has a channel, however long the cloud has heard nothing else of it."""
    monkeypatch.setattr(client_module, "KEEP_S", 0.0)
    with running_cloud({"peer": SECRET}, {"idle_s": 600.0}) as cloud:
        engine, peer = (make_engine(login_port=cloud.address[1]) for _ in range(2))
        assert kkp2p.join_net(peer, "peer", SECRET) == 0
        channel, other = connect(engine), accept(peer)
        beats = count_beats(engine)
        engine.thread.call(engine.sweep)
        until(lambda: len(beats) == 1)
        close(channel, other)
        until(lambda: settled(engine))
        engine.thread.call(engine.sweep)
        assert len(beats) == 1
        kkp2p.engine_destroy(engine)
        kkp2p.engine_destroy(peer)


def count_beats(engine: kkp2p.engine_t) -> list[int]:
    """What its links to the cloud are asked for, from now on."""
    beats: list[int] = []
    for link in engine.client._links.all():
        check = link.check_alive
        link.check_alive = lambda *args, check=check: (beats.append(1), check(*args))
    return beats


# The track.


@pytest.fixture
def scene() -> Iterator[Scene]:
    with running_scene() as made:
        yield made


def meet(caller: Client, callee: Client) -> str:
    assert caller.call("callee")["op"] == "calling"
    name = str(callee.receive()["call"])
    callee.send("answer", call=name, answer="{}")
    assert caller.receive()["op"] == "answer"
    return name


def is_quiet(client: Client) -> bool:
    """Nothing came: the answer to a heartbeat is the next."""
    return client.ask("beat") == {"op": "beat"}


def log_in(scene: Scene, name: str, **more: object) -> Client:
    client = Client(scene.cloud.address)
    assert client.login(name, name[0] if name != "caller" else "d", **more)["op"] == "welcome"
    return client


def test_each_side_of_an_answered_call_hears_of_the_other_s_end(scene: Scene) -> None:
    with Client(scene.cloud.address) as other, Client(scene.cloud.address) as bystander:
        meet(scene.caller, scene.callee)
        name = meet(other, scene.callee)
        other.send("over", call=1)
        bystander.call("nobody")
        other.close()
        assert scene.callee.receive() == {"op": "gone", "calls": [name]}
        scene.callee.close()
        assert scene.caller.receive() == {"op": "gone", "peer": "callee"}
        assert is_quiet(bystander)


def test_who_was_not_answered_hears_nothing(scene: Scene) -> None:
    scene.caller.call("callee", ms=60_000)
    scene.callee.receive()
    scene.callee.close()
    assert scene.caller.receive()["op"] == "declined"
    assert is_quiet(scene.caller)


def test_peers_with_an_id_are_told_over_all_their_connections(scene: Scene) -> None:
    first = log_in(scene, "caller", session="s")
    name = meet(first, scene.callee)
    first.close()
    assert scene.callee.receive() == {"op": "gone", "calls": [name]}
    with log_in(scene, "caller", session="s", again=True) as second:
        assert scene.callee.receive() == {"op": "gone", "calls": [name], "back": True}
        scene.callee.close()
        assert second.receive() == {"op": "gone", "peer": "callee"}


@pytest.mark.parametrize(
    ("session", "again", "told"),
    [("s", True, False), ("other", False, True), ("", False, True)],
    ids=["the same program", "another one", "one that does not say"],
)
def test_a_login_in_place_of_another(scene: Scene, session: str, again: bool, told: bool) -> None:
    scene.callee.close()
    first = log_in(scene, "callee", session="s")
    meet(scene.caller, first)
    with log_in(scene, "callee", session=session, again=again) as second:
        assert first.receive() == {"op": "bye", "reason": "duplicate" if told else "moved"}
        if told:
            assert scene.caller.receive() == {"op": "gone", "peer": "callee"}
        assert is_quiet(scene.caller)
        first.close()
        assert is_quiet(second)
        assert is_quiet(scene.caller)


def test_what_is_remembered_is_bounded(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(correspondents, "MAX_PAIRS_OF_ONE", 3)
    known = scene.track._calls.correspondents
    names = [meet(scene.caller, scene.callee) for _ in range(correspondents.MAX_CALLS + 2)]
    assert len(known) == 1
    scene.caller.close()
    assert scene.callee.receive() == {"op": "gone", "calls": names[2:]}
    until(lambda: len(known) == 0)
    clients = [Client(scene.cloud.address) for _ in range(5)]
    for client in clients:
        meet(client, scene.callee)
    assert len(known) == 3
    monkeypatch.setattr(correspondents, "MAX_PAIRS", 2)
    meet(clients[4], scene.callee)
    assert len(known) == 2
    time_passes(scene.cloud, correspondents.MET_S + 1)
    assert len(known) == 0
    assert not known._pairs_of
    for client in clients:
        client.close()
