"""The structs of the C SDK, under their C names, fields in C's order.

A struct made without arguments is all zeroes, as after C's ``memset``.  ``peer_id`` and the paths
are ``str``; wherever the API takes text it also takes bytes, as they come from a socket: UTF-8,
without the zero byte that ends C's strings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["channel_stats_t", "channel_t", "connect_cb", "connect_ctx_t", "engine_conf_t"]

# (result, channel, func_param).  result: >= 0, or an error code below 0 (channel.fd is then -1).
connect_cb = Callable[[int, "channel_t", Any], object]


@dataclass
class engine_conf_t:
    """``kkp2p_engine_conf_t``: how an engine finds its cloud, and where it logs.

    Paths begin at the working folder that the program has when it calls engine_init.  The last
    fields are extensions of this port; None means the behaviour of C.
    """

    login_domain: str | None = None
    """A domain, an IP address, or several joined with ``|``.  None: LAN search only."""
    login_port: int = 0
    """TCP port of the cloud, 1 to 65535."""
    lan_search_port: int = 0
    """UDP port for LAN searches; 0: none are answered and none are made."""
    disable_upnp: int = 0
    """1: never ask the router for a port mapping."""
    log_path: str | None = None
    """Folder of kkp2p_engine.log; None: the working folder.  (v1)

    If the file cannot be opened, engine_init fails with -106 when a folder is named; otherwise the
    engine has no log and says so on standard error.  A full disk is no error in either case.
    """
    max_log_size: int = 0
    """Bytes after which the log is renamed to kkp2p_engine.log.bak; 0: 10 MiB.  (v1)"""
    enable_engine_thread_pool: int = 0
    """1: connect callbacks of plain threads run on four threads instead of one.  (v2)"""
    login_ca: str | None = None
    """Extension: a PEM file; the cloud's certificate must verify with one of those in it."""
    stun_servers: str | None = None
    """Extension: ``host:port`` of STUN servers, joined with commas, to ask instead of the
    cloud's own (login_domain at login_port).  "": none is asked."""
    callers: str | None = None
    """Extension: who may call this engine.  None or "anybody"; "accounts": those who have logged in
    to the cloud; or their peer ids, joined with commas.  On the LAN everybody is a stranger."""
    login_fingerprint: str | None = None
    """Extension: SHA-256 of the cloud's certificate in hex, as ``kkp2p cloud`` prints it when it
    starts; several joined with commas.  Every server of the cloud must then show one of these, or
    one that login_ca vouches for, or one that such a server has named."""
    https_proxy: str | None = None
    """Extension: ``http://[USER:PASSWORD@]HOST[:PORT]`` of an HTTP proxy through which all TCP
    connections to the cloud and its relays go (CONNECT).  None: as the environment's https_proxy
    and no_proxy say; "": none."""
    tcp_only: int = 0
    """Extension: 1: use no UDP, as in a network that blocks or strangles it."""
    identity: str | None = None
    """Extension: a file with the key by which peers may know this engine; it is made if it is
    missing.  None: there is no key, or if known_peers or pin is set: that of the user,
    ``$XDG_DATA_HOME/kkp2p/identity``."""
    known_peers: str | None = None
    """Extension: a file with a line ``PEER_ID sha256:HEX`` for each peer that is known by its key;
    None: ``$XDG_DATA_HOME/kkp2p/known_peers``, if pin wants one."""
    pin: str | None = None
    """Extension: "off": no peer has to prove its key.  "first-use": one that is in known_peers has
    to; others are put there when they first do.  "strict": all have to, and others than those in
    known_peers are refused.  None: "first-use" if known_peers is set, else "off"."""


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
    """1: encrypted end to end."""
    channel_id: int = 0
    """32 random bits; the two sides have different ones."""
    is_ipv6_p2p: int = 0
    """1: a p2p path over IPv6."""
    connect_desc: int = 0
    """The caller's connect_desc, as sent."""
    fd: int = -1
    """The descriptor to read and write: a real one, non-blocking."""
    caller_id: str = ""
    """Extension: accept: the id under which the caller has logged in to the cloud, which vouches
    for it; "": a stranger, or a caller on the LAN.  connect: ""."""


@dataclass
class connect_ctx_t:
    """``kkp2p_connect_ctx_t``: whom to connect to, and how."""

    peer_id: str = ""
    """1 to 32 printable ASCII characters."""
    channel_type: int = 0
    """KKP2P_TCP_CHANNEL or KKP2P_UDP_CHANNEL."""
    connect_mode: int = 0
    """0: p2p, or else relay; 1: p2p only; 2: relay only."""
    encrypt_data: int = 0
    """1: encrypt relayed data end to end (p2p is always encrypted)."""
    timeout: int = 0
    """Milliseconds for the whole connect."""
    connect_desc: int = 0
    """Any signed 32-bit integer; handed to the other side."""
    func: connect_cb | None = None
    """Called when an asynchronous connect is over; None: connect waits."""
    func_param: Any = None
    """Handed to func."""


@dataclass(frozen=True)
class channel_stats_t:
    """What is known of a channel at one moment.  Not in C; made by channel_stats.

    Times are in seconds, sizes in bytes, rates in bytes a second.  For a relayed channel everything
    about packets is that of our own TCP connection with the relay; None: the system has no figure.
    """

    channel_id: int
    path: str
    """"p2p" or "relay"."""
    reason: str
    """Why that path, in words; empty for a relayed channel that was accepted."""
    plan: str
    """How a path was looked for: "direct", "punch", "predict", "birthday", "relay"; or ""."""
    address: tuple[str, int] | None
    """IP and port: of the peer, or of the relay."""
    is_ipv6: bool
    is_lan: bool
    """p2p inside a private network (or a VPN)."""
    own_nat: str
    """What the NATs in front of us do, in words, as it was known when the channel was made."""
    peer_nat: str
    """What the peer has said about its own."""
    set_up_s: float | None
    """How long connect took; None: the channel was accepted."""
    steps: tuple[tuple[float, str], ...]
    """What happened on the way to the peer, and how long after the beginning.  A channel on a live
    connection has that connection's."""
    age_s: float
    """Since the channel was made."""
    rtt_s: float | None
    """Round trip, smoothed."""
    min_rtt_s: float | None
    loss: float | None
    """The fraction of all packets sent that was lost, 0 to 1; relayed: that was sent again."""
    pacing_bytes_per_s: float | None
    """How fast we may send now; 0: no limit has been found yet."""
    delivery_bytes_per_s: float | None
    """How fast the path delivered what we sent last; 0: too little was sent."""
    window_bytes: int | None
    """The congestion window."""
    mtu_bytes: int | None
    """The path's: of a UDP payload for p2p, of an IP packet for the relay."""
    bytes_sent: int | None
    """The application's, on this channel, that have left this host; without retransmissions."""
    bytes_received: int | None
    """The application's, on this channel; relayed without encryption: including unread ones."""
    connection_bytes_sent: int | None
    """On the connection that carries the channel and others, with packet headers and
    retransmissions; None for the relay."""
    connection_bytes_received: int | None
    messages_dropped: int | None
    """Of a UDP channel: the application's messages that were not sent, as newer ones waited for the
    path, too, or it had become too narrow; None: not a UDP channel."""
    messages_missing: int | None
    """Of a UDP channel: the peer's messages that have not come, though a newer one has; None: not a
    UDP channel."""
    caller_id: str
    """As in channel_t."""
    moves: tuple[tuple[float, str], ...]
    """From one path to another while the channel lived: how long after it was made, and from where
    to where and why, in words; the last 100.  ``path``, ``reason`` and ``address`` are of now."""
    peer_fingerprint: str
    """``sha256:HEX`` of the key that the peer has proved to have; "": it has proved none, and only
    the cloud (or on the LAN nobody) says who it is."""
    peer_pinned: bool
    """That key is in our known_peers for this peer."""
