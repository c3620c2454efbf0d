"""A peer of ``chaos.py``: ``python -m benchmarks.chaos_ends``.

It calls the other peers at random times, answers their calls, and writes the outcome of each to
the file ``records`` at once, as a line of JSON, so that a peer may be killed.  Every byte is
compared: both sides know from a transfer's number what must come at which position.  Each call of
the API is watched: how long it takes, and which code it returns.
"""

from __future__ import annotations

import functools
import json
import os
import random
import resource
import signal
import socket as _socket
import struct
import threading
import time
import zlib
from collections.abc import Callable
from ctypes import c_uint32
from itertools import count
from typing import Any

import gevent
from gevent import socket

import kkp2p_compat as kkp2p

from .agents import serve

PORT = 3080
CONNECT_MS = 10_000
STEP_MS = 2_000  # of one read or write
TRANSFER_S = 70.0  # a network that is cut is noticed after 45 s (docs/porting.rst)
UNTOLD_S = 20.0  # how long a callee waits for the first bytes
SLACK_S = 5.0  # our choice: on a busy machine, beyond a call's own bound
CHUNK = 65_536
SIZES = {1: 10, 100: 10, 1_400: 10, 16_000: 8, 65_537: 5, 300_000: 3, 2_000_000: 1}  # weights
MESSAGES, MESSAGE_BYTES = 12, (0, 10, 1_000, 1_300, 9_000, 60_000)
EXHAUSTED_S = 3.0

# Kinds of transfers: connect_mode, encrypt_data, channel_type.
CHANNELS = {
    "auto": (0, 0, 0),
    "p2p": (1, 0, 0),
    "relay": (2, 0, 0),
    "sealed": (2, 1, 0),
    "udp": (1, 0, 1),
    "udp auto": (0, 0, 1),
    "udp relay": (2, 0, 1),
}
PROXIES = {"proxy": (0, 0), "proxy sealed": (2, 1)}
KINDS = (*CHANNELS, *PROXIES)

# What the functions' docstrings promise; -119 (out of descriptors) may come of any.
DOCUMENTED = {
    "join_net": (0,),
    "accept": (1, 0, -117),
    "connect": (0, -109, -108, -107, -106, -117, -1),
    "start_proxy": (0,),
    "read": (-1,),
    "write": (-1,),
}
ENDS = {-108: "end", -107: "cut", -1: "closed"}  # error_no after read or write gave -1
HEAD = struct.Struct("!QII")  # number, bytes, checksum of those
MESSAGE = struct.Struct("!QH")  # number, which one


class Over(Exception):
    """Of a transfer: how it ended."""


@functools.lru_cache(maxsize=16)
def pattern(number: int, what: str, size: int) -> bytes:
    return random.Random(f"{number} {what}").randbytes(size)


class Book:
    """The file ``records``, from any thread."""

    def __init__(self) -> None:
        self._file = open("records", "a")  # noqa: SIM115 - for the whole life of the program
        self._lock = threading.Lock()

    def put(self, **record: Any) -> None:
        with self._lock:
            print(json.dumps(record), file=self._file, flush=True)


class Watch:
    """Calls functions of the API, and records what lasts too long and what is not documented."""

    def __init__(self, book: Book) -> None:
        self._book = book
        self._running: dict[int, tuple[str, float, float, float]] = {}
        self._numbers = count()
        self._stopped_s = 0.0  # altogether: this process did not run
        threading.Thread(target=self._look, daemon=True).start()

    def call(self, name: str, bound_s: float, *arguments: Any) -> tuple[int, int]:
        """What the function of that name returns, and error_no after it."""
        number, began = next(self._numbers), time.monotonic()
        self._running[number] = name, began, bound_s, self._stopped_s
        result = getattr(kkp2p, name)(*arguments)
        code = kkp2p.error_no()
        running = self._running.pop(number, None)
        if running is not None:
            self._judge(*running)
        if isinstance(result, int):
            good = result >= 0 if name in ("read", "write") else False
            if not good and result not in (*DOCUMENTED[name], -119):
                self._book.put(what="code", call=name, code=result)
            if result == -1 and name in ("read", "write") and code not in ENDS:
                self._book.put(what="code", call=f"{name}, error_no", code=code)
        return result, code

    def _judge(self, name: str, began: float, bound_s: float, stopped_s: float) -> bool:
        took_s = time.monotonic() - began - (self._stopped_s - stopped_s)
        if took_s <= bound_s + SLACK_S:
            return False
        self._book.put(what="hang", call=name, took_s=round(took_s, 1), bound_s=bound_s)
        return True

    def _look(self) -> None:
        before = time.monotonic()
        while True:
            time.sleep(0.1)
            now = time.monotonic()
            if now - before > 0.5:
                self._stopped_s += now - before - 0.1
            before = now
            for number, running in list(self._running.items()):
                if self._judge(*running):
                    self._running.pop(number, None)  # told once


class Wire:
    """A channel's descriptor until ``deadline``; raises Over."""

    def __init__(self, watch: Watch, fd: int, first_s: float = TRANSFER_S) -> None:
        self._watch = watch
        self.fd = fd
        self._until = time.monotonic() + first_s
        self.moved_at = time.monotonic()

    def extend(self) -> None:
        self._until = time.monotonic() + TRANSFER_S

    def take(self, most: int) -> bytes:
        buff = bytearray(min(most, CHUNK))
        return bytes(buff[: self._move("read", buff)])

    def give(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self._move("write", view) :]

    def _move(self, name: str, buff: Any) -> int:
        while time.monotonic() < self._until:
            got, code = self._watch.call(name, STEP_MS / 1000, self.fd, buff, len(buff), STEP_MS)
            if got > 0:
                self.moved_at = time.monotonic()
                return got
            if got < 0:
                raise Over(ENDS.get(code, f"error_no {code}"))
        raise Over("late")

    def close(self, good: bool) -> None:
        name = "close_fd" if good else "abort_fd"
        self._watch.call(name, 0.0, self.fd)


class LocalWire:
    """A connection to a local port that is a peer."""

    def __init__(self, port: int) -> None:
        self._sock = socket.create_connection(("127.0.0.1", port), timeout=TRANSFER_S)

    def take(self, most: int) -> bytes:
        try:
            data = self._sock.recv(min(most, CHUNK))
        except TimeoutError:
            raise Over("late") from None
        except OSError:
            raise Over("cut") from None
        if not data:
            raise Over("end")
        return bytes(data)

    def give(self, data: bytes) -> None:
        try:
            self._sock.sendall(data)
        except TimeoutError:
            raise Over("late") from None
        except OSError:
            raise Over("cut") from None

    def close(self, good: bool) -> None:
        if not good:
            linger = struct.pack("ii", 1, 0)  # close with a reset
            self._sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_LINGER, linger)
        self._sock.close()


def compare(wire: Any, wanted: bytes, record: dict[str, Any]) -> None:
    at = 0
    while at < len(wanted):
        piece = wire.take(len(wanted) - at)
        if piece != wanted[at : at + len(piece)]:
            record["wrong"] += sum(a != b for a, b in zip(piece, wanted[at:], strict=False))
            raise Over("wrong")
        at += len(piece)
        record["right"] += len(piece)


class Peer:
    """All of it happens in the hub of one thread; ``main`` answers questions in another."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.name: str = settings["name"]
        self._others: list[str] = settings["others"]
        self._pause_s: float = settings["pause_s"]
        self._at_once: int = settings["at_once"]
        number = settings["number"] * 1000 + settings["life"]
        self._numbers = count(number * 10**6)
        self._rng = random.Random(f"{settings['seed']} {number}")
        self.book = Book()
        self.watch = Watch(self.book)
        self.working = 0  # transfers that this side began, or answers
        self.resting = self.leaving = False
        conf = kkp2p.engine_conf_t(
            settings["login"], PORT, log_path="log", max_log_size=30_000, disable_upnp=1
        )
        self.engine: Any = kkp2p.engine_init(conf, 5000)
        if self.engine is None:
            raise RuntimeError(f"no engine: {kkp2p.error_no()}")
        kkp2p.switch_log_level(self.engine, 3)
        self._secret = settings["secret"]
        self.watch.call("join_net", 3.0, self.engine, self.name, self._secret)
        self._ports = {
            (kind, other): self._proxy(other, *PROXIES[kind])
            for kind in PROXIES
            for other in self._others
        }

    def _proxy(self, other: str, mode: int, encrypt: int) -> int:
        ctx = kkp2p.connect_ctx_t(
            other, connect_mode=mode, encrypt_data=encrypt, timeout=CONNECT_MS
        )
        number = c_uint32()
        self.watch.call("start_proxy", 0.0, self.engine, "127.0.0.1", 0, ctx, number)
        address = kkp2p.proxy_address(self.engine, number)
        assert address is not None
        return address[1]

    def work(self) -> None:
        greenlets = [gevent.spawn(self._accept)]
        greenlets += [gevent.spawn(self._call_on) for _ in range(self._at_once)]
        gevent.joinall(greenlets)

    # Its own calls.

    def _call_on(self) -> None:
        rng = self._rng
        while True:
            gevent.sleep(rng.random() * 2 * self._pause_s)
            if self.resting:
                continue
            record: dict[str, Any] = {
                "what": "transfer",
                "side": "caller",
                "by": self.name,
                "right": 0,
                "wrong": 0,
                "number": next(self._numbers),
                "kind": rng.choice(KINDS),
                "to": rng.choice(self._others),
                "began": time.monotonic(),
                "size": rng.choices(list(SIZES), list(SIZES.values()))[0],
            }
            self._record(record, self._transfer)

    def _record(self, record: dict[str, Any], function: Callable[[dict[str, Any]], None]) -> None:
        self.working += 1
        try:
            function(record)
            record["outcome"] = "done"
        except Over as over:
            record["outcome"] = str(over)
        finally:
            self.working -= 1
        self.book.put(**record, ended=time.monotonic())

    def _transfer(self, record: dict[str, Any]) -> None:
        wire = self._open(record)
        good = False
        try:
            if record["kind"].startswith("udp"):
                self._talk(wire, record)
            else:
                number, size = record["number"], record["size"]
                head = struct.pack("!QI", number, size)
                wire.give(head + zlib.crc32(head).to_bytes(4, "big") + pattern(number, "up", size))
                compare(wire, pattern(number, "down", size), record)
            good = True
        finally:
            if isinstance(wire, Wire):
                record["idle_s"] = round(time.monotonic() - wire.moved_at, 1)
            wire.close(good)

    def _open(self, record: dict[str, Any]) -> Any:
        kind, to = record["kind"], record["to"]
        if kind in PROXIES:
            record["plain"] = not PROXIES[kind][1]  # which way, the proxy knows
            try:
                return LocalWire(self._ports[kind, to])
            except OSError as error:
                raise Over(f"connect: {error.errno}") from None
        mode, encrypt, channel_type = CHANNELS[kind]
        ctx = kkp2p.connect_ctx_t(
            to, channel_type, connect_mode=mode, encrypt_data=encrypt, timeout=CONNECT_MS
        )
        channel = kkp2p.channel_t()
        result, _ = self.watch.call("connect", CONNECT_MS / 1000, self.engine, ctx, channel)
        if result != 0:
            raise Over(f"connect: {result}")
        record["plain"] = channel.transmit_mode == 2 and not encrypt and not channel_type
        return Wire(self.watch, channel.fd)

    def _talk(self, wire: Wire, record: dict[str, Any]) -> None:
        """Messages, each of which the other side sends back if it comes."""
        sizes = [self._rng.choice(MESSAGE_BYTES) for _ in range(MESSAGES)]
        record |= {"sent": 0, "back": 0, "size": 0}
        for at, size in enumerate(sizes):
            wire.give(message(record["number"], at, size))
            record["sent"] += 1
            self._hear(wire, record, sizes, 20)
        while record["back"] < MESSAGES and self._hear(wire, record, sizes, 1000):
            pass

    def _hear(self, wire: Wire, record: dict[str, Any], sizes: list[int], ms: int) -> bool:
        buff = bytearray(CHUNK)
        got, code = self.watch.call("read", ms / 1000, wire.fd, buff, len(buff), ms)
        if got < 0:
            raise Over(ENDS.get(code, f"error_no {code}"))
        if got == 0:
            return False
        number, at = check_message(bytes(buff[:got]))
        if number != record["number"] or at >= MESSAGES or got != MESSAGE.size + sizes[at]:
            record["wrong"] += got
            raise Over("wrong")
        record["back"] += 1
        record["right"] += got
        return True

    # Others' calls.

    def _accept(self) -> None:
        while not self.leaving:
            channel = kkp2p.channel_t()
            result, _ = self.watch.call("accept", 1.0, self.engine, 1000, channel)
            if result > 0:
                gevent.spawn(self._answer, channel)
            elif result < 0:
                gevent.sleep(0.5)  # out of descriptors, say
                if result != -119:
                    self.watch.call("join_net", 3.0, self.engine, self.name, self._secret)
        _left.set()

    def _answer(self, channel: kkp2p.channel_t) -> None:
        record: dict[str, Any] = {
            "what": "transfer",
            "side": "callee",
            "by": self.name,
            "right": 0,
            "wrong": 0,
            "kind": "",
            "number": 0,
            "size": 0,
            "began": time.monotonic(),
            "plain": channel.transmit_mode == 2
            and not (channel.encrypt_data or channel.channel_type),
        }
        wire = Wire(self.watch, channel.fd, UNTOLD_S)
        serve_it = self._echo if channel.channel_type else self._serve
        self._record(record, lambda record: serve_it(wire, record))

    def _serve(self, wire: Wire, record: dict[str, Any]) -> None:
        good = False
        try:
            head = b""
            while len(head) < HEAD.size:
                try:
                    head += wire.take(HEAD.size - len(head))
                except Over as over:
                    raise Over(str(over) if head else "unused") from None
            number, size, checksum = HEAD.unpack(head)
            if checksum != zlib.crc32(head[:12]):
                record["wrong"] += 1
                raise Over("wrong")
            record |= {"number": number, "size": size}
            wire.extend()
            compare(wire, pattern(number, "up", size), record)
            wire.give(pattern(number, "down", size))
            try:
                wire.take(1)
                raise Over("more than was sent")
            except Over as over:
                if str(over) != "end":
                    raise
            good = True
        finally:
            wire.close(good)

    def _echo(self, wire: Wire, record: dict[str, Any]) -> None:
        record["kind"] = "udp"
        buff = bytearray(CHUNK)
        until = time.monotonic() + UNTOLD_S
        try:
            while time.monotonic() < until:
                got, _ = self.watch.call("read", STEP_MS / 1000, wire.fd, buff, CHUNK, STEP_MS)
                if got < 0:
                    return
                if got:
                    data = bytes(buff[:got])
                    if check_message(data)[0] < 0:
                        record["wrong"] += got
                        raise Over("wrong")
                    self.watch.call("write", STEP_MS / 1000, wire.fd, data, got, STEP_MS)
        finally:
            wire.close(True)


def message(number: int, at: int, size: int) -> bytes:
    return MESSAGE.pack(number, at) + random.Random(f"{number} {at}").randbytes(size)


def check_message(data: bytes) -> tuple[int, int]:
    """Its numbers; -1, -1 when it is not as it was sent."""
    if len(data) < MESSAGE.size:
        return -1, -1
    number, at = MESSAGE.unpack_from(data)
    return (number, at) if data == message(number, at, len(data) - MESSAGE.size) else (-1, -1)


_peer: Any = None


def begin(**settings: Any) -> dict[str, Any]:
    global _peer
    limit = settings["descriptors"]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    signal.signal(signal.SIGUSR1, lambda *_: _exhaust())
    made = threading.Event()
    problem: list[BaseException] = []

    def live() -> None:
        global _peer
        try:
            _peer = Peer(settings)
        except BaseException as error:  # noqa: BLE001 - raised again in the other thread
            problem.append(error)
            return
        finally:
            made.set()
        _go.wait()
        _peer.work()

    threading.Thread(target=live, daemon=True).start()
    made.wait()
    if problem:
        raise problem[0]
    return {}


_go = threading.Event()
_left = threading.Event()


def work() -> dict[str, Any]:
    _go.set()
    return {}


def _exhaust() -> None:
    """Take all descriptors for a while."""
    taken: list[int] = []
    try:
        while True:
            taken.append(os.dup(0))
    except OSError:
        pass

    def give_back() -> None:
        for fd in taken:
            os.close(fd)

    threading.Timer(EXHAUSTED_S, give_back).start()


def rest() -> dict[str, Any]:
    """Begin nothing more; how much is under way."""
    _peer.resting = True
    return {"working": _peer.working}


def part() -> dict[str, Any]:
    """End the links, which would be kept for the next channel; what there is of both."""
    engine = _peer.engine

    def destroy() -> dict[str, Any]:
        for link in list(engine.links):
            link.destroy()
        return {"channels": len(engine.channels), "links": len(engine.links)}

    return dict(engine.thread.call(destroy))


def leave() -> dict[str, Any]:
    _peer.leaving = True
    _left.wait()
    _peer.watch.call("engine_destroy", 5.0, _peer.engine)
    return {}


if __name__ == "__main__":
    serve({"begin": begin, "work": work, "rest": rest, "part": part, "leave": leave})
