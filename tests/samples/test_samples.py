"""The document's programs, as real processes: what they print, answer and exit with."""

from __future__ import annotations

import dataclasses
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import socket, ssl

from helpers.document import ACCEPTED, REQUEST, check_answer, need_program, run_client
from helpers.support import ENVIRONMENT, ROOT, SECRET, CloudProcess
from kkp2p_compat.cli.demo import make_certificate
from kkp2p_compat.control import invitation
from kkp2p_compat.control.invitation import Invitation

DIRECT = ACCEPTED % 1


class Sample:
    """A sample as a process of its own, in a folder of its own."""

    def __init__(self, folder: Path, name: str, *arguments: str, **environment: str) -> None:
        self.path = str(ROOT / "samples" / f"{name}.py")
        folder.mkdir()
        self.process = subprocess.Popen(
            [sys.executable, self.path, *arguments],
            cwd=folder,
            env=ENVIRONMENT | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def line(self) -> str:
        return self._in_pool(self.process.stdout.readline)

    def end(self, number: int | None = signal.SIGUSR1) -> tuple[int, str]:
        """Its exit status, and what else it has printed."""
        if number is not None:
            self.process.send_signal(number)
        rest = self._in_pool(self.process.stdout.read)
        return self.process.wait(), rest

    @staticmethod
    def _in_pool(function: Any) -> str:
        """A native wait that the time limit of the test can leave."""
        return str(gevent.get_hub().threadpool.apply(function))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Sample]]:
    started: list[Sample] = []

    def start(name: str, *arguments: str, **environment: str) -> Sample:
        folder = tmp_path / f"{name}{len(started)}"
        started.append(Sample(folder, name, *arguments, **environment))
        return started[-1]

    yield start
    for sample in started:
        sample.process.kill()
        sample.process.wait()
        sample.process.stdout.close()  # type: ignore[union-attr]


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    return make_certificate(tmp_path)


@pytest.fixture
def server(start: Callable[..., Sample], files: tuple[str, str], cloud: CloudProcess) -> Sample:
    """https_server, online as "peer"."""
    login, seen = cloud.pinned(), len(cloud.output)
    sample = start("https_server", "peer", SECRET, *files, "--login", login)
    wait_until_online(sample, cloud, seen)
    return sample


def wait_until_online(sample: Sample, cloud: CloudProcess, seen: int) -> None:
    while not any("(peer): online" in line for line in cloud.output[seen:]):
        assert sample.process.poll() is None, sample.end(None)
        gevent.sleep(0.01)  # nothing tells of a line of the cloud's


@pytest.fixture
def proxy(
    start: Callable[..., Sample], cloud: CloudProcess
) -> Callable[[int, int], tuple[str, int]]:
    """Start a proxy_client for a mode and a desc; returns where it listens."""

    def make(mode: int, desc: int) -> tuple[str, int]:
        arguments = ["127.0.0.1", "0", "peer", str(mode), str(desc)]
        sample = start("proxy_client", *arguments, KKP2P_LOGIN=cloud.pinned())
        match = re.fullmatch(
            r"create proxy\(127\.0\.0\.1:(\d+)\) to peer peer success\.\n", sample.line()
        )
        assert match
        return "127.0.0.1", int(match[1])

    return make


def _read(sock: Any) -> str:
    return b"".join(iter(lambda: sock.recv(65536), b"")).decode()


def _get_http(address: tuple[str, int]) -> str:
    with socket.create_connection(address) as sock:
        sock.sendall(REQUEST)
        return _read(sock)


def _get_https(address: tuple[str, int]) -> str:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with socket.create_connection(address) as plain, context.wrap_socket(plain) as sock:
        sock.sendall(REQUEST)
        return _read(sock)


# Told from the command line.


@pytest.mark.parametrize(
    ("name", "usage"),
    [
        ("https_server", "usage:%s peer_id peer_key pirvate_key_file cert_file.\n"),
        ("proxy_client", "usage:%s proxy_ip proxy_port peer_id connect_mode connect_desc\n"),
        ("single_process", "usage:%s peer_id peer_key private_key_file cert_file\n"),
    ],
)
def test_usage(start: Callable[..., Sample], name: str, usage: str) -> None:
    """main returns -1, which a shell sees as 255."""
    for arguments in ([], ["one", "two", "three"]):
        sample = start(name, *arguments)
        assert sample.end(None) == (255, usage % sample.path)


@pytest.mark.parametrize(
    ("places", "line"),
    [
        ((None, "cert"), "SSL_CTX_use_PrivateKey_file error.\n"),
        (("cert", "cert"), "SSL_CTX_use_PrivateKey_file error.\n"),
        (("key", None), "SSL_CTX_use_certificate_file error.\n"),
        (("key", "other"), "SSL_CTX_check_private_key error.\n"),
    ],
)
def test_server_with_wrong_files(
    start: Callable[..., Sample], tmp_path: Path, places: tuple[str | None, str], line: str
) -> None:
    (tmp_path / "other").mkdir()
    key, certificate = make_certificate(tmp_path)
    paths = {"key": key, "cert": certificate, "other": make_certificate(tmp_path / "other")[1]}
    arguments = [paths.get(str(place), str(tmp_path / "missing")) for place in places]
    assert start("https_server", "peer", SECRET, *arguments).end(None) == (255, line)


def test_server_refused_or_misled(
    start: Callable[..., Sample], files: tuple[str, str], cloud: CloudProcess
) -> None:
    login = ("--login", f"127.0.0.1:{cloud.port}")
    wrong = start("https_server", "peer", "wrong", *files, *login)
    assert wrong.end(None) == (
        255,
        "kkp2p_join_net error,ret:-111 (the cloud refuses the login: bad-secret).\n",
    )
    unknown = start("https_server", "nobody", SECRET, *files, *login)
    assert unknown.end(None) == (
        255,
        "kkp2p_join_net error,ret:-110 (the cloud knows no such peer).\n",
    )
    status, output = start("https_server", "peer", SECRET, *files, "--login", "no host").end(None)
    assert status == 255
    assert "kkp2p_engine_init error,ret:-101 (login_domain 'no host' " in output


def test_proxy_that_cannot_listen(start: Callable[..., Sample]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        sample = start("proxy_client", "127.0.0.1", f"{port}th", "peer", "0", "1")
        assert sample.end(None) == (255, f"create proxy(127.0.0.1:{port}) to peer peer error.\n")


# What the document shows.


# Auto: by p2p, unless this host is so busy that the head start of p2p runs out.
@pytest.mark.parametrize(("mode", "told"), [(0, "[12]"), (1, "1"), (2, "2")])
def test_http_and_https(
    server: Sample, proxy: Callable[[int, int], tuple[str, int]], mode: int, told: str
) -> None:
    check_answer(_get_http(proxy(mode, 1)), "http")
    assert re.fullmatch(ACCEPTED % told, server.line())
    https = proxy(mode, 2)
    for _ in range(3):
        check_answer(_get_https(https), "https")
        assert re.fullmatch(ACCEPTED % told, server.line())
    assert server.end() == (0, "")


def test_an_unknown_protocol_is_closed(
    server: Sample, proxy: Callable[[int, int], tuple[str, int]]
) -> None:
    with socket.create_connection(proxy(1, -7)) as sock:
        assert re.fullmatch(DIRECT, server.line())
        assert server.line() == "unkown protocol,connect desc is :-7.\n"
        assert sock.recv(1) == b""
    assert server.end() == (0, "")


@pytest.mark.parametrize(("protocol", "desc"), [("http", 1), ("https", 2)])
def test_curl(
    server: Sample, proxy: Callable[[int, int], tuple[str, int]], protocol: str, desc: int
) -> None:
    curl = need_program("curl")
    host, port = proxy(1, desc)
    url = f"{protocol}://{host}:{port}"
    for _ in range(5):
        check_answer(run_client(curl, "-sS", "--noproxy", "*", "--insecure", "-i", url), protocol)
        assert re.fullmatch(DIRECT, server.line())


def test_openssl(server: Sample, proxy: Callable[[int, int], tuple[str, int]]) -> None:
    openssl = need_program("openssl")
    host, port = proxy(1, 2)
    command = [openssl, "s_client", "-quiet", "-connect", f"{host}:{port}"]
    check_answer(run_client(*command, data=REQUEST), "https")
    assert re.fullmatch(DIRECT, server.line())


def test_clients_that_say_nothing_or_garbage(
    server: Sample, proxy: Callable[[int, int], tuple[str, int]]
) -> None:
    """The server serves on beside them, and they do not keep it from ending."""
    https = proxy(1, 2)
    with socket.create_connection(https) as silent:
        assert re.fullmatch(DIRECT, server.line())
        with socket.create_connection(https) as sock:
            sock.sendall(REQUEST)  # no TLS
            assert re.fullmatch(DIRECT, server.line())
            assert server.line() == "SSL_accept error,ret:1.\n"
            assert "http request" in server.line()
        with socket.create_connection(https):
            pass  # gone before it said anything
        assert re.fullmatch(DIRECT, server.line())
        assert server.line() == "SSL_accept error,ret:5.\n"
        assert server.line() == "unexpected end of stream.\n"
        check_answer(_get_https(https), "https")
        assert re.fullmatch(DIRECT, server.line())
        assert server.end()[0] == 0  # the silent one is told off on the way out
        assert silent.recv(1) == b""


# The end.


def test_sigusr1_ends_a_server_that_waits(server: Sample) -> None:
    assert server.end() == (0, "")


def test_sigusr1_ends_a_proxy_with_connections(
    server: Sample, start: Callable[..., Sample], cloud: CloudProcess
) -> None:
    arguments = ["127.0.0.1", "0", "peer", "1", "2", "--login", f"127.0.0.1:{cloud.port}"]
    sample = start("proxy_client", *arguments)
    match = re.search(r":(\d+)\)", sample.line())
    assert match
    with socket.create_connection(("127.0.0.1", int(match[1]))):
        assert re.fullmatch(DIRECT, server.line())
        assert sample.end() == (0, "")


def test_a_second_server_ends_the_first(
    server: Sample, start: Callable[..., Sample], files: tuple[str, str], cloud: CloudProcess
) -> None:
    second = start("https_server", "peer", SECRET, *files, "--login", f"127.0.0.1:{cloud.port}")
    assert server.line() == "kkp2p_accept error,exit\n"
    assert server.end(None) == (0, "")
    second.process.kill()


# As the account that ``kkp2p join`` has kept.


def test_without_id_and_secret(
    start: Callable[..., Sample],
    files: tuple[str, str],
    cloud: CloudProcess,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "user"))
    joined = Invitation.parse(cloud.pinned())
    invitation.keep(dataclasses.replace(joined, peer_id="peer", secret=SECRET))
    user = {"XDG_CONFIG_HOME": str(tmp_path / "user")}
    seen = len(cloud.output)
    server = start("https_server", "-", "-", *files, **user)
    wait_until_online(server, cloud, seen)
    assert server.end() == (0, "")
    receiver = start("recv_file", "-", "-", str(tmp_path), **user)
    assert receiver.line() == "waiting for files as peer.\n"
    assert receiver.end(signal.SIGTERM) == (0, "")


def test_no_account_was_kept(
    start: Callable[..., Sample], files: tuple[str, str], tmp_path: Path
) -> None:
    user = {"XDG_CONFIG_HOME": str(tmp_path)}
    reason = f"kkp2p join has kept no account in {tmp_path}/kkp2p/login"
    status, output = start("https_server", "-", "-", *files, **user).end(None)
    assert (status, output.splitlines()[-1]) == (1, f"{reason}.")
    status, output = start("recv_file", "-", "-", str(tmp_path), **user).end(None)
    assert status == 2
    assert output.endswith(f"error: {reason}\n")


def test_single_process(
    start: Callable[..., Sample], files: tuple[str, str], cloud: CloudProcess
) -> None:
    login = cloud.pinned()
    status, output = start("single_process", "peer", SECRET, *files, "--login", login).end(None)
    assert status == 0, output
    assert re.fullmatch(
        r"client: https://127\.0\.0\.1:\d+/\nserver: a call, mode [12], desc 2\n"
        r"HTTP/1\.1 200 OK\nX-Powered-By: kkp2p https\nContent-Length: 11\n\n\d+\n",
        output,
    )
    wrong = start("single_process", "peer", "wrong", *files, "--login", login)
    assert wrong.end(None) == (255, "join_net: -111 (the cloud refuses the login: bad-secret)\n")


def test_samples_stay_short() -> None:
    for path in (ROOT / "samples").glob("*.py"):
        most = {"recv_file": 255, "send_file": 250, "https_server": 155}.get(path.stem, 150)
        assert len(path.read_text("utf-8").splitlines()) < most, path
