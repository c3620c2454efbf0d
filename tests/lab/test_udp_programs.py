"""UDP programs through a proxy: a resolver, RTP, iperf3 and a game, between two NATs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gevent
import pytest

from helpers.support import SECRET
from kkp2p_compat.testing import nat
from kkp2p_compat.testing.hosts import Host
from kkp2p_compat.testing.internet import Internet
from kkp2p_compat.testing.lab import Lab
from kkp2p_compat.testing.plugin import need
from kkp2p_compat.testing.programs import Run, output_of, wait_for
from programs import PORT, SAMPLES, start_cloud
from test_p2p_rtmp import QUIET, frames

DELAY_S = 0.005  # one way, of each access line: a round trip takes four
PROGRAMS = str(Path(__file__).with_name("udp_programs.py"))
FORWARDER = str(Path(__file__).with_name("forwarder.py"))
SERVICE, LOCAL = 5004, 8004  # on the peer's host, and on the client's
VIDEO = ("-f", "lavfi", "-i", "testsrc=size=320x240:rate=25:duration=5", "-c:v", "mpeg2video")
GOP = 12  # frames from one that stands alone to the next: ffmpeg begins with one of those
FRAMES = 100  # of 125: where a stream of datagrams ends, nobody tells
# glibc's resolver, which asks the port 53 of the address that the file names.
RESOLVE = "mount --bind resolv.conf /etc/resolv.conf && getent ahostsv4 "


class Net:
    """A cloud, a serving host behind a NAT with a forwarder of UDP, and a client behind another."""

    def __init__(self, lab: Lab, run: Run) -> None:
        self.internet: Internet = lab.internet(delay_s=DELAY_S)
        self.cloud = self.internet.host("cloud")
        start_cloud(lab, run, "--account", f"other:{SECRET}", host=self.cloud)
        self.login = f"{self.cloud.address}:{PORT}"
        self.serving = self.internet.nat("office", nat.PORT_RESTRICTED).host("server")
        self.home = self.internet.nat("home", nat.PORT_RESTRICTED)
        self.calling = self.home.host("client")
        self._run = run

    def forward(self, port: int = SERVICE) -> None:
        sample = str(SAMPLES / "udp_forwarder.py")
        target = ("peer", SECRET, f"127.0.0.1:{port}", "--login", self.login)
        self._run(self.serving, "^forwarding to", sample, *target)

    def proxy(self, port: int, *options: str, peer: str = "peer") -> Any:
        command = ("-m", "kkp2p_compat", "proxy", f"127.0.0.1:{port}", peer, "--no-upnp")
        return self._run(self.calling, "^listening", *command, "--login", self.login, *options)


@pytest.fixture
def net(lab: Lab, run: Run) -> Net:
    return Net(lab, run)


def play(host: Host, seconds: int) -> dict[str, Any]:
    report = json.loads(host.run(sys.executable, PROGRAMS, "game", str(LOCAL), str(seconds)))
    assert isinstance(report, dict)
    return report


def wait_until_bound(host: Host, port: int) -> None:
    """ffmpeg says nothing of it."""
    while f":{port:04X} " not in host.run("cat", "/proc/net/udp"):
        gevent.sleep(0.1)


@pytest.mark.parametrize("mode", ["auto", "relay"])
def test_a_resolver(net: Net, run: Run, mode: str) -> None:
    """Each query comes from a port of its own, and so by a channel of its own."""
    run(net.serving, "ready", PROGRAMS, "dns", str(SERVICE))
    net.forward()
    proxy = net.proxy(53, "--udp", "--mode", mode)
    (net.calling.folder / "resolv.conf").write_text("nameserver 127.0.0.1\n")
    for number in range(1, 6):
        command = ("unshare", "-m", "sh", "-c", f"{RESOLVE} host{number}.test")
        assert f"192.0.2.{number} " in net.calling.run(*command)
    proxy.terminate()
    assert output_of(proxy).count("connected in") >= 5


def test_rtp(net: Net, run: Run) -> None:
    """The frames of a stream arrive as they were sent, and none is missing."""
    need("ffmpeg", "ffprobe")
    net.forward()
    proxy = net.proxy(LOCAL, "--udp", "--mode", "p2p")
    output_of(run(net.calling, None, *QUIET, *VIDEO, "sent.ts", program="ffmpeg"))
    listen = ("-i", f"rtp://127.0.0.1:{SERVICE}", "-c", "copy", "-frames:v", str(FRAMES), "got.ts")
    server = run(net.serving, None, *QUIET, *listen, program="ffmpeg")
    wait_until_bound(net.serving, SERVICE)
    push = ("-re", "-i", "sent.ts", "-c", "copy", "-f", "rtp_mpegts")
    where = f"rtp://127.0.0.1:{LOCAL}?rtcpport={LOCAL}"
    output_of(run(net.calling, None, *QUIET, *push, where, program="ffmpeg"))
    output_of(server)
    sent = frames(net.calling.folder / "sent.ts")["mpeg2video"]
    got = frames(net.serving.folder / "got.ts")["mpeg2video"]
    begin = sent.index(got[0])
    assert begin <= 2 * GOP
    assert got == sent[begin : begin + FRAMES]
    assert ": p2p, " in wait_for(proxy, "connected in")


@pytest.mark.parametrize("direction", [[], ["-R"]], ids=["up", "down"])
def test_iperf3(net: Net, run: Run, direction: list[str]) -> None:
    """Its control connection goes by a TCP proxy at the same port, to another peer."""
    need("iperf3")
    run(net.serving, "listening", "-s", "--forceflush", "-p", str(SERVICE), program="iperf3")
    net.forward()
    login = (net.cloud.address, PORT, "other", SECRET)
    run(net.serving, "joined 0", FORWARDER, *login, str(SERVICE))
    net.proxy(LOCAL, "--udp")
    net.proxy(LOCAL, peer="other")
    command = ("iperf3", "-c", "127.0.0.1", "-p", str(LOCAL), "-u", "-b", "8M", "-l", "1200")
    report = json.loads(net.calling.run(*command, "-t", "3", "-J", *direction))
    total = report["end"]["sum"]
    assert total["packets"] > 2000
    assert total["lost_percent"] < 5


def test_a_game(net: Net, run: Run) -> None:
    run(net.serving, "ready", PROGRAMS, "echo", str(SERVICE))
    net.forward()
    net.proxy(LOCAL, "--udp")
    report = play(net.calling, 5)
    print(report)
    assert report["sent"] == 300
    assert report["got"] >= 285
    assert report["least_ms"] >= 4000 * DELAY_S


def test_a_game_beside_a_flood(net: Net, run: Run) -> None:
    """Another client of the proxy sends five times what the line carries, and loses its own."""
    net.internet.set_line(net.home, udp_bps=10e6)
    run(net.serving, "ready", PROGRAMS, "echo", str(SERVICE))
    net.forward()
    net.proxy(LOCAL, "--udp", "--mode", "p2p")
    run(net.calling, None, PROGRAMS, "flood", str(LOCAL), "8")
    report = play(net.calling, 5)
    print(report)
    assert report["got"] >= 200
