"""KKP2P for Python: log in with a peer id, connect to another, get a descriptor.

Every function and struct of the C SDK is here under its own name without the prefix, every constant
under its full name, with the same order of arguments, in/out arguments and integer results::

    import kkp2p_compat as kkp2p

No function raises for bad input: it returns the C code, ``error_no`` has the code, and
``error_text`` and the log say why.
(An exception that the *caller* raises in a waiting greenlet, such as its own ``gevent.Timeout``,
passes.)  Times are in milliseconds.  A call that waits in a greenlet lets the others of its thread
go on; in a plain thread it blocks.  docs/porting.rst has each C function beside its Python line.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Any

import gevent

from . import _io
from ._api_checks import (
    check_conf,
    check_context,
    check_engine,
    check_length,
    check_peer_id,
    check_proxy,
    check_text,
    check_timeout,
    check_type,
    check_value,
)
from ._api_outcome import api as _api
from ._api_outcome import error_no, error_text
from ._api_outcome import note as _note
from ._bytes import abort_fd, close_fd, read, write
from ._codes import *  # noqa: F403 - the constants are API
from ._codes import (
    CONNECT_P2P,
    KKP2P_ERROR,
    KKP2P_ERROR_LANMODE_MUSTUSE_P2P,
    KKP2P_ERROR_SMALL_BUFF,
    KKP2P_SUCCESS,
    KKP2P_TCP_CHANNEL,
    KKP2P_UDP_CHANNEL,
)
from ._errors import KKP2PError, ParameterError
from ._login import kept_account, set_login
from ._structs import channel_stats_t, channel_t, connect_cb, connect_ctx_t, engine_conf_t
from ._version import __version__
from .engine.engine import Engine as engine_t
from .engine.runtime import log as _log

if TYPE_CHECKING:
    from .engine.channels.kinds import Channel

__all__ = [
    "__version__",
    "abort_fd",
    "accept",
    "channel_stats",
    "channel_stats_t",
    "channel_t",
    "close_channel",
    "close_fd",
    "connect",
    "connect_cb",
    "connect_ctx_t",
    "engine_conf_t",
    "engine_destroy",
    "engine_init",
    "engine_metrics",
    "engine_t",
    "error_no",
    "error_text",
    "get_domainip",
    "hmac_sha1",
    "join_lan",
    "join_net",
    "kept_account",
    "lan_search",
    "listen_fd",
    "log_destroy",
    "log_init",
    "log_switch_level",
    "proxy_address",
    "read",
    "sdk_version",
    "set_login",
    "start_proxy",
    "start_proxy_udp",
    "stop_proxy",
    "switch_log_level",
    "write",
    *(name for name in dir() if name.startswith("KKP2P_")),
]


@_api("")
def sdk_version(buff: Any, length: int) -> str:
    """The version; as in C it is also written into ``buff``, ended by a zero byte.

    ``buff`` may be None.  error_no: -121 when ``length`` bytes are too few (nothing is written).
    C: ``kkp2p_sdk_version``.
    """
    if buff is not None:
        data = __version__.encode() + b"\0"
        view = check_length(buff, length, writable=True)
        if len(data) > length:
            raise KKP2PError(f"{len(data)} bytes are needed", KKP2P_ERROR_SMALL_BUFF)
        view[: len(data)] = data
    return __version__


# Engine.


@_api(None)
def engine_init(conf: engine_conf_t, timeout: int) -> engine_t | None:
    """Start an engine.  ``timeout``: ms to resolve login_domain, 0 or more.

    Returns None on an error; error_no then has -101 (malformed domain), -102 (did not resolve in
    time), -103 (the resolver failed, or knows no such name), -104 (no address) or -106 (another
    field).  -102 to -104 may pass, such as at boot when the network is not up yet: try again.  A
    cloud that does not answer is no error: logging in is tried again and again.
    C: ``kkp2p_engine_init``.
    """
    return engine_t(check_conf(conf), check_timeout(timeout))


@_api(None)
def engine_destroy(engine: engine_t) -> None:
    """End an engine: its thread, sockets, channels and proxies.

    Calls that are under way return at once (-1).  What was written has 5 s to arrive; while a peer
    does not read, it takes that long; if the call is interrupted meanwhile (by the caller's own
    gevent.Timeout, a kill, Ctrl-C), the engine ends at once.  Descriptors of channels stay open
    until the application closes them; they read end of stream.  C: ``kkp2p_engine_destroy``.
    """
    check_type(engine, engine_t, "engine")
    engine.destroy()


@_api(None)
def switch_log_level(engine: engine_t, level: int) -> None:
    """This engine's log level: 0 none, 1 error, 2 normal, 3 info, 4 debug.

    C: ``kkp2p_switch_log_level`` (v1).
    """
    check_engine(engine).log.set_level(check_value(level, 0, 4, "level"))


@_api(...)
def log_init(callback: _log.LogCallback, param: Any, level: int) -> int:
    """From now on every engine logs to ``callback(text, length, param)`` and not to its file.

    ``level``: as for switch_log_level.  ``length``: bytes of the text as UTF-8.  The callback runs
    on a thread of the SDK, one line at a time; what it returns means nothing (in C, too, where it
    is an int).  Returns 0, -106.  C: ``kkp2p_log_init`` (v2).
    """
    if not callable(callback):
        raise ParameterError("callback is not callable")
    _log.set_log_level(check_value(level, 0, 4, "level"))
    _log.set_log_callback(callback, param)
    return KKP2P_SUCCESS


@_api(None)
def log_destroy() -> None:
    """Log to the engines' files again.

    First the callback gets the lines that wait for it: it has 5 s for that, and is not waited for
    if it is the one that calls this.  C: ``kkp2p_log_destroy`` (v2).
    """
    before = _log.set_log_callback(None, None)
    if before is not None:
        before.join(_log.FLUSH_S)


@_api(None)
def log_switch_level(level: int) -> None:
    """The level of every engine that switch_log_level was not called for.

    C: ``kkp2p_log_switch_level`` (v2).
    """
    _log.set_log_level(check_value(level, 0, 4, "level"))


@_api(...)
def get_domainip(engine: engine_t, hosts: list[str]) -> int:
    """Put the addresses of login_domain into ``hosts``; returns how many, or -106.

    C: ``kkp2p_get_domainip``.
    """
    check_engine(engine)
    check_type(hosts, list, "hosts")
    hosts[:] = engine.get_addresses()
    return len(hosts)


# Being found.


@_api(...)
def join_net(engine: engine_t, peer_id: str, secret: str) -> int:
    """Log in to the cloud, and stay logged in until engine_destroy.

    Waits up to 3 s for the cloud's answer.  Returns 0 (logged in; or the cloud does not answer yet,
    and logging in goes on), -110 (no such peer id), -111 (wrong secret), -106, -116 (no
    login_domain).  If the login ends later, accept says so.  C: ``kkp2p_join_net``.
    """
    check_engine(engine)
    engine.join_net(check_peer_id(peer_id), check_text(secret, "secret"))
    return KKP2P_SUCCESS


@_api(...)
def join_lan(engine: engine_t, peer_id: str) -> int:
    """Answer LAN searches for ``peer_id`` on the engine's lan_search_port, until engine_destroy.

    A second call replaces the first.  Anybody on the LAN can connect: there is no secret.  Returns
    0, -110 (no such peer id), -106 (the engine's lan_search_port is 0), -115 (another program has
    the port).  C: ``kkp2p_join_lan``.
    """
    check_engine(engine)
    peer_id = check_peer_id(peer_id)
    if not engine.conf.lan_search_port:
        raise ParameterError("join_lan needs a lan_search_port")
    engine.join_lan(peer_id)
    return KKP2P_SUCCESS


@_api(...)
def listen_fd(engine: engine_t) -> int:
    """A descriptor that polls readable when accept has something; do not read it.

    It lives as long as the engine.  C: ``kkp2p_listen_fd``.
    """
    return check_engine(engine).accept_queue.fd


@_api(...)
def accept(engine: engine_t, timeout: int, channel: channel_t) -> int:
    """Take one call that a peer has made; ``channel`` is filled in.

    One that nobody takes for 120 s is closed.  ``timeout``: ms, 0 or more.  Returns 1, 0 (none in
    time), -117 (another login under our peer id
    ended ours; join_net again), -110 or -111 (the cloud no longer accepts our login), -1 (the
    engine is destroyed), -106.  C: ``kkp2p_accept``.
    """
    check_engine(engine)
    check_type(channel, channel_t, "channel")
    accepted = engine.accept(check_timeout(timeout))
    if accepted is None:
        return 0
    accepted.describe(channel)
    return 1


# Connecting.


@_api(...)
def connect(engine: engine_t, ctx: connect_ctx_t, channel: channel_t | None) -> int:
    """Connect to ``ctx.peer_id``; ``channel`` is filled in.

    With ``ctx.func`` set it returns at once, and ``func(result, channel, ctx.func_param)`` is
    called when the connect is over: in a new greenlet of the calling thread if that has a gevent
    hub, else on a thread of the SDK.  ``channel`` may then be None.  A failure's ``result`` is -1,
    as in C; in the callback error_no has its code, and error_text says why.
    Returns 0, -109 (not within ctx.timeout ms, or not online), -108 (the peer refuses), -107 (a
    limit of the cloud, or the connection broke), -110, -111 (not the known key of the peer), -117
    (another login under our id ended ours), -119 (no descriptors), -106, -1.  Without a
    login_domain it is lan_search, with connect_mode 0, too.  C: ``kkp2p_connect``.
    """
    check_engine(engine)
    ctx = check_context(ctx)
    check_value(ctx.connect_mode, 0, 2, "ctx.connect_mode")
    return _connect(engine, ctx, channel, False)


@_api(...)
def lan_search(engine: engine_t, ctx: connect_ctx_t, channel: channel_t | None) -> int:
    """As connect, over the LAN only: finds a peer that has called join_lan.  Wants connect_mode 1.

    Searches on the engine's lan_search_port.  Returns 0, -112 (another connect_mode), -109 (not
    found within ctx.timeout ms), -110, -106 (at once, if lan_search_port is 0).
    C: ``kkp2p_lan_search``.
    """
    check_engine(engine)
    ctx = check_context(ctx)
    if ctx.connect_mode != CONNECT_P2P:
        raise KKP2PError("lan_search wants connect_mode 1", KKP2P_ERROR_LANMODE_MUSTUSE_P2P)
    return _connect(engine, ctx, channel, True)


def _connect(engine: engine_t, ctx: connect_ctx_t, channel: channel_t | None, lan: bool) -> int:
    func, param = ctx.func, ctx.func_param
    if channel is not None or func is None:
        target = check_type(channel, channel_t, "channel")
    else:
        target = channel_t()
    target.peer_id, target.fd = ctx.peer_id, -1
    if func is None:
        engine.open_channel(ctx, lan).describe(target)
        return KKP2P_SUCCESS

    def done(result: Channel | KKP2PError) -> None:
        if isinstance(result, KKP2PError):
            _note(result)
            func(KKP2P_ERROR, target, param)  # C's callback gets -1, whatever it was
        else:
            result.describe(target)
            _note(None)
            func(KKP2P_SUCCESS, target, param)

    if not _io.in_greenlet_world():
        engine.open_channel_later(ctx, lan, done)
        return KKP2P_SUCCESS

    def wait() -> None:
        try:
            result: Channel | KKP2PError = engine.open_channel(ctx, lan)
        except KKP2PError as error:
            engine.log.error("asynchronous connect: %s", error)
            result = error
        done(result)

    gevent.spawn(wait)
    return KKP2P_SUCCESS


@_api(...)
def start_proxy(engine: engine_t, ip: str, port: int, ctx: connect_ctx_t, proxy_id: Any) -> int:
    """Listen on ``ip``:``port`` (TCP), and forward each connection to ``ctx.peer_id``.

    ``ip``: also a name of this host, which is looked up for up to 5 s; or the path of a Unix
    socket, which begins with ``/``.  ``port`` 0: any free one (see proxy_address).  ``proxy_id``:
    an object with ``.value``, such as ``ctypes.c_uint32()``.  ctx.timeout must be over 0, ctx.func
    and ctx.func_param None.
    Returns 0, -113 (it cannot listen there), -110, -106 (also for a UDP ctx.channel_type, which
    start_proxy_udp takes, and where connect cannot find anybody: neither login_domain nor
    lan_search_port is set).  C: ``kkp2p_start_proxy``.
    """
    check_engine(engine)
    ctx, ip = check_proxy(ctx, ip, port, proxy_id, KKP2P_TCP_CHANNEL)
    proxy_id.value = engine.start_proxy(ip, port, ctx).proxy_id
    return KKP2P_SUCCESS


@_api(...)
def start_proxy_udp(engine: engine_t, ip: str, port: int, ctx: connect_ctx_t, proxy_id: Any) -> int:
    """As start_proxy, for UDP: each client address has a UDP channel, until it is idle for 120 s.

    ctx.channel_type: KKP2P_UDP_CHANNEL, or a zeroed struct's.  C: ``kkp2p_start_proxy_udp``.
    """
    check_engine(engine)
    ctx, ip = check_proxy(ctx, ip, port, proxy_id, KKP2P_UDP_CHANNEL)
    ctx.channel_type = KKP2P_UDP_CHANNEL
    proxy_id.value = engine.start_proxy(ip, port, ctx).proxy_id
    return KKP2P_SUCCESS


@_api(None)
def stop_proxy(engine: engine_t, proxy_id: Any) -> None:
    """End a proxy: its listener and its connections.  C: ``kkp2p_stop_proxy``."""
    number = getattr(proxy_id, "value", proxy_id)
    if not check_engine(engine).stop_proxy(check_value(number, 0, 2**32 - 1, "proxy_id")):
        raise ParameterError(f"no proxy {number}")


@_api(None)
def proxy_address(engine: engine_t, proxy_id: Any) -> tuple[str, int] | None:
    """Where a proxy listens: its address and port.  None: no such proxy.  Not in C."""
    number = getattr(proxy_id, "value", proxy_id)
    return check_engine(engine).proxy_address(check_value(number, 0, 2**32 - 1, "proxy_id"))


# Channels.


@_api(None)
def close_channel(engine: engine_t, channel_id: int) -> None:
    """End a channel; what was written still arrives.  An unknown id does nothing, as in C.

    The descriptor stays open until close_fd, and reads end of stream.
    C: ``kkp2p_close_channel``.
    """
    check_engine(engine).close_channel(check_value(channel_id, 0, 2**32 - 1, "channel_id"))


@_api(None)
def channel_stats(engine: engine_t, channel_id: int) -> channel_stats_t | None:
    """What is known of a channel at this moment: path, peer's address, round trip, loss, bytes.

    Returns None when there is no such channel (any more); error_no then has -106.  Not in C.
    """
    check_engine(engine)
    check_value(channel_id, 0, 2**32 - 1, "channel_id")
    return engine.channel_stats(channel_id)


@_api("")
def engine_metrics(engine: engine_t) -> str:
    """The engine's numbers as Prometheus reads them: login, calls, channels, paths, bytes, losses.

    The text format, version 0.0.4, UTF-8; serve it as ``text/plain; version=0.0.4``.  The names
    begin with ``kkp2p_engine_``; docs/operations.rst says what each one means, and how to serve
    them.  It looks at what is counted anyway, so it may be called as often as you like.
    Returns "" for what is no engine, or one that is destroyed; error_no then has the code.
    Not in C.
    """
    return check_engine(engine).metrics()


@_api(b"")
def hmac_sha1(key: bytes, data: bytes) -> bytes:
    """HMAC-SHA1 of ``data``: 20 bytes; empty on a wrong type.  C: ``kkp2p_hmac_sha1``."""
    for name, value in (("key", key), ("data", data)):
        if not isinstance(value, bytes | bytearray | memoryview):
            raise ParameterError(f"{name} is not bytes")
    return hmac.digest(bytes(key), bytes(data), "sha1")
