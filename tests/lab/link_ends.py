"""What the tests of the link run on its two hosts: ``python link_ends.py NAME ARGS...``."""

from __future__ import annotations

import json
import socket
import struct
import sys
import time

PORT = 9
END = b"end"
SEGMENT_BYTES, SEGMENTS = 1200, 40
STREAM = bytes(range(250)) * 4000
UDP_SEGMENT = 103  # linux/udp.h; a control message of SOL_UDP (17)


def ready() -> None:
    print("ready", flush=True)


def receive() -> None:
    """Numbered datagrams until END, which is answered: which came, and when."""
    numbers, times = [], []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 21)
        sock.bind(("", PORT))
        ready()
        while True:
            data, source = sock.recvfrom(2000)
            if data == END:
                break
            times.append(time.monotonic())
            numbers.append(int.from_bytes(data, "big"))
        sock.sendto(END, source)
    print(json.dumps([numbers, times]))


def send(address: str, count: str, size: str, gap_s: str) -> None:
    """Numbered datagrams, then END until it is answered: how long that took."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((address, PORT))
        for number in range(int(count)):
            sock.send(number.to_bytes(int(size), "big"))
            time.sleep(float(gap_s))
        sock.settimeout(1)
        while True:
            begin = time.monotonic()
            sock.send(END)
            try:
                sock.recv(2000)
                break
            except TimeoutError:  # lost, or no room in the queue
                continue
        print(time.monotonic() - begin)


def take() -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        socket.create_server(("", PORT)) as listener,
    ):
        udp.bind(("", PORT))
        ready()
        with listener.accept()[0] as sock:
            stream = b"".join(iter(lambda: sock.recv(65536), b""))
        datagrams = [udp.recv(2000) for _ in range(SEGMENTS)]
    print(json.dumps([stream == STREAM, b"".join(datagrams) == segments()]))


def segments() -> bytes:
    return b"".join(bytes([number]) * SEGMENT_BYTES for number in range(SEGMENTS))


def give(address: str) -> None:
    """A stream, and datagrams in one call (UDP_SEGMENT)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.connect((address, PORT))
        udp.sendmsg([segments()], [(17, UDP_SEGMENT, struct.pack("H", SEGMENT_BYTES))])
    with socket.create_connection((address, PORT)) as sock:
        sock.sendall(STREAM)


if __name__ == "__main__":
    programs = {"receive": receive, "send": send, "take": take, "give": give}
    programs[sys.argv[1]](*sys.argv[2:])
