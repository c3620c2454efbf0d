"""The process that carries the packets of an ``Internet`` between the devices of its hosts.

``python -m kkp2p_compat.testing.world_process SETTINGS`` with the arguments of ``world.World`` as
JSON.  Each line of its standard input is a command, {"op": name, ...}; each has one line as its
answer, {"value": ...} or {"error": text}.  It ends with its standard input.

Each host has a TUN device: IP packets without Ethernet.  A TAP device would add ARP, neighbour
discovery and MAC addresses, which play no part beyond a NAT and would be noise in every count here.
Tests about Ethernet itself use the lab's switch (``Lab.host``).
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import gc
import json
import os
import select
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from .nat import NatType
from .world import TRACE_LINES, World

__all__ = ["main"]

READ_BYTES = 65_536  # the largest IP packet
READS = 64  # packets taken from one host before the next gets its turn

# linux/if_tun.h
TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000


def open_tun(namespace: str, device: str, number: int) -> int:
    """A TUN device, moved into ``namespace``; it is gone when its descriptor closes."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    name = f"kt{os.getpid()}.{number}"
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    subprocess.run(["ip", "link", "set", name, "netns", namespace, "name", device], check=True)
    return fd


class WorldProcess:
    def __init__(self, world: World) -> None:
        self._world = world
        self._hosts: dict[int, str] = {}  # by the device's descriptor
        self._devices: dict[str, int] = {}
        self._refused = 0  # packets that a device did not take: it is down, or its host is gone
        self._poll = select.epoll()
        self._input = sys.stdin.fileno()
        self._poll.register(self._input, select.EPOLLIN)
        self._line = b""
        self._commands: dict[str, Callable[..., object]] = {
            "host": self._add_host,
            "nat": self._add_nat,
            "become": self._become,
            "set": self._set,
            "trace": self._trace,
            "counters": lambda: {**world.counters(), "refused": self._refused},
            "addresses": world.set_addresses,
            "cut": world.cut,
            "cut_between": world.cut_between,
            "block_udp": world.block_udp,
            "line": world.set_line,
            "age": world.age,
            "flying": world.flying,
            "reboot": world.reboot,
            "bindings": world.bindings,
        }

    def run(self) -> None:
        world, clock, write = self._world, time.monotonic, os.write
        while True:
            for name, packet in world.due(clock()):
                try:
                    write(self._devices[name], packet)
                except OSError:
                    self._refused += 1
            wait_s = world.next_due() - clock()
            timeout = max(wait_s, 0.0) if wait_s < float("inf") else None
            for fd, _ in self._poll.poll(timeout):
                if fd != self._input:
                    self._read(fd)
                elif not self._read_commands():
                    return

    def _read(self, fd: int) -> None:
        name, take, clock = self._hosts[fd], self._world.take, time.monotonic
        try:
            for _ in range(READS):
                take(name, os.read(fd, READ_BYTES), clock())
        except BlockingIOError:  # that was the last one
            pass
        except OSError:  # its namespace is gone, and the device with it
            self._poll.unregister(fd)

    def _read_commands(self) -> bool:
        data = os.read(self._input, READ_BYTES)
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            command = json.loads(line)
            try:
                answer = {"value": self._commands[command.pop("op")](**command)}
            except (ValueError, KeyError, OSError, subprocess.CalledProcessError) as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(answer), flush=True)
        return bool(data)

    def _add_host(self, name: str, namespace: str, device: str, **fields: Any) -> None:
        fd = open_tun(namespace, device, len(self._hosts))
        self._world.add_host(name, **fields)
        self._hosts[fd], self._devices[name] = name, fd
        self._poll.register(fd, select.EPOLLIN)

    def _add_nat(self, nat_type: dict[str, Any], **fields: Any) -> None:
        self._world.add_nat(**fields, nat_type=_nat_type(nat_type))

    def _become(self, name: str, nat_type: dict[str, Any]) -> None:
        self._world.become(name, _nat_type(nat_type))

    def _set(self, **fields: float) -> None:
        for name, value in fields.items():
            setattr(self._world, name, value)

    def _trace(self, on: bool) -> list[str]:
        """What was noted until now; and whether to go on."""
        lines = list(self._world.trace or ())
        self._world.trace = deque(maxlen=TRACE_LINES) if on else None
        return lines


def _nat_type(fields: dict[str, Any]) -> NatType:
    return NatType(**{**fields, "ports": tuple(fields["ports"])})


def main() -> None:
    parser = argparse.ArgumentParser(description="Carry packets between network namespaces.")
    parser.add_argument("settings", type=json.loads, help="of world.World, as JSON")
    process = WorldProcess(World(**parser.parse_args().settings))
    # The internet does not wait for the processes at its ends: where it may, it goes before them.
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    gc.freeze()
    print(json.dumps({"value": "ready"}), flush=True)
    process.run()


if __name__ == "__main__":
    main()
