"""The document's two C programs, as it prints them: against each other, and each with its twin."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import gevent
import pytest

from helpers.c_programs import Compiler, CProgram, StartC
from helpers.document import ACCEPTED, REQUEST, check_answer, need_program, run_client
from helpers.support import ROOT, SECRET, CloudProcess
from kkp2p_compat.cli.demo import make_certificate
from kkp2p_compat.testing.lab import Lab
from kkp2p_compat.testing.programs import Run, start_cloud

TWINS = {"server": "https_server.py", "client": "proxy_client.py"}
LIBRARIES = {"server": ("-lssl", "-lcrypto"), "client": ()}

DOCUMENTS_CLOUD = "124.71.217.198"

Start = Callable[..., CProgram]


def _compile(compiler: Compiler, role: str) -> Path:
    return compiler.program(
        f"document_{role}.c", libraries=LIBRARIES[role], warnings=("-Wall", "-Werror")
    )


@pytest.fixture
def start(compiler: Compiler, start_c: StartC, cloud: CloudProcess) -> Start:
    """Start the server or the client, in C or in Python; its output comes by the line."""

    def start(role: str, language: str, *arguments: str) -> CProgram:
        if language == "python":
            command = [sys.executable, str(ROOT / "samples" / TWINS[role]), *arguments]
        else:
            program = _compile(compiler, role)
            command = [need_program("stdbuf"), "-oL", str(program), *arguments]
        return start_c(Path(command[0]), *command[1:], KKP2P_LOGIN=cloud.pinned())

    return start


@pytest.mark.parametrize(
    ("server_language", "client_language", "mode"),
    [
        ("c", "c", 0),
        ("c", "c", 1),
        ("c", "c", 2),
        ("c", "python", 1),
        ("c", "python", 2),
        ("python", "c", 1),
        ("python", "c", 2),
    ],
)
def test_http_and_https(
    start: Start,
    cloud: CloudProcess,
    tmp_path: Path,
    held_port: int,
    server_language: str,
    client_language: str,
    mode: int,
) -> None:
    curl, openssl = need_program("curl"), need_program("openssl")
    seen = len(cloud.output)
    server = start("server", server_language, "peer", SECRET, *make_certificate(tmp_path))
    while not any("(peer): online" in line for line in cloud.output[seen:]):
        assert server.process.poll() is None, server.end()
        gevent.sleep(0.01)  # nothing tells of a line of the cloud's
    # Auto: by p2p, unless this host is so busy that the head start of p2p runs out.
    accepted = ACCEPTED % ("[12]" if mode == 0 else mode)
    place = f"127.0.0.1:{held_port}"
    arguments = "127.0.0.1", str(held_port), "peer", str(mode)
    for protocol, desc in (("http", "1"), ("https", "2")):
        client = start("client", client_language, *arguments, desc)
        assert client.line() == f"create proxy({place}) to peer peer success.\n"
        url = f"{protocol}://{place}"
        for _ in range(2):
            answer = run_client(curl, "-sS", "--noproxy", "*", "--insecure", "-i", url)
            check_answer(answer, protocol)
            assert re.fullmatch(accepted, server.line())
        if protocol == "https":
            answer = run_client(openssl, "s_client", "-quiet", "-connect", place, data=REQUEST)
            check_answer(answer, protocol)
            assert re.fullmatch(accepted, server.line())
        assert client.end(signal.SIGUSR1) == (0, "")
    assert server.end(signal.SIGUSR1) == (0, "")


def test_nothing_is_set(compiler: Compiler, lab: Lab, run: Run, tmp_path: Path) -> None:
    """The programs as they are, on a host that has the address which is written in them."""
    stdbuf, curl = need_program("stdbuf"), need_program("curl")
    host = lab.host("all")
    host.run("ip", "address", "add", f"{DOCUMENTS_CLOUD}/32", "dev", "lo")
    start_cloud(run, host, "--account", f"peer:{SECRET}")
    for role, line, arguments in (
        ("server", None, ("peer", SECRET, *make_certificate(tmp_path))),
        ("client", "success", ("127.0.0.1", "4433", "peer", "0", "2")),
    ):
        program = _compile(compiler, role)
        run(host, line, "-oL", str(program), *arguments, program=stdbuf)
    command = (curl, "-sS", "--noproxy", "*", "--insecure", "-i", "https://127.0.0.1:4433")
    # The server may still be logging in: curl sees the connection closed then.
    again = ("--retry-all-errors", "--retry", "20", "--retry-delay", "1")
    answer = host.run(*command, *again)
    check_answer(answer[answer.index("HTTP/1.1") :].replace("\n", "\r\n", 8), "https")


@pytest.mark.parametrize(
    ("role", "usage"),
    [
        ("server", "usage:%s peer_id peer_key pirvate_key_file cert_file.\n"),
        ("client", "usage:%s proxy_ip proxy_port peer_id connect_mode connect_desc\n"),
    ],
)
def test_usage(start: Start, compiler: Compiler, role: str, usage: str) -> None:
    program = start(role, "c", "one")
    path = str(program.process.args[2])  # type: ignore[index]
    assert program.end() == (255, usage % path)
