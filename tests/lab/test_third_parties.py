"""What a third party gets when strangers call an engine and name it: packets, counted on the way.

Proven elsewhere, each by itself: forged, replayed and reflected checks (test_check_table.py of
traversal/), lists that are long, malformed or name addresses that are no peer's
(test_candidates.py, test_checks_bounds.py), guesses (test_guesses.py, test_punch.py), all calls
together (test_courtesy.py), lies of a STUN server (test_nat_discovery.py); what a live engine does
with all that (engine/calls/test_hostile_callers.py); STUN reflection by the cloud
(cloud/test_stun.py).
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

import pytest

from helpers.support import ROOT, SECRET
from kkp2p_compat.testing import nat
from kkp2p_compat.testing.internet import Internet, InternetHost
from kkp2p_compat.testing.lab import Lab
from kkp2p_compat.testing.nat import NatType
from kkp2p_compat.testing.programs import Run, output_of, start_cloud, wait_for
from kkp2p_compat.traversal.checks import MAX_PORTS_PER_IP, MAX_PROBES_PER_ADDRESS
from kkp2p_compat.traversal.courtesy import PER_IP, PER_IP_PER_S

LIMIT_S = 240
ATTACKER = str(ROOT / "tests" / "lab" / "attacker.py")
LIAR = str(ROOT / "tests" / "lab" / "liar.py")
LIED_TO = str(ROOT / "tests" / "lab" / "lied_to.py")
PEER = "callee"
CHECKS = MAX_PORTS_PER_IP * MAX_PROBES_PER_ADDRESS  # of one call, to one ip

APDM = nat.ADDRESS_AND_PORT_DEPENDENT
RANDOM = {"mapping": APDM, "filtering": APDM, "allocation": "random"}
SEQUENTIAL = {"mapping": APDM, "filtering": APDM, "allocation": "sequential", "step": 1}
SPREAD: dict[str, Any] = {"spread": 256}


def ask(process: Any, **question: Any) -> None:
    """An end of ``benchmarks.nat_ends``; it must answer."""
    process.stdin.write(json.dumps(question) + "\n")
    process.stdin.flush()
    answer = wait_for(process, "^{")
    assert "error" not in answer, answer


@dataclass
class Scene:
    run: Run
    net: Internet
    cloud: InternetHost
    attacker: InternetHost
    victim: InternetHost

    def callee(self, nat_type: NatType | None) -> Any:
        """An engine that is online; without a NAT it is in public."""
        home = self.net if nat_type is None else self.net.nat("home", nat_type)
        process = self.run(home.host("callee"), None, "-m", "benchmarks.nat_ends")
        join = {"login": self.cloud.address, "peer_id": PEER, "secret": SECRET, "mapped": False}
        ask(process, op="join", **join)
        return process

    def attack(
        self,
        named: int = 1,
        kind: str = "srflx",
        calls: int = 1,
        seconds: float = 4.0,
        behaviour: dict[str, Any] = RANDOM,
        trickles: list[dict[str, Any]] | None = None,
    ) -> int:
        """How many packets the callee has sent to the victim.  ``named``: its ports."""
        texts = [f"{kind} {n} {self.victim.address} {4000 + n}" for n in range(1, named + 1)]
        attack = {
            "candidates": texts,
            "nat": behaviour,
            "calls": calls,
            "seconds": seconds,
            "trickles": trickles or [],
        }
        before = self.sent()
        attacker = self.run(
            self.attacker, None, ATTACKER, self.cloud.address, PEER, json.dumps(attack)
        )
        assert f"answered {calls}" in output_of(attacker)
        return self.sent() - before

    def sent(self, by: str = "callee") -> int:
        """To the victim."""
        carried = self.net.counters()["carried"]
        return int(carried.get(by, {}).get(self.victim.name, 0))


@pytest.fixture
def scene(lab: Lab, run: Run) -> Scene:
    net = lab.internet(delay_s=0.002)
    cloud = net.host("cloud", addresses=2)
    start_cloud(run, cloud, "--account", f"{PEER}:{SECRET}", "--stun-address", cloud.addresses[1])
    return Scene(run, net, cloud, net.host("attacker"), net.host("victim"))


def test_a_birthday_that_is_a_lie(scene: Scene) -> None:
    """The cloud sees the caller elsewhere, so one call costs it checks and no sweep; a hundred at
    once, and later ones, have a bound of their own.
    """
    scene.callee(nat.PORT_RESTRICTED)
    began = time.monotonic()
    one = scene.attack(seconds=8.0, trickles=[SPREAD])
    assert 0 < one <= MAX_PROBES_PER_ADDRESS
    more = scene.attack(named=4, calls=100, trickles=[SPREAD])
    assert one + more <= PER_IP + PER_IP_PER_S * (time.monotonic() - began)
    more += scene.attack(calls=20, behaviour=SEQUENTIAL, trickles=predictions())
    assert one + more <= PER_IP + PER_IP_PER_S * (time.monotonic() - began)


def predictions() -> list[dict[str, Any]]:
    """Of every round at once, and some again."""
    rounds = [{"predict": [n, 2000 * n, 1]} for n in range(1, 11)]
    return rounds + rounds + [{"predict": [n, 40_000, -64]} for n in range(1, 20)]


def test_predictions_that_are_lies(scene: Scene) -> None:
    scene.callee(nat.PORT_RESTRICTED)
    sent = scene.attack(behaviour=SEQUENTIAL, trickles=predictions())
    assert 0 < sent <= MAX_PROBES_PER_ADDRESS


@pytest.mark.parametrize("nat_type", [None, nat.FULL_CONE, nat.ADDRESS_RESTRICTED])
def test_no_guesses_where_the_callees_nat_does_not_ask_for_them(
    scene: Scene, nat_type: NatType | None
) -> None:
    scene.callee(nat_type)
    told = [SPREAD, *predictions()]
    sent = scene.attack(named=30, trickles=told)
    assert 0 < sent <= CHECKS
    sent = scene.attack(named=30, behaviour=SEQUENTIAL, trickles=told)
    assert 0 < sent <= CHECKS


def test_no_guesses_at_what_is_no_outside_address(scene: Scene) -> None:
    scene.callee(nat.PORT_RESTRICTED)
    sent = scene.attack(named=30, kind="host", trickles=[SPREAD])
    sent += scene.attack(kind="host", behaviour=SEQUENTIAL, trickles=predictions())
    assert 0 < sent <= 2 * CHECKS


def test_addresses_that_are_trickled(scene: Scene) -> None:
    scene.callee(nat.PORT_RESTRICTED)
    steady = {"mapping": nat.ENDPOINT_INDEPENDENT, "filtering": APDM}
    texts = [f"srflx {n} {scene.victim.address} {n}" for n in range(1, 2000)]
    told = [{"candidates": texts[at : at + 30]} for at in range(0, len(texts), 30)]
    nonsense: list[dict[str, Any]] = [{"candidates": 5}, {"predict": "x"}, {"spread": []}]
    sent = scene.attack(behaviour=steady, trickles=nonsense + told)
    assert 0 < sent <= CHECKS


def test_a_stun_server_that_lies(scene: Scene) -> None:
    """It says that the callee is at the victim's address, by a NAT that must be guessed at."""
    run, net = scene.run, scene.net
    liar = net.host("liar")
    run(liar, "ready", LIAR, liar.address, "3478", scene.victim.address)
    home = net.nat("home", nat.PORT_RESTRICTED).host("callee")
    arguments = (scene.cloud.address, f"{liar.address}:3478", PEER, SECRET)
    callee = run(home, "joined 0", LIED_TO, *arguments)
    wait_for(callee, "NAT: symmetric, random ports")
    net.settle()
    assert 0 < scene.sent() <= MAX_PROBES_PER_ADDRESS, "only to see if it leads back to ourselves"
    caller = net.nat("cafe", nat.PORT_RESTRICTED).host("caller")
    process = run(caller, None, "-m", "benchmarks.nat_ends")
    ask(process, op="start", login=scene.cloud.address, mapped=False)
    ask(process, op="meet", peer_id=PEER, mode=1, timeout_ms=9000)
    assert 0 < scene.sent("caller") <= 2 * MAX_PROBES_PER_ADDRESS, "the cloud knows better"
    output_of(callee)
