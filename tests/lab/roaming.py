"""What the tests of roaming and of cuts have in common: peers of ``roam_peer.py``, and how long
they were without each other."""

from __future__ import annotations

import itertools
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kkp2p_compat.testing.hosts import Host
from kkp2p_compat.testing.internet import Internet
from kkp2p_compat.testing.lab import Lab
from kkp2p_compat.testing.programs import Run, wait_for
from programs import PORT

__all__ = [
    "Cloud",
    "MakePeer",
    "Peer",
    "Transfer",
    "cloud",
    "cloud_options",
    "make_peer",
    "net",
    "since_text",
]

PEER = str(Path(__file__).with_name("roam_peer.py"))
SECRET = "secret"
AGAIN_S = 0.2  # before somebody who is not online is called again

_numbers = itertools.count(1)


class Cloud:
    """On a host; it knows ``peer0`` to ``peer9``."""

    def __init__(self, run: Run, host: Host) -> None:
        self.host = host
        self._run = run
        self._process: subprocess.Popen[str]

    def start(self, *options: str) -> None:
        accounts = [word for n in range(10) for word in ("--account", f"peer{n}:{SECRET}")]
        cloud = ("-m", "kkp2p_compat", "cloud", "--data", "data", "--listen", f"0.0.0.0:{PORT}")
        self._process = self._run(self.host, PORT, *cloud, *accounts, *options)

    def wait(self, line: str) -> None:
        wait_for(self._process, line)

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


class Peer:
    """A process of ``roam_peer.py``."""

    def __init__(self, run: Run, host: Host, cloud: Cloud) -> None:
        self.host = host
        self.numbers = itertools.count()  # of the channels
        self.process: subprocess.Popen[str] = run(host, "ready", PEER, cloud.host.address, PORT)

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

    def call(self, peer_id: str, mode: int = 1, timeout_ms: int = 20_000, encrypt: int = 0) -> str:
        self.tell(f"call {peer_id} {mode} {timeout_ms} {encrypt}")
        return self.wait("call ")

    def call_until(self, peer_id: str, mode: int = 1, encrypt: int = 0) -> None:
        """As soon as the peer is reachable (again)."""
        began_at = time.monotonic()
        while not (said := self.call(peer_id, mode, encrypt=encrypt)).startswith(f"call 0 {mode}"):
            print(self.host.name, said)
            time.sleep(AGAIN_S)
        print(f"{self.host.name}: {said}, {time.monotonic() - began_at:.2f} s after the first call")

    def send_signal(self, number: int) -> None:
        self.process.send_signal(number)

    def log(self) -> str:
        return (self.host.folder / "kkp2p_engine.log").read_text()


MakePeer = Callable[..., Peer]


class Transfer:
    """Both sides send to each other, on one channel."""

    def __init__(
        self,
        caller: Peer,
        callee: Peer,
        peer_id: str,
        mode: int = 1,
        encrypt: int = 0,
        *,
        is_called: bool = False,
    ) -> None:
        self.sides = caller, callee
        self.peer_id = peer_id
        if not is_called:
            caller.call_until(peer_id, mode, encrypt)
        callee.wait(f"accepted {mode}")
        self._broken = [f"broken {next(side.numbers)} " for side in self.sides]
        self.moves()

    def moves(self) -> None:
        for side in self.sides:
            side.wait("moved")

    def passes(self, what: str, since: float | None = None) -> None:
        """What is sent from now on arrives, both ways; says how long nothing came."""
        began_at, number = since or time.monotonic(), next(_numbers)
        for side in self.sides:
            side.tell(f"mark {number}")
        for side, broken in zip(self.sides, self._broken, strict=True):
            gap = ""
            while not (line := side.wait(f"mark|gap|{broken}")).startswith("mark"):
                assert not line.startswith("broken"), (side.host.name, what)
                gap = line
            assert line == f"mark {number}"
            until = re.search("until ([0-9.]+)", gap)
            late_s = float(until[1]) - began_at if until else 0.0
            print(f"{what}: {side.host.name}: {gap or 'no gap'}, {late_s:.2f} s after")

    def breaks(self, what: str, since: float) -> None:
        """Both sides get to know that it is a cut, and no end."""
        for side, broken in zip(self.sides, self._broken, strict=True):
            *_, code, _, at = side.wait(broken).split()
            assert code == "-107", (what, side.host.name)
            print(f"{what}: {side.host.name} hears of it {float(at) - since:.1f} s after")

    def end(self) -> None:
        for side in self.sides:
            side.tell("end")
        for side in self.sides:
            line = side.wait("same|differs|broken")
            assert line.startswith("same"), line
            side.wait("ended")


def since_text(at: float) -> str:
    return f"{time.monotonic() - at:.1f} s after"


@pytest.fixture
def net(lab: Lab) -> Internet:
    return lab.internet(delay_s=0.005)


@pytest.fixture
def cloud_options() -> tuple[str, ...]:
    return ()


@pytest.fixture
def cloud(net: Internet, run: Run, cloud_options: tuple[str, ...]) -> Cloud:
    made = Cloud(run, net.host("cloud"))
    made.start(*cloud_options)
    return made


@pytest.fixture
def make_peer(run: Run, cloud: Cloud) -> Iterator[MakePeer]:
    """On a host, logged in under an id if there is one; their logs are shown if a test fails."""
    made: list[Peer] = []

    def make(host: Host, peer_id: str = "") -> Peer:
        made.append(Peer(run, host, cloud))
        return made[-1].join(peer_id) if peer_id else made[-1]

    yield make
    for peer in made:
        print(peer.host.name, peer.log())
