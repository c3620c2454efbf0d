"""Peers whose network changes in mid-transfer: every byte arrives, whatever NATs are in between."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from programs import PORT
from support import SECRET

from kkp2p_compat.testing import nat, programs
from kkp2p_compat.testing.hosts import Host
from kkp2p_compat.testing.internet import Internet
from kkp2p_compat.testing.lab import Lab
from kkp2p_compat.testing.programs import Run, wait_for

PEER = str(Path(__file__).with_name("roam_peer.py"))
BEFORE = re.compile("^moved [0-9]{7,}")


class Peer:
    """A process of roam_peer.py."""

    def __init__(self, run: Run, host: Host, cloud: Host) -> None:
        self.host = host
        self.process: subprocess.Popen[str] = run(host, "ready", PEER, cloud.address, PORT)

    def tell(self, line: str, answer: str = "") -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return wait_for(self.process, answer) if answer else ""

    def wait(self, line: str) -> str:
        return wait_for(self.process, line)


@pytest.fixture
def net(lab: Lab) -> Internet:
    return lab.internet(delay_s=0.005)


@pytest.fixture
def cloud(net: Internet, run: Run) -> Host:
    host = net.host("cloud")
    programs.start_cloud(run, host, "--account", f"peer:{SECRET}")
    return host


def test_x(net, cloud, run):
    homes = {name: net.nat(name, nat.PORT_RESTRICTED) for name in ("a", "b", "c", "d")}
    caller = Peer(run, homes["a"].host("caller"), cloud)
    callee = Peer(run, homes["b"].host("callee"), cloud)
    callee.tell(f"join peer {SECRET}", "joined 0")
    print(caller.tell("call peer 1", "call 0 1"))
    for p in (caller, callee): p.wait("moved")
    def show(tag):
        at = time.monotonic()
        print(tag)
        for p in (caller, callee):
            p.tell("end")
        for p in (caller, callee):
            while True:
                line = p.wait(".")
                if line.startswith("gap"):
                    print(p.host.name, line, float(line.split()[-1]) - at)
                if line.startswith(("same", "broken", "differs")):
                    print(p.host.name, line)
                    p.wait("ended")
                    break
    import os
    what = os.environ["WHAT"]
    if "r" in what: net.move(caller.host, homes["c"])
    if "e" in what: net.move(callee.host, homes["d"])
    if "R" in what: homes["a"].reboot(True)
    if "E" in what: homes["b"].reboot(True)
    try:
        show(what)
    finally:
        for p in (caller, callee):
            print("=== ", p.host.name)
            print((p.host.folder / "kkp2p_engine.log").read_text())
