"""``kkp2p cloud`` as real processes: signals, descriptors, and its services on their own."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest
from gevent import socket as gsocket

from helpers.cloud_client import (
    Address,
    Client,
    StartProcess,
    cloud_process,
    end_process,
    open_relay,
    running_cloud,
    until,
)
from helpers.redis_server import RedisServer
from helpers.support import ROOT, forked_child
from kkp2p_compat.cloud.open_directory import open_directory
from kkp2p_compat.cloud.server import SPARE_DESCRIPTORS

__all__ = ["cloud_process"]


@pytest.fixture(autouse=True)
def _time_limit() -> Iterator[None]:
    with gevent.Timeout(120):
        yield


def test_sigterm_is_an_orderly_end(cloud_process: StartProcess, tmp_path: Path) -> None:
    process, address = cloud_process("--data", str(tmp_path), "--account", "alice:a")
    with Client(address) as alice, Client(address) as caller:
        assert alice.login("alice", "a")["op"] == "welcome"
        places = [caller.call("alice")["relay"], alice.receive()["relay"]]
        socks = [open_relay(place, address) for place in places]
        assert [sock.recv(1) for sock in socks] == [b"\0", b"\0"]
        process.terminate()
        assert alice.receive() == {"op": "bye", "reason": "shutdown"}
        assert alice.ended()
        socks[0].sendall(b"the relay lets its sessions end")
        assert socks[1].recv(100) == b"the relay lets its sessions end"
        for sock in socks:
            sock.close()
    status, log = end_process(process, signals=0)
    assert status == 0
    assert "Traceback" not in log
    with pytest.raises(ConnectionRefusedError):
        gsocket.create_connection(address)


def test_a_relay_session_that_goes_on_is_cut_after_the_drain(
    cloud_process: StartProcess, tmp_path: Path
) -> None:
    process, address = cloud_process(
        "--data", str(tmp_path), "--account", "alice:a", "--drain", "0"
    )
    with Client(address) as alice, Client(address) as caller:
        assert alice.login("alice", "a")["op"] == "welcome"
        places = [caller.call("alice")["relay"], alice.receive()["relay"]]
        socks = [open_relay(place, address) for place in places]
        assert [sock.recv(1) for sock in socks] == [b"\0", b"\0"]
        assert end_process(process)[0] == 0
        for sock in socks:
            with pytest.raises(ConnectionResetError):
                sock.recv(1)
            sock.close()


def test_a_second_signal_waits_for_nothing(cloud_process: StartProcess, tmp_path: Path) -> None:
    arguments = ("--data", str(tmp_path), "--account", "alice:a", "--drain", "1000")
    process, address = cloud_process(*arguments)
    with Client(address) as alice, Client(address) as caller:
        assert alice.login("alice", "a")["op"] == "welcome"
        places = [caller.call("alice")["relay"], alice.receive()["relay"]]
        socks = [open_relay(place, address) for place in places]
        assert [sock.recv(1) for sock in socks] == [b"\0", b"\0"]
        process.terminate()
        assert alice.receive()["op"] == "bye"
        assert end_process(process)[0] == -signal.SIGTERM
        for sock in socks:
            sock.close()


def test_the_port_is_taken(tmp_path: Path) -> None:
    with gsocket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        ended = subprocess.run(
            [
                *(sys.executable, "-m", "kkp2p_compat", "cloud", "--data", str(tmp_path)),
                *("--listen", f"127.0.0.1:{port}"),
            ],
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"kkp2p cloud: [Errno 98] cannot listen on 127.0.0.1:{port}")
    assert "Traceback" not in ended.stderr


ADMIN_IS_TAKEN = """
import sys
from kkp2p_compat.cli import main
from kkp2p_compat.cloud.server import Cloud
Cloud.start = lambda self: print("peers are let in")
sys.exit(main(["cloud", *sys.argv[1:]]))
"""


def test_nobody_is_let_in_when_the_admin_port_is_taken(tmp_path: Path) -> None:
    """He would be cut off at once: with several workers others are there for him."""
    with gsocket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        admin = f"127.0.0.1:{taken.getsockname()[1]}"
        options = ("--data", str(tmp_path), "--listen", "127.0.0.1:0", "--admin", admin)
        ended = subprocess.run(
            [sys.executable, "-c", ADMIN_IS_TAKEN, *options],
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
    assert ended.returncode == 1
    assert f"no admin port at {admin}" in ended.stderr
    assert ended.stdout == ""


def test_running_out_of_descriptors(cloud_process: StartProcess, tmp_path: Path) -> None:
    """It refuses what it has no room for, and serves again when there is room."""
    process, address = cloud_process(
        "--data", str(tmp_path), "--account", "alice:a", descriptors=SPARE_DESCRIPTORS + 60
    )
    with Client(address) as alice:
        assert alice.login("alice", "a")["op"] == "welcome"
        socks = [gsocket.create_connection(address) for _ in range(200)]
        assert alice.ask("beat") == {"op": "beat"}
        for sock in socks:
            sock.close()
        until(lambda: _answers(address))
        assert alice.ask("beat") == {"op": "beat"}
    status, log = end_process(process)
    assert status == 0
    assert "connections in all" in log
    assert "Traceback" not in log


def _answers(address: Address) -> bool:
    try:
        with Client(address) as client:
            return client.ask("beat") == {"op": "beat"}
    except OSError:
        return False


@pytest.fixture
def services(
    cloud_process: StartProcess, tmp_path: Path, redis_server: RedisServer
) -> Iterator[dict[str, tuple[subprocess.Popen[str], Address]]]:
    """A relay, two tracks and a route that have nothing in common but the directory."""
    accounts = open_directory(redis_server.url, None)
    accounts.start()
    for peer_id in ("callee", "other"):
        accounts.add(peer_id, "s")
    accounts.close()
    running = {}
    for name in ("relay", "track1", "track2", "route"):
        running[name] = cloud_process(
            *("--role", name.rstrip("12"), "--directory", redis_server.url),
            *("--data", str(tmp_path / name)),
        )
    yield running
    for name, (process, _) in running.items():
        status, log = end_process(process)
        assert "Traceback" not in log, name
        assert status in (0, -9), name


def test_services_of_their_own(services: dict[str, tuple[subprocess.Popen[str], Address]]) -> None:
    tracks = {services[name][1]: services[name][0] for name in ("track1", "track2")}
    with Client(services["route"][1]) as route:
        assert route.ask("login", v=1, peer="callee", scram="x")["op"] == "error"

        def named() -> list[Address]:
            told = route.ask("route", v=1, peer="callee")
            assert len(told["certificates"]) == len(told["tracks"])
            return [(host, port) for host, port in told["tracks"]]

        assert set(named()) == set(tracks)
        home, other = named()
        with Client(home) as callee:
            assert callee.login("callee", "s")["op"] == "welcome"
            until(lambda: _vouched_for(home) == 2)  # the other track, and the route
            # A call at either track finds it, and the relay, of which neither was told.
            for track in (home, other):
                with Client(track) as caller:
                    calling, offer = caller.call("callee"), callee.receive()
                    assert calling["relay"][:2] == list(services["relay"][1])
                    socks = [open_relay(told["relay"], ("", 0)) for told in (calling, offer)]
                    assert [sock.recv(1) for sock in socks] == [b"\0", b"\0"]
                    socks[0].sendall(b"across")
                    assert socks[1].recv(10) == b"across"
                    for sock in socks:
                        sock.close()
                assert callee.receive()["op"] == "cancel"
        tracks[home].kill()
        tracks[home].wait()
        until(lambda: named() == [other])  # its lease is over


def _vouched_for(track: Address) -> int:
    """How many servers' certificates it names to who has logged in."""
    with Client(track) as client:
        return len(client.login("other", "s", call_only=True).get("certificates", []))


def test_ipv6_and_ipv4_on_one_port(cloud_process: StartProcess, tmp_path: Path) -> None:
    if not gsocket.has_dualstack_ipv6():
        pytest.skip("no IPv6 on this host")
    process, (_, port) = cloud_process("--data", str(tmp_path), listen="[::]:0")
    for host in ("127.0.0.1", "::1"):
        with Client((host, port), source=host) as client:
            assert client.ask("beat") == {"op": "beat"}
    assert end_process(process)[0] == 0


def test_a_forked_child_does_not_keep_the_port(tmp_path: Path) -> None:
    """Of a cloud inside a program that forks."""
    with running_cloud(data=tmp_path) as cloud:
        host, port = cloud.address
        with forked_child():
            cloud.stop()
            with pytest.raises(ConnectionRefusedError):
                gsocket.create_connection((host, port))
            with running_cloud(data=tmp_path, port=port, stun=False) as again:
                assert again.address == (host, port)
