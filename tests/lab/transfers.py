"""Transfers in mode 1 between two hosts: what several files of tests start and check."""

from __future__ import annotations

from pathlib import Path
from subprocess import Popen

from helpers.support import SECRET
from kkp2p_compat.testing.lab import Host
from kkp2p_compat.testing.programs import Run, wait_for
from programs import PORT

PEER = str(Path(__file__).with_name("p2p_peer.py"))
LIMIT_S = 600  # for each test: 4 GiB on a busy machine
WITHOUT_END = 1 << 50


def start_pair(
    run: Run, cloud: Host, one: Host, two: Host, size: int, peer: str = "peer"
) -> tuple[Popen[str], Popen[str]]:
    """The receiver and the sender of a transfer."""
    receiver = run(one, "joined 0", PEER, "receive", cloud.address, PORT, peer, SECRET)
    sender = run(two, "mode 1", PEER, "send", cloud.address, PORT, peer, str(size))
    wait_for(receiver, "mode 1")
    return receiver, sender


def check_ends(receiver: Popen[str], sender: Popen[str]) -> int:
    """What was sent has arrived; returns how much it was."""
    _, result, total, digest = wait_for(sender, "^end", LIMIT_S).split()
    assert int(result) > 0
    # After the last byte there is the end of the stream, which read tells by -1.
    received = wait_for(receiver, "^end")
    assert received == f"end -1 {total} {digest}\n", received
    return int(total)
