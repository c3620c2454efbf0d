"""``kkp2p publish`` with ``kkp2p proxy`` as real processes: what they carry, say and outlive."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket as _socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import socket

import kkp2p_compat as kkp2p
from helpers.support import ENVIRONMENT, SECRET, CloudProcess, listen
from helpers.tool_process import StartTool, Tool, all_paths, start_tool
from kkp2p_compat.cli._forward import Report, Watch
from kkp2p_compat.engine.proxy.proxied import Proxied

__all__ = ["start_tool"]

SIZE = 300_000
GIVEN_UP = "the peer gave the channel up"
SILENT = "nothing answers where the peer would forward it to"


def login(cloud: CloudProcess) -> tuple[str, str]:
    return "--login", f"127.0.0.1:{cloud.port}"


@contextlib.contextmanager
def serving(listener: socket.socket) -> Iterator[None]:
    """Each connection gets back what it sends, and then its end."""

    def echo(sock: socket.socket) -> None:
        with sock:
            while data := sock.recv(65536):
                sock.sendall(data)
            sock.shutdown(_socket.SHUT_WR)

    def serve() -> None:
        while True:
            gevent.spawn(echo, listener.accept()[0])

    server = gevent.spawn(serve)
    try:
        yield
    finally:
        server.kill()
        listener.close()


@pytest.fixture
def echo_port() -> Iterator[int]:
    listener = listen()
    with serving(listener):
        yield listener.getsockname()[1]


def exchange(sock: socket.socket, size: int = SIZE) -> None:
    """An echo, byte for byte, with a half close."""
    data = os.urandom(size)
    with sock:
        sending = gevent.spawn(sock.sendall, data)
        sending.rawlink(lambda _: sock.shutdown(_socket.SHUT_WR))
        assert b"".join(iter(lambda: sock.recv(65536), b"")) == data
        sending.get()


def call(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port))


@pytest.fixture
def publish(cloud: CloudProcess, start_tool: StartTool) -> Callable[..., Tool]:
    """Online as "peer", with --json; its first two events are read."""

    def start(*arguments: str) -> Tool:
        command = ("publish", *arguments, "--as", "peer", "--json", *login(cloud))
        tool = start_tool(*command, KKP2P_SECRET=SECRET)
        assert [tool.event()["event"] for _ in range(2)] == ["publishing", "online"]
        return tool

    return start


@pytest.fixture
def proxy(cloud: CloudProcess, start_tool: StartTool) -> Callable[..., tuple[Tool, int]]:
    """It, with --json, and its port."""

    def start(*options: str, listen: str = "127.0.0.1:0") -> tuple[Tool, int]:
        command = ("proxy", listen, "peer", "--json", *login(cloud), *options)
        tool = start_tool(*command, KKP2P_SECRET=SECRET)
        return tool, tool.event()["address"][1]

    return start


Publish = Callable[..., Tool]
StartProxy = Callable[..., tuple[Tool, int]]


@all_paths
def test_a_port_is_reached_by_a_peer_id(
    publish: Publish, proxy: StartProxy, echo_port: int, options: list[str], path: str
) -> None:
    publisher = publish(str(echo_port))
    _, port = proxy(*options)
    for size in (SIZE, 0):
        exchange(call(port), size)
        connected, ended = publisher.event(), publisher.event()
        assert (connected["event"], ended["event"]) == ("connected", "ended")
        assert (connected["path"], connected["peer"]) == (path, "")
        assert connected["target"] == f"127.0.0.1:{echo_port}"
        assert connected["port"] > 0
        assert (ended["bytes_sent"], ended["bytes_received"]) == (size, size)
        assert ended["problems"] == []
    status, output, errors = publisher.end(signal.SIGINT)
    assert (status, errors) == (0, "")
    assert '"connections": 2, "failures": 0' in output
    assert list(publisher.folder.iterdir()) == []


def test_in_words(cloud: CloudProcess, start_tool: StartTool, echo_port: int) -> None:
    command = ("publish", f"localhost:{echo_port}", "--as", "peer", *login(cloud))
    publisher = start_tool(*command, KKP2P_SECRET=SECRET)
    target = f"localhost:{echo_port}"
    assert publisher.line() == f"publishing {target} as peer, for anybody"
    assert publisher.line().endswith(" online")
    tool = start_tool("proxy", "127.0.0.1:0", "peer", *login(cloud))
    found = re.match(r"listening on 127\.0\.0\.1:(\d+) ", tool.line())
    assert found is not None
    exchange(call(int(found[1])), 5)
    who = "connection 1 from a stranger"
    assert f" {who}: connected to {target}: p2p, " in publisher.line()
    assert f" {who}: ended, 5 bytes to the peer, 5 from it, " in publisher.line()
    assert publisher.end(signal.SIGTERM) == (0, "stopped: 1 connection\n", "")


@pytest.mark.parametrize("mode", ["p2p", "relay"])
def test_unix_sockets_at_both_ends(
    publish: Publish, proxy: StartProxy, tmp_path: Path, mode: str
) -> None:
    service, door = tmp_path / "service", tmp_path / "door"
    with _socket.socket(_socket.AF_UNIX) as left:
        left.bind(str(door))  # by a program that has ended since
    listener = socket.socket(_socket.AF_UNIX)
    listener.bind(str(service))
    listener.listen()
    with serving(listener):
        publish(f"unix:{service}")
        tool, _ = proxy("--mode", mode, listen=f"unix:{door}")
        for number in (1, 2):
            client = socket.socket(_socket.AF_UNIX)
            client.connect(str(door))
            exchange(client)
            connected, ended = tool.event(), tool.event()
            assert (connected["name"], ended["problems"]) == (f"connection {number}", [])
        tool.end(signal.SIGINT)
    assert not door.exists()


def test_a_unix_socket_that_is_in_use(
    cloud: CloudProcess, start_tool: StartTool, tmp_path: Path
) -> None:
    door = tmp_path / "door"
    with _socket.socket(_socket.AF_UNIX) as other:
        other.bind(str(door))
        other.listen()
        status, _, errors = start_tool("proxy", f"unix:{door}", "peer", *login(cloud)).end()
    assert (status, errors) == (
        1,
        f"kkp2p proxy: proxy unix:{door}: [Errno 98] Address already in use\n",
    )
    assert door.exists()


# Standard input and output.


class Piped:
    """A tool that forwards its standard input and output."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kkp2p_compat", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=ENVIRONMENT | {"KKP2P_SECRET": SECRET},
        )

    def error_line(self) -> str:
        assert self.process.stderr is not None
        return str(_in_thread(self.process.stderr.readline).decode())

    def communicate(self, data: bytes | None = None) -> tuple[int, bytes, str]:
        """Exit status, output, errors."""
        output, errors = _in_thread(lambda: self.process.communicate(data))
        return self.process.returncode, output, errors.decode()


def _in_thread(function: Callable[[], Any]) -> Any:
    return gevent.get_hub().threadpool.apply(function)


@pytest.fixture
def piped() -> Iterator[Callable[..., Piped]]:
    started: list[Piped] = []

    def start(*arguments: str) -> Piped:
        started.append(Piped(*arguments))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()
        for stream in (one.process.stdin, one.process.stdout, one.process.stderr):
            assert stream is not None
            stream.close()


@pytest.mark.parametrize("mode", ["p2p", "relay"])
def test_standard_input_and_output_at_both_ends(
    cloud: CloudProcess, piped: Callable[..., Piped], mode: str
) -> None:
    there, back = os.urandom(SIZE), os.urandom(SIZE)
    publisher = piped("publish", "-", "--as", "peer", *login(cloud))
    assert publisher.error_line().startswith("publishing standard input and output as peer")
    assert publisher.error_line().endswith(" online\n")
    caller = piped("proxy", "-", "peer", "--mode", mode, *login(cloud))
    answering = gevent.spawn(publisher.communicate, back)
    status, output, errors = caller.communicate(there)
    assert (status, output) == (0, back), errors
    assert ": connected in " in errors
    assert f"ended, {SIZE:,} bytes to the peer, {SIZE:,} from it" in errors
    status, output, errors = answering.get()
    assert (status, output) == (0, there), errors


def test_one_direction_may_end_long_before_the_other(
    publish: Publish, piped: Callable[..., Piped], cloud: CloudProcess, echo_port: int
) -> None:
    publish(str(echo_port))
    caller = piped("proxy", "-", "peer", *login(cloud))
    status, output, errors = caller.communicate(b"")
    assert (status, output) == (0, b""), errors


def test_standard_input_and_output_of_a_peer_that_is_away(
    piped: Callable[..., Piped], cloud: CloudProcess
) -> None:
    status, output, errors = piped("proxy", "-", "other", *login(cloud)).communicate(b"hello")
    assert (status, output) == (1, b"")
    assert "standard input: failed after " in errors
    assert errors.endswith("the peer is not online\n")


@pytest.mark.parametrize("ends_by", ["hangup", "output"])
def test_a_forwarder_of_standard_output_does_not_outlive_its_reader(
    publish: Publish, piped: Callable[..., Piped], cloud: CloudProcess, echo_port: int, ends_by: str
) -> None:
    publisher = publish(str(echo_port))
    caller = piped("proxy", "-", "peer", *login(cloud))
    assert ": connected in " in caller.error_line()
    assert caller.process.stdin is not None
    assert caller.process.stdout is not None
    if ends_by == "hangup":  # as ssh ends its ProxyCommand
        caller.process.send_signal(signal.SIGHUP)
        wanted, problems = 0, []
    else:
        caller.process.stdout.close()
        caller.process.stdin.write(b"hello")
        caller.process.stdin.flush()
        assert caller.error_line() == "kkp2p proxy: standard output: Broken pipe\n"
        wanted, problems = 1, [GIVEN_UP]
    assert _in_thread(caller.process.wait) == wanted
    assert publisher.event()["event"] == "connected"
    assert publisher.event()["problems"] == problems


# Targets.


def test_a_target_that_refuses(publish: Publish, proxy: StartProxy, held_port: int) -> None:
    publisher = publish(str(held_port))
    tool, port = proxy()
    with pytest.raises(ConnectionResetError), call(port) as sock:
        sock.recv(1)
    assert tool.event()["problems"] == [SILENT]
    failed = publisher.event()
    assert (failed["event"], failed["target"]) == ("failed", f"127.0.0.1:{held_port}")
    assert failed["problems"] == [f"127.0.0.1:{held_port}: [Errno 111] Connection refused"]
    listener = socket.socket()
    listener.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", held_port))
    listener.listen()
    with serving(listener):
        exchange(call(port))
    assert publisher.event()["event"] == "connected"


def test_a_bare_port_is_looked_for_on_both_loopbacks(publish: Publish, proxy: StartProxy) -> None:
    listener = socket.socket(_socket.AF_INET6)
    listener.bind(("::1", 0))
    listener.listen()
    with serving(listener):
        publish(str(listener.getsockname()[1]))
        exchange(call(proxy()[1]))


def test_a_target_for_each_connect_desc(
    publish: Publish, proxy: StartProxy, echo_port: int, held_port: int
) -> None:
    publisher = publish("--target", f"1={held_port}", f"--target=-2=127.0.0.1:{echo_port}")
    exchange(call(proxy("--desc", "-2")[1]))
    assert [publisher.event()["event"] for _ in range(2)] == ["connected", "ended"]
    for desc, problem in (("1", SILENT), ("0", "the peer takes no such channel here")):
        tool, port = proxy("--desc", desc)
        with pytest.raises(ConnectionResetError), call(port) as sock:
            sock.recv(1)
        assert tool.event()["problems"] == [problem]
    assert publisher.event()["target"] == f"127.0.0.1:{held_port}"
    assert publisher.event()["problems"] == ["no target for connect_desc 0"]


def test_who_may_call(publish: Publish, proxy: StartProxy, echo_port: int) -> None:
    publisher = publish(str(echo_port), "--from", "other")
    tool, port = proxy()
    with pytest.raises(ConnectionResetError), call(port) as sock:
        sock.recv(1)
    assert tool.event()["event"] == "failed"
    _, port = proxy("--as", "other")
    exchange(call(port))
    connected = publisher.event()
    assert (connected["event"], connected["peer"]) == ("connected", "other")


def test_datagrams(publish: Publish, proxy: StartProxy) -> None:
    """Two clients, which the service tells apart; a question that nobody answers is lost."""
    with socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM) as service:
        service.bind(("127.0.0.1", 0))
        publisher = publish(str(service.getsockname()[1]), "--udp")
        tool, port = proxy("--udp")
        clients = [socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM) for _ in range(2)]
        sources = []
        for number, client in enumerate(clients):
            client.connect(("127.0.0.1", port))
            client.send(b"question %d" % number)
            data, source = service.recvfrom(100)
            assert data == b"question %d" % number
            sources.append(source)
        assert sources[0] != sources[1]
        for source, answer in zip(sources, (b"one", b""), strict=True):
            service.sendto(answer, source)
        assert [client.recv(100) for client in clients] == [b"one", b""]
        for client in clients:
            client.close()
    tool.end(signal.SIGINT)
    events = [publisher.event() for _ in range(4)]
    ended = [event for event in events if event["event"] == "ended"]
    assert [(e["datagrams_sent"], e["datagrams_received"]) for e in ended] == [(1, 1), (1, 1)]
    assert [e["datagrams_lost"] for e in ended] == [{}, {}]
    assert {e["port"] for e in ended} == {source[1] for source in sources}


def test_a_service_for_datagrams_is_looked_for_on_both_loopbacks(
    publish: Publish, proxy: StartProxy
) -> None:
    """Nothing is lost, though the first datagram is refused at 127.0.0.1."""
    with socket.socket(_socket.AF_INET6, _socket.SOCK_DGRAM) as service:
        service.bind(("::1", 0))
        publisher = publish(str(service.getsockname()[1]), "--udp")
        tool, port = proxy("--udp")
        with socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM) as client:
            client.connect(("127.0.0.1", port))
            client.send(b"question")
            data, source = service.recvfrom(100)
            assert data == b"question"
            service.sendto(b"answer", source)
            assert client.recv(100) == b"answer"
    tool.end(signal.SIGINT)
    assert publisher.event()["event"] == "connected"
    ended = publisher.event()
    assert (ended["datagrams_sent"], ended["datagrams_received"]) == (1, 1)
    assert ended["datagrams_lost"] == {}
    assert ended["port"] == source[1]


def test_datagrams_that_are_lost_are_told_in_the_last_line() -> None:
    proxied = Proxied("bob", "connection 1", 0)
    proxied.path, proxied.over, proxied.target = "p2p", True, "127.0.0.1:53"
    proxied.datagrams_sent, proxied.datagrams_received = 1, 2000
    proxied.datagrams_lost.update({"ECONNREFUSED": 1500, "the socket is full": 2})
    report = Report("publish", False, None)
    told: list[str] = []
    report._print = told.append  # type: ignore[method-assign]
    try:
        Watch(report, False, True)(proxied)
        report.show_all()
    finally:
        report.close()
    assert (
        " in 1 and 2,000 datagrams, 1,500 lost (ECONNREFUSED), 2 lost (the socket is full), "
    ) in told[0]


def test_a_channel_of_the_other_kind(publish: Publish, proxy: StartProxy, echo_port: int) -> None:
    publisher = publish(str(echo_port), "--udp")
    with pytest.raises(ConnectionResetError), call(proxy()[1]) as sock:
        sock.recv(1)
    assert publisher.event()["problems"] == ["a channel of the other kind, TCP or UDP"]


def test_without_a_cloud(start_tool: StartTool, lan_port: int, echo_port: int) -> None:
    publisher = start_tool("publish", str(echo_port), "--as", "peer", "--lan", str(lan_port))
    assert publisher.line().startswith("publishing ")
    assert publisher.line().endswith(" online")
    tool = start_tool("proxy", "127.0.0.1:0", "peer", "--lan", str(lan_port), "--json")
    exchange(call(tool.event()["address"][1]))


# What it outlives.


def test_a_terminal_that_goes_away(publish: Publish, proxy: StartProxy, echo_port: int) -> None:
    """Its hangup, and output that cannot be written any more."""
    publisher = publish(str(echo_port))
    tool, port = proxy()
    for each in (publisher, tool):
        each.process.send_signal(signal.SIGHUP)
        assert each.process.stdout is not None
        each.process.stdout.close()
        assert each.process.stderr is not None
        each.process.stderr.close()
    for _ in range(3):
        exchange(call(port))
    for each in (publisher, tool):
        each.process.send_signal(signal.SIGTERM)
        assert _in_thread(each.process.wait) == 0
        each.process.stdout = each.process.stderr = subprocess.PIPE and open(os.devnull)  # noqa: SIM115


def test_a_working_folder_that_cannot_be_written(
    cloud: CloudProcess, start_tool: StartTool, echo_port: int, tmp_path: Path
) -> None:
    tool = start_tool("publish", str(echo_port), "--as", "peer", *login(cloud), KKP2P_SECRET=SECRET)
    tool.folder.rmdir()  # not even there: root may write everywhere
    assert tool.line().startswith("publishing ")
    assert tool.line().endswith(" online")


def test_it_starts_before_the_cloud_and_outlives_it(
    start_cloud: Callable[..., CloudProcess], start_tool: StartTool, held_port: int, echo_port: int
) -> None:
    command = ("publish", str(echo_port), "--as", "peer", "--json")
    where = ("--login", f"127.0.0.1:{held_port}")
    publisher = start_tool(*command, *where, KKP2P_SECRET=SECRET)
    assert publisher.event()["event"] == "publishing"
    offline = publisher.event()
    assert (offline["event"], "refused" in offline["problem"]) == ("offline", True)
    cloud = start_cloud("--account", f"peer:{SECRET}", port=held_port)
    while (event := publisher.event())["event"] != "online":
        assert event["event"] == "offline"
    cloud.kill()
    assert publisher.event()["event"] == "offline"


def test_somebody_else_logs_in_with_its_account(
    publish: Publish, make_engine: Callable[..., kkp2p.engine_t], echo_port: int
) -> None:
    publisher = publish(str(echo_port))
    assert kkp2p.join_net(make_engine(), "peer", SECRET) == 0
    status, output, errors = publisher.end()
    assert status == 1
    assert errors.startswith("kkp2p publish: ")
    assert len(errors.splitlines()) == 1
    assert '"stopped"' in output


# Secrets, and other options.


def test_a_secret_in_a_file(
    cloud: CloudProcess, start_tool: StartTool, tmp_path: Path, echo_port: int
) -> None:
    file = tmp_path / "secret"
    for secret, wanted in (("wrong", ""), (SECRET, "online")):
        file.write_text(f"{secret}\nmore\n")
        options = ("--secret-file", str(file), *login(cloud))
        tool = start_tool("publish", str(echo_port), "--as", "peer", *options)
        assert tool.line().startswith("publishing ")
        if wanted:
            assert tool.line().endswith(wanted)
        else:
            status, _, errors = tool.end()
            assert status == 1
            assert errors.startswith("kkp2p publish: ")
            assert secret not in errors


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["80"], "the following arguments are required: --as"),
        (["--as", "peer"], "TARGET is needed, or --target"),
        (["x", "--as", "peer"], "'x' is not a port"),
        (["host:0", "--as", "peer"], "'host:0' is not HOST:PORT"),
        (["unix:", "--as", "peer"], "'unix:' is not unix:PATH"),
        (["unix:" + "x" * 200, "--as", "peer"], "is not unix:PATH"),
        (["--target", "80", "--as", "peer"], "'80' is not N=TARGET"),
        (["--target", "1=80", "--target", "1=81", "--as", "peer"], "two targets for one"),
        (["-", "--target", "1=-", "--as", "peer"], "can be one target only"),
        (["unix:x", "--udp", "--as", "peer"], "--udp needs ports"),
        (["80", "--as", "peer", "--lan", "3549", "--from", "a"], "nobody vouches for callers"),
        (["80", "--as", "peer", "--from", "a", "accounts"], "it stands alone"),
        (["80", "--as", "peer", "--secret-file", "/nowhere"], "/nowhere: "),
        (["80", "--as", "peer"], "there is no terminal to ask for it"),
    ],
)
def test_used_wrongly(start_tool: StartTool, arguments: list[str], problem: str) -> None:
    status, output, errors = start_tool("publish", *arguments).end()
    assert (status, output) == (2, "")
    assert problem in errors
    assert "Traceback" not in errors
