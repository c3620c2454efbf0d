"""A peer that does what its standard input says: ``python roam_peer.py HOST PORT``.

==================  ================================================================================
``join ID SECRET``  "joined RESULT"; from then on it takes every channel that comes: "accepted MODE"
``call ID MODE``    "calling ID", then "call RESULT MODE"; after MODE: time-out in ms, encrypt_data
``quiet``, ``go``   stop sending, go on; on all channels, or on that of this number (from 0)
``mark N``          send a mark; the other side says "mark N" when it comes to it
``end``             send AFTER more bytes and the digest of all, and wait for the same
==================  ================================================================================

Both ends of each channel send at a steady rate.  "moved N" comes at every STEP bytes received, "gap
S until T" when something came after S seconds of nothing, "broken I N CODE at T" when channel
number I (from 0) has ended early (error_no), and at the end "same N" or "differs N", by the digest
that the other side has sent.  "accept RESULT" is said of what is not a channel.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import sys
import threading
import time
from queue import SimpleQueue

import kkp2p_compat as kkp2p

CHUNK = 1 << 16
PACE_S = 0.02  # between two chunks: 3.3 MB/s each way at most
STEP = 1 << 21
AFTER = 1 << 22
GAP_S = 0.5
PATIENCE_MS = 120_000  # for each read and write
HEADER, DIGEST = 4, 32
MARK = 2**32 - 1  # instead of a chunk's size


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())  # whole lines, whoever else writes


class Transfer:
    """Both directions of one channel."""

    def __init__(self, number: int, fd: int) -> None:
        self.flowing = threading.Event()
        self.flowing.set()
        self.ending = threading.Event()
        self.received = 0
        self._marks: SimpleQueue[int] = SimpleQueue()
        self._number = number
        self._fd = fd
        self._threads = [threading.Thread(target=one) for one in (self._send, self._receive)]
        for thread in self._threads:
            thread.start()

    def mark(self, number: int) -> None:
        self._marks.put(number)

    def end(self) -> None:
        self.ending.set()
        self.flowing.set()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()
        kkp2p.close_fd(self._fd)

    # Sending.

    def _send(self) -> None:
        digest, data, left, number = hashlib.sha256(), random.randbytes(2 * CHUNK), AFTER, 0
        while left > 0 and self.flowing.wait():
            start, number = number * 7919 % CHUNK, number + 1  # no two chunks are alike
            chunk = data[start : start + CHUNK]
            digest.update(chunk)
            if not self._write(CHUNK.to_bytes(HEADER, "big") + chunk):
                return
            while not self._marks.empty():
                numbers = MARK, self._marks.get()
                self._write(b"".join(number.to_bytes(HEADER, "big") for number in numbers))
            if self.ending.is_set():
                left -= CHUNK
            time.sleep(PACE_S)
        self._write(bytes(HEADER) + digest.digest())

    def _write(self, data: bytes) -> bool:
        while data:
            taken = kkp2p.write(self._fd, data, len(data), PATIENCE_MS)
            if taken <= 0:
                return False
            data = data[taken:]
        return True

    # Receiving.

    def _receive(self) -> None:
        digest = hashlib.sha256()
        try:
            while size := int.from_bytes(self._read(HEADER), "big"):
                if size == MARK:
                    say("mark", int.from_bytes(self._read(HEADER), "big"))
                    continue
                digest.update(self._read(size))
                before, self.received = self.received, self.received + size
                if before // STEP < self.received // STEP:
                    say("moved", self.received)
            same = self._read(DIGEST) == digest.digest()
            say("same" if same else "differs", self.received)
        except EOFError:
            what = self._number, self.received, kkp2p.error_no()
            say("broken", *what, "at", f"{time.monotonic():.3f}")

    def _read(self, size: int) -> bytes:
        data = bytearray(size)
        view = memoryview(data)
        while view:
            asked_at = time.monotonic()
            count = kkp2p.read(self._fd, view, len(view), PATIENCE_MS)
            if count <= 0:
                raise EOFError
            now = time.monotonic()
            if now - asked_at > GAP_S:
                say("gap", f"{now - asked_at:.2f} until {now:.3f}")
            view = view[count:]
        return bytes(data)


class Peer:
    def __init__(self, host: str, port: str) -> None:
        conf = kkp2p.engine_conf_t(host, int(port), log_path=os.environ["TMPDIR"])
        kkp2p.log_switch_level(3)
        engine = kkp2p.engine_init(conf, 5000)
        assert engine is not None
        self._engine = engine
        self._transfers: list[Transfer] = []
        self._numbers = itertools.count()
        self._over = False

    def join(self, peer_id: str, secret: str) -> None:
        say("joined", kkp2p.join_net(self._engine, peer_id, secret))
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while not self._over:
            channel = kkp2p.channel_t()
            result = kkp2p.accept(self._engine, 1000, channel)
            if result == 1:
                say("accepted", channel.transmit_mode)
                self._transfers.append(Transfer(next(self._numbers), channel.fd))
            elif result < 0:
                say("accept", result)
                return

    def call(self, peer_id: str, mode: str, timeout: str = "20000", encrypt: str = "0") -> None:
        channel, started = kkp2p.channel_t(), time.monotonic()
        say("calling", peer_id)
        ctx = kkp2p.connect_ctx_t(peer_id, 0, int(mode), int(encrypt), int(timeout))
        result = kkp2p.connect(self._engine, ctx, channel)
        took_s = time.monotonic() - started
        say("call", result, channel.transmit_mode, f"after {took_s:.2f} s")
        if result == 0:
            self._transfers.append(Transfer(next(self._numbers), channel.fd))

    def mark(self, number: str) -> None:
        for transfer in self._transfers:
            transfer.mark(int(number))

    def quiet(self, number: str = "") -> None:
        for transfer in self._those(number):
            transfer.flowing.clear()
        say("quiet")

    def go(self, number: str = "") -> None:
        for transfer in self._those(number):
            transfer.flowing.set()

    def _those(self, number: str) -> list[Transfer]:
        return [self._transfers[int(number)]] if number else self._transfers

    def end(self) -> None:
        for transfer in self._transfers:
            transfer.end()
        for transfer in self._transfers:
            transfer.join()
        self._transfers.clear()
        say("ended")

    def close(self) -> None:
        self._over = True
        kkp2p.engine_destroy(self._engine)


if __name__ == "__main__":
    peer = Peer(*sys.argv[1:])
    say("ready")
    for line in sys.stdin:
        name, *arguments = line.split()
        getattr(peer, name)(*arguments)
    peer.close()
