"""What C programs do with the library, plain, under sanitizers, and with another libc."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest

import kkp2p_compat as kkp2p
from helpers.c_programs import Compiler, StartC
from helpers.support import PATIENCE_S, CloudProcess, write_all

ADDRESS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
THREAD = ("-fsanitize=thread",)
SCENARIOS = (
    "arguments",
    "hmac",
    "threads",
    "destroy",
    "suicide",
    "forked",
    "manners",
    "ends",
    "repeated",
    "polled",
    "cancelled",
    "daemonized",
    "logs",
    "messages",
    "descriptors",
)
WRITTEN_BYTES = 100_000
ECHO, SINK, END = 0, 1, 2  # the callers' connect_desc


class Echo:
    """``peer``, which does as the connect_desc of its callers says."""

    def __init__(self, engine: kkp2p.engine_t) -> None:
        self._engine = engine
        self.swallowed: list[int] = []  # how much came on each channel of SINK

    def run(self) -> None:
        channel = kkp2p.channel_t()
        while kkp2p.accept(self._engine, PATIENCE_S * 1000, channel) >= 0:
            if channel.fd >= 0:
                gevent.spawn(self._serve, channel)
            channel = kkp2p.channel_t()

    def _serve(self, channel: kkp2p.channel_t) -> None:
        buff = bytearray(65536)
        count = total = 0
        while channel.connect_desc != END:
            count = kkp2p.read(channel.fd, buff, len(buff), PATIENCE_S * 1000)
            if count <= 0:
                break
            total += count
            if channel.connect_desc != SINK:
                write_all(channel.fd, buff[:count])
        kkp2p.close_fd(channel.fd)
        kkp2p.close_channel(self._engine, channel.channel_id)
        if channel.connect_desc == SINK:
            self.swallowed.append(total)


@pytest.fixture
def echo(peer: kkp2p.engine_t) -> Iterator[Echo]:
    served = Echo(peer)
    greenlet = gevent.spawn(served.run)
    yield served
    kkp2p.engine_destroy(peer)
    greenlet.join()


def _run(start_c: StartC, cloud: CloudProcess, program: Path, scenario: str) -> None:
    environment = {"KKP2P_LOGIN": cloud.pinned(), "TSAN_OPTIONS": "die_after_fork=0"}
    assert start_c(program, scenario, "peer", **environment).end() == (0, "ok\n")


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_scenario(
    compiler: Compiler, start_c: StartC, cloud: CloudProcess, echo: Echo, scenario: str
) -> None:
    _run(start_c, cloud, compiler.program("scenarios.c"), scenario)


# A sanitizer keeps descriptors of its own, and answers signals.
@pytest.mark.parametrize("scenario", [name for name in SCENARIOS if name != "descriptors"])
def test_no_wrong_memory(
    compiler: Compiler, start_c: StartC, cloud: CloudProcess, echo: Echo, scenario: str
) -> None:
    _run(start_c, cloud, compiler.program("scenarios.c", *ADDRESS), scenario)


@pytest.mark.parametrize(
    "scenario", ["threads", "destroy", "suicide", "forked", "logs", "daemonized"]
)
def test_no_races(
    compiler: Compiler, start_c: StartC, cloud: CloudProcess, echo: Echo, scenario: str
) -> None:
    _run(start_c, cloud, compiler.program("scenarios.c", *THREAD), scenario)


@pytest.mark.parametrize(
    "scenario", ["threads", "forked", "manners", "descriptors", "ends", "cancelled"]
)
def test_another_libc(
    compiler: Compiler, start_c: StartC, cloud: CloudProcess, echo: Echo, scenario: str
) -> None:
    _run(start_c, cloud, compiler.program("scenarios.c", cc="musl-gcc"), scenario)


@pytest.mark.parametrize("mode", [1, 2])
@pytest.mark.parametrize("end", ["killed", "closed", "left"])
def test_what_was_written_arrives(
    compiler: Compiler, start_c: StartC, cloud: CloudProcess, echo: Echo, end: str, mode: int
) -> None:
    """Whether the program is killed, closes the channel, or just ends."""
    program = compiler.program("scenarios.c")
    sample = start_c(program, end, "peer", str(mode), KKP2P_LOGIN=cloud.pinned())
    status, output = sample.end()
    assert (status, output) == (-signal.SIGKILL if end == "killed" else 0, "")
    with gevent.Timeout(PATIENCE_S):
        while not echo.swallowed:
            gevent.sleep(0.01)  # nothing tells of it
    assert echo.swallowed == [WRITTEN_BYTES]
