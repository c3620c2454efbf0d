"""The two ends of a lane without an engine: trains of datagrams, as fast as the other side takes.

``send`` keeps a window of bytes on the way, which ``sink`` acknowledges, so what is measured is
what arrives and not what is thrown away.  Without a token the two talk to each other directly.
"""

from __future__ import annotations

import logging
import select
import socket
import sys
import time

from kkp2p_compat._address import Address
from kkp2p_compat.cloud.usage import Payer, Sessions, tag_of
from kkp2p_compat.transport import relay_wire
from kkp2p_compat.transport.udp.batch_socket import MAX_SEGMENTS, MAX_SEND_BYTES, BatchSocket
from kkp2p_compat.transport.udp.header import FIRST_BYTE, HEADER_BYTES
from kkp2p_compat.transport.udp.lane import LaneClient, LaneState

from .programs import say

HERE = "127.0.0.1"
WINDOW_BYTES = 1 << 20
ACK_EVERY_BYTES = 1 << 17
LOST_S = 0.05  # so long without an acknowledgement
SAID_BYTES = 40  # a packet with an acknowledgement
IDS = {"sink": 1, "send": 2}
END = b"the end"


class End:
    def __init__(self, role: str, port: int, token: str) -> None:
        other = next(number for name, number in IDS.items() if name != role)
        self.head = bytes([FIRST_BYTE]) + bytes(7) + other.to_bytes(8, "big")
        self.sock = BatchSocket(socket.AF_INET, logging.getLogger(__name__))
        self.to: Address = HERE, port
        if token:
            self._pair(bytes.fromhex(token), IDS[role])

    def _pair(self, token: bytes, local_id: int) -> None:
        lane = LaneClient(self.to, token, local_id, time.monotonic())
        while lane.state is not LaneState.PAIRED:
            if lane.state in (LaneState.REFUSED, LaneState.SILENT):
                raise RuntimeError(f"the relay at {self.to}: {lane.reason}")
            while (transmit := lane.poll_transmit()) is not None:
                self.sock.send(transmit[0], len(transmit[0]), transmit[1])
            self.wait(0.05)
            while (received := self.sock.receive()) is not None:
                data, segment_bytes, source = received
                lane.handle_datagram_untrusted(data[:segment_bytes], source, time.monotonic())
            lane.handle_timer(time.monotonic())

    def wait(self, seconds: float) -> bool:
        return bool(select.select([self.sock], [], [], seconds)[0])

    def say(self, text: bytes) -> None:
        packet = (self.head + text).ljust(SAID_BYTES)
        self.sock.send(packet, len(packet), self.to)


def send(port: str, token: str, size: str, seconds: str) -> None:
    """For so many seconds, datagrams of ``size`` bytes; says how many arrived, and how fast."""
    end, segment_bytes = End("send", int(port), token), int(size)
    count = min(MAX_SEGMENTS, MAX_SEND_BYTES // segment_bytes)
    train = end.head.ljust(segment_bytes, b".") * count
    sent = arrived = lost = 0
    begin = time.monotonic()
    while time.monotonic() - begin < float(seconds):
        while sent - lost - arrived < WINDOW_BYTES:
            sent += end.sock.send(train, segment_bytes, end.to)
        if not end.wait(LOST_S):
            lost = sent - arrived
        while (received := end.sock.receive()) is not None:
            text = received[0][HEADER_BYTES - SAID_BYTES :].strip()  # the last one of a run
            arrived = max(arrived, int(text) if text.isdigit() else 0)
    took_s = time.monotonic() - begin
    for _ in range(10):
        end.say(END)
    say(mb_s=arrived / took_s / 1e6, gb=arrived / 1e9, lost=lost / max(sent, 1), seconds=took_s)


def sink(port: str, token: str) -> None:
    end = End("sink", int(port), token)
    say(port=end.sock.port)
    arrived = told = 0
    while end.wait(60.0):
        while (received := end.sock.receive()) is not None:
            data, _, source = received
            if data[HEADER_BYTES:].startswith(END):
                return
            end.to = source
            arrived += len(data)
            if arrived - told >= ACK_EVERY_BYTES:
                told = arrived
                end.say(b"%d" % arrived)


def tokens(key: bytes) -> tuple[str, str]:
    """Of the two sides of a call, for ``send`` and ``sink``."""
    session, expiry = Sessions(key).make(Payer(tag_of("sender"))), int(time.time()) + 60
    sides = (relay_wire.CALLER, relay_wire.CALLEE)
    caller, callee = (relay_wire.make_token(key, session, side, expiry).hex() for side in sides)
    return caller, callee


if __name__ == "__main__":
    (send if sys.argv[1] == "send" else sink)(*sys.argv[2:])
