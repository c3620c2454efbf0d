"""The documented programs on hosts of their own, and what a pulled cable does."""

from __future__ import annotations

import re
import signal
from pathlib import Path

from helpers.support import ROOT, SECRET
from kkp2p_compat.cli.demo import make_certificate
from kkp2p_compat.testing.lab import Lab
from kkp2p_compat.testing.programs import Run, wait_for
from programs import PORT, SAMPLES, start_cloud

ECHO = str(ROOT / "tests" / "helpers" / "echo_peer.py")
CALLER = str(Path(__file__).with_name("caller.py"))


def test_the_documents_run(lab: Lab, run: Run) -> None:
    """Cloud, server and proxy client on three hosts; curl and openssl beside the client."""
    cloud = start_cloud(lab, run)
    login = ("--login", f"{cloud.address}:{PORT}")
    serving, calling = lab.host("server"), lab.host("client")
    key, certificate = make_certificate(serving.folder)
    server = serving.python(
        str(SAMPLES / "https_server.py"), "peer", SECRET, key, certificate, *login
    )
    clients = [
        run(
            calling,
            "success",
            str(SAMPLES / "proxy_client.py"),
            "127.0.0.1",
            f"808{desc}",
            "peer",
            "2",
            str(desc),
            *login,
        )
        for desc in (1, 2)
    ]
    # The server says nothing when it is online: curl asks until it is answered.
    retry = ("--retry", "20", "--retry-all-errors", "--retry-delay", "1")
    http = calling.run("curl", "-sS", "-i", *retry, "http://127.0.0.1:8081/")
    assert "X-Powered-By: kkp2p http\n" in http
    https = calling.run("curl", "-sS", "-i", "--insecure", "https://127.0.0.1:8082/")
    assert "X-Powered-By: kkp2p https\n" in https
    openssl = ("openssl", "s_client", "-quiet", "-connect", "127.0.0.1:8082")
    page = calling.run(*openssl, stdin="GET / HTTP/1.0\r\n\r\n")
    assert "X-Powered-By: kkp2p https" in page
    for process in (*clients, server):
        process.send_signal(signal.SIGUSR1)
        output, _ = process.communicate(timeout=20)
        assert process.returncode == 0, output
    assert len(re.findall("accept new connection,fd:[0-9]+, mode is 2", output)) >= 3


def test_pulled_cable(lab: Lab, run: Run) -> None:
    """Idle channels end with an error on both sides, nobody having closed anything; the same
    peer gets in from elsewhere at once, and is called there."""
    cloud = start_cloud(lab, run)
    program = (ECHO, "server", PORT, "peer", SECRET, cloud.address)
    home, elsewhere, calling = lab.host("home"), lab.host("elsewhere"), lab.host("caller")
    server = run(home, "joined", *program)
    callers = [
        run(calling, "echo 1", CALLER, cloud.address, PORT, "peer", kind) for kind in ("0", "1")
    ]
    home.unplug()
    run(elsewhere, "joined", *program)
    run(calling, "echo 1", CALLER, cloud.address, PORT, "peer", "1")
    for caller in callers:
        assert wait_for(caller, "^end") == "end -1\n"
    for _ in callers:
        wait_for(server, "broken|ended")
