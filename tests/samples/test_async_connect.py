"""samples/async_connect.py as a real process: many peers at once, and those that cannot be had."""

from __future__ import annotations

import re
import signal
from collections import Counter
from collections.abc import Callable

import pytest

import kkp2p_compat as kkp2p
from helpers.sample_process import StartSample, start_sample
from helpers.support import PATIENCE_S, SECRET, listen, read_all

__all__ = ["start_sample"]

CHAT_DESC = 4
LONG_MS = PATIENCE_S * 1000
RELAY = ("--mode", "relay")


@pytest.fixture
def other(make_engine: Callable[..., kkp2p.engine_t]) -> kkp2p.engine_t:
    """A second callee, logged in as "other"."""
    engine = make_engine()
    assert kkp2p.join_net(engine, "other", SECRET) == 0
    return engine


def take_line(engine: kkp2p.engine_t, desc: int = CHAT_DESC) -> bytes:
    """What one caller says until it ends."""
    channel = kkp2p.channel_t()
    assert kkp2p.accept(engine, LONG_MS, channel) == 1
    assert channel.connect_desc == desc
    line = read_all(channel.fd)
    kkp2p.close_fd(channel.fd)
    return line


@pytest.mark.parametrize(("options", "mode"), [((), 1), (RELAY, 2), ((*RELAY, "--encrypt"), 2)])
def test_many_at_once(
    peer: kkp2p.engine_t,
    other: kkp2p.engine_t,
    start_sample: StartSample,
    options: tuple[str, ...],
    mode: int,
) -> None:
    arguments = [*["peer", "other"] * 20, "--line", "你好", *options]
    sample = start_sample("async_connect", *arguments)
    for engine in (peer, other):
        for _ in range(20):
            assert take_line(engine) == "你好\n".encode()
    status, output, errors = sample.end()
    assert (status, errors) == (0, "")
    found = re.findall(rf"(peer|other): connected,fd:\d+, mode is {mode}\.\n", output)
    assert Counter(found) == {"peer": 20, "other": 20}
    assert output.count("\n") == 40


def test_some_cannot_be_had(peer: kkp2p.engine_t, start_sample: StartSample) -> None:
    """Each says so, the others get their line, and the exit status stays 1."""
    wrong = "x" * 33
    sample = start_sample("async_connect", "nobody", "peer", wrong, "other", "--desc", "-5", *RELAY)
    assert take_line(peer, desc=-5) == b"hello\n"
    status, output, errors = sample.end()
    assert status == 1
    assert re.sub(r"fd:\d+", "fd:N", "".join(sorted(output.splitlines(keepends=True)))) == (
        "nobody: connect error,ret:-1 (nobody: the peer is not online).\n"
        "other: connect error,ret:-1 (other: the peer is not online).\n"
        "peer: connected,fd:N, mode is 2.\n"
        f"{wrong}: connect error,ret:-110 "
        f"(peer_id {wrong!r} is not 1 to 32 printable ASCII characters).\n"
    )
    assert errors == ""


def test_a_result_is_printed_when_it_comes(start_sample: StartSample) -> None:
    """Not when all are over: the call through a silent cloud is still waiting."""
    with listen() as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        sample = start_sample(
            "async_connect", "x" * 33, "peer", "--login", address, "--timeout", "20000"
        )
        assert sample.line().startswith(f"{'x' * 33}: connect error,ret:-110 (")
        with silent.accept()[0]:
            status, _, errors = sample.end(signal.SIGINT)
        assert (status, errors) == (1, "interrupted.\n")


def test_a_cloud_that_is_silent(start_sample: StartSample) -> None:
    with listen() as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        options = ("--login", address, "--timeout", "200")
        for mode in ("auto", "p2p", "relay"):
            sample = start_sample("async_connect", "one", "two", *options, "--mode", mode)
            status, output, errors = sample.end()
            assert (status, errors) == (1, "")
            assert sorted(output.splitlines()) == [
                "one: connect error,ret:-1 (one: not connected within 200 ms).",
                "two: connect error,ret:-1 (two: not connected within 200 ms).",
            ]


def test_no_engine(start_sample: StartSample) -> None:
    status, output, errors = start_sample("async_connect", "peer", "--login", "a b").end()
    assert (status, output) == (1, "")
    assert errors.endswith(
        "engine_init error,ret:-101 (login_domain 'a b' is not a domain or up to 16 IPs).\n"
    )
    assert start_sample("async_connect").end()[0] == 2
