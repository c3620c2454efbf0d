"""What a peer id is, for the API, the cloud, the LAN and the tools."""

from __future__ import annotations

import pytest

from kkp2p_compat._peer_id import is_peer_id


@pytest.mark.parametrize(
    ("peer_id", "valid"),
    [
        ("a", True),
        ("!~" * 16, True),
        ("", False),
        ("x" * 33, False),
        ("with space", False),
        ("caf\u00e9", False),
        ("line\n", False),
        ("\u0661", False),
        (7, False),
        (None, False),
    ],
)
def test_peer_ids(peer_id: object, valid: bool) -> None:
    assert is_peer_id(peer_id) is valid
