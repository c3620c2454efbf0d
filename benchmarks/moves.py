"""Channels that move between paths while they are used, and bad networks: pauses and losses.

Two peers behind port-restricted NATs, 40 ms from each other and from the cloud and its two relays.
Both send numbered records over a stream and, a message each, over a UDP channel, both of the same
connection.  Between the peers there is a wall, which drops everything that they send each other
directly, and can be raised and dropped without a word to anybody.  Needs root.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kkp2p_compat.testing.internet import Internet, InternetHost
from kkp2p_compat.testing.lab import Lab
from kkp2p_compat.testing.nat import NatType
from kkp2p_compat.testing.programs import Run, runner, start_redis

from .agents import Agent
from .nat import print_table

DELAY_S = 0.010  # one way, of each access line
MOVES = 50
PARTS = ("moves", "survival", "networks")
RATE = 200  # records a second, each way, of each channel
BULK = 0
STAY_S = 5.0
CONNECT_MS = 20_000
PATIENCE_S = 120.0  # for a path, and for what is under way
HOLD_S = 0.3  # instead of up to a minute: 50 moves in a row are no flapping here
AFTER_S = 0.3  # what still belongs to a move: a late packet, a probe of the new path
PEER, SECRET = "callee", "a secret"
CLOUD_PORT, RELAY_PORT = "3080", "3082"
KINDS = ("stream", "messages")
CUT_S = 30.0
POLICED_BPS = 1e6
FORGETFUL = NatType(timeout_s=20.0)


class Channel:
    """A channel between the two ends; what is asked of it is asked of both."""

    def __init__(self, scene: Scene, kind: str, mode: int, rate: int, encrypt: int) -> None:
        self.kind = kind
        self.met = scene.caller.do(
            "connect",
            peer_id=PEER,
            mode=mode,
            kind=kind,
            rate=rate,
            timeout_ms=CONNECT_MS,
            encrypt=encrypt,
        )
        if self.met["result"] < 0:
            raise RuntimeError(f"not connected: {self.met}")
        self._ends = scene.caller, scene.callee
        self._number = self.met["number"]
        scene.callee.do("accepted", number=self._number, timeout_s=PATIENCE_S)

    def do(self, op: str, **fields: Any) -> list[dict[str, Any]]:
        for end in self._ends:
            end.ask(op, number=self._number, **fields)
        return [end.answer() for end in self._ends]

    def until(self, *paths: str) -> float:
        """Both ends have one of these paths; when the later one was seen to have it."""
        answers = self.do("until_path", paths=paths, timeout_s=PATIENCE_S)
        if any(answer["at"] is None for answer in answers):
            raise RuntimeError(f"not on {paths}: {answers}")
        return max(answer["at"] for answer in answers)

    def hears(self, more: int) -> None:
        """At both ends this many records arrive from now on."""
        answers = self.do("hears", more=more, timeout_s=PATIENCE_S)
        if any(answer["over"] for answer in answers):
            raise RuntimeError(f"the channel has ended: {answers}")

    def look(self) -> list[dict[str, Any]]:
        return self.do("look")

    def end(self) -> list[dict[str, Any]]:
        """Stop sending, and wait for what is under way: what has come, at the caller's end first.

        Raises if of a stream anything is lost, repeated or wrong.
        """
        sent = [answer["sent"] for answer in self.do("stop")]
        patience_s = PATIENCE_S if self.kind == "stream" else 2.0
        for end, count in zip(self._ends, reversed(sent), strict=True):
            end.ask("drain", number=self._number, sent=count, timeout_s=patience_s)
        ends = [end.answer() for end in self._ends]
        self.do("close")
        bad = [
            one
            for one in ends
            if one["wrong"] or (self.kind == "stream" and (one["lost"] or one["repeated"]))
        ]
        if bad:
            raise RuntimeError(f"not what was sent: {bad}")
        return [{**one, "of": count} for one, count in zip(ends, reversed(sent), strict=True)]


class Cloud:
    """Its track and two relays, each on a host."""

    def __init__(self, run: Run, net: Internet) -> None:
        self._run = run
        self.host = net.host("cloud", addresses=2)
        self.relays = [net.host(f"relay{number}") for number in range(2)]
        self._directory = start_redis(run, self.host)
        self._processes: dict[str, Any] = {}
        for relay in self.relays:
            self.start_relay(relay)
        self.start_track()

    def start_track(self, *options: str) -> None:
        account = ("--account", f"{PEER}:{SECRET}")
        stun = ("--stun-address", self.host.addresses[1])
        self._start(self.host, "track", CLOUD_PORT, "--data", "data", *account, *stun, *options)

    def start_relay(self, host: InternetHost) -> None:
        self._start(host, "relay", RELAY_PORT)

    def _start(self, host: InternetHost, role: str, port: str, *options: str) -> None:
        command = ("-m", "kkp2p_compat", "cloud", "--role", role, "--listen", f"0.0.0.0:{port}")
        self._processes[host.name] = self._run(
            host, port, *command, "--directory", self._directory, "--drain", "0", *options
        )

    def kill(self, host: InternetHost) -> None:
        process = self._processes.pop(host.name)
        process.kill()
        process.communicate()


class Scene:
    """Two peers, their NATs, a cloud and the wall between them."""

    def __init__(self, lab: Lab, run: Run, nat_type: NatType | None = None) -> None:
        self.net = lab.internet(delay_s=DELAY_S)
        self.cloud = Cloud(run, self.net)
        names = ("caller", "callee")
        self.nats = [self.net.nat(f"{name}'s nat", nat_type) for name in names]
        self.hosts = [nat.host(name) for nat, name in zip(self.nats, names, strict=True)]
        self.caller, self.callee = (
            Agent(run, host, "benchmarks.moves_ends") for host in self.hosts
        )

    def start(self, hold_s: float = 0) -> None:
        """``hold_s``: see moves_ends.py."""
        login = self.cloud.host.address
        self.callee.do("start", login=login, peer_id=PEER, secret=SECRET, hold_s=hold_s)
        self.caller.do("start", login=login, hold_s=hold_s)

    def wall(self, up: bool) -> float:
        """Returns when."""
        (self.net.cut_between if up else self.net.mend_between)(*self.hosts)
        return time.monotonic()

    def call(self, kind: str, mode: int = 0, rate: int = RATE, encrypt: int = 0) -> Channel:
        return Channel(self, kind, mode, rate, encrypt)

    def move_caller(self) -> None:
        """Behind another NAT, so to another address inside and outside."""
        self.net.move(self.hosts[0], self.net.nat(f"cafe{time.monotonic_ns()}"))


# The best first, as the log names them.
DIRECT = ("p2p", "p2p over TCP")
RELAYED = ("relay", "relay by TURN", "relay over TCP", "spliced")


@contextmanager
def scene(nat_type: NatType | None = None) -> Iterator[Scene]:
    with (
        tempfile.TemporaryDirectory() as folder,
        runner() as run,
        closing(Lab(Path(folder))) as lab,
    ):
        yield Scene(lab, run, nat_type)


@dataclass
class Pauses:
    """Of some moves in one direction."""

    seconds: list[float] = field(default_factory=list)
    lost: int = 0

    def row(self) -> list[str]:
        ordered = sorted(1000 * one for one in self.seconds)
        p95 = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
        figures = statistics.median(ordered), p95, ordered[-1]
        return [str(len(ordered)), *(f"{one:.0f}" for one in figures)]


class Moving:
    """A stream and messages that move together; ``pauses`` by kind and direction.

    A pause is the longest time without an arrival from when the wall changed until a moment after
    both sides had the new path, of one end of a channel.
    """

    def __init__(self, scene: Scene, kinds: tuple[str, ...] = KINDS) -> None:
        self._scene = scene
        scene.wall(up=True)
        scene.start(HOLD_S)
        self.channels = [scene.call(kind) for kind in kinds]
        self.pauses: dict[tuple[str, str], Pauses] = {}

    def move(self, up: bool, where: str) -> None:
        paths = RELAYED if up else DIRECT
        before = [self._lost(channel) for channel in self.channels]
        self._scene.wall(up)
        for channel in self.channels:
            channel.until(*paths)
        time.sleep(AFTER_S)
        self._note(where, before)

    def stay(self) -> None:
        """The same for a time without a move: what a pause is on this machine anyway."""
        before = [self._lost(channel) for channel in self.channels]
        time.sleep(2 * AFTER_S)
        self._note("no move", before)

    def end(self) -> None:
        for channel in self.channels:
            channel.end()

    def _note(self, where: str, before: list[int]) -> None:
        for channel, lost in zip(self.channels, before, strict=True):
            pauses = self.pauses.setdefault((channel.kind, where), Pauses())
            looks = channel.look()
            pauses.seconds += [look["pause_s"] for look in looks]
            pauses.lost += sum(look["lost"] for look in looks) - lost

    def _lost(self, channel: Channel) -> int:
        """Messages before the last that came; whatever is reordered comes back from it."""
        return sum(look["lost"] for look in channel.look())


def moves(count: int) -> None:
    with scene() as made:
        moving = Moving(made)
        for _ in range(count):
            moving.move(False, "to p2p")
            moving.move(True, "to the relay")
        for _ in range(count // 3):
            moving.stay()
        moving.end()
    rows = [
        [kind, where, *one.row(), str(one.lost)] for (kind, where), one in moving.pauses.items()
    ]
    print_table(["channel", "move", "pauses", "p50 ms", "p95 ms", "most ms", "lost"], rows)


# What a relayed channel survives.  Each happens while both channels are used.


def _nat_starts_anew(scene: Scene) -> None:
    scene.nats[0].reboot(new_address=True)


def _cut(scene: Scene) -> None:
    scene.net.cut(scene.nats[0])
    time.sleep(CUT_S)
    scene.net.mend(scene.nats[0])


def _relay_is_killed(scene: Scene) -> None:
    """That which carries the most; the other lives."""
    carried = scene.net.counters()["carried"]
    used = max(scene.cloud.relays, key=lambda relay: sum(carried.get(relay.name, {}).values()))
    scene.cloud.kill(used)


def _cloud_starts_anew(scene: Scene) -> None:
    scene.cloud.kill(scene.cloud.host)
    scene.cloud.start_track()


EVENTS: dict[str, Callable[[Scene], None]] = {
    "the caller's address changes": Scene.move_caller,
    "the caller's NAT starts anew": _nat_starts_anew,
    f"a cut of {CUT_S:.0f} s": _cut,
    "its relay is killed": _relay_is_killed,
    "the cloud starts anew": _cloud_starts_anew,
}


def survive(scene: Scene, mode: int, *events: str) -> list[list[str]]:
    """By mode 0 with the direct path walled off, or by mode 2, encrypted."""
    scene.wall(up=True)
    scene.start()
    channels = [scene.call(kind, mode, encrypt=mode // 2) for kind in KINDS]
    pauses_s = dict.fromkeys(channels, 0.0)
    for event in events:
        for channel in channels:
            channel.until(*RELAYED)
            channel.hears(RATE)
            channel.look()
        EVENTS[event](scene)
        for channel in channels:
            channel.hears(RATE)
            pause_s = max(look["pause_s"] for look in channel.look())
            pauses_s[channel] = max(pause_s, pauses_s[channel])
    return [[one.kind, f"{pause_s:.2f}", _lost(one.end())] for one, pause_s in pauses_s.items()]


# Networks that are bad in one way.  (The NATs of a scene are set to ``nat_type``.)


@dataclass(frozen=True)
class Bad:
    spoil: Callable[[Scene], object] = lambda scene: None
    nat_type: NatType | None = None
    silence_s: float = 0.0
    """Before a channel is used once more."""


def _block_udp(*sides: int) -> Callable[[Scene], object]:
    def spoil(scene: Scene) -> None:
        for side in sides:
            scene.net.block_udp(scene.nats[side])

    return spoil


def _police(scene: Scene) -> None:
    scene.net.set_line(scene.nats[0], udp_bps=POLICED_BPS)


def _spoil_relays(**line: float) -> Callable[[Scene], None]:
    def spoil(scene: Scene) -> None:
        scene.wall(up=True)
        for relay in scene.cloud.relays:
            scene.net.set_line(relay, **line)

    return spoil


NETWORKS = {
    "nothing is wrong": Bad(),
    "a wall between the two": Bad(lambda scene: scene.wall(up=True)),
    "UDP blocked at the caller": Bad(_block_udp(0)),
    "UDP blocked at the callee": Bad(_block_udp(1)),
    "UDP blocked at both": Bad(_block_udp(0, 1)),
    "UDP policed to 1 Mbit/s at the caller": Bad(_police),
    "NATs forget after 20 s; 25 s of silence": Bad(nat_type=FORGETFUL, silence_s=25.0),
    "MTU 1280 to the relays; a wall": Bad(_spoil_relays(mtu=1280)),
    "5 % of the relays' packets lost; a wall": Bad(_spoil_relays(loss=0.05)),
}


def bear(scene: Scene, mode: int, network: str, stay_s: float = STAY_S) -> list[list[str]]:
    """A stream as fast as it goes, then messages at RATE."""
    bad, rows = NETWORKS[network], []
    bad.spoil(scene)
    scene.start()
    for kind, rate in zip(KINDS, (BULK, RATE), strict=True):
        channel = scene.call(kind, mode, rate)
        began_at = time.monotonic()
        time.sleep(stay_s)  # what comes meanwhile is the thing measured
        look, later = channel.look()[1], channel.do("path")[0]["path"]
        if bad.silence_s:
            channel.do("stop")
            time.sleep(bad.silence_s)
            channel.do("go")
            channel.hears(RATE)
        mb_s = look["bytes"] / (look["at"] - began_at) / 1e6
        connect_ms, pause_ms = 1000 * channel.met["took_s"], 1000 * look["pause_s"]
        rows.append(
            [
                kind,
                f"{connect_ms:.0f}",
                channel.met["path"],
                later,
                f"{mb_s:.2f}",
                f"{pause_ms:.0f}",
                _lost(channel.end()),
            ]
        )
    return rows


def _lost(ends: list[dict[str, Any]]) -> str:
    lost, of = (sum(one[what] for one in ends) for what in ("lost", "of"))
    return f"{lost} of {of}"


def run(quick: bool, only: Sequence[str]) -> None:
    parts = only or PARTS
    if "moves" in parts:
        moves(3 if quick else MOVES)
    if "survival" in parts:
        heads = ["event", "mode", "channel", "pause s", "lost"]
        print_table(heads, _tried(survive, dict.fromkeys(EVENTS)))
    if "networks" in parts:
        heads = ["connect ms", "first path", f"after {STAY_S:.0f} s", "MB/s", "pause ms", "lost"]
        nat_types = {network: bad.nat_type for network, bad in NETWORKS.items()}
        print_table(["network", "mode", "channel", *heads], _tried(bear, nat_types))


def _tried(
    measure: Callable[[Scene, int, str], list[list[str]]], nat_types: dict[str, NatType | None]
) -> list[list[str]]:
    """Each of these in both modes that use relays."""
    rows = []
    for what, nat_type in nat_types.items():
        for mode in (0, 2):
            with scene(nat_type) as made:
                try:
                    measured = measure(made, mode, what)
                except RuntimeError as error:
                    measured = [[f"FAILED: {error}"]]
            for row in measured:
                rows.append([what, str(mode), *row])
                print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
    return rows
