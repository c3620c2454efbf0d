"""No function of the API raises for bad input, whatever the input: it returns C's code."""

from __future__ import annotations

import ctypes
import dataclasses
import logging
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kkp2p_compat as kkp2p
from kkp2p_compat.cloud.certificate import load_identity
from kkp2p_compat.engine.runtime.log import LOG_FILE

FUNCTIONS = sorted(
    name
    for name in kkp2p.__all__
    if callable(getattr(kkp2p, name))
    and not isinstance(getattr(kkp2p, name), type)
    and name != "connect_cb"
)
# What they return for an error; every other one returns the code itself.
FAILED = {
    "sdk_version": "",
    "hmac_sha1": b"",
    "engine_init": None,
    "engine_destroy": None,
    "switch_log_level": None,
    "log_destroy": None,
    "log_switch_level": None,
    "stop_proxy": None,
    "proxy_address": None,
    "close_channel": None,
    "close_fd": None,
    "abort_fd": None,
    "channel_stats": None,
    "engine_metrics": "",
    "kept_account": None,
}
CODES = {value for name, value in vars(kkp2p).items() if name.startswith("KKP2P_ERROR")}


class Hostile:
    """Everything that can be asked of it raises."""

    def fail(self, *_: object) -> Any:
        raise ValueError("hostile")

    __getattr__ = __repr__ = __str__ = __eq__ = __lt__ = __index__ = __int__ = __bool__ = fail
    __len__ = __iter__ = __call__ = __hash__ = fail  # type: ignore[assignment]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable()  # hypothesis makes thousands of errors
    yield
    logging.disable(logging.NOTSET)
    kkp2p.log_destroy()
    kkp2p.log_switch_level(2)


@pytest.fixture
def dead_engine(engine_conf: Callable[..., kkp2p.engine_conf_t]) -> kkp2p.engine_t:
    engine = kkp2p.engine_init(engine_conf(), 0)
    assert engine is not None
    kkp2p.engine_destroy(engine)
    return engine


def arguments(name: str) -> int:
    return getattr(kkp2p, name).__code__.co_argcount or len(
        getattr(kkp2p, name).__wrapped__.__code__.co_varnames[
            : getattr(kkp2p, name).__wrapped__.__code__.co_argcount
        ]
    )


numbers = st.sampled_from(
    [-1, 0, 1, 2, 3, 5, 255, 65535, 65536, 2**31 - 1, 2**31, 2**32, 2**64, -(2**31)]
)
scraps = (
    st.none()
    | st.booleans()
    | st.floats()
    | st.text(max_size=40)
    | st.binary(max_size=40)
    | st.sampled_from(["127.0.0.1", "::1", "alice", "x" * 33, "a b", "\0", "\ud800", b"\xff"])
    | st.lists(st.none(), max_size=2)
    | st.tuples()
    | st.builds(object)
    | st.builds(Hostile)
    | st.builds(lambda: print)
    | st.builds(ctypes.c_uint32)
    | st.builds(ctypes.c_char_p)
    | st.builds(lambda: memoryview(bytearray(9))[::2])
    | st.builds(kkp2p.channel_t)
)
junk = numbers | scraps
# Structs filled with junk; log_path too, but for a text: no test writes all over the disk.
contexts = st.builds(
    kkp2p.connect_ctx_t,
    *[junk | st.just(good) for good in ("alice", 0, 2, 0)],
    st.sampled_from([0, 1, -1, None, "x"]),
    junk,
    st.none() | junk.filter(lambda value: value is not print),
    junk,
)
configurations = st.builds(
    kkp2p.engine_conf_t,
    st.sampled_from([None, "", "a..b", "127.0.0.1", b"127.0.0.1", b"\xff", 5]),
    junk,
    junk,
    junk,
    numbers | st.floats() | st.just("\0"),
    junk,
    junk,
    junk,
).filter(lambda conf: conf.log_path is not None)
patient = settings(max_examples=150)


def check(name: str, *args: Any) -> None:
    """Call it; whatever comes back must be what its docstring allows."""
    result = getattr(kkp2p, name)(*args)
    code = kkp2p.error_no()
    if name == "engine_init" and result is not None:
        kkp2p.engine_destroy(result)
        assert code == 0
    elif name in FAILED:
        assert code == 0 or (code in CODES and result == FAILED[name])
    else:
        assert type(result) is int
        assert result >= 0 or result in CODES
        assert code == min(result, 0)
    assert bool(kkp2p.error_text()) == (code != 0)
    assert code != kkp2p.KKP2P_ERROR_SYSTEM_INTERNAL or "Hostile" in repr_types(args), args


def repr_types(values: Any) -> str:
    found = [type(value).__name__ for value in values]
    for value in values:
        if isinstance(value, kkp2p.connect_ctx_t | kkp2p.engine_conf_t):
            found += [type(field).__name__ for field in vars(value).values()]
    return " ".join(found)


SAFE = [name for name in FUNCTIONS if name not in ("error_no", "error_text")]


@pytest.mark.parametrize("name", SAFE)
@given(data=st.data())
@patient
def test_junk_everywhere(name: str, data: st.DataObject) -> None:
    count = arguments(name)
    args = [data.draw(junk | contexts | configurations) for _ in range(count)]
    if name in ("read", "write", "close_fd", "abort_fd"):
        args[0] = data.draw(junk.filter(lambda fd: type(fd) is not int or not 0 <= fd < 1000))
    check(name, *args)


ENGINE_CALLS = [
    name
    for name in SAFE
    if name
    not in {
        "engine_init",
        "sdk_version",
        "hmac_sha1",
        "read",
        "write",
        "close_fd",
        "abort_fd",
        "log_init",
        "set_login",
        "kept_account",
        "log_destroy",
        "log_switch_level",
    }
]


@pytest.mark.parametrize("name", [name for name in ENGINE_CALLS if name != "engine_destroy"])
@given(data=st.data())
@patient
def test_junk_for_a_living_engine(
    name: str, lone_engine: kkp2p.engine_t, data: st.DataObject
) -> None:
    args = [data.draw(junk | contexts) for _ in range(arguments(name) - 1)]
    if name == "accept":
        args[0] = data.draw(st.sampled_from([0, 1, True]) | scraps)
    check(name, lone_engine, *args)
    if name in ("start_proxy", "start_proxy_udp"):
        for number in range(1, 9):
            kkp2p.stop_proxy(lone_engine, number)


@pytest.mark.parametrize("name", ENGINE_CALLS)
def test_a_dead_engine_and_none(name: str, dead_engine: kkp2p.engine_t) -> None:
    ctx, channel = kkp2p.connect_ctx_t("alice", connect_mode=1, timeout=1), kkp2p.channel_t()
    good: dict[str, list[Any]] = {
        "accept": [60000, channel],
        "connect": [ctx, channel],
        "lan_search": [ctx, channel],
        "start_proxy": ["127.0.0.1", 0, ctx, ctypes.c_uint32()],
        "start_proxy_udp": ["127.0.0.1", 0, ctx, ctypes.c_uint32()],
        "join_net": ["alice", "secret"],
        "join_lan": ["alice"],
        "get_domainip": [[]],
        "switch_log_level": [1],
        "close_channel": [1],
        "stop_proxy": [1],
        "proxy_address": [1],
        "channel_stats": [1],
    }
    for engine, code in ((dead_engine, -1), (None, -106), (5, -106)):
        result = getattr(kkp2p, name)(engine, *good.get(name, []))
        if name == "engine_destroy" and engine is dead_engine:
            assert (result, kkp2p.error_no()) == (None, 0)
        else:
            assert result == FAILED.get(name, code)
            assert kkp2p.error_no() == code


@pytest.mark.parametrize(
    ("peer_id", "code"),
    [
        ("", -110),
        ("x" * 33, -110),
        ("a b", -110),
        ("a\n", -110),
        ("\u00e9", -110),
        (b"\xff", -110),
        (b"alice\0", -110),
        (bytearray(b"alice"), -109),
        (memoryview(b"alice!")[:5], -109),
        (memoryview(b"\xff"), -110),
        (5, -106),
        (None, -106),
        ("x" * 32, -109),
        (b"alice", -109),
        ("!~", -109),
    ],
)
def test_peer_ids(lone_engine: kkp2p.engine_t, peer_id: Any, code: int) -> None:
    ctx = kkp2p.connect_ctx_t(peer_id, timeout=0)
    assert kkp2p.connect(lone_engine, ctx, kkp2p.channel_t()) == code


TEXT_FIELDS = {
    "login_domain": "127.0.0.1|127.0.0.2",
    "log_path": "the log's folder",
    "login_ca": "cloud.crt",
    "stun_servers": "127.0.0.1:3478",
    "callers": "alice,bob",
    "login_fingerprint": "ab" * 32,
    "https_proxy": "http://proxy.example:3128",
    "identity": "our key",
    "known_peers": "peers that we know",
    "pin": "first-use",
}
PATHS = ["log_path", "login_ca", "identity", "known_peers"]


@pytest.mark.parametrize(
    "name",
    [field.name for field in dataclasses.fields(kkp2p.engine_conf_t) if "str" in str(field.type)],
)
def test_bytes_will_do_for_every_text_of_the_configuration(
    engine_conf: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    load_identity(tmp_path)  # makes cloud.crt
    conf = engine_conf(login_domain="127.0.0.1", login_port=9)
    setattr(conf, name, TEXT_FIELDS[name].encode())
    before = dataclasses.replace(conf)
    engine = kkp2p.engine_init(conf, 0)
    assert engine is not None
    text = TEXT_FIELDS[name]
    assert getattr(engine.conf, name) == (str(tmp_path / text) if name in PATHS else text)
    assert conf == before, "the caller's struct is the caller's"
    kkp2p.engine_destroy(engine)


def test_a_program_that_changes_its_working_folder_keeps_its_files(
    engine_conf: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log is opened by its name again and again."""
    monkeypatch.chdir(tmp_path)
    engine = kkp2p.engine_init(engine_conf(log_path="logs"), 0)
    assert engine is not None
    monkeypatch.chdir("/")
    (tmp_path / "logs" / LOG_FILE).unlink()
    kkp2p.engine_destroy(engine)
    assert "engine destroyed" in (tmp_path / "logs" / LOG_FILE).read_text()


@pytest.mark.parametrize("name", PATHS)
def test_a_path_in_a_working_folder_that_is_gone(
    engine_conf: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert kkp2p.engine_init(engine_conf(**{name: "file"}), 0) is None
    assert kkp2p.error_no() == -106
    assert name in kkp2p.error_text()


def test_no_bytes_are_no_text(engine_conf: Callable[..., Any]) -> None:
    engine = kkp2p.engine_init(engine_conf(stun_servers=b"", https_proxy=b""), 0)
    assert engine is not None
    assert engine.stun_servers == []
    assert engine.way_out.proxy is None
    kkp2p.engine_destroy(engine)


def text_calls(lan_port: int) -> dict[str, Callable[[kkp2p.engine_t, Callable[[str], Any]], Any]]:
    """Every function that takes text, with text made by the second argument."""

    def context(text: Callable[[str], Any], timeout: int = 100, mode: int = 1) -> Any:
        return kkp2p.connect_ctx_t(text("peer"), 0, mode, 0, timeout)

    return {
        "join_net": lambda e, text: kkp2p.join_net(e, text("peer"), text("wrong")),
        "join_lan": lambda e, text: kkp2p.join_lan(e, text("peer")),
        "connect": lambda e, text: kkp2p.connect(e, context(text, mode=2), kkp2p.channel_t()),
        "lan_search": lambda e, text: kkp2p.lan_search(e, context(text), kkp2p.channel_t()),
        "start_proxy": lambda e, text: kkp2p.start_proxy(
            e, text("127.0.0.1"), 0, context(text), ctypes.c_uint32()
        ),
        "start_proxy_udp": lambda e, text: kkp2p.start_proxy_udp(
            e, text("127.0.0.1"), 0, context(text), ctypes.c_uint32()
        ),
    }


@pytest.mark.usefixtures("on_loopback")
@pytest.mark.parametrize("name", text_calls(0))
def test_bytes_will_do_for_every_text(
    make_engine: Callable[..., kkp2p.engine_t], lan_port: int, name: str
) -> None:
    """Of each kind that a program has that reads from a socket."""
    call, engine = text_calls(lan_port)[name], make_engine(lan_search_port=lan_port)
    expected = call(engine, str)
    for as_bytes in (
        str.encode,
        lambda text: bytearray(text, "utf-8"),
        lambda text: memoryview(text.encode()),
    ):
        assert call(engine, as_bytes) == expected
        assert kkp2p.error_no() != -105


@pytest.mark.usefixtures("on_loopback")
def test_a_peer_that_joined_by_bytes_is_found(
    make_engine: Callable[..., kkp2p.engine_t], lan_port: int
) -> None:
    one, other = (make_engine(login_domain=None, lan_search_port=lan_port) for _ in range(2))
    assert kkp2p.join_lan(one, b"peer") == 0  # type: ignore[arg-type]
    ctx = kkp2p.connect_ctx_t(b"peer", 0, 1, 0, 20_000)  # type: ignore[arg-type]
    channel, proxy_id = kkp2p.channel_t(), ctypes.c_uint32()
    assert kkp2p.lan_search(other, ctx, channel) == 0
    assert channel.peer_id == "peer"
    assert kkp2p.start_proxy(other, b"127.0.0.1", 0, ctx, proxy_id) == 0  # type: ignore[arg-type]
    assert kkp2p.proxy_address(other, proxy_id) is not None
    assert ctx.peer_id == b"peer", "the caller's struct is the caller's"
    kkp2p.close_fd(channel.fd)


def test_bytes_will_do_for_text(engine_conf: Callable[..., Any], tmp_path: Any) -> None:
    conf = engine_conf(
        login_domain=b"127.0.0.1", login_port=9, log_path=os.fsencode(tmp_path / "x")
    )
    engine = kkp2p.engine_init(conf, 0)
    assert engine is not None
    hosts: list[str] = []
    assert kkp2p.get_domainip(engine, hosts) == 1
    assert hosts == ["127.0.0.1"]
    kkp2p.engine_destroy(engine)
    assert (tmp_path / "x" / "kkp2p_engine.log").exists()
    assert conf.login_domain == b"127.0.0.1", "the caller's struct is the caller's"


@pytest.mark.parametrize(
    ("args", "code"),
    [
        ((bytearray(4), 0, 0), -106),
        ((bytearray(4), -1, 0), -106),
        ((bytearray(4), 5, 0), -121),
        ((bytearray(4), 4, -1), -106),
        ((bytearray(4), 4, 1.0), -106),
        ((bytearray(4), 4, 2**31), -106),
        ((bytearray(4), 2**64, 0), -106),
        ((memoryview(bytearray(8))[::2], 4, 0), -106),
        (("text", 4, 0), -106),
        ((None, 4, 0), -106),
        ((bytearray(), 1, 0), -121),
    ],
)
def test_read_and_write_check_their_arguments(args: tuple[Any, Any, Any], code: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert kkp2p.read(ours.fileno(), *args) == code
        assert kkp2p.write(ours.fileno(), *args) == code


def test_a_released_view() -> None:
    view = memoryview(bytearray(4))
    view.release()
    assert kkp2p.read(0, view, 4, 0) == -106


def test_a_read_only_buffer() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert kkp2p.read(ours.fileno(), b"1234", 4, 0) == -106
        assert kkp2p.write(ours.fileno(), b"1234", 4, 0) == 4


def test_close_fd_leaves_alone_what_is_not_a_channel_s() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        kkp2p.close_fd(ours.fileno())
        assert kkp2p.error_no() == -106
        ours.send(b"x")
        assert theirs.recv(1) == b"x"


class Fixed:
    @property
    def value(self) -> int:
        return 1


def test_numbers_too_long_to_print(lone_engine: kkp2p.engine_t) -> None:
    huge = 10**5000
    assert kkp2p.accept(lone_engine, huge, kkp2p.channel_t()) == -106
    assert kkp2p.read(huge, bytearray(1), 1, 0) == -1
    kkp2p.close_channel(lone_engine, -huge)
    assert kkp2p.error_no() == -106


@pytest.mark.parametrize("path", ["\ud800", "a\0b", b"\xff", b"a\0", memoryview(b"\xff"), ""])
def test_paths_that_are_none(engine_conf: Callable[..., Any], path: object) -> None:
    assert kkp2p.engine_init(engine_conf(log_path=path), 0) is None
    assert kkp2p.error_no() == -106


def test_a_proxy_id_that_cannot_be_set(lone_engine: kkp2p.engine_t) -> None:
    ctx = kkp2p.connect_ctx_t("alice", timeout=1000)
    for proxy_id in (Fixed(), object(), None, 5):
        assert kkp2p.start_proxy(lone_engine, "127.0.0.1", 0, ctx, proxy_id) == -106
        assert kkp2p.start_proxy_udp(lone_engine, "127.0.0.1", 0, ctx, proxy_id) == -106
    assert kkp2p.proxy_address(lone_engine, 1) is None  # the first would be this one


def test_what_a_udp_proxy_takes(lone_engine: kkp2p.engine_t) -> None:
    """As start_proxy does, and a zeroed channel_type as well as the one that it uses."""
    proxy_id = ctypes.c_uint32()

    def start(ip: Any = "127.0.0.1", port: Any = 0, **fields: Any) -> int:
        ctx = dataclasses.replace(kkp2p.connect_ctx_t("alice", timeout=1000), **fields)
        return kkp2p.start_proxy_udp(lone_engine, ip, port, ctx, proxy_id)

    for number, kind in ((1, kkp2p.KKP2P_TCP_CHANNEL), (3, kkp2p.KKP2P_UDP_CHANNEL)):
        assert start(channel_type=kind) == 0
        assert proxy_id.value == number
        address = kkp2p.proxy_address(lone_engine, proxy_id)
        assert address is not None
        assert start(port=address[1]) == -113
        proxy_id.value = number
        kkp2p.stop_proxy(lone_engine, proxy_id)
        assert kkp2p.proxy_address(lone_engine, proxy_id) is None
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(address)
    for fields in (
        {"channel_type": 2},
        {"connect_mode": 3},
        {"timeout": 0},
        {"func": print},
        {"func_param": 1},
    ):
        assert start(**fields) == -106, fields
    assert start(peer_id="") == -110
    assert start(port=65536) == start(port=-1) == start(ip="") == start(ip=5) == -106
    assert start(ip="192.0.2.1") == start(ip="localhost.invalid") == -113
    assert proxy_id.value == 0


def test_sdk_version_into_a_buffer() -> None:
    buff = ctypes.create_string_buffer(32)
    assert kkp2p.sdk_version(buff, 32) == kkp2p.__version__
    assert buff.value.decode() == kkp2p.__version__
    assert kkp2p.sdk_version(buff, 2) == ""
    assert kkp2p.error_no() == -121
    assert kkp2p.sdk_version(None, 0) == kkp2p.__version__


def test_hmac_sha1() -> None:
    """RFC 2202, test case 2"""
    digest = kkp2p.hmac_sha1(b"Jefe", bytearray(b"what do ya want for nothing?"))
    assert digest.hex() == "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79"


def test_memory_that_there_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def digest(*_: object) -> bytes:
        raise MemoryError

    monkeypatch.setattr(kkp2p.hmac, "digest", digest)  # type: ignore[attr-defined]
    assert kkp2p.hmac_sha1(b"", b"") == b""
    assert (kkp2p.error_no(), kkp2p.error_text()) == (-118, "out of memory")


def test_a_wrong_number_of_arguments_is_bad_input_too() -> None:
    assert kkp2p.accept() < 0  # type: ignore[call-arg]
