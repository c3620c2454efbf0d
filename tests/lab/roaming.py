"""What the tests of roaming and of cuts have in common: peers of ``roam_peer.py``, and how long
they were without each other."""

from __future__ import annotations

import itertools
import re
import subprocess
import time
from pathlib import Path

from programs import PORT

from kkp2p_compat.testing import programs
from kkp2p_compat.testing.hosts import Host
from kkp2p_compat.testing.programs import Run, wait_for

__all__ = ["Peer", "Transfer", "start_cloud"]

PEER = str(Path(__file__).with_name("roam_peer.py"))
SECRET = "secret"

_numbers = itertools.count(1)


def start_cloud(run: Run, host: Host, *options: str) -> subprocess.Popen[str]:
    """It knows ``peer0`` to ``peer9``."""
    accounts = [word for n in range(10) for word in ("--account", f"peer{n}:{SECRET}")]
    return programs.start_cloud(run, host, *accounts, *options)


class Peer:
    """A process of ``roam_peer.py``."""

    def __init__(self, run: Run, host: Host, cloud: Host) -> None:
        self.host = host
        self.process: subprocess.Popen[str] = run(host, "ready", PEER, cloud.address, PORT)

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def wait(self, line: str) -> str:
        """The next line that begins so; what comes before it is not seen again."""
        return wait_for(self.process, f"^{line}").strip()

    def join(self, peer_id: str) -> Peer:
        self.tell(f"join {peer_id} {SECRET}")
        self.wait("joined 0")
        return self

    def call(self, peer_id: str, mode: int = 1) -> None:
        self.tell(f"call {peer_id} {mode}")
        self.wait(f"call 0 {mode or ''}")

    def log(self) -> str:
        return (self.host.folder / "kkp2p_engine.log").read_text()


class Transfer:
    """Both sides send to each other, on one channel."""

    def __init__(self, caller: Peer, callee: Peer, peer_id: str, mode: int = 1) -> None:
        self.sides = caller, callee
        callee.join(peer_id)
        caller.call(peer_id, mode)
        for side in self.sides:
            side.wait("moved")

    def passes(self, what: str) -> None:
        """What is sent from now on arrives, both ways; says how long nothing came."""
        began_at, number = time.monotonic(), next(_numbers)
        for side in self.sides:
            side.tell(f"mark {number}")
        for side in self.sides:
            gap = ""
            while not (line := side.wait("mark|gap|broken")).startswith("mark"):
                assert not line.startswith("broken"), (side.host.name, what)
                gap = line
            assert line == f"mark {number}"
            until = re.search("until ([0-9.]+)", gap)
            late_s = float(until[1]) - began_at if until else 0.0
            print(f"{what}: {side.host.name}: {gap or 'no gap'}, {late_s:.2f} s after")

    def end(self) -> None:
        began_at = time.monotonic()
        for side in self.sides:
            side.tell("end")
        for side in self.sides:
            line = side.wait("same|differs|broken")
            assert line.startswith("same"), line
            print(f"{side.host.name}: {line}, {time.monotonic() - began_at:.2f} s after the end began")
            side.wait("ended")
