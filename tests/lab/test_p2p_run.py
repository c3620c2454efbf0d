"""The documented programs in mode 1 between hosts: over IPv4, IPv6 and the LAN, and when UDP is
stopped on the way."""

from __future__ import annotations

import re
import signal
import subprocess
from pathlib import Path

import pytest

from helpers.support import SECRET
from kkp2p_compat.cli.demo import make_certificate
from kkp2p_compat.testing.lab import Host, Lab
from kkp2p_compat.testing.plugin import need
from kkp2p_compat.testing.programs import Run, output_of, wait_for
from programs import PORT, SAMPLES, start_cloud

LAB = Path(__file__).parent
PEER = str(LAB / "p2p_peer.py")
LAN_PORT = "3549"  # in the document's programs
# The server says nothing when it is online: curl asks until it is answered.
RETRY = ("--retry", "20", "--retry-all-errors", "--retry-delay", "1", "-sS", "-i", "--insecure")


def start_server(run: Run, host: Host, login: str) -> subprocess.Popen[str]:
    files = make_certificate(host.folder)
    program = str(SAMPLES / "https_server.py")
    return run(host, None, program, "peer", SECRET, *files, "--login", login)


def start_proxies(run: Run, host: Host, mode: str, login: str) -> None:
    """Ports 8081 (http) and 8082 (https)."""
    program = str(SAMPLES / "proxy_client.py")
    for desc in ("1", "2"):
        address = ("127.0.0.1", f"808{desc}")
        run(host, "success", program, *address, "peer", mode, desc, "--login", login)


def fetch(run: Run, host: Host) -> None:
    """http and https with curl, and https with openssl, as in the document."""
    for protocol, port in (("http", "8081"), ("https", "8082")):
        url = f"{protocol}://127.0.0.1:{port}/"
        page = output_of(run(host, None, *RETRY, url, program="curl"))
        assert f"X-Powered-By: kkp2p {protocol}\n" in page
    openssl = ("openssl", "s_client", "-quiet", "-connect", "127.0.0.1:8082")
    page = host.run(*openssl, stdin="GET / HTTP/1.0\r\n\r\n")
    assert "X-Powered-By: kkp2p https" in page


def modes(server: subprocess.Popen[str]) -> list[str]:
    """End it; of what calls it told, in which mode."""
    server.send_signal(signal.SIGUSR1)
    output = output_of(server)
    return re.findall("accept new connection,fd:[0-9]+, mode is ([0-9]),", output)


def use_ipv6_only(host: Host) -> None:
    number = host.address.rpartition(".")[2]
    host.address = f"fd77::{number}"
    host.run("ip", "-4", "address", "flush", "dev", "eth0")
    host.run("ip", "address", "add", f"{host.address}/64", "dev", "eth0", "nodad")


@pytest.mark.parametrize("ipv6", [0, 1], ids=["IPv4", "IPv6"])
def test_the_documents_run(lab: Lab, run: Run, ipv6: int) -> None:
    """As on the relay (test_hosts), but every call says mode 1."""
    cloud, serving, calling = hosts = [lab.host(name) for name in ("cloud", "server", "client")]
    options: tuple[str, ...] = ("--account", f"other:{SECRET}")
    if ipv6:
        options += ("--listen", f"[::]:{PORT}")
        for host in hosts:
            use_ipv6_only(host)
    start_cloud(lab, run, *options, host=cloud)
    login = f"[{cloud.address}]:{PORT}" if ipv6 else f"{cloud.address}:{PORT}"
    server = start_server(run, serving, login)
    start_proxies(run, calling, "1", login)
    fetch(run, calling)
    found = modes(server)
    assert len(found) >= 3
    assert set(found) == {"1"}
    # The document's programs do not show is_ipv6_p2p.
    receiver = run(serving, "joined 0", PEER, "receive", cloud.address, PORT, "other", SECRET)
    sender = run(calling, "connect 0", PEER, "send", cloud.address, PORT, "other", "1")
    for process in (sender, receiver):
        wait_for(process, f"^mode 1 ipv6 {ipv6}\n")


def test_the_documents_run_without_a_cloud(lab: Lab, run: Run) -> None:
    """The server logs in where nobody answers, and is found on the LAN nevertheless."""
    serving, calling = lab.host("server"), lab.host("client")
    server = start_server(run, serving, f"127.0.0.1:{PORT}")
    for desc in ("1", "2"):
        run(calling, "success", str(LAB / "lan_proxy.py"), LAN_PORT, f"808{desc}", "peer", desc)
    fetch(run, calling)
    found = modes(server)
    assert len(found) >= 3
    assert set(found) == {"1"}


@pytest.mark.parametrize("verdict", ["drop", "reject"])
def test_udp_does_not_pass_between_the_peers(lab: Lab, run: Run, verdict: str) -> None:
    """Auto mode ends on the relay, mode 1 with -109; without the wall, mode 1 works."""
    need("nft")
    cloud = start_cloud(lab, run)
    login = f"{cloud.address}:{PORT}"
    serving, calling = lab.host("server"), lab.host("client")
    wall = (
        "table inet wall {"
        "  chain in { type filter hook input priority 0;"
        f"   ip saddr {calling.address} meta l4proto udp counter {verdict}; }};"
        "  chain out { type filter hook output priority 0;"
        f"   ip daddr {calling.address} meta l4proto udp counter {verdict}; }};"
        "}"
    )
    serving.run("nft", "-f", "-", stdin=wall)
    server = start_server(run, serving, login)
    start_proxies(run, calling, "0", login)
    fetch(run, calling)
    for _ in range(3):
        assert ", mode is 2," in wait_for(server, "^accept new connection")
    call = (PEER, "send", cloud.address, PORT, "peer", "1")
    assert output_of(run(calling, None, *call, "3000")) == "connect -109\n"
    counted = re.findall("counter packets ([0-9]+)", serving.run("nft", "list", "ruleset"))
    assert len(counted) == 2
    assert "0" not in counted
    serving.run("nft", "delete", "table", "inet", "wall")
    run(calling, "^mode 1", *call)
    wait_for(server, ", mode is 1,")
