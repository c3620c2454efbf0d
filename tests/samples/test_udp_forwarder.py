"""samples/udp_forwarder.py as a real process, between ``kkp2p proxy --udp`` and a service."""

from __future__ import annotations

import signal
import socket as _socket
from collections.abc import Iterator

import gevent
import pytest
from gevent import socket

from helpers.sample_process import SampleProcess, StartSample, start_sample
from helpers.support import PATIENCE_S, CloudProcess
from helpers.tool_process import StartTool, Tool, start_tool

__all__ = ["start_sample", "start_tool"]

LONGEST = 65_507  # bytes, of UDP over IPv4


class Service:
    """Answers each datagram with it, from wherever it comes."""

    def __init__(self) -> None:
        self.sock = socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
        self.sock.bind(("127.0.0.1", 0))
        self.clients: set[tuple[str, int]] = set()
        self._serving = gevent.spawn(self._serve)

    def _serve(self) -> None:
        while True:
            data, client = self.sock.recvfrom(1 << 16)
            self.clients.add(client)
            self.sock.sendto(data, client)

    def close(self) -> None:
        self._serving.kill()
        self.sock.close()


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    yield made
    made.close()


def forwarder(
    start: StartSample, cloud: CloudProcess, service: Service, *options: str
) -> SampleProcess:
    target = f"127.0.0.1:{service.sock.getsockname()[1]}"
    sample = start("udp_forwarder", "peer", "-", target, "--login", cloud.pinned(), *options)
    assert sample.line() == f"forwarding to {target} as peer.\n"
    return sample


def proxy(start: StartTool, cloud: CloudProcess, *options: str) -> tuple[Tool, tuple[str, int]]:
    login = f"127.0.0.1:{cloud.port}"
    tool = start(
        "proxy", "0", "peer", "--udp", "--mode", "p2p", "--login", login, "--json", *options
    )
    hello = tool.event()
    assert (hello["event"], hello["protocol"]) == ("listening", "udp")
    return tool, tuple(hello["address"])


def client(address: tuple[str, int]) -> socket.socket:
    sock = socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
    sock.connect(address)
    sock.settimeout(PATIENCE_S)
    return sock


def test_two_clients(
    cloud: CloudProcess, service: Service, start_sample: StartSample, start_tool: StartTool
) -> None:
    """The service sees two, and each gets its own answers, the empty ones, too."""
    sample = forwarder(start_sample, cloud, service)
    tool, address = proxy(start_tool, cloud)
    with client(address) as one, client(address) as other:
        for size in (5, 0, 1500, LONGEST, 0, 1):
            for number, sock in enumerate((one, other)):
                sock.send(bytes([number]) * size)
                assert sock.recv(1 << 16) == bytes([number]) * size
        ports = {sock.getsockname()[1] for sock in (one, other)}
    assert len(service.clients) == 2
    connected = [tool.event() for _ in range(2)]
    assert {event["port"] for event in connected} == ports
    assert {(event["event"], event["path"]) for event in connected} == {("connected", "p2p")}
    status, output, errors = tool.end(signal.SIGINT)
    assert (status, errors) == (0, "")
    assert output.count('"problems": []') == 2
    assert output.count('"datagrams_sent": 6, "datagrams_received": 6') == 2
    assert '"connections": 2, "failures": 0' in output
    told = [sample.line() for _ in range(4)]
    assert sum(line.startswith("accept new channel,channel id:") for line in told) == 2
    assert sum(line.endswith(", 6 datagrams to the service, 6 from it.\n") for line in told) == 2
    assert sample.end(signal.SIGTERM) == (0, "", "")


def test_a_service_that_listens_later(
    cloud: CloudProcess, service: Service, start_sample: StartSample, start_tool: StartTool
) -> None:
    """What comes before is lost, and the channel goes on."""
    sample = forwarder(start_sample, cloud, service)
    where = service.sock.getsockname()
    service.close()
    _, address = proxy(start_tool, cloud)
    with client(address) as sock:
        sock.send(b"nobody")
        while "datagram is lost" not in sample.line():
            sock.send(b"nobody")
        late = socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
        late.bind(where)
        sock.send(b"somebody")
        with late, gevent.Timeout(PATIENCE_S):
            while (got := late.recvfrom(100))[0] != b"somebody":
                pass
            late.sendto(b"answer", got[1])
            assert sock.recv(100) == b"answer"


def test_another_desc_is_refused(
    cloud: CloudProcess, service: Service, start_sample: StartSample, start_tool: StartTool
) -> None:
    forwarder(start_sample, cloud, service, "--desc", "7")
    wrong, address = proxy(start_tool, cloud)
    with client(address) as sock:
        sock.send(b"hello")
        assert [wrong.event()["event"] for _ in range(2)] == ["connected", "ended"]
    _, address = proxy(start_tool, cloud, "--desc", "7")
    with client(address) as sock:
        sock.send(b"hello")
        assert sock.recv(100) == b"hello"
