"""Settings of a cloud that do not fit together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kkp2p_compat.cloud.settings import CloudSettings


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"role": "king"}, "none of"),
        ({"tls_cert": Path("x")}, "go together"),
        ({"role": "route"}, "at least one"),
        ({"tracks": [("a", 1)]}, "role route"),
        ({"role": "relay", "relays": [("a", 1)], "relay_key": b"k" * 16}, "track and all"),
        ({"role": "track", "relay_key": b"k" * 16}, "at least one relay"),
        ({"role": "track", "relays": [("a", 1)]}, "relay key"),
        ({"role": "relay"}, "relay key"),
        ({"relays": [("a", 1)]}, "relay key"),
        ({"role": "relay", "relay_key": b"short"}, "16 bytes"),
        ({"turn": ("turn.example.org", 3478)}, "go together"),
        ({"turn_secret": b"k" * 16}, "go together"),
        ({"turn": ("turn.example.org", 3478), "turn_secret": b"short"}, "16 bytes"),
        (
            {"role": "route", "tracks": [("a", 1)], "turn": ("b", 2), "turn_secret": b"k" * 16},
            "track and all",
        ),
    ],
)
def test_settings_that_do_not_fit_together(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        CloudSettings(**fields)
