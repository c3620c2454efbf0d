"""What an access line drops, and that each direction is by itself."""

from __future__ import annotations

from random import Random

import pytest

from kkp2p_compat.testing.access import POLICER_BURST_BYTES, Access
from kkp2p_compat.testing.nat import TCP, UDP
from kkp2p_compat.testing.packet import Packet

OUT, IN = False, True


def packet(size: int, protocol: int = UDP) -> Packet:
    return Packet(bytearray(size), 4, protocol, 0)


def access(**fields: float) -> Access:
    made = Access(Random(1))
    made.set(fields)
    return made


def test_what_it_lets_pass() -> None:
    for protocol in (UDP, TCP):
        assert access().refusal(packet(1500, protocol), OUT, 0.0) == ""


def test_cut_and_without_udp() -> None:
    line = access()
    line.udp = False
    assert line.refusal(packet(100), IN, 0.0) == "UDP is blocked"
    assert line.refusal(packet(100, TCP), IN, 0.0) == ""
    line.cut = True
    assert line.refusal(packet(100, TCP), OUT, 0.0) == "cut"


def test_the_mtu() -> None:
    line = access(mtu=1280)
    for protocol in (UDP, TCP):
        assert line.refusal(packet(1280, protocol), OUT, 0.0) == ""
        assert line.refusal(packet(1281, protocol), IN, 0.0) == "too large"


def test_loss() -> None:
    line = access(loss=0.25)
    lost = sum(line.refusal(packet(100), IN, 0.0) == "lost" for _ in range(1000))
    assert 200 < lost < 300  # of one seed, so always the same
    line.set({"loss": 0.0})
    assert line.refusal(packet(100), IN, 0.0) == ""


def carried(line: Access, protocol: int, inward: bool, now: float) -> int:
    """Bytes of a flood that pass at one time."""
    count = 0
    while count < 20 and not line.refusal(packet(1500, protocol), inward, now):
        count += 1
    return count * 1500


def test_the_policer() -> None:
    """Of UDP only.  A burst at first, afterwards what the rate gives."""
    line = access(udp_bps=1e6)
    assert [carried(line, UDP, way, 0.0) for way in (OUT, IN)] == [POLICER_BURST_BYTES] * 2
    assert line.refusal(packet(1500), OUT, 0.0) == "policed"
    assert line.refusal(packet(1500, TCP), OUT, 0.0) == ""
    assert carried(line, UDP, OUT, 0.06) == 0.06 * 1e6 / 8
    assert carried(line, UDP, IN, 9.0) == POLICER_BURST_BYTES
    line.set({"udp_bps": 0.0})
    assert carried(line, UDP, OUT, 9.0) == 30_000


def test_what_no_line_has() -> None:
    with pytest.raises(ValueError, match="a line has no rate"):
        access(rate=1.0)
