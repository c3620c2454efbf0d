"""Peers whose network changes in mid-transfer: every byte arrives, whatever NATs are in between."""

from __future__ import annotations

import pytest
from roaming import Peer, Transfer, start_cloud

from kkp2p_compat.testing import nat
from kkp2p_compat.testing.hosts import Host
from kkp2p_compat.testing.internet import Internet, InternetHost, NatHandle
from kkp2p_compat.testing.lab import Lab
from kkp2p_compat.testing.nat import NatType
from kkp2p_compat.testing.programs import Run


@pytest.fixture
def net(lab: Lab) -> Internet:
    return lab.internet(delay_s=0.005)


@pytest.fixture
def cloud(net: Internet, run: Run) -> Host:
    host = net.host("cloud")
    start_cloud(run, host)
    return host


KINDS = {
    "port-restricted": (nat.PORT_RESTRICTED, nat.PORT_RESTRICTED),
    "symmetric caller": (nat.SYMMETRIC_SEQUENTIAL, nat.PORT_RESTRICTED),
    "symmetric callee": (nat.PORT_RESTRICTED, nat.SYMMETRIC_SEQUENTIAL),
    "public callee": (nat.PORT_RESTRICTED, None),
    "public caller": (None, nat.PORT_RESTRICTED),
}


class Side:
    """A peer with two places to be at."""

    def __init__(self, net: Internet, name: str, kind: NatType | None) -> None:
        self._net = net
        self._places: list[NatHandle | Internet] = [
            net if kind is None else net.nat(f"{name} {at}", kind) for at in ("home", "cafe")
        ]
        self.host: InternetHost = self._places[0].host(name)

    def move(self) -> None:
        self._places.reverse()
        self._net.move(self.host, self._places[0])

    def reboot(self) -> None:
        place = self._places[0]
        if isinstance(place, NatHandle):
            place.reboot(new_address=True)


@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS)
def test_a_transfer_moves(
    net: Internet, cloud: Host, run: Run, kinds: tuple[NatType | None, NatType | None]
) -> None:
    caller, callee = Side(net, "caller", kinds[0]), Side(net, "callee", kinds[1])
    transfer = Transfer(Peer(run, caller.host, cloud), Peer(run, callee.host, cloud), "peer0")
    try:
        caller.move()
        transfer.passes("the caller moves")
        callee.move()
        transfer.passes("the callee moves")
        caller.move()
        callee.move()
        transfer.passes("both move")
        caller.reboot()
        transfer.passes("the caller's NAT starts anew")
        callee.reboot()
        transfer.passes("the callee's NAT starts anew")
        transfer.end()
    finally:
        for side in transfer.sides:
            print(side.host.name, side.log())
