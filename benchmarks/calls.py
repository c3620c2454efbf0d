"""Many calls at once against one engine behind one NAT: how long they take, and what they cost.

The callee is behind a port-restricted NAT of the lab, the callers are engines of their own behind a
few such NATs, 10 ms away from the middle of the internet.  All call at the same time, send a byte
there and back, and keep the channel until all have one; then all is closed.  That is done by mode 1
(p2p only) and by auto, in turns.  Printed are the times of set-up, and what the callee's process
had before, during and after: memory, descriptors, processor time.  Needs root.

All on one machine: the callers' half of each call costs as much as the callee's, the lab carries
each packet in Python, and all of it takes processor time from the callee.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from kkp2p_compat.testing import nat
from kkp2p_compat.testing.lab import Lab
from kkp2p_compat.testing.miniupnpd import PUBLIC
from kkp2p_compat.testing.programs import CLOUD_PORT, Run, runner

from .agents import Agent

DELAY_S = 0.010
TIMEOUT_MS = 60_000
SETTLE_S = 75.0  # how long it may take until nothing is left of what was closed
ENDS = "benchmarks.calls_ends"
PEER, SECRET = "callee", "a secret"
MODES = {"p2p": 1, "auto": 0}


class Usage:
    """Of a process, now."""

    def __init__(self, pid: int) -> None:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        self.cpu_s = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        self.mb = int(fields[21]) * os.sysconf("SC_PAGE_SIZE") / 2**20
        self.descriptors = len(os.listdir(f"/proc/{pid}/fd"))
        self.threads = len(os.listdir(f"/proc/{pid}/task"))

    def __str__(self) -> str:
        return f"{self.mb:.0f} MB, {self.descriptors} descriptors, {self.cpu_s:.1f} s of processor"


class Crowd:
    """A callee, and callers behind ``nats`` NATs, ``engines`` of them in each of their programs."""

    def __init__(self, lab: Lab, run: Run, nats: int, programs: int, engines: int) -> None:
        net = lab.internet(delay_s=DELAY_S, public=PUBLIC)
        cloud = net.host("cloud", addresses=2)
        self._world = net.process.pid
        process = run(
            cloud,
            CLOUD_PORT,
            "-m",
            "kkp2p_compat",
            "cloud",
            "--data",
            "data",
            "--listen",
            f"0.0.0.0:{CLOUD_PORT}",
            "--account",
            f"{PEER}:{SECRET}",
            "--stun-address",
            cloud.addresses[1],
        )
        assert process.stdout is not None
        threading.Thread(target=process.stdout.read, daemon=True).start()  # or its log gets stuck
        self._cloud = process.pid
        self.login = cloud.address
        self.callee = Agent(run, net.nat("home", nat.PORT_RESTRICTED).host("callee"), ENDS)
        self.callee.do("join", login=self.login, peer_id=PEER, secret=SECRET)
        self._ends: list[Agent] = []
        for number in range(nats):
            box = net.nat(f"nat{number}", nat.PORT_RESTRICTED)
            hosts = [box.host(f"c{number}x{each}") for each in range(programs)]
            self._ends += [Agent(run, host, ENDS) for host in hosts]
        self._engines = engines

    def usage(self) -> Usage:
        return Usage(self.callee.pid)

    def cpu_s(self) -> dict[str, float]:
        """Of all that takes part: what the machine is busy with."""
        callers = sum(Usage(end.pid).cpu_s for end in self._ends)
        return {
            "callee": self.usage().cpu_s,
            "callers": callers,
            "cloud": Usage(self._cloud).cpu_s,
            "lab": Usage(self._world).cpu_s,
        }

    def start(self) -> None:
        """Engines that know their NAT: what is measured is calls, not the start of programs.

        One program after the other: on a machine that is too busy packets get lost.
        """
        for end in self._ends:
            end.do("start", login=self.login, count=self._engines)

    def call(self, mode: int) -> list[dict[str, Any]]:
        answers = self._all("call", peer_id=PEER, mode=mode, timeout_ms=TIMEOUT_MS)
        return [call for answer in answers for call in answer["calls"]]

    def close(self) -> dict[str, Any]:
        """All channels and links; what the callee has when nothing changes any more."""
        self._all("close")
        self.callee.do("close")
        self._all("part")
        until = time.monotonic() + SETTLE_S
        while any((state := self.callee.do("state")).values()) and time.monotonic() < until:
            time.sleep(0.1)  # nothing tells a program of it
        return state

    def _all(self, op: str, **fields: Any) -> list[dict[str, Any]]:
        for end in self._ends:
            end.ask(op, **fields)
        return [end.answer() for end in self._ends]


def show(calls: Sequence[dict[str, Any]]) -> None:
    good = [call for call in calls if call["result"] == 0]
    failed = Counter(call["result"] for call in calls if call["result"] != 0)
    paths = Counter(call["path"] for call in good)
    print(f"  {len(good)} of {len(calls)} connected: {dict(paths)}; failed: {dict(failed)}")
    times = sorted(1000 * call["took_s"] for call in good)
    if times:
        p95 = times[min(len(times) - 1, int(0.95 * len(times)))]
        print(f"  p50 {statistics.median(times):.0f} ms, p95 {p95:.0f} ms, last {times[-1]:.0f} ms")


def run(quick: bool, rounds: int = 2) -> None:
    nats, programs, engines = (2, 1, 10) if quick else (5, 5, 20)
    print(f"{os.cpu_count()} cores; Python {sys.version.split()[0]}")
    with (
        tempfile.TemporaryDirectory() as folder,
        runner() as start,
        closing(Lab(Path(folder))) as lab,
    ):
        crowd = Crowd(lab, start, nats, programs, engines)
        began = time.monotonic()
        crowd.start()
        print(f"{nats * programs * engines} engines started in {time.monotonic() - began:.1f} s")
        print(f"callee at the beginning: {crowd.usage()}", flush=True)
        for number in range(1, rounds + 1):
            for name, mode in MODES.items():
                before, began = crowd.cpu_s(), time.monotonic()
                calls = crowd.call(mode)
                took_s = time.monotonic() - began
                used = {who: round(cpu_s - before[who], 1) for who, cpu_s in crowd.cpu_s().items()}
                print(f"round {number}, {name}: all in {took_s:.1f} s; processor seconds: {used}")
                show(calls)
                print(f"  callee with all connected: {crowd.usage()}", flush=True)
                left = crowd.close()
                print(f"  callee after: {crowd.usage()}; left: {left}", flush=True)


if __name__ == "__main__":
    run("--quick" in sys.argv)
