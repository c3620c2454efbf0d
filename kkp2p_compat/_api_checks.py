"""Checks of what the application passes to the API; each raises a KKP2PError with C's code."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any, TypeVar

from ._codes import (
    KKP2P_ERROR,
    KKP2P_ERROR_INVALID_PEER_ID,
    KKP2P_ERROR_PARAMETER,
    KKP2P_ERROR_SMALL_BUFF,
    MAX_PEER_ID,
)
from ._errors import BadPacket, EngineClosed, KKP2PError, ParameterError
from ._peer_id import is_peer_id
from ._structs import connect_ctx_t, engine_conf_t
from .control.callers import Callers
from .control.trust import parse_fingerprints
from .engine.engine import Engine

__all__ = [
    "check_conf",
    "check_context",
    "check_engine",
    "check_fd",
    "check_length",
    "check_peer_id",
    "check_proxy",
    "check_text",
    "check_timeout",
    "check_type",
    "check_value",
]

T = TypeVar("T")
_PATHS = ("log_path", "login_ca", "identity", "known_peers")  # of engine_conf_t
MAX_TIMEOUT_MS = 2**31 - 1  # a C int


def check_type(value: Any, kind: type[T], name: str) -> T:
    if not isinstance(value, kind):
        raise ParameterError(f"{name} is {type(value).__name__}, not {kind.__name__}")
    return value


def check_engine(engine: Any) -> Engine:
    engine = check_type(engine, Engine, "engine")
    if not engine.thread.usable:
        raise EngineClosed
    return engine


def check_value(
    value: Any, lowest: int, highest: int, name: str, code: int = KKP2P_ERROR_PARAMETER
) -> int:
    if not isinstance(value, int) or not lowest <= value <= highest:
        # Not the value whatever it is: to print that may fail, or take long.
        shown = value if type(value) is int and abs(value) < 2**64 else type(value).__name__
        raise KKP2PError(f"{name} is {shown}, not {lowest} to {highest}", code)
    return value


def check_fd(value: Any) -> int:
    """C returns -1 for a number that is not a descriptor."""
    return check_value(value, 0, 2**31 - 1, "fd", KKP2P_ERROR)


def check_timeout(value: Any) -> float:
    """Milliseconds from the application, as seconds."""
    return check_value(value, 0, MAX_TIMEOUT_MS, "timeout") / 1000


def _as_text(value: Any, name: str, code: int = KKP2P_ERROR_PARAMETER) -> str:
    """The one place where bytes become text.

    A program that was written for C has an id, an address or a secret as it came from a socket, so
    bytes will do wherever text will.  They are UTF-8, without the zero byte that ends C's strings.
    """
    if isinstance(value, bytes | bytearray | memoryview):
        try:
            return bytes(value).decode()
        except ValueError as error:  # also of a memoryview that was released
            raise KKP2PError(f"{name} is not UTF-8", code) from error
    return check_type(value, str, name)


def check_text(value: Any, name: str) -> str:
    text = _as_text(value, name)
    try:
        valid = text != "" and b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        valid = False
    if not valid:
        raise ParameterError(f"{name} is empty, or contains an invalid character")
    return text


def check_peer_id(value: Any) -> str:
    """1 to 32 printable ASCII characters without spaces."""
    text = _as_text(value, "peer_id", KKP2P_ERROR_INVALID_PEER_ID)
    if not is_peer_id(text):
        raise KKP2PError(
            f"peer_id {text[:100]!r} is not 1 to {MAX_PEER_ID} printable ASCII characters",
            KKP2P_ERROR_INVALID_PEER_ID,
        )
    return text


def check_conf(conf: Any) -> engine_conf_t:
    """A copy, in which all text is text."""
    conf = dataclasses.replace(check_type(conf, engine_conf_t, "conf"))
    for name in ("login_domain", "log_path", "login_ca", "identity", "known_peers", "pin"):
        value = getattr(conf, name)
        if value is not None:
            setattr(conf, name, (_check_path if name in _PATHS else check_text)(value, name))
    if conf.login_domain is not None:
        check_value(conf.login_port, 1, 65535, "login_port")
    check_value(conf.lan_search_port, 0, 65535, "lan_search_port")
    check_value(conf.max_log_size, 0, 2**63 - 1, "max_log_size")
    check_value(conf.tcp_only, 0, 1, "tcp_only")
    for name in ("stun_servers", "https_proxy"):
        value = getattr(conf, name)
        if value is not None:  # empty: none
            setattr(conf, name, check_text(value, name) if value not in ("", b"") else "")
    conf.callers = _check_callers(conf.callers)
    if conf.login_fingerprint is not None:
        conf.login_fingerprint = check_text(conf.login_fingerprint, "login_fingerprint")
        parse_fingerprints(conf.login_fingerprint)
    return conf


def _check_path(value: Any, name: str) -> str:
    """Absolute: the program may change its working folder while the engine uses the file."""
    text = check_text(value, name)
    try:
        return str(Path(text).absolute())  # with its "..", which may be that of a link's folder
    except OSError as error:  # the working folder was removed
        raise ParameterError(f"{name}: {error}") from error


def _check_callers(value: Any) -> str | None:
    """Of engine_conf_t."""
    if value is None:
        return None
    text = check_text(value, "callers")
    try:
        Callers.parse_untrusted(text)
    except BadPacket as error:
        raise ParameterError(str(error)) from error
    return text


def check_length(buff: Any, length: Any, *, writable: bool) -> memoryview:
    """The buffer as bytes; ``length`` must be 1 or more, and in it."""
    check_value(length, 1, 2**63 - 1, "length")
    try:
        view = memoryview(buff).cast("B")
    except (TypeError, ValueError, BufferError) as error:
        raise ParameterError(f"buff: {error}") from error
    if writable and view.readonly:
        raise ParameterError("buff is read-only")
    if length > len(view):
        raise KKP2PError(f"length {length}, buff {len(view)} bytes", KKP2P_ERROR_SMALL_BUFF)
    return view


def check_context(ctx: Any) -> connect_ctx_t:
    """A copy: the application may use its own for something else at once."""
    ctx = dataclasses.replace(check_type(ctx, connect_ctx_t, "ctx"))
    ctx.peer_id = check_peer_id(ctx.peer_id)
    check_value(ctx.channel_type, 0, 1, "ctx.channel_type")
    check_value(ctx.encrypt_data, 0, 1, "ctx.encrypt_data")
    check_value(ctx.timeout, 0, MAX_TIMEOUT_MS, "ctx.timeout")
    check_value(ctx.connect_desc, -(2**31), 2**31 - 1, "ctx.connect_desc")
    if ctx.func is not None and not callable(ctx.func):
        raise ParameterError("ctx.func is not callable")
    return ctx


def check_proxy(
    ctx: Any, ip: Any, port: Any, proxy_id: Any, types: int
) -> tuple[connect_ctx_t, str]:
    """What both kinds of proxy are given; ``types``: the highest channel_type.

    Returns a copy of ctx, and ip as text.
    """
    ctx, ip = check_context(ctx), check_text(ip, "ip")
    check_value(port, 0, 65535, "port")
    check_value(ctx.timeout, 1, MAX_TIMEOUT_MS, "ctx.timeout")
    if ctx.channel_type > types:
        raise ParameterError("ctx.channel_type is for messages, which start_proxy_udp forwards")
    check_value(ctx.connect_mode, 0, 2, "ctx.connect_mode")
    if ctx.func is not None or ctx.func_param is not None:
        raise ParameterError("a proxy has no callback: ctx.func and ctx.func_param must be None")
    try:
        proxy_id.value = 0  # fails here rather than with a proxy under way
    except (AttributeError, TypeError) as error:
        raise ParameterError(f"proxy_id: {error}") from error
    return ctx, ip
