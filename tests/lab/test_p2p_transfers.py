"""Long transfers in mode 1 between hosts: bad links, 4 GiB, killed peers, a pulled cable."""

from __future__ import annotations

import os
import re
import time

import pytest

import transfers
from helpers.support import SECRET
from kkp2p_compat.testing.lab import Lab
from kkp2p_compat.testing.link import Link, joined
from kkp2p_compat.testing.programs import Run, wait_for
from programs import start_cloud
from transfers import WITHOUT_END, check_ends, start_pair

LIMIT_S = transfers.LIMIT_S
BIG = int(os.environ.get("KKP2P_LAB_BYTES", 4 << 30))
PULLED_S = 5.0  # well within what a peer may be silent

# (bytes to send, link)
LINKS = {
    "10 Mbit/s, 3 % loss": (2 << 20, Link(10e6, 0.020, 0.03, 128 << 10)),
    "trains, 200 Mbit/s": (64 << 20, Link(200e6, 0.005, 0.0, 256 << 10, trains=True)),
    "200 ms, 1 % loss": (1 << 20, Link(20e6, 0.200, 0.01, 512 << 10)),
}


@pytest.mark.parametrize("name", LINKS)
def test_every_byte_arrives(lab: Lab, run: Run, name: str) -> None:
    size, link = LINKS[name]
    one, two = lab.host("receiver"), lab.host("sender")
    with joined(one, two, link):
        start_cloud(lab, run, host=one)
        assert check_ends(*start_pair(run, one, one, two, size)) == size


def test_4_gib(lab: Lab, run: Run) -> None:
    """Or as many bytes as KKP2P_LAB_BYTES says."""
    cloud, one, two = start_cloud(lab, run), lab.host("receiver"), lab.host("sender")
    assert check_ends(*start_pair(run, cloud, one, two, BIG)) == BIG


def test_the_other_side_is_told_of_a_killed_process(lab: Lab, run: Run) -> None:
    """SIGKILL in mid-transfer, of a receiver and of a sender: nobody says goodbye, so it is the
    idle time-out that ends it."""
    cloud = start_cloud(lab, run, "--account", f"other:{SECRET}")
    one, two = lab.host("receiver"), lab.host("sender")
    pairs = [start_pair(run, cloud, one, two, WITHOUT_END, peer) for peer in ("peer", "other")]
    for receiver, _ in pairs:
        wait_for(receiver, "^moved")
    pairs[0][0].kill()
    pairs[1][1].kill()
    for left in (pairs[0][1], pairs[1][0]):
        assert re.match(r"end -1 [0-9]+ ", wait_for(left, "^end"))


@pytest.mark.parametrize("whose", ["receiver", "sender"])
def test_a_cable_is_pulled_and_put_back(lab: Lab, run: Run, whose: str) -> None:
    """In mid-transfer: it goes on, and nothing is lost."""
    cloud = start_cloud(lab, run)
    hosts = {name: lab.host(name) for name in ("receiver", "sender")}
    receiver, sender = start_pair(run, cloud, *hosts.values(), WITHOUT_END)
    wait_for(receiver, "^moved")
    hosts[whose].unplug()
    time.sleep(PULLED_S)
    hosts[whose].plug_in()
    plugged = time.monotonic()
    while float(wait_for(receiver, "^moved").split()[2]) < plugged:
        pass
    assert sender.stdin is not None
    print("enough", file=sender.stdin, flush=True)
    check_ends(receiver, sender)
