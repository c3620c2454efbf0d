"""The structs of the C SDK, under their C names, fields in C's order.

A struct made without arguments is all zeroes, as after C's ``memset``.  ``peer_id`` and the paths
are ``str``; functions that take them also take ``bytes``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["channel_t", "connect_cb", "connect_ctx_t", "engine_conf_t"]

# (result, channel, func_param).  result: >= 0, or an error code below 0 (channel.fd is then -1).
connect_cb = Callable[[int, "channel_t", Any], object]


@dataclass
class engine_conf_t:
    """``kkp2p_engine_conf_t``: how an engine finds its cloud, and where it logs.

    The last fields are extensions of this port; C code never set them, None means C's behaviour.
    """

    login_domain: str | None = None
    """A domain, an IP address, or several joined with ``|``.  None: LAN search only."""
    login_port: int = 0
    """TCP port of the cloud, 1 to 65535."""
    lan_search_port: int = 0
    """UDP port for LAN searches; 0: this engine cannot be found on the LAN."""
    disable_upnp: int = 0
    """1: never ask the router for a port mapping."""
    log_path: str | None = None
    """Folder of kkp2p_engine.log; None: the working folder.  (v1)"""
    max_log_size: int = 0
    """Bytes after which the log is renamed to kkp2p_engine.log.bak; 0: 10 MiB.  (v1)"""
    enable_engine_thread_pool: int = 0
    """1: connect callbacks of plain threads run on four threads instead of one.  (v2)"""
    login_ca: str | None = None
    """Extension: PEM file of certificates; the cloud must then show one that they vouch for."""
    stun_servers: str | None = None
    """Extension: ``host:port`` of STUN servers, joined with commas, instead of the cloud's own
    (login_domain at login_port).  "": none is asked."""


@dataclass
class channel_t:
    """``kkp2p_channel_t``: one connection to a peer; filled in place by connect and accept."""

    peer_id: str = ""
    """connect: the peer called.  accept: our own id, as in C."""
    channel_type: int = 0
    """KKP2P_TCP_CHANNEL or KKP2P_UDP_CHANNEL."""
    transmit_mode: int = 0
    """1: p2p, 2: relay."""
    encrypt_data: int = 0
    """1: sealed end to end."""
    channel_id: int = 0
    """32 random bits; the two sides have different ones."""
    is_ipv6_p2p: int = 0
    """1: a p2p path over IPv6."""
    connect_desc: int = 0
    """The caller's connect_desc, as sent."""
    fd: int = -1
    """The descriptor to read and write: a real one, non-blocking."""


@dataclass
class connect_ctx_t:
    """``kkp2p_connect_ctx_t``: whom to connect to, and how."""

    peer_id: str = ""
    """1 to 32 printable ASCII characters."""
    channel_type: int = 0
    """KKP2P_TCP_CHANNEL or KKP2P_UDP_CHANNEL."""
    connect_mode: int = 0
    """0: p2p, else relay; 1: p2p only; 2: relay only."""
    encrypt_data: int = 0
    """1: seal relayed data end to end (p2p is always sealed)."""
    timeout: int = 0
    """Milliseconds for the whole connect."""
    connect_desc: int = 0
    """Any signed 32-bit integer; handed to the other side."""
    func: connect_cb | None = None
    """Called when an asynchronous connect is over; None: connect waits."""
    func_param: Any = None
    """Handed to func."""
