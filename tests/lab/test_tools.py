"""``kkp2p netcheck`` and ``kkp2p proxy`` behind NATs."""

from __future__ import annotations

import json
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers.support import ROOT, SECRET
from kkp2p_compat.testing import nat
from kkp2p_compat.testing.hosts import Host
from kkp2p_compat.testing.internet import Internet
from kkp2p_compat.testing.lab import Lab
from kkp2p_compat.testing.miniupnpd import PUBLIC, start_miniupnpd
from kkp2p_compat.testing.nat import NatType
from kkp2p_compat.testing.plugin import need
from kkp2p_compat.testing.programs import Run, output_of, wait_for
from programs import PORT, start_cloud

ECHO_PEER = str(ROOT / "tests" / "helpers" / "echo_peer.py")
DELAY_S = 0.005  # one way, of each access line: a round trip takes four

# An echo of 100,000 bytes through a local port.
EXCHANGE = """
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as sock:
    sock.sendall(bytes(100000))
    sock.shutdown(socket.SHUT_WR)
    print(sum(map(len, iter(lambda: sock.recv(65536), b""))))
"""

# "peer" on the LAN: echoes, a channel at a time.
LAN_PEER = """
import kkp2p_compat as kkp2p
engine = kkp2p.engine_init(kkp2p.engine_conf_t(lan_search_port=3549, log_path="."), 5000)
print("joined", kkp2p.join_lan(engine, "peer"), flush=True)
channel, buff = kkp2p.channel_t(), bytearray(65536)
while kkp2p.accept(engine, 600_000, channel) > 0:
    while (size := kkp2p.read(channel.fd, buff, len(buff), 60_000)) > 0:
        kkp2p.write(channel.fd, memoryview(buff)[:size], size, 60_000)
    kkp2p.close_fd(channel.fd)
"""


# Echoes on a port of its own host, a connection at a time.
SERVICE = """
import socket
with socket.create_server(("127.0.0.1", 8080)) as listener:
    print("listening", flush=True)
    while True:
        with listener.accept()[0] as sock:
            while data := sock.recv(65536):
                sock.sendall(data)
"""


class Net:
    """A cloud on a public host, and the peer "peer", which echoes, where the test wants it."""

    def __init__(self, lab: Lab, run: Run, **options: Any) -> None:
        self.internet: Internet = lab.internet(delay_s=DELAY_S, **options)
        self.cloud = self.internet.host("cloud")
        start_cloud(lab, run, host=self.cloud)
        self.login = f"{self.cloud.address}:{PORT}"
        self._run = run

    def behind(self, name: str, nat_type: NatType, **options: Any) -> Host:
        return self.internet.nat(f"{name}-nat", nat_type, **options).host(name)

    def serve(self, host: Host) -> None:
        arguments = ("server", PORT, "peer", SECRET, self.cloud.address)
        self._run(host, "joined", ECHO_PEER, *arguments)

    def check(self, host: Host, *options: str) -> dict[str, Any]:
        command = ("-m", "kkp2p_compat", "netcheck", "--login", self.login, "--json", *options)
        report = json.loads(output_of(self._run(host, None, *command)))
        assert isinstance(report, dict)
        return report


@pytest.fixture
def net(lab: Lab, run: Run) -> Net:
    return Net(lab, run)


def test_netcheck_behind_an_ordinary_nat(net: Net) -> None:
    home = net.internet.nat("home", nat.PORT_RESTRICTED)
    office = net.internet.nat("office", nat.ADDRESS_RESTRICTED)
    net.serve(office.host("server"))
    laptop = home.host("laptop")
    report = net.check(laptop, "--peer", "peer")
    assert report["addresses"]["ipv4"] == [laptop.address]
    [outside] = report["addresses"]["outside"]
    assert outside[0] == home.address
    assert report["nat"]["mapping"] == "endpoint-independent"
    assert report["nat"]["allocation"] == "preserved"
    assert report["port_mapping"]["needed"] is True
    assert report["port_mapping"]["address"] is None
    assert report["port_mapping"]["problem"]
    assert report["cloud"]["tcp_s"] >= 4 * DELAY_S
    [udp] = report["udp"]["servers"]
    assert udp["answered"] == udp["sent"]
    assert udp["round_trip_s"]["least"] >= 4 * DELAY_S
    assert report["summary"]["reach"]["a symmetric NAT with random ports"] == "birthday"
    peer = report["peer"]
    assert (peer["connected"], peer["verdict"]["plan"]) == (True, "punch")
    assert peer["verdict"]["peer_nat"].startswith("endpoint-independent mapping, preserved ports")
    [attempt] = peer["tries"]
    stats = attempt["stats"]
    assert (stats["path"], stats["address"][0]) == ("p2p", office.address)
    assert stats["rtt_s"] >= 4 * DELAY_S
    assert stats["is_lan"] is False


def test_netcheck_behind_a_symmetric_nat(net: Net) -> None:
    report = net.check(net.behind("laptop", nat.SYMMETRIC_SEQUENTIAL), "--no-upnp")
    assert report["nat"]["mapping"] == "address-and-port-dependent"
    assert report["nat"]["allocation"] == "sequential"
    reach = report["summary"]["reach"]
    assert reach["an ordinary NAT (port-restricted cone)"] == "predict"
    assert reach["a symmetric NAT with random ports"] == "relay"


def test_netcheck_with_a_peer_that_udp_does_not_reach(net: Net, run: Run) -> None:
    net.serve(net.internet.host("server", udp=False))
    laptop = net.behind("laptop", nat.PORT_RESTRICTED)
    options = ("--no-upnp", "--timeout", "5", "--peer", "peer")
    peer = net.check(laptop, *options)["peer"]
    assert peer["connected"] is True
    assert peer["verdict"]["plan"] == "relay"
    assert peer["verdict"]["peer_nat"] == "UDP is blocked"
    (p2p,) = peer["tries"]
    assert (p2p["problem"], p2p["stats"]["path"]) == ("", "p2p")
    assert p2p["stats"]["reason"] == "UDP is blocked, and TCP found a way through"
    command = ("-m", "kkp2p_compat", "netcheck", "--login", net.login, *options)
    text = output_of(run(laptop, None, *command))
    assert (
        "the two of you should connect by TCP, directly or else through the relay (UDP is" in text
    )
    assert "connected by p2p after" in text


def test_netcheck_where_udp_is_blocked(net: Net) -> None:
    report = net.check(net.internet.host("laptop", udp=False))
    assert report["nat"]["mapping"] == "blocked"
    assert report["summary"]["usable"] is True
    assert report["summary"]["text"].startswith("No UDP gets through")
    assert report["udp"]["servers"][0]["answered"] == 0


def test_netcheck_with_a_router_that_maps_ports(lab: Lab, run: Run) -> None:
    need("miniupnpd", "nft")
    net = Net(lab, run, public=PUBLIC)
    router = net.internet.kernel_nat("router")
    start_miniupnpd(run, router)
    report = net.check(router.host("laptop"))
    assert report["port_mapping"]["method"] == "pcp"
    assert report["port_mapping"]["address"][0] == router.address
    assert set(report["summary"]["reach"].values()) == {"direct"}


@pytest.mark.parametrize(
    ("ours", "theirs", "path"),
    [
        (nat.SYMMETRIC_RANDOM, nat.FULL_CONE, "p2p"),
        (nat.PORT_RESTRICTED, nat.PORT_RESTRICTED, "p2p"),
        (nat.SYMMETRIC_RANDOM, nat.SYMMETRIC_RANDOM, "relay"),
    ],
    ids=["to a full cone", "between ordinary ones", "between symmetric ones"],
)
def test_proxy(net: Net, run: Run, ours: NatType, theirs: NatType, path: str) -> None:
    net.serve(net.behind("server", theirs))
    laptop = net.behind("laptop", ours)
    command = ("-m", "kkp2p_compat", "proxy", "0", "peer", "--login", net.login, "--explain")
    proxy = run(laptop, None, *command, "--no-upnp")
    found = re.search(r":(\d+) ", wait_for(proxy, " for peer, mode auto"))
    assert found is not None
    assert laptop.run(sys.executable, "-c", EXCHANGE, found[1]) == "100000\n"
    assert f": {path}, " in wait_for(proxy, "connected in")
    wait_for(proxy, "checks sent: ")
    wait_for(proxy, "ended, 100,000 bytes to the peer, 100,000 from it")
    proxy.send_signal(signal.SIGINT)
    assert output_of(proxy) == "stopped: 1 connection\n"


def test_what_is_published_behind_a_nat(net: Net, run: Run, tmp_path: Path) -> None:
    server = net.behind("server", nat.PORT_RESTRICTED)
    laptop = net.behind("laptop", nat.PORT_RESTRICTED)
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    run(server, "listening", "-c", SERVICE)
    options = ("--as", "peer", "--secret-file", str(secret), "--login", net.login, "--no-upnp")
    publisher = run(server, None, "-m", "kkp2p_compat", "publish", "8080", *options)
    wait_for(publisher, " online")
    command = ("-m", "kkp2p_compat", "proxy", "0", "peer", "--login", net.login, "--no-upnp")
    proxy = run(laptop, None, *command)
    found = re.search(r":(\d+) ", wait_for(proxy, " for peer, mode auto"))
    assert found is not None
    assert laptop.run(sys.executable, "-c", EXCHANGE, found[1]) == "100000\n"
    assert ": p2p, " in wait_for(publisher, "connected to 127.0.0.1:8080")
    wait_for(publisher, "ended, 100,000 bytes to the peer, 100,000 from it")


def test_both_on_the_lan(lab: Lab, run: Run) -> None:
    server, laptop = lab.host("server"), lab.host("laptop")
    run(server, "joined 0", "-c", LAN_PEER)
    command = ("-m", "kkp2p_compat", "netcheck", "--lan", "3549", "--json", "--peer", "peer")
    report = json.loads(output_of(run(laptop, None, *command)))
    assert report["peer"]["connected"] is True
    [attempt] = report["peer"]["tries"]
    assert attempt["stats"]["address"][0] == server.address
    assert attempt["stats"]["is_lan"] is True
    assert [text for _, text in attempt["timeline"]["steps"]] == ["answer", "path"]
    proxy = run(laptop, None, "-m", "kkp2p_compat", "proxy", "0", "peer", "--lan", "3549")
    found = re.search(r":(\d+) ", wait_for(proxy, " for peer, mode p2p"))
    assert found is not None
    assert laptop.run(sys.executable, "-c", EXCHANGE, found[1]) == "100000\n"
    wait_for(proxy, "ended, 100,000 bytes to the peer, 100,000 from it")
