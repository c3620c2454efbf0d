"""For the tests of samples/send_file.py and recv_file.py: a receiver, and either side bare."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

import kkp2p_compat as kkp2p
from helpers.sample_process import SampleProcess, StartSample
from helpers.support import PATIENCE_S, read_all, write_all

FILE_DESC = 3
ACK, NAK = b"\x06", b"\x15"
LONG_MS = PATIENCE_S * 1000
RELAY = ("--mode", "relay")
MB = r"\d+(\.\d)? MB/s"
STATS = r"((p2p|relay): \d+\.\d ms, \d+\.\d\d% lost, .+\.\n)?"  # unless it ended before
StartReceiver = Callable[..., SampleProcess]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the receiver puts files; nothing may ever appear beside it."""
    folder = tmp_path / "around" / "received"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def receive(start_sample: StartSample, folder: Path) -> StartReceiver:
    """Start a recv_file that is online as "peer"."""

    def start(*options: str, screen: int | None = None) -> SampleProcess:
        sample = start_sample("recv_file", "peer", "-", str(folder), *options, screen=screen)
        assert sample.line() == "waiting for files as peer.\n", sample.end()
        return sample

    return start


def offer(engine: kkp2p.engine_t, data: bytes, desc: int = FILE_DESC) -> int:
    """Connect to the receiver and say that; returns the descriptor."""
    channel = kkp2p.channel_t()
    ctx = kkp2p.connect_ctx_t("peer", connect_mode=2, timeout=LONG_MS, connect_desc=desc)
    assert kkp2p.connect(engine, ctx, channel) == 0
    if data:
        write_all(channel.fd, data)
    return channel.fd


def header(size: int, name: bytes) -> bytes:
    return size.to_bytes(8, "big") + len(name).to_bytes(2, "big") + name


def answer_to(engine: kkp2p.engine_t, data: bytes, desc: int = FILE_DESC) -> bytes:
    """All that the receiver answers."""
    fd = offer(engine, data, desc)
    answer = read_all(fd)
    kkp2p.close_fd(fd)
    return answer


def accept_file(peer: kkp2p.engine_t) -> tuple[int, int, bytes]:
    """A receiver of ours takes the header: the descriptor, the size, the name."""
    channel = kkp2p.channel_t()
    assert kkp2p.accept(peer, LONG_MS, channel) == 1
    assert channel.connect_desc == FILE_DESC
    head = take(channel.fd, 10)
    return channel.fd, int.from_bytes(head[:8], "big"), take(channel.fd, head[8] << 8 | head[9])


def take(fd: int, length: int) -> bytes:
    data, buff = b"", bytearray(length)
    while len(data) < length:
        count = kkp2p.read(fd, buff, length - len(data), LONG_MS)
        assert count > 0
        data += buff[:count]
    return data


def make_file(path: Path, size: int) -> bytes:
    data = random.Random(size).randbytes(size)
    path.write_bytes(data)
    return data


def matches(pattern: str, text: str) -> None:
    assert re.fullmatch(pattern, text), text


def failed(sample: SampleProcess, path: Path, reason: str) -> None:
    """It ends with 1 and this one line."""
    assert sample.end() == (1, "", f"{str(path)!r} was not sent: {reason}.\n")
