"""Receives the files that peers send with samples/send_file.py, which describes the protocol.

Run it (a cloud first: `kkp2p account add PEER_ID`, `kkp2p cloud`):

    python samples/recv_file.py PEER_ID SECRET FOLDER [--once] [--limit BYTES]

SECRET: - takes it from $KKP2P_SECRET, or asks.  --once: one sender.  Others: as for send_file.py.
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import os
import re
import signal
import struct
import sys
import time

import gevent
from gevent import event, pool

import kkp2p_compat as kkp2p

FILE_DESC, ACK, NAK = 3, b"\x06", b"\x15"  # connect_desc (1 http, 2 https, 4 chat); ASCII's
MAX_SENDERS, MAX_NAME_BYTES = 64, 240  # at once; room for a number: file systems take 255
CHUNK_BYTES = 64 * 1024  # must come within --timeout, so that a slow sender is not kept for ever
UNSAFE_NAME = re.compile(
    r"(?is)\Z|\.|.*[. ]\Z"  # hidden files, our folder, the one above; ends that Windows drops
    r"|.*[/\\:\ufffd\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]"  # paths, drives; not printable
    r"|(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³]) *(\.|\Z)"  # devices on Windows
)
CLEAR = "\r\033[K" if sys.stderr.isatty() else ""
bars: dict[int, str] = {}  # of each file under way, by descriptor


def read_exactly(fd: int, length: int, timeout: int) -> bytes:
    view = memoryview(data := bytearray(length))
    end = time.perf_counter() + timeout / 1000
    while view:
        left = max(0, round((end - time.perf_counter()) * 1000))
        if (count := kkp2p.read(fd, view, len(view), left)) <= 0:
            raise ConnectionError("the sender is gone" if count else "the sender is too slow")
        view = view[count:]
    return bytes(data)


def open_temporary(folder: int) -> tuple[int, str]:
    """A file without a name, so that a kill leaves nothing behind; or else a hidden one."""
    with contextlib.suppress(OSError, AttributeError):  # not every system has them
        fd = os.open(".", os.O_TMPFILE | os.O_WRONLY, 0o666, dir_fd=folder)
        return fd, f"/proc/self/fd/{fd}"
    path = f".{os.urandom(8).hex()}.part"
    return os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666, dir_fd=folder), path


def publish(source: str, folder: int, name: str) -> str:
    """Name a finished file; this never replaces another and never follows a symlink to one."""
    (stem, suffix), name_it = os.path.splitext(name), os.link if source[0] == "/" else os.rename
    for final in [name, *(f"{stem} ({number}){suffix}" for number in range(1, 1000))]:
        with contextlib.suppress(FileExistsError):
            if name_it is os.rename:  # FAT, say, has no links: take the name, then replace our own
                os.close(os.open(final, os.O_CREAT | os.O_EXCL, 0o666, dir_fd=folder))
            name_it(source, final, src_dir_fd=folder, dst_dir_fd=folder)
            os.fsync(folder)
            return final
    raise FileExistsError(f"too many files are named {name!r}")


def serve(channel: kkp2p.channel_t, folder: int, limit: int, timeout: int) -> bool:
    fd, answer, source = channel.fd, NAK, "/"
    try:
        if channel.connect_desc != FILE_DESC:
            raise ValueError(f"unknown protocol,connect desc is :{channel.connect_desc}")
        size, length = struct.unpack(">QH", read_exactly(fd, 10, timeout))
        name = read_exactly(fd, length, timeout).decode("utf-8", "replace")
        if length > MAX_NAME_BYTES or UNSAFE_NAME.match(name):
            raise ValueError(f"unsafe name {name!a:.80}")
        disk = os.fstatvfs(folder)
        if size > min(limit, free := disk.f_bavail * disk.f_frsize):
            raise ValueError(f"{name!r} has {size} bytes, --limit is {limit}, free are {free}")
        temporary, source = open_temporary(folder)
        start, done, rate = time.perf_counter(), 0, "0 MB/s"
        with open(temporary, "wb") as file:
            while chunk := min(size - done, CHUNK_BYTES):
                done += file.write(read_exactly(fd, chunk, timeout))
                rate = f"{done / 1e6 / (time.perf_counter() - start):.1f} MB/s"
                bars[fd] = f"{'#' * (10 * done // size):.<10} {rate}"
                gevent.sleep(0)  # a fast sender must not keep the others waiting
            file.flush()
            gevent.get_hub().threadpool.apply(os.fsync, (temporary,))
            name, answer = publish(source, folder, name), ACK
        print(CLEAR, end="", file=sys.stderr)
        print(f"received {name!r}, {size} bytes, {rate}, mode is {channel.transmit_mode}.")
    except (OSError, ValueError) as error:
        print(f"{CLEAR}not received: {error}.", file=sys.stderr)
    finally:
        bars.pop(fd, None)
        kkp2p.write(fd, answer, 1, 1000)
        kkp2p.close_fd(fd)
        with contextlib.suppress(OSError):  # it has a name by now, or never had one
            os.unlink(source, dir_fd=folder)
    return answer == ACK


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog=argv[0])
    for name in ("peer_id", "secret", "folder", "--ca"):
        parser.add_argument(name)
    for name, default in (("--limit", 1 << 30), ("--timeout", 10000), ("--lan", 0)):
        parser.add_argument(name, type=int, default=default)
    parser.add_argument("--login")
    parser.add_argument("--once", action="store_true")
    options = parser.parse_args(argv[1:])
    folder = os.open(options.folder, os.O_RDONLY | os.O_DIRECTORY)
    me, secret, lan = options.peer_id, options.secret, options.lan
    conf = kkp2p.engine_conf_t(lan_search_port=lan, login_ca=options.ca)
    if not lan and kkp2p.set_login(conf, options.login) < 0:
        parser.error("--login is neither HOST[:PORT][#sha256:HEX] nor an invitation")
    if secret == "-" and not lan:
        secret = os.environ.get("KKP2P_SECRET") or getpass.getpass("Secret: ")
    engine = kkp2p.engine_init(conf, 5000) or sys.exit(f"engine_init error,ret:{kkp2p.error_no()}.")
    senders, exit_flag, sender = pool.Pool(MAX_SENDERS), event.Event(), None
    for number in (signal.SIGINT, signal.SIGTERM):
        gevent.signal_handler(number, exit_flag.set)
    try:
        ret = kkp2p.join_lan(engine, me) if lan else kkp2p.join_net(engine, me, secret)
        print(f"waiting for files as {me}." if ret >= 0 else f"join error,ret:{ret}.")
        while ret >= 0 and not exit_flag.is_set():
            print(CLEAR and f"{CLEAR}{'  '.join(bars.values()):.79}", end="", file=sys.stderr)
            if options.once and sender is not None:
                exit_flag.wait(0.25)
            elif (ret := kkp2p.accept(engine, 250, channel := kkp2p.channel_t())) > 0:
                sender = senders.spawn(serve, channel, folder, options.limit, options.timeout)
                sender.rawlink(lambda _: options.once and exit_flag.set())
        return int(ret < 0 or (options.once and not (sender is not None and sender.value)))
    finally:
        senders.kill()
        kkp2p.engine_destroy(engine)


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    try:
        sys.exit(main(sys.argv))
    except OSError as error:
        sys.exit(f"{error}.")
