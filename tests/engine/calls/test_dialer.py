"""Which way a peer is called again when the path of its link is dead."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

import kkp2p_compat as kkp2p
from kkp2p_compat.engine.calls.caller import CloudCaller
from kkp2p_compat.engine.calls.lan import LanCaller
from kkp2p_compat.engine.links.peer_link import PeerLink


@pytest.mark.parametrize(("is_lan", "way"), [(True, "LAN"), (False, "cloud")])
def test_a_link_gets_its_new_path_the_way_it_was_made(
    engine: kkp2p.engine_t, monkeypatch: pytest.MonkeyPatch, is_lan: bool, way: str
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(LanCaller, "redial", lambda *_: asked.append("LAN"))
    monkeypatch.setattr(CloudCaller, "redial", lambda *_: asked.append("cloud"))
    link = cast(PeerLink, SimpleNamespace(info=SimpleNamespace(is_lan=is_lan)))
    engine.dialer.redial(link, 1.0, needs_tcp=False)
    assert asked == [way]
