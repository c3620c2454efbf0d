"""Programs that speak UDP: ``python udp_programs.py WHAT PORT [SECONDS]``.

dns: answers for the names hostN.test with 192.0.2.N (RFC 1035), and for no other one.
echo: sends every datagram back.
game: a client that sends its state 60 times a second, and prints what came back, and when.
flood: a client that sends 50 Mbit/s, and does not care for what comes back.
"""

from __future__ import annotations

import json
import re
import socket
import statistics
import struct
import sys
import time

HEADER = struct.Struct(">6H")  # id, flags, and how many of each section
ANSWER = struct.Struct(">HHHIH4s")  # name, type, class, time to live, length, address
STATE = struct.Struct(">Id52x")  # a number and when it was sent
NXDOMAIN = 3
PER_S = 60
FLOOD_BYTES_PER_S = 50e6 / 8


def serve(port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", port))
    print("ready", flush=True)
    return sock


def client(port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect(("127.0.0.1", port))
    return sock


def answer(query: bytes) -> bytes:
    number = HEADER.unpack_from(query)[0]
    labels, place = [], HEADER.size
    while length := query[place]:
        labels.append(query[place + 1 : place + 1 + length].decode().lower())
        place += 1 + length
    question = query[HEADER.size : place + 5]
    found = re.fullmatch(r"host(\d+)\.test", ".".join(labels))
    is_address = question[-4:] == b"\0\1\0\1"  # type A, class IN
    flags = 0x8580 if found else 0x8580 | NXDOMAIN
    if not found or not is_address:
        return HEADER.pack(number, flags, 1, 0, 0, 0) + question
    address = bytes([192, 0, 2, int(found[1])])
    record = ANSWER.pack(0xC000 | HEADER.size, 1, 1, 60, 4, address)
    return HEADER.pack(number, flags, 1, 1, 0, 0) + question + record


def dns(port: int) -> None:
    sock = serve(port)
    while True:
        query, client = sock.recvfrom(512)
        sock.sendto(answer(query), client)


def echo(port: int) -> None:
    sock = serve(port)
    while True:
        data, client = sock.recvfrom(1 << 16)
        sock.sendto(data, client)


def game(port: int, seconds: float) -> None:
    trips: dict[int, float] = {}
    count, begin = int(seconds * PER_S), time.monotonic()
    with client(port) as sock:
        for number in range(count + PER_S):  # the last second is for what is late
            if number < count:
                sock.send(STATE.pack(number, time.monotonic()))
            while (left_s := begin + (number + 1) / PER_S - time.monotonic()) > 0:
                sock.settimeout(left_s)
                try:
                    seen, sent_at = STATE.unpack(sock.recv(100))
                except TimeoutError:
                    break
                trips[seen] = time.monotonic() - sent_at
    ms = sorted(1000 * trip for trip in trips.values())
    steps = [abs(trips[seen] - trips[seen - 1]) for seen in trips if seen - 1 in trips]
    report = {
        "sent": count,
        "got": len(ms),
        "least_ms": ms[0],
        "p50_ms": statistics.median(ms),
        "p99_ms": ms[len(ms) * 99 // 100],
        "jitter_ms": 1000 * statistics.mean(steps),
    }
    print(json.dumps(report))


def flood(port: int, seconds: float) -> None:
    begin, sent = time.monotonic(), 0
    with client(port) as sock:
        while (passed_s := time.monotonic() - begin) < seconds:
            while sent < passed_s * FLOOD_BYTES_PER_S:
                sent += sock.send(bytes(1200))
            time.sleep(0.005)


if __name__ == "__main__":
    programs = {"dns": dns, "echo": echo, "game": game, "flood": flood}
    programs[sys.argv[1]](int(sys.argv[2]), *map(float, sys.argv[3:]))
