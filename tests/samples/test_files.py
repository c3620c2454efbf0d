"""samples/send_file.py and recv_file.py as real processes: every size and name."""

from __future__ import annotations

import errno
import os
import pty
import random
import re
import signal
from pathlib import Path

import gevent
import pytest
from gevent import socket

import kkp2p_compat as kkp2p
from helpers.file_samples import (
    ACK,
    MB,
    NAK,
    RELAY,
    STATS,
    StartReceiver,
    answer_to,
    folder,
    header,
    make_file,
    matches,
    offer,
    receive,
)
from helpers.sample_process import StartSample, load_sample, read_terminal, start_sample
from helpers.support import read_all, write_all

__all__ = ["folder", "receive", "start_sample"]


# Files that arrive.


def test_sizes(
    receive: StartReceiver, start_sample: StartSample, tmp_path: Path, folder: Path
) -> None:
    receiver = receive()
    for size in (0, 1, 65535, 65536, 65537, 5_000_001):
        path = tmp_path / f"{size} 你好.bin"
        data = make_file(path, size)
        status, output, errors = start_sample("send_file", "peer", str(path), *RELAY).end()
        assert (status, errors) == (0, "")
        matches(rf"sent {size} bytes, {MB}, mode is 2\.\n{STATS}", output)
        line = rf"received '{size} 你好\.bin', {size} bytes, {MB}, mode is 2\.\n"
        matches(line, receiver.line())
        assert (folder / path.name).read_bytes() == data
        assert not (folder / path.name).stat().st_mode & 0o111
    assert receiver.end(signal.SIGTERM) == (0, "", "")


@pytest.mark.parametrize(
    ("options", "mode"),
    [((), 1), (("--mode", "p2p"), 1), (("--encrypt",), 1), ((*RELAY, "--encrypt"), 2)],
)
def test_ways_and_once(
    receive: StartReceiver,
    start_sample: StartSample,
    tmp_path: Path,
    folder: Path,
    options: tuple[str, ...],
    mode: int,
) -> None:
    data = make_file(tmp_path / "file", 3_000_000)
    receiver = receive("--once")
    sender = start_sample("send_file", "peer", str(tmp_path / "file"), *options)
    status, output, errors = sender.end()
    assert (status, errors) == (0, "")
    matches(rf"sent 3000000 bytes, {MB}, mode is {mode}\.\n{STATS}", output)
    status, output, errors = receiver.end()
    assert (status, errors) == (0, "")
    matches(rf"received 'file', 3000000 bytes, {MB}, mode is {mode}\.\n", output)
    assert (folder / "file").read_bytes() == data


def test_several_at_once(receive: StartReceiver, engine: kkp2p.engine_t, folder: Path) -> None:
    """Each is served although those before it are not done."""
    receive()
    bodies = {f"file{number}": random.Random(number).randbytes(200_000) for number in range(8)}
    fds = {}
    for name, body in bodies.items():
        fds[name] = offer(engine, header(len(body), name.encode()) + body[:150_000])
    for name, fd in reversed(fds.items()):
        write_all(fd, bodies[name][150_000:])
        assert read_all(fd) == ACK
        kkp2p.close_fd(fd)
        assert (folder / name).read_bytes() == bodies[name]
    assert {path.name for path in folder.iterdir()} == set(bodies)


def test_nothing_is_overwritten(
    receive: StartReceiver, engine: kkp2p.engine_t, tmp_path: Path, folder: Path
) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"outside")
    (folder / "a.tar.gz").write_bytes(b"old")
    (folder / "link").symlink_to(outside)
    (folder / "dangling").symlink_to(tmp_path / "nowhere")
    (folder / "folder").mkdir()
    receiver = receive()
    for name, expected in [
        ("a.tar.gz", "a.tar (1).gz"),
        ("a.tar.gz", "a.tar (2).gz"),
        ("link", "link (1)"),
        ("dangling", "dangling (1)"),
        ("folder", "folder (1)"),
        ("link (1)", "link (1) (1)"),
    ]:
        assert answer_to(engine, header(3, name.encode()) + b"new") == ACK
        matches(rf"received {re.escape(repr(expected))}, .*\n", receiver.line())
        assert (folder / expected).read_bytes() == b"new"
        assert not (folder / expected).is_symlink()
    assert (folder / "a.tar.gz").read_bytes() == b"old"
    assert outside.read_bytes() == b"outside"
    assert not (tmp_path / "nowhere").exists()
    assert list((folder / "folder").iterdir()) == []


# Names.

HOSTILE_NAMES = [
    b"",
    b".",
    b"..",
    b".bashrc",
    b"/etc/passwd",
    b"/",
    b"../up",
    b"a/../../up",
    b"a/b",
    b"a/",
    b"..\\up",
    b"a\\b",
    b"C:",
    b"C:x",
    b"C:\\x",
    b"x:stream",
    b"a\0b",
    b"a\nb",
    b"\n",
    b"a\r",
    b"\x1b[2J",
    b"a\x7f",
    "a\x85".encode(),
    "a\x9b2J".encode(),
    "a\u202egnp.exe".encode(),
    "a\u2028b".encode(),
    "a\u2029b".encode(),
    "a\u2066b".encode(),
    b"\xff",
    b"\xed\xa0\x80",
    b"\xc0\xaeup",
    b"\xc0\xafup",
    b"a\xe4\xbd",
    b"CON",
    b"con.txt",
    b"NUL .txt",
    b"nul.tar.gz",
    b"Com1.log",
    "LPT¹".encode(),
    b"aux",
    b"prn",
    b"conin$",
    b"CONOUT$.x",
    b"trailing.",
    b"trailing ",
    b"...",
    b" ",
    b"x" * 241,
    "你".encode() * 81,
    b"y" * 65535,
]
GOOD_NAMES = [
    "plain.txt",
    "你好 世界.txt",
    "n\u0303.txt",
    " leading",
    "no suffix",
    "a.b.c",
    "-rf",
    "a'b\"c",
    "what?*|<>.mp3",
    "$(reboot)",
    "%s%n",
    "console.txt",
    "con2",
    "auxiliary",
    "com10",
    "lpt",
    "~",
    "\U0001f469\u200d\U0001f467.png",
    "x" * 240,
    "你" * 80,
]


def test_hostile_names(receive: StartReceiver, engine: kkp2p.engine_t, folder: Path) -> None:
    receiver = receive()
    for name in HOSTILE_NAMES:
        assert answer_to(engine, header(3, name) + b"bad") == NAK, name
        line = receiver.error_line()
        assert line.startswith("not received: unsafe name '"), line
        assert line.endswith(".\n")
        assert line[:-1].isprintable()  # nothing in it can steer a terminal
        assert line.isascii()
        assert len(line) < 200
    assert list(folder.iterdir()) == []
    assert list(folder.parent.iterdir()) == [folder]
    assert receiver.end(signal.SIGINT) == (0, "", "")


def test_good_names(receive: StartReceiver, engine: kkp2p.engine_t, folder: Path) -> None:
    receiver = receive()
    for name in GOOD_NAMES:
        assert answer_to(engine, header(4, name.encode()) + b"good") == ACK, name
        assert receiver.line().startswith(f"received {name!r}, 4 bytes")
        assert (folder / name).read_bytes() == b"good"
    assert {path.name for path in folder.iterdir()} == set(GOOD_NAMES)


# The screen.


def test_the_sender_s_bar(
    receive: StartReceiver, start_sample: StartSample, tmp_path: Path
) -> None:
    """On a terminal (without one, the other tests see that nothing is drawn)."""
    receive()
    data = make_file(tmp_path / "file", 3_000_000)
    watcher, screen = pty.openpty()
    try:
        sender = start_sample("send_file", "peer", str(tmp_path / "file"), *RELAY, screen=screen)
        os.close(screen)
        status, output, _ = sender.end()
        assert status == 0
        matches(rf"sent {len(data)} bytes, {MB}, mode is 2\.\n{STATS}", output)
        drawn = read_terminal(watcher).decode()
    finally:
        os.close(watcher)
    matches(rf"(\r\x1b\[K#*\.* +\d+% {MB})+\r\x1b\[K", drawn)


def test_the_receiver_s_bars(receive: StartReceiver, engine: kkp2p.engine_t, folder: Path) -> None:
    """Of all senders side by side; gone when they are."""
    watcher, screen = pty.openpty()
    try:
        receiver = receive(screen=screen)
        os.close(screen)
        one = offer(engine, header(400_000, b"one") + bytes(200_000))
        two = offer(engine, header(200_000, b"two") + bytes(70_000))
        drawn, both = "", re.compile(rf"\r\x1b\[K####\.{{6}} {MB}  ###\.{{7}} {MB}")
        while not both.search(drawn):
            drawn += gevent.get_hub().threadpool.apply(os.read, (watcher, 1000)).decode()
        for fd, rest in ((two, 130_000), (one, 200_000)):
            write_all(fd, bytes(rest))
            assert read_all(fd) == ACK
            kkp2p.close_fd(fd)
        status, output, _ = receiver.end(signal.SIGTERM)
        assert status == 0
        matches(rf"(received '(one|two)', \d+ bytes, {MB}, mode is 2\.\n){{2}}", output)
        assert read_terminal(watcher).decode().endswith("\r\x1b[K")
    finally:
        os.close(watcher)


def test_the_bar_is_drawn_a_few_times_a_second(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sample = load_sample("send_file")
    now = 0.0
    monkeypatch.setattr(sample.time, "perf_counter", lambda: now)
    monkeypatch.setattr(sample.sys.stderr, "isatty", lambda: True, raising=False)
    bar = sample.Bar(1000)
    for step in range(1, 1001):
        now = step / 500
        bar.move(1)
    assert capsys.readouterr().err.count("MB/s") == 8  # in two seconds


# A file system that has no files without a name.


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("sent", [3, 2])
def test_a_named_temporary(
    folder: Path, monkeypatch: pytest.MonkeyPatch, sent: int, links: bool
) -> None:
    """It is hidden, and goes away whatever happens.  FAT has no links either."""
    sample = load_sample("recv_file")
    monkeypatch.delattr(os, "O_TMPFILE")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    ours, theirs = socket.socketpair()
    directory = os.open(folder, os.O_RDONLY)
    try:
        channel = kkp2p.channel_t(fd=theirs.fileno(), connect_desc=3)
        serving = gevent.spawn(sample.serve, channel, directory, 100, 5000)
        ours.sendall(header(3, b"name"))
        while not (names := [path.name for path in folder.iterdir()]):
            gevent.sleep(0.001)  # nothing tells of a new file
        matches(r"\.[0-9a-f]{16}\.part", names[0])
        ours.sendall(b"abc"[:sent])
        ours.shutdown(socket.SHUT_WR)
        assert serving.get() is (sent == 3)
        assert ours.recv(2) == (ACK if sent == 3 else NAK)
        assert [path.name for path in folder.iterdir()] == ["name"][: sent - 2]
    finally:
        os.close(directory)
        ours.close()
        theirs.close()


@pytest.mark.parametrize("nameless", [True, False])
def test_all_numbers_are_taken(
    folder: Path, monkeypatch: pytest.MonkeyPatch, nameless: bool
) -> None:
    """It gives up; it does not search for ever, and what is there stays."""
    sample = load_sample("recv_file")
    if not nameless:
        monkeypatch.delattr(os, "O_TMPFILE")
    names = ["a.b", *(f"a ({number}).b" for number in range(1, 1000))]
    for name in names:
        (folder / name).touch()
    directory = os.open(folder, os.O_RDONLY)
    try:
        fd, source = sample.open_temporary(directory)
        os.write(fd, b"new")
        with pytest.raises(FileExistsError, match=r"too many files are named 'a\.b'"):
            sample.publish(source, directory, "a.b")
        (folder / "a (7).b").unlink()
        assert sample.publish(source, directory, "a.b") == "a (7).b"
        os.close(fd)
    finally:
        os.close(directory)
    assert (folder / "a (7).b").read_bytes() == b"new"
