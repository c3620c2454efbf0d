"""The cloud: one listening port and the services behind it, and a UDP port of the same number.

The first byte of a connection decides: 0x16 is a TLS record, so it is for the control plane; ``K``
is a relay hello, 0 a STUN message; everything else is closed.  What comes by UDP is told apart by
udp_port.py.  ``Cloud`` runs in the hub of the thread that calls ``start``, and each of its methods
belongs to that thread.
"""

from __future__ import annotations

import errno
import logging
import time
from typing import Any

import gevent
from gevent import get_hub
from gevent.pool import Group

from .._address import HostPort
from .._version import __version__
from ..transport import relay_wire, tcp
from ..transport.splice import MOST_PIPES
from . import stun_tcp
from .audit import Audit
from .certificate import Certificate, reachable_host
from .control_connection import CLOSE_S, ControlConnection
from .directory import Directory, Node
from .door import Door
from .handshakes import WAITING_SHARE, Handshakes
from .lane import LaneRelay
from .limits import Gatekeeper
from .nodes import PROTOCOL, Load, Nodes
from .open_directory import open_directory
from .relay import Relay
from .route import Route
from .settings import CloudSettings
from .stats import NodeStats
from .stranger import Stranger
from .stun import StunResponder
from .track import Track
from .udp_port import UdpPort, homes_of
from .usage import Usage

__all__ = ["Cloud", "raise_descriptor_limit"]

log = logging.getLogger(__name__)

_TLS_HANDSHAKE = b"\x16"  # RFC 8446 section 5.1, ContentType
_RELAY_HELLO = relay_wire.MAGIC[:1]

# Our choices.
SPARE_DESCRIPTORS = 64  # for files and accounts
PIPE_SHARE = 16  # one in so many descriptors may be a pipe of the relay's; it has two ends
SWEEP_S = 1.0
PORT_TRIES = 16  # to find a number that is free for TCP and UDP, when any will do
AT_ONCE_S = 0.5  # for good-byes to arrive when nobody is waited for


def raise_descriptor_limit() -> int:
    """Let this process have as many descriptors as the system grants it; how many that is."""
    try:
        import resource
    except ImportError:  # not POSIX
        return 512
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (ValueError, OSError) as error:  # macOS: "unlimited" is refused
            log.warning("descriptors stay limited to %d: %s", soft, error)
    return 1 << 30 if soft == resource.RLIM_INFINITY else soft


class Cloud:
    """Call order: ``start``, then ``address`` and the rest, ``stop`` (in a greenlet) at the end."""

    def __init__(self, settings: CloudSettings, directory: Directory | None = None) -> None:
        """``directory``: instead of the one that the settings name."""
        self.settings = settings
        self.directory = directory
        self.nodes: Nodes | None = None
        self.usage: Usage | None = None
        self.track: Track | None = None
        self.relay: Relay | None = None
        self.route: Route | None = None
        self.stun: StunResponder | None = None
        self.lane: LaneRelay | None = None
        self.gate = Gatekeeper(settings.limits)
        self._stats = NodeStats(self.gate)
        self.is_draining = False
        self._certificate: Certificate | None = None  # a relay has none
        self._key = b""
        self._doors: list[Door] = []  # that of the control plane, and the relay's if it has its own
        self._udp: UdpPort | None = None
        self._relay_udp: UdpPort | None = None  # if the relay has a port of its own
        self._sweeping: Any = None  # a timer
        self.handshakes: Handshakes | None = None
        self._closing = Group()  # the greenlets that close sockets without loss
        self._load = Load()
        self._address: HostPort = ("", 0)
        self._relay_port = 0

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens; the port is the real one."""
        return self._address

    @property
    def fingerprint(self) -> str:
        """Of the certificate: "sha256:" and hex; empty for a relay."""
        return "" if self._certificate is None else self._certificate.shown.fingerprint

    @property
    def certificate_ends(self) -> float | None:
        """Unix time."""
        return None if self._certificate is None else self._certificate.shown.ends

    def stats(self) -> dict[str, Any]:
        """What other nodes and the status page are told: see NodeStats."""
        return self._stats.take(self.track, self.relay, self.lane)

    def reload(self) -> None:
        """Load the certificate's files again; new connections are shown what is there now."""
        if self._certificate is not None:
            self._certificate.load()
        if self.gate.audit is not None:
            self.gate.audit.reopen()

    def start(self) -> None:
        """Raises OSError, ValueError or sqlite3.Error, with a sentence for the user."""
        try:
            self._start()
        except BaseException:
            self._close()
            raise

    def stop(self, drain_s: float | None = None) -> None:
        """Stop accepting, send the peers away, let relay sessions end, close everything.

        ``drain_s``: how long that may take; None: as set.  With 0 nobody is waited for long.  Where
        there are other nodes the peers move there one after the other, before they are left.
        """
        if not self._doors:
            return
        self.is_draining = True
        drain_s = self.settings.drain_s if drain_s is None else drain_s
        until = time.monotonic() + drain_s
        moving = self._begin_to_drain(drain_s)
        self._stop_accepting()
        if self.lane is not None:
            self.lane.close()
        if moving is None:
            self._send_away()
        if self.relay is not None:
            self.relay.stop(drain_s)
        if self.lane is not None:
            self.lane.wait(until - time.monotonic())
        if moving is not None:
            moving.join(max(until - time.monotonic(), 0))
            self._send_away()
        self.gate.empty.wait(min(CLOSE_S, drain_s) or AT_ONCE_S)
        self._close()

    def _begin_to_drain(self, drain_s: float) -> gevent.Greenlet[..., None] | None:
        """Tell the other nodes, and the peers to go there; None: there is no other."""
        if self.nodes is None or self.track is None or drain_s <= 0:
            return None
        if not any(node.serves_peers and not node.draining for node in self.nodes.others):
            return None
        self.track.is_draining = True
        for door in self._doors:
            door.take_waiting()
        self.nodes.take_turn()
        return gevent.spawn(self.track.move_all, drain_s)

    def _send_away(self) -> None:
        for item in self.gate.deadlines.items():
            item.shut_down()

    def _start(self) -> None:
        settings = self.settings
        descriptors = max(raise_descriptor_limit() - SPARE_DESCRIPTORS, 16)
        if self.directory is None:
            self.directory = open_directory(settings.directory, settings.data, settings.accounts)
        nodes = self.nodes = Nodes(self.directory, self._describe)
        self.directory.start(nodes.id)
        if settings.audit is not None:
            self.gate.audit = Audit(settings.audit)
            self.gate.audit.name_node(nodes.id)
        key = self._key = self.directory.secret_key()
        usage = self.usage = Usage(key, self.directory)
        if settings.serves_relay:
            pipes = min(descriptors // PIPE_SHARE, MOST_PIPES)
            descriptors -= 2 * pipes
            self.relay = Relay(self.gate, key, usage, self._closing, pipes)
        self.gate.most_connections = descriptors
        if settings.role != "relay":
            self._certificate = Certificate(
                settings.data, settings.tls_cert, settings.tls_key, settings.names
            )
        if settings.role == "route":
            self.route = Route(self.gate, nodes)
        elif settings.role != "relay":
            self.track = Track(
                self.gate, self.directory, nodes, key, usage, settings.turn_credentials
            )
        if self._control is not None:
            self.handshakes = Handshakes(self._begin)
        self._listen()
        nodes.start()

    def own_node(self) -> Node:
        """As the others are told of it, with the numbers of now."""
        return self._describe("" if self.nodes is None else self.nodes.id)

    def _describe(self, node_id: str) -> Node:
        """What the other nodes are to know of this one."""
        settings = self.settings
        host, port = self.advertised
        has_control, has_relay = self._control is not None, self.relay is not None
        return Node(
            id=node_id,
            role=settings.role,
            host=host if has_control else "",
            port=self._address[1] if has_control else 0,
            relay_host=host if has_relay else "",
            relay_port=port if has_relay else 0,
            region=settings.region,
            version=__version__,
            protocol=PROTOCOL,
            fingerprint=self.fingerprint.removeprefix("sha256:"),
            draining=self.is_draining,
            load=self._load.share,
            stats=self.stats(),
        )

    @property
    def advertised(self) -> HostPort:
        """Where peers reach this node's relay."""
        settings = self.settings
        host, port = settings.advertise or ("", 0)
        return host or reachable_host(self._address[0]), port or self._relay_port

    def _listen(self) -> None:
        settings = self.settings
        for tries_left in reversed(range(1 if settings.port else PORT_TRIES)):
            door = Door(settings.host, settings.port, self._admit, settings.shares_port)
            self._address = door.address
            try:
                self._start_udp()
                break
            except OSError as error:
                if error.errno != errno.EADDRINUSE or settings.shares_port:
                    door.close()
                    raise
                if not tries_left:  # it may be the second port of another cloud on this host
                    log.error("%s; going on without STUN and lanes", error)
                    break
                door.close()
        self._doors = [door]
        if settings.relay_port is not None and self.relay is not None:
            self._doors.append(Door(settings.host, settings.relay_port, self._admit))
        self._relay_port = self._doors[-1].address[1]
        for door in self._doors:
            door.open()
        loop = get_hub().loop
        self._sweeping = loop.timer(SWEEP_S, SWEEP_S)
        self._sweeping.start(self._on_sweep)

    def _start_udp(self) -> None:
        settings = self.settings
        if not (settings.stun or settings.serves_lane):
            return
        host, port = self.address
        homes = homes_of(host, settings.stun_address)
        try:
            relay_udp = self._udp = UdpPort(homes, port, settings.shares_port)
            if settings.stun:
                self.stun = StunResponder(self.gate, settings.stun_address, self._key)
                self.stun.start(self._udp, host)
            if settings.relay_port is not None and settings.serves_lane:
                port = settings.relay_port
                relay_udp = self._relay_udp = UdpPort(homes, port)
                if self.stun is not None:
                    self.stun.answer_at(relay_udp)
        except OSError as error:
            self._stop_udp()
            where = f"{host}:{port}"
            raise OSError(error.errno, f"no UDP at {where}: {error.strerror}") from error
        if settings.serves_lane:
            assert self.usage is not None
            self.lane = LaneRelay(self.gate, self._key, self.usage, relay_udp)
        self._udp.start()
        if self._relay_udp is not None:
            self._relay_udp.start()

    def _stop_udp(self) -> None:
        for part in (self.stun, self._udp, self._relay_udp):
            if part is not None:
                part.stop()
        self.stun = self.lane = self._udp = self._relay_udp = None

    def _stop_accepting(self) -> None:
        for door in self._doors:
            door.close()
        self._doors = []

    def _close(self) -> None:
        self._stop_accepting()
        self._stop_udp()
        for _ in range(3):  # an item's end, a callback of it, the greenlet that this starts
            for item in self.gate.deadlines.items():
                item.expire()  # it did not go when it was told to
            gevent.sleep(0)
        self._closing.kill()
        if self.nodes is not None:
            self.nodes.stop()
        for part in (self._sweeping, self.handshakes):
            if part is not None:
                part.close()
        self._sweeping = self.handshakes = None
        if self.usage is not None:
            self.usage.close()
            self.usage = None
        if self.directory is not None:
            self.directory.close()
            self.directory = None
        if self.gate.audit is not None:
            self.gate.audit.close()
            self.gate.audit = None

    # Accepting.

    def _admit(self, sock: Any, host: str) -> None:
        if not self.gate.enter(host):
            sock.close()
            return
        sock.settimeout(0)
        deadline = time.monotonic() + self.settings.limits.handshake_s
        self.gate.deadlines.add(Stranger(sock, host, deadline, self._sort_untrusted, self._dismiss))

    def _sort_untrusted(self, stranger: Stranger, first: bytes) -> None:
        """Hand a connection to the service that its first byte asks for."""
        host, sock = stranger.host, stranger.sock
        try:
            if first == _TLS_HANDSHAKE and self.handshakes is not None:
                if not self.gate.may_shake_hands(host):
                    self._dismiss(stranger, "")
                    return
                stranger.reason = "waited too long for its TLS handshake"
                most_s = WAITING_SHARE * self.settings.limits.handshake_s
                stranger.deadline = time.monotonic() + most_s
                self.handshakes.add(stranger)
            elif first == _RELAY_HELLO and self.relay is not None:
                tcp.tune(sock)
                self.gate.deadlines.discard(stranger)
                self.relay.welcome(sock, host)
            elif first == stun_tcp.FIRST_BYTE and self.stun is not None:
                self.gate.deadlines.add(
                    stun_tcp.StunConnection(sock, host, self.gate, stranger.deadline)
                )
                self.gate.deadlines.discard(stranger)
            else:
                self._dismiss(stranger, f"starts with {first!r}" if first else "")
        except OSError as error:  # reset already
            self._dismiss(stranger, str(error))

    @property
    def _control(self) -> Track | Route | None:
        return self.track or self.route

    def _begin(self, stranger: Stranger) -> ControlConnection | None:
        host, sock = stranger.host, stranger.sock
        if self._control is None or self._certificate is None or tcp.left(sock):
            self._dismiss(stranger, "")  # it has given up: no signature is wasted on it
            return None
        try:
            tcp.hurry(sock)
        except OSError as error:  # reset already
            self._dismiss(stranger, str(error))
            return None
        shown = self._certificate.shown
        connection = ControlConnection(sock, host, self.gate, self._control, shown, self._closing)
        self.gate.deadlines.discard(stranger)
        connection.start()
        return connection

    def _dismiss(self, stranger: Stranger, reason: str) -> None:
        """Close a connection that gets no service; an empty reason is not logged."""
        if reason:
            self.gate.refused(stranger.host, reason)
        self.gate.deadlines.discard(stranger)
        stranger.sock.close()
        self.gate.leave(stranger.host)

    def _on_sweep(self) -> None:
        now = time.monotonic()
        for part in (
            self.gate,
            self.handshakes,
            self.gate.audit,
            self.directory,
            self.nodes,
            self._load,
            self.track,
            self.relay,
            self.lane,
            self.usage,
            self._certificate,
        ):
            try:
                if part is not None:
                    part.sweep(now)
            except Exception:
                log.exception("a sweep failed")
