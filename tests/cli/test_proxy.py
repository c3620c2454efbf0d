"""``kkp2p proxy`` as a real process: what it carries, what it says, and how it ends."""

from __future__ import annotations

import fcntl
import re
import signal
import socket as _socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import gevent
import pytest
from gevent import socket

from helpers.support import ROOT, SECRET, CloudProcess, Program
from helpers.tool_process import StartTool, Tool, all_paths, start_tool
from kkp2p_compat.cli import proxy as proxy_module

__all__ = ["start_tool"]

SIZE = 200_000


@pytest.fixture
def server(cloud: CloudProcess, start_program: Callable[..., Program]) -> Program:
    program = start_program("server", str(cloud.port), "peer", SECRET)
    assert program.first_line == "joined"
    return program


def exchange(port: int, size: int) -> int:
    """An echo of ``size`` bytes; returns our own port."""
    with socket.create_connection(("127.0.0.1", port)) as sock:
        own = sock.getsockname()[1]
        data = bytes(size)
        sending = gevent.spawn(sock.sendall, data)
        sending.rawlink(lambda _: sock.shutdown(_socket.SHUT_WR))
        count = 0
        while piece := sock.recv(65536):
            count += len(piece)
        assert count == size
        sending.get()
        return int(own)


def port_in(line: str) -> int:
    """That of the line that says where the proxy listens."""
    found = re.match(r"listening on \S+:(\d+) ", line)
    assert found is not None, line
    return int(found[1])


def login(cloud: CloudProcess) -> str:
    return f"127.0.0.1:{cloud.port}"


@all_paths
def test_a_line_for_each_connection(
    cloud: CloudProcess, server: Program, start_tool: StartTool, options: list[str], path: str
) -> None:
    tool = start_tool("proxy", "0", "peer", "--login", login(cloud), "--json", *options)
    hello = tool.event()
    assert (hello["event"], hello["peer"]) == ("listening", "peer")
    assert hello["address"][0] == "127.0.0.1"
    for size in (SIZE, 0):
        own = exchange(hello["address"][1], size)
        connected, ended = tool.event(), tool.event()
        assert (connected["event"], ended["event"]) == ("connected", "ended")
        assert connected["port"] == ended["port"] == own
        assert connected["path"] == path
        assert connected["set_up_s"] > 0
        assert (ended["bytes_sent"], ended["bytes_received"]) == (size, size)
        assert ended["problems"] == []
    status, output, errors = tool.end(signal.SIGINT)
    assert (status, errors) == (0, "")
    assert '"connections": 2, "failures": 0' in output
    assert list(tool.folder.iterdir()) == []


def test_in_words_and_explained(
    cloud: CloudProcess, server: Program, start_tool: StartTool
) -> None:
    tool = start_tool("proxy", "127.0.0.1:0", "peer", "--explain", KKP2P_LOGIN=login(cloud))
    line = tool.line()
    port = port_in(line)
    assert line == f"listening on 127.0.0.1:{port} for peer, mode auto"
    exchange(port, 5)
    exchange(port, 7)
    status, output, errors = tool.end(signal.SIGTERM)
    assert (status, errors) == (0, "")
    lines = output.splitlines()
    own = [line for line in lines if line[0] != " "]
    assert len(own) == 5
    assert ": p2p, " in own[0]
    assert "ended, 5 bytes to the peer, 5 from it" in own[1]
    assert "ended, 7 bytes to the peer, 7 from it" in own[3]
    assert own[-1] == "stopped: 2 connections"
    explained = [line.split(" ms  ", 1)[1] for line in lines if " ms  " in line]
    assert "answer" in explained
    assert "path" in explained
    assert any(" answered after " in line for line in explained)
    assert sum("checks sent: " in line for line in lines) == 1  # both are of one attempt


def test_a_bare_port_is_that_of_both_loopbacks(
    cloud: CloudProcess, server: Program, start_tool: StartTool
) -> None:
    tool = start_tool("proxy", "0", "peer", "--login", login(cloud), "--json")
    hello = tool.event()
    (four, port), (six, port_of_six) = hello["addresses"]
    assert (four, six, port_of_six) == ("127.0.0.1", "::1", port)
    assert hello["address"] == [four, port]
    for host in (four, six):
        with socket.create_connection((host, port)) as sock:
            sock.sendall(b"hello")
            assert sock.recv(5) == b"hello"
        assert [tool.event()["event"] for _ in range(2)] == ["connected", "ended"]
    _, output, _ = tool.end(signal.SIGINT)
    assert '"connections": 2' in output


def test_both_loopbacks_in_words_and_without_ipv6(
    cloud: CloudProcess, start_tool: StartTool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = start_tool("proxy", "0", "peer", "--login", login(cloud))
    line = tool.line()
    places = r"127\.0\.0\.1:(\d+) and \[::1\]:(\d+)"
    found = re.fullmatch(rf"listening on {places} for peer, mode auto", line)
    assert found is not None, line
    assert found[1] == found[2]
    tool.end(signal.SIGINT)
    monkeypatch.setattr(proxy_module, "_has_ipv6", lambda: False)
    made = SimpleNamespace(start_proxy=lambda ip, port, *_: SimpleNamespace(address=(ip, port)))
    where = proxy_module._parse_listen("80")
    proxies = proxy_module._listen(made, where, None, None)  # type: ignore[arg-type]
    assert [proxy.address for proxy in proxies] == [("127.0.0.1", 80)]


def test_a_port_that_is_free_on_one_loopback_only(
    cloud: CloudProcess, start_tool: StartTool, held_port: int
) -> None:
    port = str(held_port)
    with _socket.create_server(("::1", held_port), family=_socket.AF_INET6):
        status, output, errors = start_tool("proxy", port, "peer", "--login", login(cloud)).end()
    assert (status, output) == (1, "")
    assert errors.startswith(f"kkp2p proxy: proxy [::1]:{port}: [Errno 98]")


def test_a_peer_that_is_away(cloud: CloudProcess, start_tool: StartTool) -> None:
    tool = start_tool("proxy", "0", "other", "--login", login(cloud))
    port = port_in(tool.line())
    with pytest.raises(ConnectionResetError):
        exchange(port, 5)
    assert tool.line().endswith("the peer is not online")
    status, output, _ = tool.end(signal.SIGINT)
    assert (status, output) == (0, "stopped: 0 connections, 1 failed\n")


def test_a_connection_under_way_when_it_ends(
    cloud: CloudProcess, server: Program, start_tool: StartTool
) -> None:
    tool = start_tool("proxy", "0", "peer", "--login", login(cloud))
    port = port_in(tool.line())
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(b"hello")
        assert sock.recv(5) == b"hello"
        status, output, errors = tool.end(signal.SIGTERM)
        assert (status, errors) == (0, "")
        assert "broken: the proxy is stopped, 5 bytes to the peer, 5 from it" in output
        with pytest.raises(ConnectionResetError):
            sock.recv(1)


def test_nobody_reads_what_it_says(
    cloud: CloudProcess, server: Program, start_tool: StartTool
) -> None:
    """Many more lines than a pipe holds: the connections go on all the same."""
    tool = start_tool("proxy", "0", "peer", "--login", login(cloud), "--explain", "--verbose")
    port = port_in(tool.line())
    assert tool.process.stdout is not None
    _shrink(tool)
    for _ in range(60):
        exchange(port, 10)
    status, output, _ = tool.end(signal.SIGINT)
    assert status == 0
    assert output.endswith("stopped: 60 connections\n")


def _shrink(tool: Tool) -> None:
    """Its output pipe, to a page."""
    assert tool.process.stdout is not None
    fcntl.fcntl(tool.process.stdout.fileno(), 1031, 4096)  # linux/fcntl.h: F_SETPIPE_SZ


@pytest.mark.parametrize(
    "arguments",
    [
        ["x", "peer"],
        ["70000", "peer"],
        ["localhost:80", "peer"],
        ["0", "a" * 33],
        ["0", "peer", "--mode", "fast"],
        ["0", "peer", "--desc", "2147483648"],
        ["0", "peer", "--timeout", "0"],
        ["0", "peer", "--login", "host:99999"],
        ["0", "peer", "--login", "host:3080#sha256:00"],
        ["0", "peer", "--lan", "0"],
        ["0", "peer", "--lan", "3549", "--mode", "relay"],
        [],
        ["0", "peer", "--config", "x"],
        ["--config", "/nowhere"],
        ["-", "peer", "--udp"],
        ["unix:" + "x" * 200, "peer"],
    ],
)
def test_used_wrongly(start_tool: StartTool, arguments: list[str]) -> None:
    status, output, errors = start_tool("proxy", *arguments).end()
    assert (status, output) == (2, "")
    assert "Traceback" not in errors


def test_a_port_that_is_taken(cloud: CloudProcess, start_tool: StartTool) -> None:
    with _socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        status, output, errors = start_tool("proxy", port, "peer", "--login", login(cloud)).end()
    assert (status, output) == (1, "")
    assert errors.startswith(f"kkp2p proxy: proxy 127.0.0.1:{port}: [Errno 98]")


# A resolver that knows "cloud.test" once a file is there: a network that comes up after us.
LATE_RESOLVER = """
import os, socket
real = socket.getaddrinfo
def getaddrinfo(host, *rest):
    if host == "cloud.test" and not os.path.exists(os.environ["NETWORK"]):
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    return real("127.0.0.1" if host == "cloud.test" else host, *rest)
socket.getaddrinfo = getaddrinfo
"""


@pytest.fixture
def before_the_network(tmp_path: Path) -> dict[str, str]:
    """The environment of a tool; the file NETWORK in it lets the name resolve."""
    (tmp_path / "sitecustomize.py").write_text(LATE_RESOLVER)
    return {"PYTHONPATH": f"{tmp_path}:{ROOT}", "NETWORK": str(tmp_path / "network")}


@pytest.mark.parametrize("as_json", [False, True])
def test_it_starts_before_the_network(
    cloud: CloudProcess,
    server: Program,
    start_tool: StartTool,
    before_the_network: dict[str, str],
    as_json: bool,
) -> None:
    options = ["--login", f"cloud.test:{cloud.port}", *(["--json"] if as_json else [])]
    tool = start_tool("proxy", "127.0.0.1:0", "peer", *options, **before_the_network)
    if as_json:
        waiting = tool.event()
        assert waiting["event"] == "waiting"
        assert waiting["problem"].startswith("cloud.test: ")
    else:
        assert tool.error_line().startswith("kkp2p proxy: cloud.test: ")
    Path(before_the_network["NETWORK"]).touch()
    port = int(re.findall(r"\d+", tool.line().replace("127.0.0.1", "", 1))[0])
    exchange(port, SIZE)
    assert tool.end(signal.SIGTERM)[0] == 0


def test_it_can_be_ended_while_it_waits_for_the_network(
    start_tool: StartTool, before_the_network: dict[str, str]
) -> None:
    arguments = ("proxy", "0", "peer", "--login", "cloud.test")
    tool = start_tool(*arguments, **before_the_network)
    assert "trying again" in tool.error_line()
    assert tool.end(signal.SIGTERM) == (0, "", "")


@pytest.mark.parametrize("options", [["--login", "cloud.test", "--no-retry"], ["--login", "a..b"]])
def test_it_ends_at_once_when_told_so_and_for_a_name_that_is_none(
    start_tool: StartTool, before_the_network: dict[str, str], options: list[str]
) -> None:
    status, output, errors = start_tool("proxy", "0", "peer", *options, **before_the_network).end()
    assert (status, output) == (1, "")
    assert "trying again" not in errors
    assert len(errors.splitlines()) == 1


SEVERAL = """
[[proxy]]
listen = "127.0.0.1:0"
peer = "peer"
mode = "relay"
encrypt = true

[[proxy]]
listen = "unix:DOOR"
peer = "other"
desc = -3
timeout = 2.5
encrypt = false
"""


def test_several_out_of_a_file(
    cloud: CloudProcess, server: Program, start_tool: StartTool, tmp_path: Path
) -> None:
    file, door = tmp_path / "proxies.toml", tmp_path / "door"
    file.write_text(SEVERAL.replace("DOOR", str(door)))
    tool = start_tool("proxy", "--config", str(file), "--login", login(cloud))
    port = port_in(tool.line())
    assert tool.line() == f"listening on unix:{door} for other, mode auto"
    own = exchange(port, SIZE)
    assert f" port {own} to peer: connected in " in tool.line()
    assert f" port {own} to peer: ended, {SIZE:,} bytes to the peer" in tool.line()
    with socket.socket(_socket.AF_UNIX) as sock:
        sock.connect(str(door))
        assert sock.recv(1) == b""
    assert re.search(r"connection 1 to other: failed after .* the peer is not online", tool.line())
    assert tool.end(signal.SIGTERM)[0] == 0
    assert not door.exists()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "there is no table [[proxy]]"),
        ("proxy = 5", "there is no table [[proxy]]"),
        ("[[proxy]", "proxies.toml: "),
        ('[[proxy]]\nlisten = "80"', "proxies.toml, proxy 1: peer is missing"),
        ('[[proxy]]\nlisten = "x"\npeer = "a"', "'x' is not a port"),
        ('[[proxy]]\nlisten = "80"\npeer = "a"\nmod = "p2p"', "unrecognized arguments: --mod=p2p"),
        ('[[proxy]]\nlisten = "80"\npeer = "a"\ndesc = "x"', "'x' is not a number of 32 bits"),
        ('[[proxy]]\nlisten = "-"\npeer = "a"', "- is for one proxy alone"),
        ('[[proxy]]\nlisten = "unix:x"\npeer = "a"\nudp = true', "--udp needs a port"),
    ],
)
def test_a_file_that_is_wrong(
    start_tool: StartTool, tmp_path: Path, text: str, problem: str
) -> None:
    file = tmp_path / "proxies.toml"
    file.write_text(text)
    status, output, errors = start_tool("proxy", "--config", str(file)).end()
    assert (status, output) == (2, "")
    assert problem in errors
    assert "Traceback" not in errors
