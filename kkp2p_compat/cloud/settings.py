"""Everything about a cloud that can be set: what it serves and where, and its limits.

Each limit is a flag of ``kkp2p cloud`` under its own name (``beat_s`` is ``--beat-s``), with the
help text and default that stand here.  All defaults are our choices.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from .turn_credentials import TurnCredentials

__all__ = ["DEFAULT_PORT", "ROLES", "CloudSettings", "Limits"]

DEFAULT_PORT = 3080  # what the document's programs use
ROLES = ("all", "route", "track", "relay")


def _limit(default: Any, help_text: str) -> Any:
    return field(default=default, metadata={"help": help_text})


@dataclass
class Limits:
    """What nobody may exceed.  ``_s`` is seconds; "an address" is an IPv4 address or an IPv6 /64.

    The networks around an address have four (IPv4 /24, IPv6 /56) and sixteen times as much (/48).
    They change only by ``Gatekeeper.change_limits``.
    """

    line_bytes: int = _limit(65536, "longest line of the control plane")
    stranger_line_bytes: int = _limit(4096, "the same without login, but for call and trickle")
    output_bytes: int = _limit(1_048_576, "most that waits for a peer that reads slowly")
    handshake_s: float = _limit(10.0, "time to finish TLS and say the first thing, or log in")
    idle_s: float = _limit(300.0, "how long a caller without login may be quiet")
    beat_s: float = _limit(25.0, "time between two heartbeats; a peer quiet for 2.5 is gone")
    connections: int = _limit(100_000, "connections in all; the system's limit is respected too")
    connections_per_address: int = _limit(1024, "connections at once from an address")
    connects_per_s: float = _limit(1000.0, "new connections per second from an address")
    handshakes_per_s: float = _limit(100.0, "TLS handshakes per second from an address")
    burst_s: float = _limit(5.0, "how many seconds' worth of a rate may come at once")
    login_failures: int = _limit(
        10, "failed logins of an account from an address at once; then one in two seconds"
    )
    login_failures_per_address: int = _limit(
        300, "failed logins per minute from an address, of all accounts together"
    )
    login_alarm: int = _limit(100, "failed logins of an account in a day; of more the log tells")
    bytes_per_s: float = _limit(262_144.0, "bytes per second that are read of a connection")
    bytes_per_s_per_address: float = _limit(1_048_576.0, "bytes per second of an address")
    work: float = _limit(0.1, "processor time for a connection, seconds per second")
    work_per_address: float = _limit(0.25, "processor time for an address, seconds per second")
    messages_per_s: float = _limit(2000.0, "messages per second on a connection")
    calls_per_s: float = _limit(1000.0, "calls per second on a connection")
    stranger_peers: int = _limit(
        20, "different peers that callers without login may call in a minute, of an address"
    )
    account_peers: int = _limit(200, "the same of an account")
    open_calls: int = _limit(512, "unanswered calls at once on a connection")
    stranger_calls_per_s: float = _limit(
        200.0, "calls per second from an address, by callers that have not logged in"
    )
    calls_to_a_peer: int = _limit(
        32, "unanswered calls at once of an address, or an account, with a peer; others wait"
    )
    strangers_to_a_peer: int = _limit(
        256, "unanswered calls of callers without a login with a peer, those that wait included"
    )
    unshown_to_a_peer: int = _limit(
        64, "calls of such callers that a peer gets before they were at the relay; others wait"
    )
    open_calls_per_address: int = _limit(2048, "unanswered calls at once from an address")
    kept_calls: int = _limit(512, "answered calls that are kept, on a connection")
    kept_calls_per_address: int = _limit(2048, "answered calls that are kept, from an address")
    relay_sessions: int = _limit(
        20_000, "relay sessions in all, waiting ones included; by TCP, and as many by UDP"
    )
    relay_sessions_per_address: int = _limit(1024, "relay sessions at once of an address")
    relay_wait_s: float = _limit(15.0, "how long one side of a session waits for the other")
    relay_session_bytes: int = _limit(0, "most bytes a relay session may carry; 0: no limit")
    turn_s: float = _limit(3600.0, "how long credentials for the TURN server are good")
    stun_per_s: float = _limit(1000.0, "STUN requests per second from an address")
    stun_total_per_s: float = _limit(5000.0, "STUN requests per second in all")
    lane_per_s: float = _limit(1000.0, "SHOWs per second of lanes from an address")
    lane_total_per_s: float = _limit(
        5000.0, "the same in all, from addresses that have not proved to be theirs"
    )
    limit_loopback: bool = _limit(False, "hold the limits per address against loopback, too")

    def become(self, other: Limits) -> None:
        for entry in fields(self):
            setattr(self, entry.name, getattr(other, entry.name))

    def hold_for(self, keys: tuple[str, ...]) -> bool:
        """Whether the limits per address hold for this one; ``keys``: see counting.py."""
        return self.limit_loopback or len(keys) > 1  # loopback has no networks around it


@dataclass
class CloudSettings:
    """What a cloud is to do.  See ``kkp2p cloud --help``."""

    host: str = "0.0.0.0"
    port: int = DEFAULT_PORT  # 0: any free one
    role: str = "all"
    data: Path | None = None  # certificate and accounts; None: nothing is kept
    tls_cert: Path | None = None  # PEM; with tls_key, instead of the certificate in ``data``
    tls_key: Path | None = None
    names: list[str] = field(default_factory=list)  # further ones, in the certificate in ``data``
    directory: str | None = None  # URL of the one that the nodes of this cloud share
    region: str = ""  # a name that means something to the operator
    advertise: tuple[str, int] | None = None  # as peers reach the relay; port 0: its own
    shares_port: bool = False  # with other processes; the relay then has a port of its own
    relay_port: int | None = None
    accounts: dict[str, str] = field(default_factory=dict)  # throw-away ones: peer id to secret
    turn: tuple[str, int] | None = None  # a TURN server, as peers reach it
    turn_secret: bytes | None = None  # shared with it
    stun: bool = True  # answer STUN requests
    lane: bool = True  # the roles all and relay also forward UDP, on the same port number
    stun_address: str | None = None  # a second address of this host, for STUN
    drain_s: float = 5.0  # how long ``stop`` waits for relay sessions to end by themselves
    audit: str | None = None  # a file for the audit log; "-": standard output
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        """Raise ValueError, with a sentence for the user, for what does not fit together."""
        if self.role not in ROLES:
            raise ValueError(f"role {self.role!r} is none of {', '.join(ROLES)}")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("a certificate and its key go together")
        if self.names and (self.tls_cert is not None or self.role == "relay"):
            raise ValueError("names are for the certificate that the cloud makes itself")
        self.names = [_checked_name(name) for name in self.names]
        if self.role != "all" and self.directory is None:
            raise ValueError(f"the role {self.role} needs a directory: --directory redis://HOST")
        if (self.turn is None) != (self.turn_secret is None):
            raise ValueError("a TURN server and its secret go together")
        if self.turn is not None and self.role not in ("all", "track"):
            raise ValueError("a TURN server is for the roles track and all")
        if self.turn_secret is not None and len(self.turn_secret) < 16:
            raise ValueError("a TURN secret has at least 16 bytes")
        if self.stun_address is not None and not self.stun:
            raise ValueError("a STUN address is for a cloud that answers STUN requests")
        if self.stun_address is not None:
            self.stun_address = _numeric(self.stun_address)

    @property
    def turn_credentials(self) -> TurnCredentials | None:
        if self.turn is None or self.turn_secret is None:
            return None
        return TurnCredentials(self.turn, self.turn_secret, self.limits.turn_s)

    @property
    def serves_relay(self) -> bool:
        return self.role in ("all", "relay")

    @property
    def serves_lane(self) -> bool:
        return self.lane and self.serves_relay


def _numeric(ip: str) -> str:
    """As the system writes it, as it will be compared with what that tells."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    try:
        return socket.inet_ntop(family, socket.inet_pton(family, ip))
    except OSError:
        raise ValueError(f"a STUN address is a numeric one, not {ip!r}") from None


_LABEL = "[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"  # RFC 1123 section 2.1, and underscores
_DNS_NAME = re.compile(rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*")


def _checked_name(name: str) -> str:
    """A DNS name or an address as it stands in a certificate; raises ValueError."""
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        if _DNS_NAME.fullmatch(name):
            return name.lower()
    raise ValueError(f"{name!r} is neither a DNS name nor an IP address")
