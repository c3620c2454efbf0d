"""What attacks do to others: a figure while all is quiet, the same under attack, and their ratio.

A real cloud that holds its limits against loopback, too (``--limit-loopback``); the attacker and
whoever measures are processes of their own.  An attack is a program of hostile_ends.py and the
figure that it should not touch; to add one, add an entry to ATTACKS.
"""

from __future__ import annotations

import os
import secrets
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from .relay import CLOUD, Program, cloud_port, started

ACCOUNT, VICTIM = "good", "victim"  # with one secret


class Scene(NamedTuple):
    """A cloud that has the accounts ACCOUNT and VICTIM."""

    folder: Path
    cloud: Program
    port: int
    secret: str

    def end(self, name: str, *arguments: object) -> Program:
        """A program of hostile_ends.py."""
        command = ("-m", "benchmarks.hostile_ends", name, str(self.port), *map(str, arguments))
        return Program(*command, folder=self.folder)


class Attack(NamedTuple):
    """``figure`` measures for so many seconds, and is told by ``unit``."""

    what: str
    program: str
    arguments: tuple[object, ...]
    figure: Callable[[Scene, float], float]
    unit: str


def worst_route_ms(scene: Scene, seconds: float) -> float:
    """The worst of somebody else's connects and first answers, from another address."""
    return measured(scene, "routes", seconds)


def worst_beat_ms(scene: Scene, seconds: float) -> float:
    """The worst of a logged-in peer's heartbeats, from another address."""
    return measured(scene, "beats", seconds, ACCOUNT, scene.secret)


def worst_stun_ms(scene: Scene, seconds: float) -> float:
    """The worst of somebody else's STUN requests, each sent again after half a second."""
    return measured(scene, "stun", seconds)


def worst_login_ms(scene: Scene, seconds: float) -> float:
    """The worst of an account's logins, from the attacker's own address."""
    return measured(scene, "logins", seconds, ACCOUNT, scene.secret)


def connect_ms(scene: Scene, seconds: float) -> float:
    """The 95th percentile of connects to a peer, from that peer's own address."""
    return measured(scene, "connects", seconds, ACCOUNT, scene.secret, figure="p95_ms")


def measured(scene: Scene, program: str, *arguments: object, figure: str = "worst_ms") -> float:
    end = scene.end(program, *arguments)
    try:
        answer = end.answer()
        if answer.get("failed"):
            print(f"    {answer['failed']} of {answer['of']} failed", flush=True)
        return float(answer[figure])
    finally:
        end.close()


ATTACKS = {
    "text": Attack(
        "one text in each long line", "lines", ("text", 200), worst_route_ms, "ms, connect + route"
    ),
    "floats": Attack(
        "lines of numbers, 200 connections",
        "lines",
        ("floats", 200),
        worst_route_ms,
        "ms, connect + route",
    ),
    "surrogates": Attack(
        "numbers and escaped texts, 200 connections",
        "lines",
        ("surrogates", 200),
        worst_route_ms,
        "ms, connect + route",
    ),
    "call-floats": Attack(
        "the same in calls, which may be long",
        "lines",
        ("call-floats", 200),
        worst_route_ms,
        "ms, connect + route",
    ),
    "calls": Attack(
        "250 calls/s to a peer by a stranger who never comes to the relay",
        "calls",
        (250, 1),
        connect_ms,
        "ms, connect to that peer, p95",
    ),
    "many-calls": Attack("the same, 2,000/s", "calls", (2000, 1), connect_ms, "ms, p95"),
    "calls-of-many": Attack(
        "the same, 2,000/s, from 200 addresses", "calls", (2000, 200), connect_ms, "ms, p95"
    ),
    "call-beats": Attack("the same", "lines", ("call-floats", 200), worst_beat_ms, "ms, heartbeat"),
    "hold": Attack(
        "2,000 connections that say nothing", "hold", (2000,), worst_route_ms, "ms, connect + route"
    ),
    "stun": Attack(
        "20,000 datagrams of garbage a second", "flood", (), worst_stun_ms, "ms, STUN answer"
    ),
    "guess": Attack(
        "guesses at an account, 20 at a time",
        "guess",
        (VICTIM, 20),
        worst_login_ms,
        "ms, login of another account from that very address",
    ),
}


def run(quick: bool, only: list[str]) -> None:
    seconds = 2.0 if quick else 10.0
    print(f"link: loopback; {os.cpu_count()} cores; Python {sys.version.split()[0]}")
    for name in only or ATTACKS:
        with tempfile.TemporaryDirectory() as folder:
            _run_one(name, ATTACKS[name], Path(folder), seconds)


def _run_one(name: str, attack: Attack, folder: Path, seconds: float) -> None:
    secret = secrets.token_urlsafe(12)
    accounts = (f"--account={account}:{secret}" for account in (ACCOUNT, VICTIM))
    options = ("--data", str(folder / "cloud"), *accounts)
    with ExitStack() as stack:
        command = (*CLOUD, *options, "--limit-loopback", "--log-level", "warning")
        cloud = stack.enter_context(started(*command, folder=folder))
        scene = Scene(folder, cloud, cloud_port(cloud), secret)
        quiet = attack.figure(scene, seconds)
        attacker = scene.end(attack.program, *attack.arguments)
        stack.callback(attacker.close)
        attacker.answer()  # it is at work
        before = cloud.cpu_s()
        under = attack.figure(scene, seconds)
        print(
            f"  {name}: {attack.what}\n    quiet {quiet:.1f}, under attack {under:.1f}"
            f" {attack.unit}; ratio {under / quiet:.1f};"
            f" cloud {(cloud.cpu_s() - before) / seconds:.0%} of a core",
            flush=True,
        )
