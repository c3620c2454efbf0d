"""Which connections go through an HTTP proxy, and that they do."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from pathlib import Path

import gevent
import pytest

import kkp2p_compat as kkp2p
from helpers.direct_support import accept, check_carries, close, connect, log_of
from helpers.http_proxy import running_proxy
from helpers.support import PATIENCE_S, SECRET, CloudProcess
from kkp2p_compat._errors import ParameterError
from kkp2p_compat.control.way_out import DIRECT, WayOut, way_out

NAME = "cloud.test"  # which no resolver knows: only the proxy does


@pytest.mark.parametrize(
    ("url", "proxy", "user"),
    [
        ("http://proxy.example:3128", ("proxy.example", 3128), None),
        ("proxy.example:3128/", ("proxy.example", 3128), None),
        ("HTTP://192.0.2.1", ("192.0.2.1", 1080), None),
        ("http://[2001:db8::1]:8080", ("2001:db8::1", 8080), None),
        ("http://me:secret@proxy:80/", ("proxy", 80), "me:secret"),
        ("http://d%6Fm%5Cme:s%40:x@y@proxy:80", ("proxy", 80), "dom\\me:s@:x@y"),
        ("http://me@proxy:80", ("proxy", 80), "me:"),
    ],
)
def test_urls(url: str, proxy: tuple[str, int], user: str | None) -> None:
    assert way_out(url, {}) == (WayOut(proxy, user), "")
    assert way_out(None, {"HTTPS_PROXY": f" {url} "}) == (WayOut(proxy, user), "")


BAD_URLS = [
    "socks5://proxy:1080",
    "https://proxy:443",
    "http://",
    "http://a:secret@",
    "http://proxy:0",
    "http://proxy:70000",
    "http://a|b:1",
    "http://proxy:1/path",
    "http://pro xy:1",
    "x" * 5000,
    "http://-x:1",
    "http://1.2.3:1",
]


@pytest.mark.parametrize("url", BAD_URLS)
def test_bad_urls(url: str) -> None:
    with pytest.raises(ParameterError, match="https_proxy"):
        way_out(url, {})
    way, problem = way_out(None, {"https_proxy": url})
    assert way is DIRECT
    assert "https_proxy of the environment is not used" in problem
    assert "secret" not in problem
    assert kkp2p.engine_init(kkp2p.engine_conf_t(https_proxy=url), 0) is None
    assert kkp2p.error_no() == kkp2p.KKP2P_ERROR_PARAMETER


def test_bad_fields() -> None:
    for fields in {"https_proxy": 7}, {"tcp_only": 2}, {"tcp_only": "1"}, {"tcp_only": None}:
        assert kkp2p.engine_init(kkp2p.engine_conf_t(**fields), 0) is None  # type: ignore[arg-type]
        assert kkp2p.error_no() == kkp2p.KKP2P_ERROR_PARAMETER


def test_the_environment() -> None:
    """The small letters come first, also if they say that there is none."""
    both = {"https_proxy": "one:1", "HTTPS_PROXY": "two:2"}
    assert way_out(None, both)[0].proxy == ("one", 1)
    assert way_out(None, both | {"https_proxy": ""}) == (DIRECT, "")
    assert way_out(None, {"http_proxy": "one:1"}) == (DIRECT, "")
    assert way_out("", both) == (DIRECT, "")
    given = way_out("three:3", {**both, "NO_PROXY": "a, .b.example"})[0]
    assert given == WayOut(("three", 3), None, ("a", "b.example"))
    exceptions = {"no_proxy": "c", "NO_PROXY": "d"}
    assert way_out("three:3", exceptions)[0].directly == ("c",)


@pytest.mark.parametrize(
    ("exceptions", "direct", "proxied"),
    [
        ("", ["localhost", "LOCALHOST.", "127.0.0.1", "127.3.2.1", "::1"], ["x", "192.0.2.1"]),
        ("*", ["x.example", "192.0.2.1", "2001:db8::1"], []),
        ("example", ["example", "a.example", "A.B.Example."], ["anexample", "example.org"]),
        (".in.example", ["in.example", "a.in.example"], ["example", "main.example"]),
        ("a.example b.example,c.example", ["a.example", "x.b.example", "c.example"], ["example"]),
        ("192.0.2.0/24", ["192.0.2.77"], ["192.0.3.1", "2001:db8::1", "192.0.2.0.example"]),
        ("192.0.2.1,[2001:db8::1]", ["192.0.2.1", "2001:db8:0::1"], ["192.0.2.10", "2001:db8::2"]),
        ("2001:db8::/32, 300.1.1.1, /, 10/8", ["2001:db8::9", "2001:db8::9%eth0"], ["10.0.0.1"]),
    ],
)
def test_exceptions(exceptions: str, direct: list[str], proxied: list[str]) -> None:
    way, _ = way_out("proxy:1", {"no_proxy": exceptions})
    for host in direct:
        assert not way.is_proxied(host), host
        assert way.to(host) is DIRECT
    for host in proxied:
        assert way.is_proxied(host), host
        assert way.to(host) is way


def test_an_excepted_name_is_so_by_its_address() -> None:
    way = WayOut(("proxy", 1), None, ("in.example",))
    known = way.knowing({"10.0.0.1": "a.in.example", "192.0.2.1": "b.example"})
    assert not known.is_proxied("10.0.0.1")
    assert known.is_proxied("192.0.2.1")


def test_a_call_through_a_proxy(
    cloud: CloudProcess, make_engine: Callable[..., kkp2p.engine_t]
) -> None:
    """Login, call and relay; the cloud's name is known to the proxy alone."""
    with running_proxy({NAME: "127.0.0.1"}, "me:sec:ret") as proxy:
        url = f"http://me:sec%3Aret@{proxy.place}"
        callee, caller = (make_engine(login_domain=NAME, https_proxy=url) for _ in range(2))
        assert kkp2p.join_net(callee, "peer", SECRET) == 0
        one = connect(caller, kkp2p.CONNECT_RELAY)
        other = accept(callee)
        check_carries(one, other)
        assert set(proxy.asked) == {f"{NAME}:{cloud.port}"}
        assert len(proxy.asked) >= 4
        assert proxy.refused == []
        close(one, other)
        for engine in callee, caller:
            kkp2p.engine_destroy(engine)


def test_the_environments_proxy_is_used(
    cloud: CloudProcess, make_engine: Callable[..., kkp2p.engine_t], monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_proxy({NAME: "127.0.0.1"}) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.place)
        engine = make_engine(login_domain=NAME)
        assert kkp2p.join_net(engine, "peer", SECRET) == 0
        assert set(proxy.asked) == {f"{NAME}:{cloud.port}"}
        kkp2p.engine_destroy(engine)
        before = len(proxy.asked)
        engine = make_engine()  # this host's own address
        assert kkp2p.join_net(engine, "peer", SECRET) == 0
        kkp2p.engine_destroy(engine)
        assert len(proxy.asked) == before


@pytest.mark.parametrize(
    ("names", "user", "status", "reason"),
    [
        ({NAME: "127.0.0.1"}, "other:one", 407, "407: it wants a name and a password"),
        ({}, None, 403, "makes no connection to cloud.test:.*403 'Forbidden'"),
        ({NAME: "127.0.0.2"}, None, 502, "502 'Bad Gateway'"),
    ],
)
def test_a_proxy_that_refuses(
    names: dict[str, str],
    user: str | None,
    status: int,
    reason: str,
    cloud: CloudProcess,
    make_engine: Callable[..., kkp2p.engine_t],
    tmp_path: Path,
) -> None:
    with running_proxy(names, user) as proxy:
        engine = make_engine(login_domain=NAME, https_proxy=f"http://me:hidden@{proxy.place}")
        with gevent.Timeout(PATIENCE_S):
            while not re.search(reason, log_of(tmp_path, 0)):
                gevent.sleep(0.01)
        assert set(proxy.refused) == {status}
        assert "hidden" not in log_of(tmp_path, 0)
        kkp2p.engine_destroy(engine)


def test_no_proxy_there(make_engine: Callable[..., kkp2p.engine_t], tmp_path: Path) -> None:
    with socket.socket() as bound:  # and does not listen
        bound.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{bound.getsockname()[1]}"
        engine = make_engine(login_domain=NAME, https_proxy=place)
        with gevent.Timeout(PATIENCE_S):
            while f"the proxy {place}: [Errno 111]" not in log_of(tmp_path, 0):
                gevent.sleep(0.01)
        kkp2p.engine_destroy(engine)
