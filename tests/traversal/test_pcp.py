"""The bytes of PCP and NAT-PMP.  The vectors are laid out by hand from the figures of the RFCs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kkp2p_compat._errors import BadPacket
from kkp2p_compat.traversal import pcp

NONCE = bytes(range(1, 13))
OURS = "00000000 00000000 0000ffff c0a8010a"  # ::ffff:192.168.1.10
OUTSIDE = "00000000 00000000 0000ffff cb007107"  # ::ffff:203.0.113.7
NOWHERE = "00000000 00000000 0000ffff 00000000"

# RFC 6887 figures 2 and 9: the common request header, and MAP's.
PCP_REQUESTS = [
    ("02 00 0000 00000000" + OURS, lambda: pcp.announce_request("192.168.1.10")),
    (
        "02 01 0000 00000e10" + OURS + NONCE.hex() + "11 000000 1f90 2382" + OUTSIDE,
        lambda: pcp.map_request("192.168.1.10", NONCE, 8080, ("203.0.113.7", 9090), 3600),
    ),
    (
        "02 01 0000 00000000" + OURS + NONCE.hex() + "11 000000 1f90 0000" + NOWHERE,
        lambda: pcp.map_request("192.168.1.10", NONCE, 8080, ("0.0.0.0", 0), 0),
    ),
    # RFC 6886 sections 3.2, 3.3 and 3.4.
    ("00 00", pcp.address_request),
    ("00 01 0000 1f90 2382 00000e10", lambda: pcp.pmp_map_request(8080, 9090, 3600)),
    ("00 01 0000 1f90 0000 00000000", lambda: pcp.pmp_map_request(8080, 0, 0)),
]

# RFC 6887 figures 3 and 10.
HEAD = "02 81 00 00 00000e10 00000064 00000000 00000000 00000000"
MAPPED = bytes.fromhex(HEAD + NONCE.hex() + "11 000000 1f90 2382" + OUTSIDE)
PCP_ANSWERS = [
    (MAPPED.hex(), pcp.PcpAnswer(1, 0, 3600, NONCE, 8080, ("203.0.113.7", 9090))),
    ("0280 0000 00000000 00000064" + "00000000" * 3, pcp.PcpAnswer(0, 0, 0)),
    # Not authorised, for 30 minutes, without and with the request's fields.
    ("0281 0002 00000708 00000064" + "00000000" * 3, pcp.PcpAnswer(1, 2, 1800)),
    (
        "0281 0002 00000708 00000064"
        + "00000000" * 3
        + NONCE.hex()
        + "11 000000 1f90 2382"
        + OUTSIDE,
        pcp.PcpAnswer(1, 2, 1800, NONCE, 8080, ("203.0.113.7", 9090)),
    ),
    # An IPv6 address outside is none that we can use.
    (
        HEAD + NONCE.hex() + "11 000000 1f90 2382 20010db8 00000000 00000000 00000001",
        pcp.PcpAnswer(1, 0, 3600, NONCE, 8080, ("", 9090)),
    ),
    # A server of NAT-PMP only (RFC 6886 section 3.5), and one of a later version.
    ("00 81 0001 00000064", pcp.PcpAnswer(1, 1, 0)),
    ("03 81 0000" + "00000000" * 5, pcp.PcpAnswer(1, 1, 0)),
    # What we have no use for may follow: options (7.3).
    (MAPPED.hex() + "03000000", pcp.PcpAnswer(1, 0, 3600, NONCE, 8080, ("203.0.113.7", 9090))),
]

PMP_ANSWERS = [
    ("00 80 0000 00000064 cb007107", pcp.PmpAnswer(0, "203.0.113.7")),
    ("00 81 0000 00000064 1f90 2382 00000e10", pcp.PmpAnswer(0, None, 8080, 9090, 3600)),
    ("00 81 0002 00000064 1f90 0000 00000000", pcp.PmpAnswer(2)),
    ("00 80 0003 00000064", pcp.PmpAnswer(3)),
]


@pytest.mark.parametrize(("expected", "make"), PCP_REQUESTS)
def test_requests(expected: str, make: object) -> None:
    assert callable(make)
    assert make() == bytes.fromhex(expected)


@pytest.mark.parametrize(("data", "expected"), PCP_ANSWERS)
def test_pcp_answers(data: str, expected: pcp.PcpAnswer) -> None:
    assert pcp.parse_pcp_untrusted(bytes.fromhex(data)) == expected


@pytest.mark.parametrize(("data", "expected"), PMP_ANSWERS)
def test_pmp_answers(data: str, expected: pcp.PmpAnswer) -> None:
    assert pcp.parse_pmp_untrusted(bytes.fromhex(data)) == expected


@pytest.mark.parametrize("length", range(len(MAPPED)))
def test_a_pcp_mapping_cut_short(length: int) -> None:
    with pytest.raises(BadPacket):
        pcp.parse_pcp_untrusted(MAPPED[:length])


def test_pcp_answers_that_are_none() -> None:
    for data in (
        b"\x02\x01" + MAPPED[2:],  # a request
        MAPPED[:36] + b"\x06" + MAPPED[37:],  # TCP
        MAPPED + bytes(3),
        MAPPED + bytes(pcp.MAX_BYTES),
    ):
        with pytest.raises(BadPacket):
            pcp.parse_pcp_untrusted(data)


@pytest.mark.parametrize(("data", "_expected"), PMP_ANSWERS[:2])
def test_pmp_answers_cut_short_and_too_long(data: str, _expected: object) -> None:
    whole = bytes.fromhex(data)
    for wrong in [whole[:length] for length in range(len(whole))] + [whole + b"\0"]:
        with pytest.raises(BadPacket):
            pcp.parse_pmp_untrusted(wrong)
    with pytest.raises(BadPacket):
        pcp.parse_pmp_untrusted(b"\0\0" + whole[2:])  # a request
    with pytest.raises(BadPacket):
        pcp.parse_pmp_untrusted(b"\2" + whole[1:])  # PCP


@given(st.binary(max_size=1200) | st.binary(max_size=80).map(lambda rest: b"\2\x81" + rest))
def test_anything_is_an_answer_or_a_bad_packet(data: bytes) -> None:
    for parse in (pcp.parse_pcp_untrusted, pcp.parse_pmp_untrusted):
        try:
            answer = parse(data)
        except BadPacket:
            continue
        assert 0 <= answer.result < 65536
