"""The public surface, against the C SDK's tables (shared reference, copied here by hand)."""

from __future__ import annotations

import dataclasses
import inspect

import pytest

import kkp2p_compat as kkp2p

CONSTANTS = {
    "KKP2P_SUCCESS": 0,
    "KKP2P_ERROR": -1,
    "KKP2P_ERROR_DOMAIN_PARAM_ERROR": -101,
    "KKP2P_ERROR_ANALYSIS_DOMAIN_TIMEOUT": -102,
    "KKP2P_ERROR_ANALYSIS_DOMAIN_FAILURE": -103,
    "KKP2P_ERROR_DOMAIN_NO_IP": -104,
    "KKP2P_ERROR_SYSTEM_INTERNAL": -105,
    "KKP2P_ERROR_PARAMETER": -106,
    "KKP2P_ERROR_CONN_DISCONNECT": -107,
    "KKP2P_ERROR_OTHER_DISCONNECT": -108,
    "KKP2P_ERROR_CONNECT_TIMEOUT": -109,
    "KKP2P_ERROR_INVALID_PEER_ID": -110,
    "KKP2P_ERROR_INVALID_PEER_KEY": -111,
    "KKP2P_ERROR_LANMODE_MUSTUSE_P2P": -112,
    "KKP2P_ERROR_BIND_IP": -113,
    "KKP2P_ERROR_SOCKET_REUSE_ADDR": -114,
    "KKP2P_ERROR_SOCKET_BIND": -115,
    "KKP2P_ERROR_INVALID_DOMAIN": -116,
    "KKP2P_ERROR_DUPLICATE_ID": -117,
    "KKP2P_ERROR_OUT_OF_MEMORY": -118,
    "KKP2P_ERROR_SOCKET_FD_OVERFLOW": -119,
    "KKP2P_ERROR_START_THREAD_POOL": -120,
    "KKP2P_ERROR_SMALL_BUFF": -121,
    "KKP2P_ERROR_TIMEOUT": -122,
    "KKP2P_TCP_CHANNEL": 0,
    "KKP2P_UDP_CHANNEL": 1,
    "KKP2P_WEBRTC_CHANNEL": 2,
}

FUNCTIONS = {
    "sdk_version": ["buff", "length"],
    "engine_init": ["conf", "timeout"],
    "engine_destroy": ["engine"],
    "switch_log_level": ["engine", "level"],
    "log_init": ["callback", "param", "level"],
    "log_destroy": [],
    "log_switch_level": ["level"],
    "error_no": [],
    "get_domainip": ["engine", "hosts"],
    "join_net": ["engine", "peer_id", "secret"],
    "join_lan": ["engine", "peer_id"],
    "listen_fd": ["engine"],
    "accept": ["engine", "timeout", "channel"],
    "connect": ["engine", "ctx", "channel"],
    "lan_search": ["engine", "ctx", "channel"],
    "start_proxy": ["engine", "ip", "port", "ctx", "proxy_id"],
    "stop_proxy": ["engine", "proxy_id"],
    "start_proxy_udp": ["engine", "ip", "port", "ctx", "proxy_id"],
    "read": ["fd", "buff", "length", "timeout"],
    "write": ["fd", "buff", "length", "timeout"],
    "close_channel": ["engine", "channel_id"],
    "close_fd": ["fd"],
    "hmac_sha1": ["key", "data"],
}
OURS = {  # not in C
    "abort_fd": ["fd"],
    "proxy_address": ["engine", "proxy_id"],
    "channel_stats": ["engine", "channel_id"],
    "error_text": [],
    "engine_metrics": ["engine"],
    "set_login": ["conf", "login"],
    "kept_account": [],
}

STRUCTS = {
    "engine_conf_t": [
        "login_domain",
        "login_port",
        "lan_search_port",
        "disable_upnp",
        "log_path",
        "max_log_size",
        "enable_engine_thread_pool",
    ],
    "connect_ctx_t": [
        "peer_id",
        "channel_type",
        "connect_mode",
        "encrypt_data",
        "timeout",
        "connect_desc",
        "func",
        "func_param",
    ],
    "channel_t": [
        "peer_id",
        "channel_type",
        "transmit_mode",
        "encrypt_data",
        "channel_id",
        "is_ipv6_p2p",
        "connect_desc",
        "fd",
    ],
}
EXTENSIONS = {
    "engine_conf_t": [
        "login_ca",
        "stun_servers",
        "callers",
        "login_fingerprint",
        "https_proxy",
        "tcp_only",
        "identity",
        "known_peers",
        "pin",
    ],
    "channel_t": ["caller_id"],
}


def test_nothing_more_and_nothing_less() -> None:
    types = {*STRUCTS, "engine_t", "connect_cb", "channel_stats_t"}
    expected = {*CONSTANTS, *FUNCTIONS, *OURS, *types, "__version__"}
    assert sorted(kkp2p.__all__) == sorted(expected)
    assert all(hasattr(kkp2p, name) for name in kkp2p.__all__)


@pytest.mark.parametrize(("name", "value"), CONSTANTS.items())
def test_constant(name: str, value: int) -> None:
    assert getattr(kkp2p, name) == value
    assert type(getattr(kkp2p, name)) is int


@pytest.mark.parametrize(("name", "arguments"), [*FUNCTIONS.items(), *OURS.items()])
def test_function(name: str, arguments: list[str]) -> None:
    function = getattr(kkp2p, name)
    signature = inspect.signature(function)
    assert list(signature.parameters) == arguments
    assert all(p.default is p.empty for p in signature.parameters.values())
    hints = inspect.get_annotations(function)
    assert set(hints) == {*arguments, "return"}
    assert function.__name__ == name


@pytest.mark.parametrize("name", [*FUNCTIONS, *OURS])
def test_docstring_names_the_c_function(name: str) -> None:
    text = inspect.getdoc(getattr(kkp2p, name))
    assert text is not None
    source = "Not in C." if name in OURS else f"``kkp2p_{name}``"
    assert source in text
    assert text[0].isupper()


@pytest.mark.parametrize(("name", "fields"), STRUCTS.items())
def test_struct(name: str, fields: list[str]) -> None:
    struct = getattr(kkp2p, name)
    assert [field.name for field in dataclasses.fields(struct)] == fields + EXTENSIONS.get(name, [])
    assert struct.__doc__
    for value in dataclasses.astuple(struct()):
        assert value in (0, "", None, -1)


def test_fresh_channel_has_no_descriptor() -> None:
    assert kkp2p.channel_t().fd == -1


def test_star_import_gives_the_same() -> None:
    names: dict[str, object] = {}
    exec("from kkp2p_compat import *", names)
    assert {name for name in names if name != "__builtins__"} == set(kkp2p.__all__)
