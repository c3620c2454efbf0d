"""Mode 1 between hosts: the documented programs, and what bad links and dead peers do to it."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from link import Link, joined
from netns import Lab
from support import SECRET
from test_hosts import PORT, SAMPLES, run, start_cloud, wait_for

from kkp2p_compat.cli.demo import make_certificate

__all__ = ["run"]

Run = Callable[..., subprocess.Popen[str]]
PEER = str(Path(__file__).with_name("p2p_peer.py"))
DEAD_S = 60  # twice what a peer may be silent before its connection counts as lost

# (bytes to send, link)
LINKS = {
    "10 Mbit/s, 3 % loss": (2 << 20, Link(10e6, 0.020, 0.03, 128 << 10)),
    "trains, 200 Mbit/s": (64 << 20, Link(200e6, 0.005, 0.0, 256 << 10, trains=True)),
    "200 ms, 1 % loss": (1 << 20, Link(20e6, 0.200, 0.01, 512 << 10)),
}


def test_the_documents_run_in_mode_1(lab: Lab, run: Run) -> None:
    """As on the relay (test_hosts), but every call says mode 1."""
    cloud = start_cloud(lab, run)
    login = ("--login", f"{cloud.address}:{PORT}")
    serving, calling = lab.host("server"), lab.host("client")
    key, certificate = make_certificate(serving.folder)
    server = serving.python(
        str(SAMPLES / "https_server.py"), "peer", SECRET, key, certificate, *login
    )
    for desc in (1, 2):
        program = str(SAMPLES / "proxy_client.py"), "127.0.0.1", f"808{desc}"
        run(calling, "success", *program, "peer", "1", str(desc), *login)
    retry = ("--retry", "20", "--retry-all-errors", "--retry-delay", "1")
    http = calling.run("curl", "-sS", "-i", *retry, "http://127.0.0.1:8081/")
    assert "X-Powered-By: kkp2p http\n" in http
    https = calling.run("curl", "-sS", "-i", "--insecure", "https://127.0.0.1:8082/")
    assert "X-Powered-By: kkp2p https\n" in https
    openssl = ("openssl", "s_client", "-quiet", "-connect", "127.0.0.1:8082")
    page = calling.run(*openssl, stdin="GET / HTTP/1.0\r\n\r\n")
    assert "X-Powered-By: kkp2p https" in page
    server.send_signal(signal.SIGUSR1)
    output, _ = server.communicate(timeout=20)
    assert len(re.findall("accept new connection,fd:[0-9]+, mode is 1", output)) >= 3, output


@pytest.mark.parametrize("name", LINKS)
def test_every_byte_arrives(lab: Lab, run: Run, name: str) -> None:
    size, link = LINKS[name]
    one, two = lab.host("receiver"), lab.host("sender")
    with joined(one, two, link):
        cloud = ("-m", "kkp2p_compat", "cloud", "--data", "data")
        run(one, PORT, *cloud, "--account", f"peer:{SECRET}")
        login = (one.address, PORT, "peer", SECRET)
        receiver = run(one, "joined 0", PEER, "receive", *login, "0")
        sender = run(two, "mode 1", PEER, "send", *login, str(size))
        sent = wait_for(sender, "^end")
        assert sent.split()[1:3] == ["0", str(size)]
        received = wait_for(receiver, "^end")
        assert received.split()[2:] == sent.split()[2:]


def test_the_other_side_is_told_of_a_killed_process(lab: Lab, run: Run) -> None:
    """SIGKILL in mid-transfer, of a receiver and of a sender: nobody says goodbye, so it is the
    idle time-out that ends it."""
    cloud = start_cloud(lab, run, "--account", f"other:{SECRET}")
    one, two = lab.host("receiver"), lab.host("sender")
    pairs = []
    for peer in ("peer", "other"):
        login = (cloud.address, PORT, peer, SECRET)
        receiver = run(one, "joined 0", PEER, "receive", *login, "0")
        sender = run(two, "mode 1", PEER, "send", *login, str(1 << 50))
        wait_for(receiver, "mode 1")
        pairs.append((receiver, sender))
    pairs[0][0].kill()
    pairs[1][1].kill()
    for left in (pairs[0][1], pairs[1][0]):
        output, _ = left.communicate(timeout=DEAD_S)
        end, total = re.findall(r"^end (-\d+) (\d+)", output, re.MULTILINE)[0]
        assert int(end) < 0
        assert int(total) < 1 << 50
