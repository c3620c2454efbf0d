"""An emulated link between two hosts of the lab: rate, one-way delay, loss and a bounded queue.

A process of its own with a TAP device in each namespace, so that it shares no interpreter with a
peer.  ``joined`` starts it; ``python link.py --help`` says what it takes.

Rules, the same for both directions:
- a frame waits in a queue of ``queue_bytes``; one that does not fit is dropped, whole (drop tail);
- it takes its bytes (Ethernet header included) / rate on the wire;
- then the wire loses it with a seeded chance: what is lost has cost its time;
- one delay later it arrives.  Nothing is reordered, copied or changed.

Nearly all of its time is spent in the kernel: a write to a TAP device runs the receiving host's
stack up to its socket.  Where a link is too fast for that frame by frame, ``trains`` lets the
kernel hand over up to 64 KB of segments as one (TSO, USO).  Each segment is charged with its
headers; the train arrives when its last segment does, and is dropped whole where it does not fit,
as Linux's own bfifo does.  A train cannot lose a segment, so there are none on lossy links.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import gc
import json
import os
import random
import select
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # it also runs as a script, which takes half a second less than as a module
    from .hosts import SwitchHost

__all__ = ["Direction", "Link", "LinkProcess", "joined", "wire_bytes"]

MTU = 1500
DEVICE = "eth0"
READ_BYTES = 66_000  # a train of 65,535 bytes of IP, its Ethernet and virtio headers
GRAIN_S = 0.00015  # as network cards do: one wake-up for what comes within this time
READS = 64  # frames taken from one side before the other gets its turn

# linux/if_tun.h
TUNSETIFF = 0x400454CA
TUNSETOFFLOAD = 0x400454D0
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_USO4, TUN_F_USO6 = 0x01, 0x02, 0x04, 0x20, 0x40

# linux/virtio_net.h: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset
VIRTIO_HEADER = struct.Struct("=BBHHHH")
CHECKSUM_OFFSET_TCP = 16
UDP_HEADER_BYTES = 8


@dataclass(frozen=True)
class Link:
    rate_bps: float = 0.0
    """Bits per second each way; 0: no limit."""
    delay_s: float = 0.0
    """One way."""
    loss: float = 0.0
    """Chance of a frame to be lost, 0 to 1."""
    queue_bytes: int = 1 << 20
    trains: bool = False
    seed: int = 1


def wire_bytes(frame: bytes) -> int:
    """What a frame (after its virtio header) takes on the wire, every segment with its headers."""
    size = len(frame) - VIRTIO_HEADER.size
    if not frame[1]:
        return size
    _, _, _, segment, start, offset = VIRTIO_HEADER.unpack_from(frame)
    tcp = offset == CHECKSUM_OFFSET_TCP
    transport = (frame[VIRTIO_HEADER.size + start + 12] >> 4) * 4 if tcp else UDP_HEADER_BYTES
    headers: int = start + transport
    return size + headers * ((size - headers - 1) // segment)


class Direction:
    """One way through the link.  No clock and no device: ``take`` frames, ``due`` gives them."""

    def __init__(self, link: Link, seed: str) -> None:
        self._s_per_byte = 8 / link.rate_bps if link.rate_bps else 0.0
        self._queue_s = link.queue_bytes * self._s_per_byte
        self._delay_s = link.delay_s
        self._loss = link.loss
        self._random = random.Random(seed).random
        self._free_at = 0.0  # when the wire has sent what is in the queue
        self._flying: deque[tuple[float, bytes]] = deque()
        self.frames = self.bytes = self.lost = self.overflowed = self.delivered = 0
        self.late_s = self.latest_s = 0.0  # behind their time: all frames together, the worst

    def take(self, frame: bytes, now: float) -> None:
        self.frames += 1
        size = wire_bytes(frame)
        start = self._free_at if self._free_at > now else now
        end = start + size * self._s_per_byte
        if end - now > self._queue_s and self._s_per_byte:
            self.overflowed += 1
            return
        self.bytes += size
        self._free_at = end
        if self._loss and self._random() < self._loss:
            self.lost += 1
        else:
            self._flying.append((end + self._delay_s, frame))

    def due(self, now: float) -> list[bytes]:
        flying, frames = self._flying, []
        if flying and (late_s := now - flying[0][0]) > self.latest_s:
            self.latest_s = late_s
        while flying and flying[0][0] <= now:
            at, frame = flying.popleft()
            self.late_s += now - at
            frames.append(frame)
        self.delivered += len(frames)
        return frames

    def next_due(self) -> float:
        return self._flying[0][0] if self._flying else float("inf")

    def counters(self) -> dict[str, float]:
        """Since the start; ``latest_s`` since the last question."""
        latest_s, self.latest_s = self.latest_s, 0.0
        return {
            "frames": self.frames,
            "bytes": self.bytes,
            "lost": self.lost,
            "overflowed": self.overflowed,
            "delivered": self.delivered,
            "late_s": self.late_s,
            "latest_s": latest_s,
        }


def open_tap(namespace: str, number: int, trains: bool) -> int:
    """A TAP device, moved into ``namespace`` as eth0; it is gone when its descriptor closes."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    name = f"kk{os.getpid()}.{number}"
    request = struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR)
    fcntl.ioctl(fd, TUNSETIFF, request)
    # Checksums stay open, as between the two ends of a veth cable: nothing here damages a frame.
    offload = TUN_F_CSUM | (TUN_F_TSO4 | TUN_F_TSO6 if trains else 0)
    fcntl.ioctl(fd, TUNSETOFFLOAD, offload)
    if trains:
        with contextlib.suppress(OSError):  # Linux before 6.2: UDP comes frame by frame
            fcntl.ioctl(fd, TUNSETOFFLOAD, offload | TUN_F_USO4 | TUN_F_USO6)
    subprocess.run(
        ["ip", "link", "set", name, "netns", namespace, "name", DEVICE, "mtu", str(MTU)], check=True
    )
    return fd


def carry(fds: tuple[int, int], link: Link) -> None:
    """Carry frames until standard input ends; a line there asks for the counters."""
    there, back = Direction(link, f"{link.seed} there"), Direction(link, f"{link.seed} back")
    ways = ((there, fds[1]), (back, fds[0]))
    direction_from = {fds[0]: there, fds[1]: back}
    clock, sleep, write, read = time.monotonic, time.sleep, os.write, os.read
    commands = sys.stdin.fileno()
    watched = (*fds, commands)
    refused = 0
    while True:
        now = clock()
        for direction, sink in ways:
            for frame in direction.due(now):
                try:
                    write(sink, frame)
                except OSError:  # the device is down, or the host's stack will not have it
                    refused += 1
        wait_s = min(there.next_due(), back.next_due()) - clock()
        # select's time-out is in microseconds (epoll's is in milliseconds).
        timeout = None
        if wait_s < float("inf"):
            sleep(GRAIN_S)
            timeout = max(wait_s - GRAIN_S, 0.0)
        for fd in select.select(watched, (), (), timeout)[0]:
            if fd == commands:
                if not os.read(commands, 1):
                    return
                counters = {"there": there.counters(), "back": back.counters()}
                print(json.dumps({**counters, "refused": refused}), flush=True)
                continue
            take = direction_from[fd].take
            with contextlib.suppress(BlockingIOError):  # that was the last one
                for _ in range(READS):
                    take(read(fd, READ_BYTES), clock())


class LinkProcess:
    """The running emulator of a link."""

    def __init__(self, namespaces: tuple[str, str], link: Link) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, *namespaces, json.dumps(asdict(link))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.scheduling = self._answer()["scheduling"]

    def counters(self) -> dict[str, Any]:
        """Per direction (there: from the first host): frames, lost, overflowed, delivered, ..."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self._answer()

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the link ended with status {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        self.process.communicate(timeout=20)


@contextmanager
def joined(one: SwitchHost, two: SwitchHost, link: Link | None) -> Iterator[LinkProcess | None]:
    """Take two hosts off their switch and join them by a link; None: by a veth cable.

    Neighbours are entered by hand and IPv6 is off, so that there is nothing on the wire but what
    the hosts' programs send.
    """
    hosts = (one, two)
    process = None
    for host in hosts:
        host.pull_out()
    if link is None:
        _ip(
            one,
            "link",
            "add",
            DEVICE,
            "type",
            "veth",
            "peer",
            "name",
            DEVICE,
            "netns",
            two.namespace,
        )
    else:
        process = LinkProcess((one.namespace, two.namespace), link)
    try:
        for host, other in ((one, two), (two, one)):
            host.run("sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6")
            _ip(host, "address", "add", f"{host.address}/24", "dev", DEVICE)
            _ip(host, "link", "set", DEVICE, "address", _mac(host), "up")
            _ip(host, "neighbour", "add", other.address, "lladdr", _mac(other), "dev", DEVICE)
        yield process
    finally:
        if process is None:
            _ip(one, "link", "delete", DEVICE)
        else:
            process.close()


def _mac(host: SwitchHost) -> str:
    return f"02:00:00:00:00:{int(host.address.rpartition('.')[2]):02x}"


def _ip(host: SwitchHost, *arguments: str) -> None:
    subprocess.run(["ip", "-n", host.namespace, *arguments], check=True, timeout=20)


def main() -> None:
    parser = argparse.ArgumentParser(description="Join two network namespaces by a link.")
    parser.add_argument("namespaces", nargs=2, metavar="NAMESPACE")
    parser.add_argument("link", type=lambda text: Link(**json.loads(text)), help="Link, as JSON")
    options = parser.parse_args()
    link: Link = options.link
    if link.trains and link.loss:
        parser.error("a train cannot lose a segment: no trains on a lossy link")
    one, two = (
        open_tap(namespace, number, link.trains)
        for number, namespace in enumerate(options.namespaces)
    )
    # A wire does not wait for the processes at its ends: where it may, it goes before them.
    scheduling = "real time"
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except PermissionError:
        scheduling = "normal"
    gc.freeze()
    print(json.dumps({"scheduling": scheduling}), flush=True)
    carry((one, two), link)


if __name__ == "__main__":
    main()
