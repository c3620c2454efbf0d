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
        ({"role": "route"}, "the role route needs a directory"),
        ({"role": "track"}, "the role track needs a directory"),
        ({"role": "relay"}, "the role relay needs a directory"),
        ({"turn": ("turn.example.org", 3478)}, "go together"),
        ({"turn_secret": b"k" * 16}, "go together"),
        ({"turn": ("turn.example.org", 3478), "turn_secret": b"short"}, "16 bytes"),
        (
            {"role": "route", "directory": "redis://a", "turn": ("b", 2), "turn_secret": b"k" * 16},
            "track and all",
        ),
    ],
)
def test_settings_that_do_not_fit_together(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        CloudSettings(**fields)
