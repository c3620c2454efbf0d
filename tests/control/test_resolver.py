"""login_domain: what is a name, what an address, what nonsense; and every code of the C SDK."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import threading
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent import monkey
from hypothesis import given
from hypothesis import strategies as st

import kkp2p_compat as kkp2p
from helpers.support import PATIENCE_S
from kkp2p_compat import _codes, _nat64
from kkp2p_compat._address import is_ip
from kkp2p_compat._errors import KKP2PError
from kkp2p_compat.control import resolver
from kkp2p_compat.control.resolver import addresses_of, resolve, split_domain

Answers = dict[str, list[str] | Exception]


@pytest.fixture
def dns(monkeypatch: pytest.MonkeyPatch) -> Answers:
    """What names resolve to; a name that is not in it does not exist."""
    answers: Answers = {}

    def getaddrinfo(name: str, *_: object) -> list[Any]:
        answer = answers.get(name, socket.gaierror(socket.EAI_NONAME, "unknown"))
        if isinstance(answer, Exception):
            raise answer
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (text, 0)) for text in answer]

    monkeypatch.setattr(resolver, "_getaddrinfo", getaddrinfo)
    return answers


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("p2p.example.com", ["p2p.example.com"]),
        ("p2p.example.com.", ["p2p.example.com."]),
        ("localhost", ["localhost"]),
        ("a_b-c.x1", ["a_b-c.x1"]),
        ("1.2.3.4", ["1.2.3.4"]),
        ("1.2.3.4|5.6.7.8", ["1.2.3.4", "5.6.7.8"]),
        (" 1.2.3.4 | 5.6.7.8 |", ["1.2.3.4", "5.6.7.8"]),
        ("::1", ["::1"]),
        ("2001:db8::1|10.0.0.1", ["2001:db8::1", "10.0.0.1"]),
        ("fe80::1%eth0", ["fe80::1%eth0"]),
        ("xn--bcher-kva.example", ["xn--bcher-kva.example"]),
        ("1e100.net", ["1e100.net"]),
        ("a" * 63 + ".example", ["a" * 63 + ".example"]),
    ],
)
def test_well_formed(text: str, parts: list[str]) -> None:
    assert split_domain(text) == parts


NONSENSE = [
    "1.2.3.4.5",
    "1.2.3",
    "256.1.1.1",
    "1.2.3.4.",
    "01.2.3.4",
    "1",
    "a..b",
    ".a",
    "-x",
    "x-",
    "a.-b.c",
    "|",
    " ",
    "||  |",
    "1.2.3.4|a..b",
    "a" * 64,
    "a." * 150 + "a",
    "x" * 300,
    "a b",
    "a\nb",
    "a/b",
    "http://a",
    "a:80",
    "[::1]",
    ":::1",
    "\u00fc.example",
    "\u0661.2.3.4",
    "a\u3002b",
    "|".join(["1.1.1.1"] * 17),
]


@pytest.mark.parametrize("text", NONSENSE, ids=lambda text: repr(text[:20]))
def test_nonsense(text: str) -> None:
    with pytest.raises(KKP2PError) as caught:
        resolve(text, PATIENCE_S)
    assert caught.value.code == _codes.KKP2P_ERROR_DOMAIN_PARAM_ERROR == -101
    assert len(str(caught.value)) < 300


@given(st.text())
def test_any_text(text: str) -> None:
    with contextlib.suppress(KKP2PError):
        assert all(is_ip(part) or part.isascii() for part in split_domain(text))


CODES = [
    (socket.gaierror(socket.EAI_NONAME, "no such name"), -103),
    (socket.gaierror(socket.EAI_AGAIN, "try again"), -102),
    (socket.gaierror(socket.EAI_FAIL, "failed"), -103),
    (socket.gaierror(socket.EAI_SYSTEM, "failed"), -103),
    (OSError(5, "input/output"), -103),
    (UnicodeError("label too long"), -103),
    (socket.gaierror(socket.EAI_NODATA, "no address"), -104),
    ([], -104),
]


@pytest.mark.parametrize(("answer", "code"), CODES)
def test_codes(dns: Answers, answer: Any, code: int) -> None:
    dns["p2p.example"] = answer
    with pytest.raises(KKP2PError) as caught:
        resolve("p2p.example", PATIENCE_S)
    assert caught.value.code == code
    assert "p2p.example" in str(caught.value)
    with pytest.raises(KKP2PError):
        addresses_of("p2p.example", PATIENCE_S)


@pytest.mark.parametrize(("answer", "code"), CODES)
def test_engine_init_has_the_code(
    dns: Answers, answer: Any, code: int, engine_conf: Callable[..., kkp2p.engine_conf_t]
) -> None:
    dns["p2p.example"] = answer
    conf = engine_conf(login_domain="p2p.example", login_port=3080)
    assert kkp2p.engine_init(conf, 5000) is None
    assert kkp2p.error_no() == code


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A resolver that does not answer before the test is over."""
    over = threading.Event()
    monkeypatch.setattr(resolver, "_getaddrinfo", lambda *_: over.wait(PATIENCE_S) and [])
    yield
    over.set()


@pytest.mark.usefixtures("stuck")
@pytest.mark.parametrize("timeout", [0, 20])
def test_too_late(engine_conf: Callable[..., kkp2p.engine_conf_t], timeout: int) -> None:
    conf = engine_conf(login_domain="p2p.example", login_port=3080)
    assert kkp2p.engine_init(conf, timeout) is None
    assert kkp2p.error_no() == -102


@pytest.mark.usefixtures("stuck")
def test_the_time_out_is_for_all_parts_together() -> None:
    names = "|".join(f"name{i}.example" for i in range(16))
    with pytest.raises(KKP2PError) as caught, gevent.Timeout(10):
        resolve(names, 1)
    assert caught.value.code == -102


@pytest.mark.usefixtures("stuck")
def test_a_waiter_that_is_killed() -> None:
    waiting = gevent.spawn(resolve, "p2p.example", PATIENCE_S)
    gevent.sleep(0.01)
    waiting.kill()
    assert isinstance(waiting.value, gevent.GreenletExit)


def test_addresses_come_in_order_and_once(dns: Answers) -> None:
    dns["a.example"] = ["10.0.0.1", "10.0.0.2", "10.0.0.1"]
    dns["b.example"] = ["10.0.0.3", "10.0.0.2"]
    found = resolve("10.0.0.9|a.example|b.example", PATIENCE_S)
    assert list(found.items()) == [
        ("10.0.0.9", "10.0.0.9"),
        ("10.0.0.1", "a.example"),
        ("10.0.0.2", "a.example"),
        ("10.0.0.3", "b.example"),
    ]


def test_a_part_that_fails_does_not_take_the_others_along(dns: Answers) -> None:
    dns["good.example"] = ["10.0.0.1"]
    assert list(resolve("bad.example|good.example", PATIENCE_S)) == ["10.0.0.1"]
    assert list(resolve("10.0.0.2|bad.example", PATIENCE_S)) == ["10.0.0.2"]
    with pytest.raises(KKP2PError) as caught:
        resolve("bad.example|worse.example", PATIENCE_S)
    assert caught.value.code == -103


def test_a_resolver_that_floods_is_cut(dns: Answers) -> None:
    dns["many.example"] = [f"10.0.0.{i}" for i in range(100)]
    assert len(resolve("many.example", PATIENCE_S)) == resolver.MAX_ADDRESSES


def test_addresses_need_no_resolver(dns: Answers) -> None:
    assert list(resolve("1.2.3.4|::1", 0)) == ["1.2.3.4", "::1"]
    assert addresses_of("::1", 0) == ["::1"]


def test_the_real_resolver_knows_localhost() -> None:
    assert set(resolve("localhost", PATIENCE_S)) <= {"127.0.0.1", "::1"}


# IPv4 addresses on a host without IPv4: the examples of RFC 6052 section 2.4.
TRANSLATED = [
    ("2001:db8:c000:aa::", "2001:db8:c000:221::"),
    ("2001:db8:1c0:0:aa::", "2001:db8:1c0:2:21::"),
    ("2001:db8:122:c000:0:aa00::", "2001:db8:122:c000:2:2100::"),
    ("2001:db8:122:3c0:0:aa::", "2001:db8:122:3c0:0:221::"),
    ("2001:db8:122:344:c0:0:aa00::", "2001:db8:122:344:c0:2:2100::"),
    ("2001:db8:122:344::192.0.0.170", "2001:db8:122:344::192.0.2.33"),
    ("64:ff9b::192.0.0.171", "64:ff9b::192.0.2.33"),
]


@pytest.mark.parametrize(("known", "expected"), TRANSLATED)
def test_an_address_as_a_nat64_has_it(
    dns: Answers, monkeypatch: pytest.MonkeyPatch, known: str, expected: str
) -> None:
    monkeypatch.setattr(_nat64, "has_route", lambda ip: False)
    dns["ipv4only.arpa"] = ["192.0.0.170", "192.0.0.171", known]
    found = addresses_of("192.0.2.33", PATIENCE_S)
    assert found == ["192.0.2.33", str(ipaddress.ip_address(expected))]
    (it,) = _nat64.nat64s_of([known])
    assert it.inward(expected) == "192.0.2.33"
    for other in ("2001:db8:ffff::1", "::1", "64:ff9b:1::1"):
        assert it.inward(other) is None


def test_a_network_without_a_nat64(dns: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_nat64, "has_route", lambda ip: False)
    for answer in (["192.0.0.170"], ["2001:db8::1", "fe80::1%eth0"], OSError("no resolver")):
        dns["ipv4only.arpa"] = answer
        assert addresses_of("192.0.2.33", PATIENCE_S) == ["192.0.2.33"]
        assert addresses_of("2001:db8::1", PATIENCE_S) == ["2001:db8::1"]


def test_a_host_with_ipv4_asks_nobody(dns: Answers) -> None:
    dns["ipv4only.arpa"] = ["64:ff9b::192.0.0.170"]
    assert addresses_of("127.0.0.1", PATIENCE_S) == ["127.0.0.1"]


def test_lookups_at_once_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names come from servers too, and a lookup that hangs holds a thread."""
    gate = monkey.get_original("_thread", "allocate_lock")()
    gate.acquire()

    def stuck(*_: object) -> list[Any]:
        with gate:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", 0))]

    monkeypatch.setattr(resolver, "_getaddrinfo", stuck)
    names = [f"host{i}.example" for i in range(resolver.MAX_LOOKUPS)]
    waiting = [gevent.spawn(resolver.resolve, name, PATIENCE_S) for name in names]
    gevent.sleep(0)
    with pytest.raises(KKP2PError, match="are being looked up already") as caught:
        resolver.resolve("one-more.example", PATIENCE_S)
    assert caught.value.code == -102
    gate.release()
    assert [list(lookup.get()) for lookup in waiting] == [["10.0.0.1"]] * resolver.MAX_LOOKUPS
    assert list(resolver.resolve("one-more.example", PATIENCE_S)) == ["10.0.0.1"]


def test_a_name_when_there_are_no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    places = len(resolver._free_places)
    monkeypatch.setattr(resolver.monkey, "get_original", lambda *_: refuse)
    with pytest.raises(KKP2PError) as caught:
        resolver.resolve("p2p.example", PATIENCE_S)
    assert caught.value.code == -103
    assert len(resolver._free_places) == places
