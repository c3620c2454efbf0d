"""coturn: a TURN and STUN server of other people's, on loopback."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from gevent import socket as gsocket

from helpers.support import PATIENCE_S
from kkp2p_compat.testing.plugin import need
from kkp2p_compat.traversal.stun import Kind, Message

HOME = "127.0.0.1"
SECRET = b"a secret of coturn and cloud"
ONLY_UDP = (
    "-n",
    "--no-cli",
    "--no-tls",
    "--no-dtls",
    "--no-tcp",
    "--log-file",
    "stdout",
    "--pidfile",
    "pid",
    "--db",
    "db",
)
BY_SECRET = (
    "--use-auth-secret",
    f"--static-auth-secret={SECRET.decode()}",
    "--realm=example.org",
    "--relay-threads=1",
)
TURN = (*BY_SECRET, "-E", HOME, "--allow-loopback-peers")


@contextlib.contextmanager
def running(folder: Path, port: int, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """One that listens on HOME; skips the test where there is none."""
    need("turnserver")
    command = ["turnserver", *ONLY_UDP, "-L", HOME, "-p", str(port), *options]
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for_answer(port)
        yield process
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def wait_for_answer(port: int) -> None:
    """Nothing else tells that it is up."""
    with gsocket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.1)
        for _ in range(10 * PATIENCE_S):
            sock.sendto(Message(Kind.REQUEST, os.urandom(12)).encode(None), (HOME, port))
            try:
                sock.recv(2048)
                return
            except TimeoutError:
                continue
    pytest.fail("coturn does not answer")
