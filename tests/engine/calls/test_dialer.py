"""Whose time-out a connect tells of; which way a peer is called again when its path is dead."""

from __future__ import annotations

from types import SimpleNamespace
from typing import NoReturn, cast

import pytest

import kkp2p_compat as kkp2p
from kkp2p_compat._errors import TimedOut
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


@pytest.mark.parametrize(
    ("timeout_ms", "text"),
    [(1, "peer: not connected within 1 ms"), (60_000, "peer: the attempt took too long")],
)
def test_of_two_limits_that_end_together_the_callers_is_told(
    engine: kkp2p.engine_t, monkeypatch: pytest.MonkeyPatch, timeout_ms: int, text: str
) -> None:
    def connect(*_: object) -> NoReturn:
        raise TimedOut("the attempt took too long")

    monkeypatch.setattr(engine.dialer, "_connect", connect)
    ctx = kkp2p.connect_ctx_t("peer", connect_mode=1, timeout=timeout_ms)
    assert kkp2p.connect(engine, ctx, kkp2p.channel_t()) == -109
    assert kkp2p.error_text() == text
