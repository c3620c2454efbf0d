"""Peers whose network changes in mid-transfer: every byte arrives, whatever NATs are in between.

Times are printed, not asserted (``pytest -rP``); docs/nat-traversal.rst has them.
"""

from __future__ import annotations

import signal
import time
from dataclasses import replace

import gevent
import pytest

import roaming
from kkp2p_compat.testing import nat
from kkp2p_compat.testing.internet import Internet, InternetHost, NatHandle
from kkp2p_compat.testing.nat import NatType
from roaming import Cloud, MakePeer, Transfer, since_text

# Fixtures.
cloud, cloud_options = roaming.cloud, roaming.cloud_options
make_peer, net = roaming.make_peer, roaming.net

LIMIT_S = 180
LONG_S = 30.0  # longer than BINDING_S, shorter than the 45 s after which a connection gives up
BINDING_S = 20.0
KINDS = {
    "port-restricted": (nat.PORT_RESTRICTED, nat.PORT_RESTRICTED),
    "symmetric caller": (nat.SYMMETRIC_SEQUENTIAL, nat.PORT_RESTRICTED),
    "symmetric callee": (nat.PORT_RESTRICTED, nat.SYMMETRIC_SEQUENTIAL),
    "public callee": (nat.PORT_RESTRICTED, None),
    "public caller": (None, nat.PORT_RESTRICTED),
}


class Side:
    """A host with two places to be at."""

    def __init__(self, net: Internet, name: str, kind: NatType | None) -> None:
        self._net = net
        self._places: list[NatHandle | Internet] = [
            net if kind is None else net.nat(f"{name} {at}", kind) for at in ("home", "cafe")
        ]
        self.host: InternetHost = self._places[0].host(name)

    def move(self) -> None:
        self._places.reverse()
        self._net.move(self.host, self._places[0])

    @property
    def nat(self) -> NatHandle | None:
        place = self._places[0]
        return place if isinstance(place, NatHandle) else None


@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS)
def test_a_transfer_moves(
    net: Internet, make_peer: MakePeer, kinds: tuple[NatType | None, NatType | None]
) -> None:
    caller, callee = Side(net, "caller", kinds[0]), Side(net, "callee", kinds[1])
    transfer = Transfer(make_peer(caller.host), make_peer(callee.host, "peer0"), "peer0")
    caller.move()
    transfer.passes("the caller moves")
    callee.move()
    transfer.passes("the callee moves")
    caller.move()
    callee.move()
    transfer.passes("both move")
    for side in (caller, callee):
        if side.nat is not None:
            side.nat.reboot(new_address=True)
            transfer.passes(f"the {side.host.name}'s NAT starts anew")
    transfer.end()


def test_half_a_minute_of_nothing(net: Internet, make_peer: MakePeer) -> None:
    """A silent application, a cable out, a sleeping host on either side; all at once, as each takes
    half a minute.  NATs forget in less."""
    steady = NatType(timeout_s=BINDING_S)
    symmetric = replace(nat.SYMMETRIC_SEQUENTIAL, timeout_s=BINDING_S)
    kinds = {
        "silent": (steady, symmetric),
        "cut": (steady, steady),
        "caller sleeps": (symmetric, steady),
        "callee sleeps": (steady, symmetric),
    }
    homes, transfers = [], []
    for number, (name, pair) in enumerate(kinds.items()):
        home, other = (
            net.nat(f"{name} {at}", kind) for at, kind in zip(("home", "cafe"), pair, strict=True)
        )
        callee = make_peer(other.host(f"{name}, callee"), f"peer{number}")
        caller = make_peer(home.host(f"{name}, caller"))
        homes.append(home)
        transfers.append(Transfer(caller, callee, f"peer{number}"))
    silent, cut, caller_sleeps, callee_sleeps = transfers
    sleeping = caller_sleeps.sides[0], callee_sleeps.sides[1]
    for side in silent.sides:
        side.tell("quiet")
    net.cut(homes[1])
    for side in sleeping:
        side.send_signal(signal.SIGSTOP)
    gevent.sleep(LONG_S)
    since = time.monotonic()
    net.mend(homes[1])
    for side in sleeping:
        side.send_signal(signal.SIGCONT)
    for side in silent.sides:
        side.tell("go")
    silent.passes("after silence", since)
    cut.passes("after a cut", since)
    caller_sleeps.passes("the caller has slept", since)
    callee_sleeps.passes("the callee has slept", since)
    for transfer in transfers:
        transfer.end()


def test_the_cloud_starts_anew_during_a_transfer(
    net: Internet, cloud: Cloud, make_peer: MakePeer
) -> None:
    """It goes on; and if a peer moves meanwhile, as soon as the cloud is there."""
    caller, callee = (Side(net, name, nat.PORT_RESTRICTED) for name in ("caller", "callee"))
    peers = make_peer(caller.host), make_peer(callee.host, "peer0")
    transfer = Transfer(*peers, "peer0")
    cloud.kill()
    transfer.passes("without a cloud")
    caller.move()
    cloud.start()
    transfer.passes("after a move without a cloud")
    cloud.kill()
    cloud.start()
    transfer.passes("with another cloud")
    transfer.end()


def test_the_cloud_starts_anew_during_calls(
    net: Internet, cloud: Cloud, make_peer: MakePeer
) -> None:
    """Of a call under way comes a channel or an error; the callee is reachable again soon."""
    home, other = net.nat("home"), net.nat("other")
    caller, callee = make_peer(home.host("caller")), make_peer(other.host("callee"), "peer0")
    for mode in (1, 2):
        net.cut(other)  # the callee cannot answer
        caller.tell(f"call peer0 {mode}")
        caller.wait("calling")
        cloud.kill()
        net.mend(other)
        cloud.start()
        said = caller.wait("call ")
        print("during the restart:", said)
        # It is called again where the dead cloud had not yet said that the callee is there.
        has_channel = said.startswith("call 0")
        assert has_channel or said.startswith(("call -109", "call -107"))
        transfer = Transfer(caller, callee, "peer0", mode, is_called=has_channel)
        transfer.end()


def test_relayed_channels_end_when_a_peer_moves(net: Internet, make_peer: MakePeer) -> None:
    """Both sides are told, and new ones can be made at once."""
    transfers, others = {}, []
    for number, who in enumerate(("caller", "callee")):
        sides = {side: Side(net, f"{side}{number}", None) for side in ("caller", "callee")}
        callee = make_peer(sides["callee"].host, f"peer{number}")
        caller = make_peer(sides["caller"].host)
        transfer = Transfer(caller, callee, f"peer{number}", 2)
        since = time.monotonic()
        sides[who].move()
        others.append(Transfer(caller, callee, f"peer{number}", 2))
        for side in others[-1].sides:  # it has shown that it carries; the wait is a long one
            side.tell("quiet 1")
        print(f"the {who} moves: another channel is there", since_text(since))
        transfers[f"the {who} moves"] = transfer, since
    for what, (transfer, since) in transfers.items():
        transfer.breaks(what, since)
    for other in others:
        other.end()
