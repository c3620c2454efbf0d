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

TWINS = {"server": "https_server.py", "client": "proxy_client.py"}
LIBRARIES = {"server": ("-lssl", "-lcrypto"), "client": ()}

Start = Callable[..., CProgram]


@pytest.fixture
def start(compiler: Compiler, start_c: StartC, cloud: CloudProcess) -> Start:
    """Start the server or the client, in C or in Python; its output comes by the line."""

    def start(role: str, language: str, *arguments: str) -> CProgram:
        if language == "python":
            command = [sys.executable, str(ROOT / "samples" / TWINS[role]), *arguments]
        else:
            program = compiler.program(
                f"document_{role}.c", libraries=LIBRARIES[role], warnings=("-Wall", "-Werror")
            )
            command = [need_program("stdbuf"), "-oL", str(program), *arguments]
        return start_c(Path(command[0]), *command[1:], KKP2P_LOGIN=cloud.pinned())

    return start


@pytest.mark.parametrize(
    ("server_language", "client_language", "mode"),
    [("c", "c", 0), ("c", "c", 1), ("c", "c", 2), ("c", "python", 1), ("c", "python", 2),
     ("python", "c", 1), ("python", "c", 2)],
)  # fmt: skip
def test_http_and_https(
    start: Start, cloud: CloudProcess, tmp_path: Path, held_port: int,
    server_language: str, client_language: str, mode: int,
) -> None:  # fmt: skip
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
