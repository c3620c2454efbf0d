"""Sends a file to a peer that runs samples/recv_file.py.

Run it (samples/recv_file.py says how to start the other side first):

    python samples/send_file.py PEER_ID FILE [--mode auto|p2p|relay] [--encrypt]

After a broken transfer the same command goes on where that stopped.
--login HOST[:PORT][#sha256:HEX]: the cloud (default: $KKP2P_LOGIN, else that of ``kkp2p join``,
else 127.0.0.1:3080) and its certificate.  --ca FILE: must vouch for it.  --lan PORT: no cloud,
search the LAN there.  --timeout MS: for each wait.  Exit status 0: the file is on the peer's
disk.  Protocol with connect_desc 5: size (8 bytes, big-endian), length of the name (2), SHA-256
of the file (32), name in UTF-8; the answer is GO and how much of the file is there (8), or CAN;
then the rest of the file; the answer is ACK (it is on disk) and its SHA-256, or NAK.  An older
receiver answers NAK to that at once, and is called again with connect_desc 3: size, length, name,
file; the answer is ACK or NAK.  --plain: only the latter, for an older receiver with --once.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import stat
import struct
import sys
import time
from typing import BinaryIO

import kkp2p_compat as kkp2p

FILE_DESC, RESUMING_DESC = 3, 5  # connect_desc (1 http, 2 https, 4 chat)
MODES = {"auto": 0, "p2p": 1, "relay": 2}
HEADER = struct.Struct(">QH")
ACK, NAK, CAN, GO = 0x06, 0x15, 0x18, 0x11  # ASCII's (GO: DC1)
CHUNK_BYTES = 64 * 1024
REDRAW_S = 0.25
DISK_BYTES_PER_MS = 10_000  # the slowest disk that the last wait allows for


class Failed(Exception):
    """The file did not arrive; the text is for the user."""


class Older(Failed):
    """The receiver cannot resume."""


class Bar:
    """The progress, on a terminal only; redrawn a few times a second."""

    def __init__(self, size: int) -> None:
        self.size, self.drawn = size, 0.0
        self.begin(0)

    def begin(self, done: int) -> None:
        self.began_at, self.done, self.start = done, done, time.perf_counter()

    def move(self, count: int) -> None:
        self.done += count
        now = time.perf_counter()
        if sys.stderr.isatty() and now - self.drawn >= REDRAW_S:
            self.drawn, part = now, self.done / self.size
            text = f"{'#' * int(30 * part):.<30} {part:4.0%} {self.rate():.1f} MB/s"
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)

    def rate(self) -> float:
        return (self.done - self.began_at) / 1e6 / (time.perf_counter() - self.start)

    def clear(self) -> None:
        print("\r\033[K" if self.drawn else "", end="", file=sys.stderr, flush=True)


def check_answer(fd: int, timeout: int, wanted: int = ACK) -> bool:
    """True: ACK, or what is wanted.  False: no answer in time.  Anything else is a failure."""
    buff = bytearray(1)
    count = kkp2p.read(fd, buff, 1, timeout)
    if count < 0:
        raise Failed("the connection broke")
    if count and buff[0] != wanted:
        if buff[0] not in (NAK, CAN):
            raise Failed("the peer answered nonsense")
        raise (Older if (buff[0], wanted) == (NAK, GO) else Failed)("the peer refused it")
    return count > 0


def read_exactly(fd: int, length: int, timeout: int) -> bytes:
    data, buff = b"", bytearray(length)
    while len(data) < length:
        if (count := kkp2p.read(fd, buff, length - len(data), timeout)) <= 0:
            raise Failed("the connection broke" if count else "the peer does not answer")
        data += buff[:count]
    return data


def send_all(fd: int, view: memoryview, timeout: int, wanted: int = ACK) -> None:
    while view:
        if check_answer(fd, 0, wanted):
            raise Failed("the peer acknowledged too early")
        if (wl := kkp2p.write(fd, view, len(view), timeout)) <= 0:
            check_answer(fd, timeout if wl else 0, wanted)  # a refusal on its way says more
            raise Failed("the connection broke" if wl else "the peer has stopped reading")
        view = view[wl:]


def send_file(fd: int, file: BinaryIO, name: bytes, digest: bytes, bar: Bar, timeout: int) -> None:
    """``digest``: of the whole file; b"": the receiver is an older one."""
    mtime_ns, view = os.fstat(file.fileno()).st_mtime_ns, memoryview(bytearray(CHUNK_BYTES))
    patience = timeout + bar.size // DISK_BYTES_PER_MS
    header = memoryview(bytearray(HEADER.pack(bar.size, len(name)) + digest + name))
    send_all(fd, header, timeout, GO if digest else ACK)
    if digest:
        if not check_answer(fd, patience, GO):
            raise Failed("the peer does not answer")
        bar.begin(file.seek(int.from_bytes(read_exactly(fd, 8, timeout), "big")))
        if bar.done > bar.size:
            raise Failed("the peer answered nonsense")
    while left := bar.size - bar.done:
        count = file.readinto(view[: min(left, CHUNK_BYTES)])  # type: ignore[attr-defined]
        now = os.fstat(file.fileno())
        # Looked at before the last bytes go: without them the peer keeps nothing.
        if count == 0 or (now.st_size, now.st_mtime_ns) != (bar.size, mtime_ns):
            raise Failed("it was changed while it was being sent")
        send_all(fd, view[:count], timeout)
        bar.move(count)
    if not check_answer(fd, patience):
        raise Failed("the peer did not say whether it has the file")
    if digest and read_exactly(fd, len(digest), timeout) != digest:
        raise Failed("the peer has not what was sent: its SHA-256 differs")


def call(
    engine: kkp2p.engine_t, options: argparse.Namespace, file: BinaryIO, digest: bytes
) -> None:
    ctx = kkp2p.connect_ctx_t(options.peer_id, kkp2p.KKP2P_TCP_CHANNEL, timeout=options.timeout)
    ctx.connect_mode = MODES["p2p" if options.lan else options.mode]
    ctx.encrypt_data, ctx.connect_desc = (
        int(options.encrypt),
        RESUMING_DESC if digest else FILE_DESC,
    )
    connect, channel = kkp2p.lan_search if options.lan else kkp2p.connect, kkp2p.channel_t()
    if (ret := connect(engine, ctx, channel)) < 0:
        raise Failed(f"connect error,ret:{ret} ({kkp2p.error_text()})")
    bar, name = Bar(os.fstat(file.fileno()).st_size), os.path.basename(options.file).encode()
    try:
        send_file(channel.fd, file, name, digest, bar, options.timeout)
        stats = kkp2p.channel_stats(engine, channel.channel_id)  # None if it has ended by now
    finally:
        bar.clear()
        kkp2p.close_fd(channel.fd)
        kkp2p.close_channel(engine, channel.channel_id)
    sent = f"{bar.size} bytes" + (
        f", {bar.size - bar.began_at} of them now" if bar.began_at else ""
    )
    print(f"sent {sent}, {bar.rate():.1f} MB/s, mode is {channel.transmit_mode}.")
    if stats and stats.rtt_s is not None:
        print(f"{stats.path}: {1000 * stats.rtt_s:.1f} ms, {stats.loss:.2%} lost, {stats.reason}.")


def run(engine: kkp2p.engine_t, options: argparse.Namespace) -> None:
    os.path.basename(options.file).encode()  # or it cannot be told to the peer
    if not stat.S_ISREG(os.stat(options.file).st_mode):
        raise Failed("not a regular file")
    with open(options.file, "rb", buffering=0) as file:
        if not options.plain:
            sha = hashlib.sha256()
            while chunk := file.read(CHUNK_BYTES):
                sha.update(chunk)
            try:
                return call(engine, options, file, sha.digest())
            except Older:
                file.seek(0)
        call(engine, options, file, b"")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog=argv[0])
    for name in ("peer_id", "file", "--ca"):
        parser.add_argument(name)
    parser.add_argument("--mode", choices=MODES, default="auto")
    for name in ("--encrypt", "--plain"):
        parser.add_argument(name, action="store_true")
    parser.add_argument("--login")
    parser.add_argument("--lan", type=int, metavar="PORT")
    parser.add_argument("--timeout", type=int, default=10000, metavar="MS")
    options = parser.parse_args(argv[1:])
    conf = kkp2p.engine_conf_t(lan_search_port=options.lan or 0, login_ca=options.ca)
    if not options.lan and kkp2p.set_login(conf, options.login) < 0:
        parser.error("--login is neither HOST[:PORT][#sha256:HEX] nor an invitation")
    engine = kkp2p.engine_init(conf, options.timeout)
    try:
        if engine is None:
            raise Failed(f"engine_init error,ret:{kkp2p.error_no()} ({kkp2p.error_text()})")
        run(engine, options)
        return 0
    except (Failed, OSError, UnicodeError, KeyboardInterrupt) as error:
        print(f"{options.file!r} was not sent: {str(error) or 'interrupted'}.", file=sys.stderr)
        return 1
    finally:
        if engine is not None:
            kkp2p.engine_destroy(engine)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
