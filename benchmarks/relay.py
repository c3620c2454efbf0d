"""What the relay paths cost: proxy + relay + the server's descriptor, against direct connections.

"relay" is a plain channel, which the relay splices; "lane" an encrypted one, whose packets it
forwards by UDP; "framed TCP" the same over a TCP connection that the relay splices; "direct p2p"
has the same packets and no relay.

Real processes on the loopback link; the cloud, the serving peer, the proxy and this client are one
process each.  Every ratio compares two measurements of this run, taken in turns.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from .lane_ends import tokens
from .programs import CHUNK, REQUEST
from .redis_server import Redis

PEER = "bench"
CLOUD = ("-m", "kkp2p_compat", "cloud", "--listen", "127.0.0.1:0")
MIB = 1 << 20
# By mode and encryption of the channel, and whether its engine uses TCP only.
WAYS = {"1/0/0": "direct p2p", "2/0/0": "relay", "2/1/0": "lane", "2/1/1": "framed TCP"}
TRAIN_SIZES = (1472, 1200)
ROUNDS = 11  # taken in turns, so that a busy moment of the machine hits all alike
TREE = Path(__file__).parents[1]  # this one


def environment(tree: Path) -> dict[str, str]:
    """Of a process from these sources, which may keep what it has compiled: none compiles anew."""
    given = {**os.environ, "PYTHONPATH": str(tree)}
    given.pop("PYTHONDONTWRITEBYTECODE", None)
    return given


class Program:
    """A process of the benchmark, from the sources in ``tree``.  It ends when its input does."""

    def __init__(
        self, *command: str, folder: Path, within: tuple[str, ...] = (), tree: Path = TREE
    ) -> None:
        self.process = subprocess.Popen(
            [*within, sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=environment(tree),
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args!r} ended with status {self.process.wait()}")
        return line

    def answer(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.line())
        return answer

    def ask(self, what: str, **fields: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": what, **fields}) + "\n")
        self.process.stdin.flush()

    def rss_kb(self) -> int:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") // 1024

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.terminate()
        self.process.wait()
        self.process.stdout.close()


@contextmanager
def started(
    *command: str, folder: Path, within: tuple[str, ...] = (), tree: Path = TREE
) -> Iterator[Program]:
    """``within``: a command that runs this one, as ``ip netns exec NAME`` does."""
    program = Program(*command, folder=folder, within=within, tree=tree)
    try:
        yield program
    finally:
        program.close()


def connect(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), timeout=60)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def request(sock: socket.socket, what: bytes, count: int, data: bytes = b"") -> None:
    sock.sendall(REQUEST.pack(what, count) + data)
    if sock.recv(1) != b"k":
        raise RuntimeError("the connection ended before the answer")


def transfer_mb_s(port: int, what: bytes, size: int) -> float:
    buffer = bytearray(CHUNK)
    with connect(port) as sock:
        request(sock, b"U", 0)  # the connection is there, all the way
        begin = time.perf_counter()
        sock.sendall(REQUEST.pack(what, size))
        left = size
        while left:
            if what == b"U":
                sock.sendall(memoryview(buffer)[: min(CHUNK, left)])
                left -= min(CHUNK, left)
            else:
                got = sock.recv_into(buffer, min(CHUNK, left))
                if not got:
                    raise RuntimeError("the connection ended too early")
                left -= got
        if sock.recv(1) != b"k":
            raise RuntimeError("the connection ended before the answer")
        return size / (time.perf_counter() - begin) / 1e6


def measure_throughput(ports: dict[str, int], cloud: Program, size: int) -> None:
    """One stream, in turns; the ratios are to the first of them, the cloud's cost beside each."""
    base = next(iter(ports))
    for what, name in ((b"U", "upload"), (b"D", "download")):
        rates: dict[str, list[float]] = {key: [] for key in ports}
        cloud_s = dict.fromkeys(ports, 0.0)
        for _ in range(ROUNDS):
            for key, port in ports.items():
                before = cloud.cpu_s()
                rates[key].append(transfer_mb_s(port, what, size))
                cloud_s[key] += cloud.cpu_s() - before
        for key, values in rates.items():
            pairs = sorted(one / other for one, other in zip(values, rates[base], strict=True))
            print(
                f"{name:8} {key:16} {statistics.median(values):7.0f} MB/s"
                f"   ratio {statistics.median(pairs):.2f} ({pairs[0]:.2f} to {pairs[-1]:.2f});"
                f" the cloud: {cloud_s[key] / (ROUNDS * size / 1e9):.2f} CPU s/GB",
                flush=True,
            )


def measure_trains(folder: Path, seconds: float) -> None:
    """What one relay process forwards, beside what the same two programs send each other."""
    ends = ("-m", "benchmarks.lane_ends")
    with ExitStack() as stack:
        redis = Redis(folder, stack)
        relay = ("--role", "relay", "--directory", redis.url, "--log-level", "warning")
        cloud = stack.enter_context(started(*CLOUD, *relay, folder=folder))
        port, key = str(cloud_port(cloud)), redis.relay_key()
        for size in TRAIN_SIZES:
            pairs, costs, rates = [], [], []
            for _ in range(ROUNDS):
                turn = {}
                for name, (caller, callee) in (("direct", ("", "")), ("lane", tokens(key))):
                    before = cloud.cpu_s()
                    with started(*ends, "sink", port, callee, folder=folder) as sink:
                        # A lane's ends find each other at the relay, and both come at once.
                        to = port if caller else str(sink.answer()["port"])
                        sending = (*ends, "send", to, caller, str(size), str(seconds))
                        with started(*sending, folder=folder) as sender:
                            turn[name] = sender.answer()
                costs.append((cloud.cpu_s() - before) / turn["lane"]["gb"])
                rates.append(turn["lane"]["mb_s"])
                pairs.append(rates[-1] / turn["direct"]["mb_s"])
            print(
                f"trains of {size} bytes through a relay {statistics.median(rates):5.0f} MB/s"
                f"   ratio to direct {statistics.median(pairs):.2f}"
                f" ({min(pairs):.2f} to {max(pairs):.2f});"
                f" the relay: {statistics.median(costs):.2f} CPU s/GB"
                f" ({min(costs):.2f} to {max(costs):.2f})",
                flush=True,
            )


def one_request(port: int) -> float:
    begin = time.perf_counter()
    with connect(port) as sock:
        request(sock, b"E", 0)
    return time.perf_counter() - begin


def measure_requests(label: str, port: int, count: int) -> None:
    """New connections, one request each: alone for the latency, 32 at once for the rate."""
    times = sorted(one_request(port) for _ in range(count))
    p50, p99 = times[len(times) // 2], times[len(times) * 99 // 100]
    left = threading.Semaphore(count)

    def work() -> None:
        while left.acquire(blocking=False):
            one_request(port)

    workers = [threading.Thread(target=work) for _ in range(32)]
    begin = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    rate = count / (time.perf_counter() - begin)
    with connect(port) as sock:
        request(sock, b"E", 0)
        trips = []
        for _ in range(count * 5):
            begin = time.perf_counter()
            request(sock, b"E", 0)
            trips.append(time.perf_counter() - begin)
    trips.sort()
    print(
        f"{label:16} connect + request p50 {p50 * 1e3:5.2f} ms, p99 {p99 * 1e3:5.2f} ms;"
        f" {rate:5.0f} connections/s; request on an open one"
        f" p50 {trips[len(trips) // 2] * 1e6:4.0f} us,"
        f" p99 {trips[len(trips) * 99 // 100] * 1e6:4.0f} us",
        flush=True,
    )


def measure_idle_channels(port: int, label: str, programs: dict[str, Program], count: int) -> None:
    """Memory of idle channels: open ``count``, look, open as many again, look at the difference.

    The serving process also has a thread for each, which is the benchmark's and not the engine's:
    it is left out, and the proxy's and the relay's (in the cloud) are shown.
    """
    with ExitStack() as stack:

        def open_channels() -> None:
            for _ in range(count):
                sock = stack.enter_context(connect(port))
                request(sock, b"E", 0)

        open_channels()
        before = {name: program.rss_kb() for name, program in programs.items()}
        open_channels()
        grown = {
            name: (program.rss_kb() - before[name]) / count for name, program in programs.items()
        }
    print(
        f"{label:16} memory per idle channel: "
        + ", ".join(f"{name} {kb:.1f} KB" for name, kb in grown.items()),
        flush=True,
    )


def measure_online(cloud: Program, port: int, secret: str, folder: Path, count: int) -> None:
    before = cloud.rss_kb()
    half = str(count // 2)
    command = ("-m", "benchmarks.programs", "online_peers", str(port), "idle", secret)
    with (
        started(*command, "0", half, folder=folder) as one,
        started(*command, half, half, folder=folder) as two,
    ):
        answers = [one.answer(), two.answer()]
        online = sum(answer["online"] for answer in answers)
        grown = cloud.rss_kb() - before
        cpu, begin = cloud.cpu_s(), time.perf_counter()
        beats_s = 60.0 if count >= 1000 else 2.0
        time.sleep(beats_s)  # the thing measured is what heartbeats cost over this time
        share = (cloud.cpu_s() - cpu) / (time.perf_counter() - begin)
        alive = one.process.poll() is None and two.process.poll() is None
        print(
            f"{online} peers online after {max(answer['seconds'] for answer in answers):.1f} s, "
            f"{'all' if alive else 'NOT all'} still so {beats_s:.0f} s later; "
            f"{grown / online:.1f} KB each in the cloud;"
            f" heartbeats take {share * 100:.1f} % of a core",
            flush=True,
        )


def run(quick: bool) -> None:
    scale = 100 if quick else 1
    secret = secrets.token_urlsafe(12)
    peers = 5000 // scale
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        data = folder / "cloud"
        _make_accounts(data, secret, peers)
        cloud = stack.enter_context(started(*CLOUD, "--data", str(data), *NO_LIMITS, folder=folder))
        port = cloud_port(cloud)
        programs = ("-m", "benchmarks.programs")
        server = stack.enter_context(
            started(*programs, "peer_server", str(port), PEER, secret, folder=folder)
        )
        server.answer()
        proxy = stack.enter_context(
            started(
                *programs, "proxy", str(port), *(f"{PEER}/{way}" for way in WAYS), folder=folder
            )
        )
        ports = dict(zip(WAYS.values(), proxy.answer()["ports"], strict=True))
        plain, sealed = ports["relay"], ports["lane"]
        baseline = stack.enter_context(started(*programs, "tcp_server", folder=folder))
        direct = baseline.answer()["port"]

        print(f"link: loopback; {os.cpu_count()} cores; Python {sys.version.split()[0]}")
        ways = {"direct TCP": direct, **ports}
        measure_throughput(ways, cloud, 256 * MIB // scale)
        measure_trains(folder, 0.3 if quick else 2.0)
        for label, where in ways.items():
            measure_requests(label, where, max(2000 // scale, 100))
        shown = {"engine of the proxy": proxy, "relay": cloud}
        measure_idle_channels(plain, "relay", shown, 1000 // scale)
        measure_idle_channels(sealed, "lane", shown, 1000 // scale)
        measure_online(cloud, port, secret, folder, peers)


# The benchmark is one address that does everything at once.
NO_LIMITS = (
    "--log-level",
    "warning",
    "--messages-per-s",
    "100000",
    "--calls-per-s",
    "100000",
    "--open-calls",
    "10000",
)


def _make_accounts(data: Path, secret: str, peers: int) -> None:
    from kkp2p_compat.cloud.directory_local import LocalDirectory

    accounts = LocalDirectory(data)
    for name in (PEER, *(f"idle{number}" for number in range(peers))):
        accounts.add(name, secret)
    accounts.close()


def cloud_port(cloud: Program) -> int:
    while not (match := re.search(r"127\.0\.0\.1:(\d+)", cloud.line())):
        pass
    return int(match[1])
