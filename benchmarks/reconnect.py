"""How peers come back when their cloud was away: a storm of reconnects, and what it costs.

Peers stay online by CloudClient, as those of engines do, some hundred in each of a few processes.
The cloud is killed and started again on the same port.  Printed: how many came back in each second
since the new cloud listens, when 95 % and all were, how many tries had failed, and the memory and
descriptors of the cloud.  All on one machine: the peers' half of each TLS handshake and SCRAM costs
more than the cloud's, and takes its processor time.
"""

from __future__ import annotations

import os
import secrets
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

from .relay import NO_LIMITS, Program, _make_accounts, cloud_port, started

PROCESSES = 4
OUTAGES_S = (0.0, 20.0)  # a restart, and time enough for the pauses to have grown
GIVE_UP_S = 120.0


class Crowd:
    """The peers of one process, and what it tells of them."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self.count = int(program.answer()["online"])
        self.news = [(0.0, self.count, 0)]  # when, how many online, failures so far
        self.changed = threading.Condition()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                answer = self._program.answer()
            except (RuntimeError, ValueError):  # the benchmark has ended it
                return
            with self.changed:
                self.news.append((answer["at"], answer["online"], answer["failures"]))
                self.changed.notify()

    def wait_for(self, online: int, until: float) -> None:
        with self.changed:
            while self.news[-1][1] != online:
                if not self.changed.wait(until - time.monotonic()):
                    raise RuntimeError(f"{self.news[-1][1]} online instead of {online}")

    def online_at(self, when: float) -> int:
        return [online for at, online, _ in self.news if at <= when][-1]


def storm(crowds: list[Crowd], listens: float) -> None:
    """Wait until all are back, and print how they came."""
    total = sum(crowd.count for crowd in crowds)
    failed = sum(crowd.news[-1][2] for crowd in crowds)
    for crowd in crowds:
        crowd.wait_for(crowd.count, listens + GIVE_UP_S)
    seconds = [0]
    while seconds[-1] < total:
        when = listens + len(seconds)
        seconds.append(sum(crowd.online_at(when) for crowd in crowds))
    came = [after - before for before, after in pairwise(seconds)]
    times = sorted(at for crowd in crowds for at, _, _ in crowd.news if at > listens)
    enough = next(
        at for at in times if sum(crowd.online_at(at) for crowd in crowds) >= 0.95 * total
    )
    failed = sum(crowd.news[-1][2] for crowd in crowds) - failed
    print(f"  back in each second: {' '.join(map(str, came))}")
    print(
        f"  95 % after {enough - listens:.1f} s, all after {times[-1] - listens:.1f} s;"
        f" {failed / total:.2f} failed tries each, the outage included",
        flush=True,
    )


def descriptors(cloud: Program) -> int:
    return len(os.listdir(f"/proc/{cloud.process.pid}/fd"))


def show(cloud: Program, when: str) -> None:
    print(
        f"  cloud {when}: {cloud.rss_kb() / 1024:.0f} MB, {descriptors(cloud)} descriptors,"
        f" {cloud.cpu_s():.1f} s of processor time so far",
        flush=True,
    )


def run(quick: bool) -> None:
    peers = 100 if quick else 2000
    outages_s = (0.0,) if quick else OUTAGES_S
    secret = secrets.token_urlsafe(12)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        data = folder / "cloud"
        _make_accounts(data, secret, peers)
        options = ("--data", str(data), *NO_LIMITS)
        listen = "127.0.0.1:0"

        def start_cloud() -> tuple[Program, int]:
            command = ("-m", "kkp2p_compat", "cloud", "--listen", listen, *options)
            program = stack.enter_context(started(*command, folder=folder))
            return program, cloud_port(program)

        print(f"link: loopback; {os.cpu_count()} cores; Python {sys.version.split()[0]}")
        cloud, port = start_cloud()
        listen = f"127.0.0.1:{port}"
        show(cloud, "alone")
        alone = descriptors(cloud)
        share = peers // PROCESSES
        with ExitStack() as peers_stack:
            programs = [
                peers_stack.enter_context(
                    started(
                        "-m",
                        "benchmarks.programs",
                        "storm_peers",
                        str(port),
                        "idle",
                        secret,
                        str(number * share),
                        str(share),
                        folder=folder,
                    )
                )
                for number in range(PROCESSES)
            ]
            crowds = [Crowd(program) for program in programs]
            print(f"{peers} peers online")
            show(cloud, "with all online")
            for outage_s in outages_s:
                print(f"killed, and away for {outage_s:.0f} s")
                cloud.process.kill()
                for crowd in crowds:
                    crowd.wait_for(0, time.monotonic() + GIVE_UP_S)
                time.sleep(outage_s)  # the outage is the thing measured
                cloud, _ = start_cloud()
                storm(crowds, time.monotonic())
                show(cloud, "with all back")
        until = time.monotonic() + GIVE_UP_S
        while descriptors(cloud) > alone and time.monotonic() < until:
            time.sleep(0.1)  # nothing tells when another process has closed something
        show(cloud, "when all have gone")
