"""engine_conf_t.stun_servers, and what it replaces."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import kkp2p_compat as kkp2p
from kkp2p_compat._errors import KKP2PError
from kkp2p_compat.engine.paths.stun_servers import stun_servers_of


def test_the_cloud_by_default(engine_conf: Callable[..., kkp2p.engine_conf_t]) -> None:
    assert stun_servers_of(engine_conf()) == []
    conf = engine_conf(login_domain="cloud.example | 2001:db8::1|192.0.2.1", login_port=3080)
    assert stun_servers_of(conf) == [
        ("cloud.example", 3080),
        ("2001:db8::1", 3080),
        ("192.0.2.1", 3080),
    ]


@pytest.mark.parametrize(
    ("text", "servers"),
    [
        ("", []),
        (" , ", []),
        ("stun.example:3478", [("stun.example", 3478)]),
        ("192.0.2.1:1, [2001:db8::1]:65535", [("192.0.2.1", 1), ("2001:db8::1", 65535)]),
    ],
)
def test_others(
    engine_conf: Callable[..., kkp2p.engine_conf_t], text: str, servers: list[tuple[str, int]]
) -> None:
    conf = engine_conf(login_domain="cloud.example", login_port=1, stun_servers=text)
    assert stun_servers_of(conf) == servers


@pytest.mark.parametrize(
    "text",
    [
        "stun.example",
        "stun.example:",
        ":3478",
        "stun.example:0",
        "stun.example:65536",
        "stun.example:+1",
        "stun.example:\u0661",
        "2001:db8::1:3478",
        "[stun.example]:1",
        "[::1]",
        "[192.0.2.1:1",
        "a|b:1",
        "a|:1",
        "-a:1",
        "a b:1",
        "1.2.3:4",
        "a:1;b:1",
        f"a:{'1' * 6000}",
        ",".join(["a:1"] * 9),
    ],
)
def test_malformed(engine_conf: Callable[..., kkp2p.engine_conf_t], text: str) -> None:
    conf = engine_conf(stun_servers=text)
    with pytest.raises(KKP2PError):
        stun_servers_of(conf)
    assert kkp2p.engine_init(conf, 0) is None
    assert kkp2p.error_no() in (-101, -106)
    assert kkp2p.engine_init(engine_conf(stun_servers=7), 0) is None


def test_what_an_engine_asks_is_what_was_parsed(
    engine_conf: Callable[..., kkp2p.engine_conf_t],
) -> None:
    """Also of the cloud by its name, which is looked up again when the cloud has moved."""
    for fields, servers in (
        ({"login_domain": "localhost", "login_port": 1}, [("localhost", 1)]),
        ({"stun_servers": " localhost:1 , [::1]:2"}, [("localhost", 1), ("::1", 2)]),
    ):
        engine = kkp2p.engine_init(engine_conf(**fields), 5000)
        assert engine is not None
        assert engine.stun_servers == servers
        kkp2p.engine_destroy(engine)
