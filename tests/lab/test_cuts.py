"""Half-open cuts: packets are dropped both ways, and nobody is told.  Both sides find out, and the
peer that was cut off is not in the way of the same peer elsewhere."""

from __future__ import annotations

import time

import pytest

import roaming
from kkp2p_compat.testing.internet import Internet
from roaming import Cloud, MakePeer, Transfer, since_text

cloud, make_peer, net = roaming.cloud, roaming.make_peer, roaming.net  # fixtures
LIMIT_S = 180

BEAT_S = "2"  # a peer that is quiet for 2.5 of it is gone


@pytest.fixture
def cloud_options() -> tuple[str, ...]:
    return ("--beat-s", BEAT_S)


def test_both_sides_find_out(net: Internet, make_peer: MakePeer) -> None:
    """And take it for a cut, no end (docs/porting.rst, "How a channel ends").

    All at once, as each takes up to a minute.
    """
    cases = {  # connect_mode, encrypt_data, who is cut off, and what they do
        "p2p, the caller is cut off": (1, 0, 0, "busy"),
        "p2p, the callee is cut off": (1, 0, 1, "quiet"),
        "relay, the caller is cut off": (2, 0, 0, "quiet"),
        "relay, the callee is cut off": (2, 0, 1, "busy"),
        "relay, encrypted, the caller is cut off": (2, 1, 0, "busy"),
        "relay, encrypted, the callee is cut off": (2, 1, 1, "quiet"),
    }
    transfers, homes = [], []
    for number, (mode, encrypt, cut, _) in enumerate(cases.values()):
        nats = [net.nat(f"{side}{number}") for side in ("caller", "callee")]
        callee = make_peer(nats[1].host(f"to{number}"), f"peer{number}")
        caller = make_peer(nats[0].host(f"from{number}"))
        transfers.append(Transfer(caller, callee, f"peer{number}", mode, encrypt))
        homes.append(nats[cut])
        for side in (caller, callee):
            side.tell("quiet")
            side.wait("quiet")
    for transfer, (*_, state) in zip(transfers, cases.values(), strict=True):
        if state == "busy":
            for side in transfer.sides:
                side.tell("go")
            transfer.moves()
    since = time.monotonic()
    for home in homes:
        net.cut(home)
    for transfer, (what, (*_, state)) in zip(transfers, cases.items(), strict=True):
        transfer.breaks(f"{what}, {state}", since)


@pytest.mark.parametrize("mode", [1, 2])
def test_a_ghost_is_not_in_the_way(
    net: Internet, cloud: Cloud, make_peer: MakePeer, mode: int
) -> None:
    """The same peer logs in from another host at once, and takes calls there.  The old one hears of
    it when it is back (-117), and so does not take its name back."""
    old_home = net.nat("old home")
    old = make_peer(old_home.host("old"), "peer0")
    caller = make_peer(net.nat("caller's").host("caller"))
    Transfer(caller, old, "peer0", mode)
    net.cut(old_home)
    since = time.monotonic()
    new = make_peer(net.nat("new home").host("new"), "peer0")
    print("the new one is online", since_text(since))
    again = Transfer(caller, new, "peer0", mode)
    print("and was called", since_text(since))
    net.mend(old_home)
    assert old.wait("accept ") == "accept -117"
    print("the old one hears of it", since_text(since))
    again.passes("the new one")


def test_the_track_frees_a_ghost(net: Internet, cloud: Cloud, make_peer: MakePeer) -> None:
    """Who was cut off counts as offline after 2.5 beats, and is back soon after the cut."""
    home = net.nat("home")
    make_peer(home.host("callee"), "peer0")
    caller = make_peer(net.host("caller"))
    net.cut(home)
    since = time.monotonic()
    cloud.wait("peer0.*: offline")
    print("the track has freed it", since_text(since))
    assert caller.call("peer0", 2, 5000).startswith("call -109")
    net.mend(home)
    since = time.monotonic()
    caller.call_until("peer0", 2)
    print("it is back", since_text(since))
