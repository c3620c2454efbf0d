"""Where a track may send us for a TURN server."""

from __future__ import annotations

import pytest

from kkp2p_compat._errors import BadPacket, KKP2PError, LinkLost
from kkp2p_compat.engine.calls.turn_place import turn_servers_untrusted
from kkp2p_compat.traversal.turn_server import TurnServer


def test_a_server() -> None:
    message = {"turn": ["203.0.113.5", 3478, "2000000000:me", "p"]}
    found = turn_servers_untrusted(message, "198.51.100.1")
    assert found == [TurnServer("203.0.113.5", 3478, "2000000000:me", "p")]


def test_none() -> None:
    assert turn_servers_untrusted({}, "198.51.100.1") == []


@pytest.mark.parametrize(
    ("host", "cloud_ip"),
    [
        ("127.0.0.1", "93.184.216.34"),
        ("10.0.0.1", "93.184.216.34"),
        ("::1", "10.0.0.1"),
        ("169.254.169.254", "10.0.0.1"),
        ("224.0.0.1", "127.0.0.1"),
        ("localhost", "10.0.0.1"),
    ],
)
def test_none_that_is_nearer_than_the_cloud(host: str, cloud_ip: str) -> None:
    with pytest.raises(LinkLost, match="may send us"):
        turn_servers_untrusted({"turn": [host, 3478, "u", "p"]}, cloud_ip)


def test_one_beside_the_cloud() -> None:
    for host, cloud_ip in (("127.0.0.1", "127.0.0.1"), ("10.0.0.1", "10.9.9.9")):
        (server,) = turn_servers_untrusted({"turn": [host, 3478, "u", "p"]}, cloud_ip)
        assert server.host == host


@pytest.mark.parametrize("field", [[], {}, "turn", ["h", 0, "u", "p"], ["h", 1, "u" * 999, "p"]])
def test_what_is_none(field: object) -> None:
    with pytest.raises(BadPacket):
        turn_servers_untrusted({"turn": field}, "198.51.100.1")


def test_a_name_that_nobody_knows() -> None:
    with pytest.raises(KKP2PError):
        turn_servers_untrusted({"turn": ["no.such.host.invalid", 1, "u", "p"]}, "198.51.100.1")
