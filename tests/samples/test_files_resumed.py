"""samples/send_file.py and recv_file.py: a broken transfer goes on where it stopped."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import re
from collections.abc import Callable
from pathlib import Path

import gevent
import pytest
from gevent import socket

import kkp2p_compat as kkp2p
from helpers.file_samples import (
    ACK,
    NAK,
    RELAY,
    StartReceiver,
    accept_file,
    failed,
    folder,
    header,
    make_file,
    offer,
    receive,
    take,
)
from helpers.sample_process import StartSample, load_sample, start_sample
from helpers.support import PATIENCE_S, SECRET, read_all, write_all

__all__ = ["folder", "receive", "start_sample"]

DESC, CAN, GO = 5, b"\x18", b"\x11"
SIZE = 300_000
DATA = random.Random(14).randbytes(SIZE)


def hello(data: bytes = DATA, name: bytes = b"file", size: int | None = None) -> bytes:
    head = header(len(data) if size is None else size, name)
    return head[:10] + hashlib.sha256(data).digest() + head[10:]


def begin(engine: kkp2p.engine_t, said: bytes) -> tuple[int, int]:
    """The descriptor, and how much the receiver has."""
    fd = offer(engine, said, DESC)
    answer = take(fd, 9)
    assert answer[:1] == GO
    return fd, int.from_bytes(answer[1:], "big")


def break_off(engine: kkp2p.engine_t, said: bytes, data: bytes) -> int:
    """How much it had."""
    fd, had = begin(engine, said)
    write_all(fd, data)
    kkp2p.close_fd(fd)
    return had


def parts(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.suffix == ".part"]


def test_breaks_at_random_places(
    receive: StartReceiver,
    start_sample: StartSample,
    engine: kkp2p.engine_t,
    tmp_path: Path,
    folder: Path,
) -> None:
    (tmp_path / "file").write_bytes(DATA)
    receiver, there = receive(), 0
    for place in sorted(random.sample(range(1, SIZE), 5)):
        assert break_off(engine, hello(), DATA[there:place]) == there
        there = place
        said = receiver.error_line()
        assert said == "not received: the sender is gone; what has come is kept.\n"
        assert [path.stat().st_size for path in parts(folder)] == [there]
    status, output, errors = start_sample("send_file", "peer", str(tmp_path / "file"), *RELAY).end()
    left = f"{SIZE} bytes, {SIZE - there} of them now"
    assert (status, errors) == (0, "")
    assert re.match(f"sent {left}, ", output)
    assert re.match(f"received 'file', {left}, ", receiver.line())
    assert [path.name for path in folder.iterdir()] == ["file"]
    assert (folder / "file").read_bytes() == DATA


def test_a_receiver_that_was_killed(
    receive: StartReceiver,
    start_sample: StartSample,
    engine: kkp2p.engine_t,
    tmp_path: Path,
    folder: Path,
) -> None:
    (tmp_path / "file").write_bytes(DATA)
    receiver = receive()
    fd, _ = begin(engine, hello())
    write_all(fd, DATA[:200_000])
    with gevent.Timeout(PATIENCE_S):  # nothing tells what it has written
        while not (there := parts(folder)[0].stat().st_size):
            gevent.sleep(0.01)
    receiver.kill()
    kkp2p.close_fd(fd)
    there = parts(folder)[0].stat().st_size
    receiver = receive("--once")
    status, output, errors = start_sample("send_file", "peer", str(tmp_path / "file"), *RELAY).end()
    assert (status, errors) == (0, "")
    assert output.startswith(f"sent {SIZE} bytes, {SIZE - there} of them now, ")
    assert receiver.end()[0] == 0
    assert (folder / "file").read_bytes() == DATA


def test_only_the_same_file_of_the_same_sender_goes_on(
    receive: StartReceiver, engine: kkp2p.engine_t, make_engine: Callable[..., kkp2p.engine_t]
) -> None:
    receiver = receive()
    named = make_engine()
    assert kkp2p.join_net(named, "other", SECRET) == 0
    assert break_off(engine, hello(), DATA[:1000]) == 0
    receiver.error_line()
    for caller, said in (
        (engine, hello(bytes(SIZE))),
        (engine, hello(name=b"another")),
        (engine, hello(size=SIZE + 1)),
        (named, hello()),
    ):
        assert break_off(caller, said, b"") == 0
        receiver.error_line()
    for caller, there in ((engine, 1000), (named, 0)):
        fd, had = begin(caller, hello())
        assert had == there
        write_all(fd, DATA[had:])
        assert read_all(fd) == ACK + hashlib.sha256(DATA).digest()
        kkp2p.close_fd(fd)


def test_two_at_once_with_the_same_file(
    receive: StartReceiver, engine: kkp2p.engine_t, folder: Path
) -> None:
    """The second one begins anew, beside the part."""
    receive()
    first, _ = begin(engine, hello())
    write_all(first, DATA[:1000])
    second, had = begin(engine, hello())
    assert had == 0
    for fd, rest in ((second, DATA), (first, DATA[1000:])):
        write_all(fd, rest)
        assert read_all(fd)[:1] == ACK
        kkp2p.close_fd(fd)
    assert {path.name for path in folder.iterdir()} == {"file", "file (1)"}
    assert {path.read_bytes() for path in folder.iterdir()} == {DATA}


def test_a_part_that_is_not_what_was_sent(
    receive: StartReceiver, engine: kkp2p.engine_t, folder: Path
) -> None:
    """It is found out at the end, and is not gone on with a second time."""
    receiver = receive()
    break_off(engine, hello(), DATA[:1000])
    receiver.error_line()
    parts(folder)[0].write_bytes(bytes(1000))
    fd, had = begin(engine, hello())
    write_all(fd, DATA[had:])
    assert (had, read_all(fd)) == (1000, NAK)
    kkp2p.close_fd(fd)
    said = receiver.error_line()
    assert said == "not received: 'file' is not what was to be sent: its SHA-256 differs.\n"
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("what", ["symlink", "link", "too long", "fifo"])
def test_a_part_that_is_not_ours(
    receive: StartReceiver, engine: kkp2p.engine_t, tmp_path: Path, folder: Path, what: str
) -> None:
    """Nothing is read from what it leads to, and nothing written there."""
    receiver = receive()
    break_off(engine, hello(), DATA[:1000])
    receiver.error_line()
    (part,) = parts(folder)
    outside = tmp_path / "outside"
    outside.write_bytes(DATA[:1000])
    part.unlink()
    if what == "symlink":
        part.symlink_to(outside)
    elif what == "link":  # as a kill leaves it after the file has got its name
        os.link(outside, part)
    elif what == "fifo":
        os.mkfifo(part)
    else:
        part.write_bytes(bytes(SIZE + 1))
    fd, had = begin(engine, hello())
    assert had == 0
    write_all(fd, DATA)
    assert read_all(fd)[:1] == ACK
    kkp2p.close_fd(fd)
    assert outside.read_bytes() == DATA[:1000]
    assert (folder / "file").read_bytes() == DATA


def test_what_is_refused_at_once(
    receive: StartReceiver, engine: kkp2p.engine_t, folder: Path
) -> None:
    receive("--limit", str(SIZE - 1))
    for said in (hello(), hello(b"", b"../up"), hello(b"", b"x" * 241)):
        fd = offer(engine, said, DESC)
        assert read_all(fd) == CAN
        kkp2p.close_fd(fd)
    assert list(folder.iterdir()) == []


def test_parts_are_kept_for_a_while_and_bounded(folder: Path) -> None:
    sample = load_sample("recv_file")
    sizes = {"0": 400, "1": 300, "2": 0, "3": 500, "4": 200}  # the newest first
    now = os.stat(folder).st_mtime
    for age, (digit, size) in enumerate(sizes.items()):
        path = folder / f".{digit * 32}.part"
        path.write_bytes(bytes(size))
        os.utime(path, (now - age, now - age))
    (folder / ".mine.part").write_bytes(bytes(5000))
    busy = os.open(folder / f".{'4' * 32}.part", os.O_RDONLY)
    sample.fcntl.flock(busy, sample.fcntl.LOCK_EX)
    directory = os.open(folder, os.O_RDONLY)
    try:
        sample.prune(directory, 1000)
        assert sorted(path.name[1] for path in folder.iterdir()) == ["0", "1", "4", "m"]
        os.close(busy)
        for digit in "01":
            os.utime(folder / f".{digit * 32}.part", (0, now - sample.KEPT_S - int(digit)))
        sample.prune(directory, 1000)
        assert sorted(path.name[1] for path in folder.iterdir()) == ["4", "m"]
        sample.prune(directory, 199)
        assert [path.name for path in folder.iterdir()] == [".mine.part"]
    finally:
        os.close(directory)


@pytest.mark.parametrize("breaks", [True, False])
def test_a_disk_without_links(folder: Path, monkeypatch: pytest.MonkeyPatch, breaks: bool) -> None:
    """FAT, say: a part is kept there, too, and gets its name by another way."""
    sample = load_sample("recv_file")
    monkeypatch.delattr(os, "O_TMPFILE")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    (folder / "file").write_bytes(b"old")
    directory = os.open(folder, os.O_RDONLY)
    try:
        there = 0
        for place in (1000, SIZE) if breaks else (SIZE,):
            ours, theirs = socket.socketpair()
            with ours, theirs:
                channel = kkp2p.channel_t(fd=theirs.fileno(), connect_desc=DESC)
                serving = gevent.spawn(sample.serve, channel, directory, SIZE, 5000)
                ours.sendall(hello())
                assert int.from_bytes(ours.recv(9)[1:], "big") == there
                ours.sendall(DATA[there:place])
                ours.shutdown(socket.SHUT_WR)
                assert serving.get() is (place == SIZE)
                there = place
    finally:
        os.close(directory)
    assert sorted(path.name for path in folder.iterdir()) == ["file", "file (1)"]
    assert (folder / "file (1)").read_bytes() == DATA
    assert (folder / "file").read_bytes() == b"old"


# The sender, with other receivers.


def test_an_older_receiver(peer: kkp2p.engine_t, start_sample: StartSample, tmp_path: Path) -> None:
    """It refuses what it does not know, and is sent the file as ever."""
    data = make_file(tmp_path / "file", SIZE)
    sender = start_sample("send_file", "peer", str(tmp_path / "file"), *RELAY)
    channel = kkp2p.channel_t()
    assert kkp2p.accept(peer, 20_000, channel) == 1
    assert channel.connect_desc == DESC
    write_all(channel.fd, NAK)
    kkp2p.close_fd(channel.fd)
    fd, size, name = accept_file(peer)
    assert (name, take(fd, size)) == (b"file", data)
    write_all(fd, ACK)
    kkp2p.close_fd(fd)
    status, output, errors = sender.end()
    assert (status, errors) == (0, "")
    assert output.startswith(f"sent {SIZE} bytes, ")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (CAN, "the peer refused it"),
        (b"", "the connection broke"),
        (ACK, "the peer answered nonsense"),
        (GO + (SIZE + 1).to_bytes(8, "big"), "the peer answered nonsense"),
        (GO + bytes(7) + b"\1" + NAK, "the peer refused it"),
        (
            GO + SIZE.to_bytes(8, "big") + ACK + bytes(32),
            "the peer has not what was sent: its SHA-256 differs",
        ),
        (GO + SIZE.to_bytes(8, "big") + ACK + bytes(31), "the connection broke"),
    ],
)
def test_receivers_that_lie_or_refuse(
    peer: kkp2p.engine_t, start_sample: StartSample, tmp_path: Path, answer: bytes, reason: str
) -> None:
    """None of them is taken for an older one."""
    path = tmp_path / "file"
    path.write_bytes(DATA)
    sender = start_sample("send_file", "peer", str(path), *RELAY)
    channel = kkp2p.channel_t()
    assert kkp2p.accept(peer, 20_000, channel) == 1
    assert take(channel.fd, 46) == hello()
    write_all(channel.fd, answer)
    kkp2p.close_fd(channel.fd)
    failed(sender, path, reason)
