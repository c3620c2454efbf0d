"""``python agents.py``: sends and hears UDP datagrams for a test, which says what and when.

``Agent`` is the test's end: one line of JSON for each question, one for each answer.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from typing import Any

Address = tuple[str, int]
Heard = tuple[str, str, int]  # text, ip, port

IP_RECVTTL, IPV6_RECVHOPLIMIT = 12, 51  # linux/in.h, linux/in6.h


class Agent:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def send(self, port: int, to: Address, text: str = "x", ttl: int = 64, ip: str = "") -> None:
        """From this port (of this address of the host)."""
        self._ask("send", port=port, to=to, text=text, ttl=ttl, ip=ip)

    def heard(self, port: int, family: int = 4, ip: str = "") -> list[Heard]:
        """What has come to the port since the last question; opens it at the first."""
        return [(text, ip, port) for text, ip, port, _ in self._heard(port, family, ip)]

    def ttls(self, port: int, family: int = 4) -> list[int]:
        """Of what has come to the port since the last question."""
        return [ttl for *_, ttl in self._heard(port, family, "")]

    def _heard(self, port: int, family: int, ip: str) -> Any:
        return self._ask("heard", port=port, family=family, ip=ip)

    def _ask(self, op: str, **fields: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"op": op, **fields}) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


SOCKETS: dict[tuple[int, str, int], socket.socket] = {}


def sock(family: int, ip: str, port: int) -> socket.socket:
    if (family, ip, port) not in SOCKETS:
        made = socket.socket(socket.AF_INET6 if family == 6 else socket.AF_INET, socket.SOCK_DGRAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        if family == 6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            made.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVHOPLIMIT, 1)
        else:
            made.setsockopt(socket.IPPROTO_IP, IP_RECVTTL, 1)
        made.bind((ip, port))
        made.setblocking(False)
        SOCKETS[family, ip, port] = made
    return SOCKETS[family, ip, port]


def send(port: int, to: Address, text: str, ttl: int, ip: str) -> None:
    if ":" in to[0]:
        made = sock(6, ip, port)
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, ttl)
    else:
        made = sock(4, ip, port)
        made.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
    made.sendto(text.encode(), tuple(to))


def heard(port: int, family: int, ip: str) -> list[Any]:
    found = []
    made = sock(family, ip, port)
    while True:
        try:
            data, ancillary, _, source = made.recvmsg(2000, 100)
        except BlockingIOError:
            return found
        ((_, _, ttl),) = ancillary
        found.append([data.decode(), *source[:2], int.from_bytes(ttl, sys.byteorder)])


if __name__ == "__main__":
    print("ready", flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        answer = {"send": send, "heard": heard}[question.pop("op")](**question)
        print(json.dumps(answer), flush=True)
