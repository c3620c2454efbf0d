"""Receives the files that peers send with samples/send_file.py, which describes the protocol.

Run it (a cloud first: `kkp2p account add PEER_ID`, `kkp2p cloud`):

    python samples/recv_file.py PEER_ID SECRET FOLDER [--once] [--limit BYTES]

SECRET: - takes it from $KKP2P_SECRET, or asks.  --once: one sender.  Others: as for send_file.py.
- - for PEER_ID SECRET: those that `kkp2p join` has kept.  What a broken transfer has brought is
kept beside the files, as .HEX.part, for seven days: the sender of the same file goes on there.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import getpass
import hashlib
import os
import re
import signal
import stat
import struct
import sys
import time
from typing import BinaryIO

import gevent
from gevent import event, pool

import kkp2p_compat as kkp2p

FILE_DESC, RESUMING_DESC = 3, 5  # connect_desc (1 http, 2 https, 4 chat)
ACK, NAK, CAN, GO = b"\x06", b"\x15", b"\x18", b"\x11"  # ASCII's (GO: DC1)
MAX_SENDERS, MAX_NAME_BYTES = 64, 240  # at once; room for a number: file systems take 255
CHUNK_BYTES = 64 * 1024  # must come within --timeout, so that a slow sender is not kept for ever
MAX_PARTS, KEPT_S, PART = 64, 7 * 86400, re.compile(r"\.[0-9a-f]{32}\.part")
UNSAFE_NAME = re.compile(
    r"(?is)\Z|\.|.*[. ]\Z"  # hidden files, our folder, the one above; ends that Windows drops
    r"|.*[/\\:\ufffd\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]"  # paths, drives; not printable
    r"|(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³]) *(\.|\Z)"  # devices on Windows
)
CLEAR = "\r\033[K" if sys.stderr.isatty() else ""
bars: dict[int, str] = {}  # of each file under way, by descriptor


class Broken(ConnectionError):
    """``data``: what had come of what was read last."""

    data: memoryview


def read_exactly(fd: int, length: int, timeout: int) -> bytes:
    view = memoryview(data := bytearray(length))
    end = time.perf_counter() + timeout / 1000
    while view:
        left = max(0, round((end - time.perf_counter()) * 1000))
        if (count := kkp2p.read(fd, view, len(view), left)) <= 0:
            broken = Broken("the sender is gone" if count else "the sender is too slow")
            broken.data = memoryview(data)[: length - len(view)]
            raise broken
        view = view[count:]
    return bytes(data)


def open_temporary(folder: int) -> tuple[int, str]:
    """A file without a name, so that a kill leaves nothing behind; or else a hidden one."""
    with contextlib.suppress(OSError, AttributeError):  # not every system has them
        fd = os.open(".", os.O_TMPFILE | os.O_RDWR, 0o666, dir_fd=folder)
        return fd, f"/proc/self/fd/{fd}"
    path = f".{os.urandom(8).hex()}.part"
    return os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666, dir_fd=folder), path


def open_part(folder: int, key: bytes) -> tuple[int, str]:
    """What an earlier try has left, or a new one; where that cannot be had, a temporary file."""
    path = f".{hashlib.sha256(key).hexdigest()[:32]}.part"
    try:
        flags = os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK
        fd = os.open(path, flags, 0o666, dir_fd=folder)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # or another sender is at it
            status, named = os.fstat(fd), os.stat(path, dir_fd=folder, follow_symlinks=False)
            if os.path.samestat(status, named) and stat.S_ISREG(status.st_mode):
                if status.st_nlink == 1:
                    return fd, path
                os.unlink(path, dir_fd=folder)  # it was finished: a kill came between two steps
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
    except OSError as error:
        print(f"{CLEAR}{path} is not used: {error}.", file=sys.stderr)
    return open_temporary(folder)


def prune(folder: int, limit: int) -> None:
    """Parts take no more room than one file may; the oldest go first, and those with nothing."""
    parts = []
    for name in filter(PART.fullmatch, os.listdir(folder)):
        with contextlib.suppress(FileNotFoundError):  # it has just been finished
            parts.append((os.stat(name, dir_fd=folder, follow_symlinks=False), name))
    for status, name in sorted(parts, key=lambda part: part[0].st_mtime, reverse=True)[:MAX_PARTS]:
        limit -= status.st_size
        if limit >= 0 < status.st_size and time.time() - status.st_mtime < KEPT_S:
            parts.remove((status, name))
    for _, name in parts:
        with contextlib.suppress(OSError):  # another sender is at it, or has just finished it
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(name, dir_fd=folder)
            finally:
                os.close(fd)


def publish(source: str, folder: int, name: str) -> str:
    """Name a finished file; this never replaces another and never follows a symlink to one."""
    stem, suffix = os.path.splitext(name)
    for final in [name, *(f"{stem} ({number}){suffix}" for number in range(1, 1000))]:
        with contextlib.suppress(FileExistsError):
            try:
                os.link(source, final, src_dir_fd=folder, dst_dir_fd=folder)
            except (FileExistsError, FileNotFoundError):
                raise
            except OSError:  # FAT, say, has no links: take the name, then replace our own
                if source[0] == "/":
                    raise
                os.close(os.open(final, os.O_CREAT | os.O_EXCL, 0o666, dir_fd=folder))
                os.rename(source, final, src_dir_fd=folder, dst_dir_fd=folder)
            with contextlib.suppress(OSError):  # not every file system can, and it has its name
                os.fsync(folder)
            return final
    raise FileExistsError(f"too many files are named {name!r}")


def take(channel: kkp2p.channel_t, file: BinaryIO, size: int, timeout: int) -> tuple[bytes, str]:
    """The file from where it stops; returns the SHA-256 of all of it, and how fast it came."""
    fd, sha, done = channel.fd, hashlib.sha256(), 0
    if os.fstat(file.fileno()).st_size > size:
        file.truncate(0)  # whatever that is
    while chunk := file.read(CHUNK_BYTES):
        sha.update(chunk)
        done += len(chunk)
        gevent.sleep(0)  # neither a disk nor a fast sender may keep the others waiting
    if channel.connect_desc == RESUMING_DESC:
        kkp2p.write(fd, GO + struct.pack(">Q", done), 9, timeout)
    began_at, start, rate = done, time.perf_counter(), "0 MB/s"
    while length := min(size - done, CHUNK_BYTES):
        try:
            sha.update(chunk := read_exactly(fd, length, timeout))
        except Broken as broken:
            file.write(broken.data)
            raise
        done += file.write(chunk)
        rate = f"{(done - began_at) / 1e6 / (time.perf_counter() - start):.1f} MB/s"
        bars[fd] = f"{'#' * (10 * done // size):.<10} {rate}"
        gevent.sleep(0)
    file.flush()
    gevent.get_hub().threadpool.apply(os.fsync, (file.fileno(),))
    return sha.digest(), f"{size - began_at} of them now, {rate}" if began_at else rate


def serve(channel: kkp2p.channel_t, folder: int, limit: int, timeout: int) -> bool:
    fd, answer, source, keeps, failed = channel.fd, NAK, "/", False, ""
    try:
        if channel.connect_desc not in (FILE_DESC, RESUMING_DESC):
            raise ValueError(f"unknown protocol,connect desc is :{channel.connect_desc}")
        answer = CAN if (resumes := channel.connect_desc == RESUMING_DESC) else NAK
        size, length = struct.unpack(">QH", header := read_exactly(fd, 10, timeout))
        wanted = read_exactly(fd, 32, timeout) if resumes else b""
        name = (raw := read_exactly(fd, length, timeout)).decode("utf-8", "replace")
        if length > MAX_NAME_BYTES or UNSAFE_NAME.match(name):
            raise ValueError(f"unsafe name {name!a:.80}")
        disk = os.fstatvfs(folder)
        if size > min(limit, free := disk.f_bavail * disk.f_frsize):
            raise ValueError(f"{name!r} has {size} bytes, --limit is {limit}, free are {free}")
        key = b"\0".join((channel.caller_id.encode(), header + wanted, raw))
        temporary, source = open_part(folder, key) if resumes else open_temporary(folder)
        with open(temporary, "r+b") as file:
            answer, keeps = NAK, resumes and source[0] != "/"
            digest, rate = take(channel, file, size, timeout)
            if resumes and digest != wanted:
                raise ValueError(f"{name!r} is not what was to be sent: its SHA-256 differs")
            name, answer = publish(source, folder, name), ACK + digest * resumes
        print(CLEAR, end="", file=sys.stderr)
        print(f"received {name!r}, {size} bytes, {rate}, mode is {channel.transmit_mode}.")
    except ConnectionError as error:
        failed = f"{error}; what has come is kept" if keeps else f"{error}"
    except (OSError, ValueError) as error:
        keeps, failed = False, f"{error}"
    finally:
        bars.pop(fd, None)
        try:
            if keeps and answer == NAK:
                prune(folder, limit)
            else:
                with contextlib.suppress(OSError):  # it has a name by now, or never had one
                    os.unlink(source, dir_fd=folder)
        finally:  # whoever hears the answer, or reads why, finds the folder as it stays
            kkp2p.write(fd, answer, len(answer), 1000)
            kkp2p.close_fd(fd)
    if failed:
        print(f"{CLEAR}not received: {failed}.", file=sys.stderr)
    return answer[:1] == ACK


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
    if (me, secret) == ("-", "-"):
        me, secret = kkp2p.kept_account() or parser.error(kkp2p.error_text())
    if secret == "-" and not lan:
        secret = os.environ.get("KKP2P_SECRET") or getpass.getpass("Secret: ")
    if (engine := kkp2p.engine_init(conf, 5000)) is None:
        sys.exit(f"engine_init error,ret:{kkp2p.error_no()} ({kkp2p.error_text()}).")
    senders, exit_flag, sender = pool.Pool(MAX_SENDERS), event.Event(), None
    for number in (signal.SIGINT, signal.SIGTERM):
        gevent.signal_handler(number, exit_flag.set)
    try:
        ret = kkp2p.join_lan(engine, me) if lan else kkp2p.join_net(engine, me, secret)
        failed = f"join error,ret:{ret} ({kkp2p.error_text()})."
        print(failed if ret < 0 else f"waiting for files as {me}.")
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
