"""samples/send_file.py and recv_file.py: either side dies, lies or stops; nothing is left of it."""

from __future__ import annotations

import os
import pty
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest

import kkp2p_compat as kkp2p
from helpers.file_samples import (
    ACK,
    NAK,
    RELAY,
    StartReceiver,
    accept_file,
    answer_to,
    failed,
    folder,
    header,
    make_file,
    matches,
    offer,
    receive,
    take,
)
from helpers.sample_process import SampleProcess, StartSample, start_sample
from helpers.support import SECRET, read_all, write_all

LARGE = 400_000_000  # more than comes before a bar is drawn
PLAIN = (*RELAY, "--plain")

__all__ = ["folder", "receive", "start_sample"]


# Senders that break off, or mean harm.


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"", "the sender is gone"),
        (header(3, b"name")[:9], "the sender is gone"),
        (header(3, b"name")[:-1], "the sender is gone"),
        (header(3, b"name"), "the sender is gone"),
        (header(300_000, b"name") + bytes(299_999), "the sender is gone"),
    ],
)
def test_sender_that_ends_early(
    receive: StartReceiver, engine: kkp2p.engine_t, folder: Path, said: bytes, reason: str
) -> None:
    receiver = receive("--once")
    kkp2p.close_fd(offer(engine, said))
    assert receiver.end() == (1, "", f"not received: {reason}.\n")
    assert list(folder.iterdir()) == []


def test_wrong_sizes(receive: StartReceiver, engine: kkp2p.engine_t, folder: Path) -> None:
    receiver = receive("--limit", "1000")
    for size in (1001, 2**32, 2**63, 2**64 - 1):
        assert answer_to(engine, header(size, b"name") + bytes(1001)) == NAK
        line = receiver.error_line()
        assert line.startswith(f"not received: 'name' has {size} bytes, --limit is 1000, free are ")
    assert list(folder.iterdir()) == []
    assert answer_to(engine, header(1000, b"name") + bytes(2000)) == ACK  # what is more is not his
    assert (folder / "name").read_bytes() == bytes(1000)


def test_more_than_the_disk_has(
    receive: StartReceiver, engine: kkp2p.engine_t, folder: Path
) -> None:
    receiver = receive("--limit", str(2**64), "--once")
    assert answer_to(engine, header(2**60, b"name")) == NAK
    status, output, errors = receiver.end()
    assert (status, output) == (1, "")
    matches(
        rf"not received: 'name' has {2**60} bytes, --limit is {2**64}, free are \d+\.\n", errors
    )
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("said", [b"", header(3, b"name")[:5], header(99, b"name") + b"ab"])
def test_sender_that_stops(
    receive: StartReceiver, engine: kkp2p.engine_t, folder: Path, said: bytes
) -> None:
    receiver = receive("--timeout", "100", "--once")
    assert answer_to(engine, said) == NAK
    assert receiver.end() == (1, "", "not received: the sender is too slow.\n")
    assert list(folder.iterdir()) == []


def test_another_protocol(receive: StartReceiver, engine: kkp2p.engine_t) -> None:
    receiver = receive("--once")
    assert answer_to(engine, header(3, b"name") + b"abc", desc=-2) == NAK
    assert receiver.end() == (1, "", "not received: unknown protocol,connect desc is :-2.\n")


# One side dies.


@pytest.fixture(params=["relay", "p2p"])
def transfer(
    request: pytest.FixtureRequest,
    receive: StartReceiver,
    start_sample: StartSample,
    tmp_path: Path,
) -> Iterator[tuple[SampleProcess, SampleProcess]]:
    """A receiver and a sender, in the middle of a large file."""
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(LARGE)  # takes no room
    watcher, screen = pty.openpty()
    try:
        # A process that is killed does not say so on a p2p path: it is missed after --timeout.
        how = ("--timeout", "2000")
        try:
            receiver = receive(*how, screen=screen)
        finally:
            os.close(screen)
        sender = start_sample("send_file", "peer", str(path), "--mode", request.param, *how)
        drawn = b""
        while b"MB/s" not in drawn:
            drawn += gevent.get_hub().threadpool.apply(os.read, (watcher, 1000))
        yield receiver, sender
    finally:
        os.close(watcher)


def part_is_kept(folder: Path) -> None:
    (part,) = folder.iterdir()
    assert re.fullmatch(r"\.[0-9a-f]{32}\.part", part.name)
    assert 0 < part.stat().st_size < LARGE


def test_the_sender_is_killed(
    transfer: tuple[SampleProcess, SampleProcess], engine: kkp2p.engine_t, folder: Path
) -> None:
    receiver, sender = transfer
    sender.kill()
    assert answer_to(engine, header(1, b"next") + b"x") == ACK
    assert receiver.line().endswith("mode is 2.\n")
    status, output, _ = receiver.end(signal.SIGTERM)
    assert (status, output) == (0, "")
    assert [path.suffix for path in sorted(folder.iterdir())] == [".part", ""]


def test_the_receiver_is_killed(
    transfer: tuple[SampleProcess, SampleProcess], tmp_path: Path, folder: Path
) -> None:
    receiver, sender = transfer
    assert receiver.end(signal.SIGKILL)[:2] == (-signal.SIGKILL, "")
    status, output, errors = sender.end()
    assert (status, output) == (1, "")
    reason = "(the connection broke|the peer has stopped reading)"  # relay, p2p
    matches(rf"'{tmp_path}/large' was not sent: {reason}\.\n", errors)
    part_is_kept(folder)


def test_the_receiver_is_ended(
    transfer: tuple[SampleProcess, SampleProcess], tmp_path: Path, folder: Path
) -> None:
    receiver, sender = transfer
    assert receiver.end(signal.SIGTERM)[:2] == (0, "")
    failed(sender, tmp_path / "large", "the peer refused it")
    part_is_kept(folder)


def test_the_sender_is_interrupted(
    transfer: tuple[SampleProcess, SampleProcess], tmp_path: Path, folder: Path
) -> None:
    receiver, sender = transfer
    sender.process.send_signal(signal.SIGINT)
    failed(sender, tmp_path / "large", "interrupted")
    receiver.end(signal.SIGTERM)
    part_is_kept(folder)


# Receivers that break off, or mean harm.


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "the connection broke"),
        (NAK, "the peer refused it"),
        (b"\0", "the peer answered nonsense"),
        (ACK, "the peer acknowledged too early"),
    ],
)
def test_receiver_that_answers_at_once(
    peer: kkp2p.engine_t, start_sample: StartSample, tmp_path: Path, answer: bytes, reason: str
) -> None:
    """The sender does not send the rest of a large file in vain."""
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(1 << 30)
    sender = start_sample("send_file", "peer", str(path), *PLAIN)
    fd, size, name = accept_file(peer)
    assert (size, name) == (1 << 30, b"large")
    if answer:
        write_all(fd, answer)
    kkp2p.close_fd(fd)
    failed(sender, path, reason)


def test_a_refusal_that_comes_behind_the_end_of_reading(
    peer: kkp2p.engine_t, start_sample: StartSample, tmp_path: Path
) -> None:
    """The sender can write no more, and waits for the word that says why."""
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(1 << 30)
    sender = start_sample("send_file", "peer", str(path), "--mode", "p2p", "--plain")
    fd, _, _ = accept_file(peer)
    with socket.socket(fileno=os.dup(fd)) as sock:
        sock.shutdown(socket.SHUT_RD)
    gevent.sleep(0.3)  # nothing tells here that the sender cannot write any more
    write_all(fd, NAK)
    kkp2p.close_fd(fd)
    failed(sender, path, "the peer refused it")


def test_receiver_that_does_not_read(
    peer: kkp2p.engine_t, start_sample: StartSample, tmp_path: Path
) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(1 << 30)
    sender = start_sample("send_file", "peer", str(path), *PLAIN, "--timeout", "300")
    fd, _, _ = accept_file(peer)
    failed(sender, path, "the peer has stopped reading")
    kkp2p.close_fd(fd)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (None, "the peer did not say whether it has the file"),
        (b"", "the connection broke"),
        (NAK, "the peer refused it"),
        (b"\xff", "the peer answered nonsense"),
    ],
)
def test_receiver_that_has_all_and_does_not_acknowledge(
    peer: kkp2p.engine_t,
    start_sample: StartSample,
    tmp_path: Path,
    answer: bytes | None,
    reason: str,
) -> None:
    path = tmp_path / "file"
    data = make_file(path, 1000)
    sender = start_sample("send_file", "peer", str(path), *PLAIN, "--timeout", "1000")
    fd, size, _ = accept_file(peer)
    assert take(fd, size) == data
    if answer is not None:
        if answer:
            write_all(fd, answer)
        kkp2p.close_fd(fd)
    failed(sender, path, reason)
    if answer is None:
        kkp2p.close_fd(fd)


@pytest.mark.parametrize("change", ["grows", "shrinks", "other bytes"])
def test_a_file_that_changes_is_not_finished(
    peer: kkp2p.engine_t, start_sample: StartSample, tmp_path: Path, change: str
) -> None:
    path = tmp_path / "changing"
    size = 100_000_000  # more than is under way at any time
    with path.open("wb") as file:
        file.truncate(size)
    sender = start_sample("send_file", "peer", str(path), *PLAIN)
    fd, announced, _ = accept_file(peer)
    assert announced == size
    with path.open("r+b") as file:
        if change == "grows":
            file.truncate(size + 1)
        elif change == "shrinks":
            file.truncate(size - 1)
        else:
            file.write(b"other")
    os.utime(path, ns=(0, 0))  # the clock of a file system may not have moved yet
    rest = read_all(fd)
    kkp2p.close_fd(fd)
    assert len(rest) < size
    failed(sender, path, "it was changed while it was being sent")


def test_what_cannot_be_sent(start_sample: StartSample, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    failed(start_sample("send_file", "peer", str(pipe)), pipe, "not a regular file")
    failed(start_sample("send_file", "peer", str(tmp_path)), tmp_path, "not a regular file")
    missing = tmp_path / "missing"
    reason = f"[Errno 2] No such file or directory: {str(missing)!r}"
    failed(start_sample("send_file", "peer", str(missing)), missing, reason)
    odd = os.fsdecode(bytes(tmp_path) + b"/\xff")
    Path(odd).write_bytes(b"")
    status, output, errors = start_sample("send_file", "peer", odd).end()
    assert (status, output) == (1, "")
    assert errors.startswith(f"{odd!r} was not sent: 'utf-8' codec can't encode ")
    assert errors.count("\n") == 1


def test_who_cannot_be_reached(start_sample: StartSample, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"")
    away = "connect error,ret:-109 (other: the peer is not online)"
    for mode in ("auto", "p2p", "relay"):
        failed(start_sample("send_file", "other", str(path), "--mode", mode), path, away)
    unsaid = start_sample("send_file", "x" * 33, str(path))
    wrong = f"peer_id {'x' * 33!r} is not 1 to 32 printable ASCII characters"
    failed(unsaid, path, f"connect error,ret:-110 ({wrong})")
    status, output, errors = start_sample("send_file", "peer", str(path), "--login", "a b").end()
    assert (status, output) == (1, "")
    reason = "login_domain 'a b' is not a domain or up to 16 IPs"
    assert errors.endswith(f"{str(path)!r} was not sent: engine_init error,ret:-101 ({reason}).\n")


def test_receiver_that_cannot_start(start_sample: StartSample, tmp_path: Path) -> None:
    folder = str(tmp_path)
    for peer_id, secret, why in (
        ("peer", "wrong", "-111 (the cloud refuses the login: bad-secret)"),
        ("nobody", SECRET, "-110 (the cloud knows no such peer)"),
    ):
        sample = start_sample("recv_file", peer_id, secret, folder)
        assert sample.end() == (1, f"join error,ret:{why}.\n", "")
    missing = str(tmp_path / "missing")
    reason = f"[Errno 2] No such file or directory: {missing!r}.\n"
    assert start_sample("recv_file", "peer", SECRET, missing).end() == (1, "", reason)
    status, output, errors = start_sample(
        "recv_file", "peer", SECRET, folder, "--ca", missing
    ).end()
    assert (status, output) == (1, "")
    assert re.search(r"^engine_init error,ret:-106 \(.*missing.*\)\.\n\Z", errors, re.MULTILINE)
