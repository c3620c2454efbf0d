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
    ],
)
def test_settings_that_do_not_fit_together(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        CloudSettings(**fields)
