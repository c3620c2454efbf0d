"""Open streams to a peer that nobody uses yet: on a link, or a TCP connection through a relay.

A channel of the application's, or a connection of a proxy, is made of one.  Which kind it is only
this module knows: all have the face of ``OpenStream``.  Runs in the engine's hub.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import gevent

from ..._codes import KKP2P_TCP_CHANNEL, TRANSMIT_P2P, TRANSMIT_RELAY
from ..._errors import KKP2PError
from ...transport import pair, tcp, tcp_stats
from ...transport.splice import Outcome, Splice, close_both
from ...transport.tcp_stats import Passed, TcpStats
from ...transport.udp.pipe import MessagePort, OnEnd
from ...transport.udp.stream_table import REFUSED_BUSY
from ...traversal.candidates import is_private
from ..paths.path_kind import PathKind
from ..runtime.timeline import Timeline
from .background import Background
from .path_move import Move
from .peer_link import PeerLink
from .proving import PeerKey

__all__ = ["Carried", "LinkStream", "OpenStream", "Pipe", "SplicedStream"]

STOP_TIMEOUT_S = 1  # our choice: for the rest, when the stream is broken or its proxy stopped
NOTHING = Passed()
_MESSAGE_COUNTS = ("messages_dropped", "messages_missing")  # fields of channel_stats_t


OnOver = Callable[[list[Exception]], object]  # what broke it; nothing: it ended in order


class Carried(Protocol):
    def abort(self, error: KKP2PError) -> None: ...


class Pipe(Carried, Protocol):
    """What carries a stream to and from a local socket; see transport/udp/pipe.py."""

    def application_closed(self) -> None: ...


class OpenStream:
    """``detach``, ``pipe``, ``exchange`` or ``carry`` puts it to use, or ``give_up`` ends it.

    Local sockets are plain and non-blocking: gevent's would wait.
    """

    channel_type = KKP2P_TCP_CHANNEL
    is_ipv6_p2p = False

    def __init__(self, desc: int, encrypt: int, how: str) -> None:
        self.desc = desc
        self.encrypt = encrypt
        self.how = how  # it came to be, for the log
        self.timeline: Timeline | None = None  # of the attempt that it came of, if we know it
        self.set_up_s: float | None = None  # if we called

    @property
    def path(self) -> str:
        """ "p2p" or "relay", at this moment."""
        raise NotImplementedError

    @property
    def path_word(self) -> str:
        """One of CALL_PATHS, at this moment."""
        raise NotImplementedError

    @property
    def transmit_mode(self) -> int:
        """The same as C's number."""
        raise NotImplementedError

    @property
    def reason(self) -> str:
        """For that path; empty if only the peer knows."""
        raise NotImplementedError

    @property
    def moves(self) -> Sequence[Move]:
        """From one path to another."""
        return ()

    @property
    def peer_key(self) -> PeerKey | None:
        """That the peer has proved to have."""
        return None

    @property
    def address(self) -> tuple[str, int] | None:
        """The peer's or the relay's; None: the stream was broken from the start."""
        raise NotImplementedError

    def passed(self) -> Passed:
        """The application's bytes that have passed by now."""
        raise NotImplementedError

    def stats(self, fd: int | None = None) -> dict[str, Any]:
        """Fields of channel_stats_t.  ``fd``: a copy of what ``detach`` has given away."""
        raise NotImplementedError

    def give_up(self) -> None:
        """Nobody uses it: the peer sees a cut, not an end."""
        raise NotImplementedError

    def accept(self) -> None:
        """Tell the peer, which has opened it, that it is taken."""

    def refuse(self, reason: int = REFUSED_BUSY) -> None:
        """Tell the peer, which has opened it, that it is not."""
        self.give_up()

    def detach(self) -> int | None:
        """The descriptor of a TCP connection that is the stream as it is; None: use ``pipe``."""
        return None

    def pipe(
        self, sock: Any, on_end: OnEnd, mark: pair.Mark | None, background: Background
    ) -> Pipe:
        """Carry it to and from a socket until ``on_end``; then that is the caller's to close.

        ``mark``: see pair.py, if it is of a socket pair; None: it is a TCP connection.
        """
        raise NotImplementedError

    def exchange(
        self, on_message: Callable[[bytes], object], on_end: Callable[[KKP2PError | None], object]
    ) -> MessagePort:
        """Use it for messages, if it is one of a UDP channel; see MessagePort."""
        raise NotImplementedError

    def carry(self, local: Any, background: Background, on_over: OnOver) -> Carried:
        """Carry it to and from a program's TCP connection, and close both; then ``on_over``."""

        def ended(error: KKP2PError | None, is_cut: bool) -> None:
            if error is None:
                background.linger(local)
                on_over([])
            else:
                # For the local program it must not look like an end of stream.
                closing = background.spawn(_reset, local)
                closing.rawlink(lambda _: (local.close(), on_over([error])))

        return self.pipe(local, ended, None, background)


class LinkStream(OpenStream):
    """A channel on a link, whatever path that takes."""

    def __init__(
        self, link: PeerLink, stream_id: int, channel_type: int, encrypt: int, desc: int
    ) -> None:
        super().__init__(desc, encrypt, link.describe_use())
        self.channel_type = channel_type
        self.timeline = link.info.met.timeline
        self.is_ipv6_p2p = link.is_ipv6
        self._link = link
        self._stream_id = stream_id
        self._stream = link.connection.streams.by_id.get(stream_id)  # None: it is broken already

    @property
    def path(self) -> str:
        return "relay" if self._link.paths.kind.is_relay else "p2p"

    @property
    def path_word(self) -> str:
        return self._link.paths.kind.word

    @property
    def transmit_mode(self) -> int:
        return TRANSMIT_RELAY if self._link.paths.kind.is_relay else TRANSMIT_P2P

    @property
    def reason(self) -> str:
        return self._link.paths.reason

    @property
    def moves(self) -> Sequence[Move]:
        return self._link.paths.moves

    @property
    def peer_key(self) -> PeerKey | None:
        return self._link.peer_key

    @property
    def address(self) -> tuple[str, int]:
        ip, port = self._link.connection.address[:2]
        return ip, port

    def passed(self) -> Passed:
        stream = self._stream
        return NOTHING if stream is None else Passed(stream.bytes_sent, stream.bytes_received)

    def stats(self, fd: int | None = None) -> dict[str, Any]:
        connection = self._link.connection
        packer, rtt, path = connection.packer, connection.recovery.rtt, connection.path
        passed = self.passed()
        return {
            "path": self.path,
            "address": self.address,
            "is_ipv6": self._link.is_ipv6,
            "is_lan": is_private(self.address[0]),
            "rtt_s": rtt.smoothed_s,
            "min_rtt_s": rtt.min_s if math.isfinite(rtt.min_s) else None,
            "loss": packer.lost_packets / max(1, packer.next_number),
            "pacing_bytes_per_s": path.controller.pacing_bytes_per_s,
            "delivery_bytes_per_s": path.rate.latest_bytes_per_s,
            "window_bytes": path.controller.window_bytes,
            "mtu_bytes": path.mtu.size,
            "bytes_sent": passed.sent,
            "bytes_received": passed.received,
            "connection_bytes_sent": packer.sent_bytes,
            "connection_bytes_received": connection.received_bytes,
            **self._message_counts(),
        }

    def _message_counts(self) -> dict[str, int | None]:
        stream, dropped = self._stream, self._link.connection.packer.messages.dropped_of
        if stream is None or stream.assembler is None:
            return dict.fromkeys(_MESSAGE_COUNTS)
        counts = dropped[self._stream_id], stream.assembler.missing
        return dict(zip(_MESSAGE_COUNTS, counts, strict=True))

    def give_up(self) -> None:
        self._link.channels.give_up(self._stream_id)

    def accept(self) -> None:
        self._link.channels.accept(self._stream_id)

    def refuse(self, reason: int = REFUSED_BUSY) -> None:
        self._link.channels.refuse(self._stream_id, reason)

    def pipe(
        self, sock: Any, on_end: OnEnd, mark: pair.Mark | None, background: Background
    ) -> Pipe:
        return self._link.channels.pipe(self._stream_id, self.channel_type, sock, on_end, mark)

    def exchange(
        self, on_message: Callable[[bytes], object], on_end: Callable[[KKP2PError | None], object]
    ) -> MessagePort:
        return self._link.channels.exchange(self._stream_id, on_message, on_end)


class SplicedStream(OpenStream):
    """A TCP connection through the relay, whose bytes are the stream's."""

    path = "relay"
    path_word = PathKind.FRAMED.word  # over TCP, too
    transmit_mode = TRANSMIT_RELAY

    def __init__(
        self, sock: Any, desc: int, reason: str = "", timeline: Timeline | None = None
    ) -> None:
        super().__init__(desc, 0, f"relay: {reason}" if reason else "relay")
        self._reason = reason
        self.timeline = timeline
        self._sock = sock  # gevent's
        self._address: tuple[str, int] | None = None
        with contextlib.suppress(OSError):  # it is broken already
            self._address = sock.getpeername()[:2]
        self._before = self._carried = NOTHING  # before ``detach``, and by ``carry``
        self._closing: gevent.Greenlet[..., None] | None = None  # since the splice has ended
        self._close_s: float | None = None  # for the rest; None: as long as some of it arrives

    @property
    def reason(self) -> str:
        return self._reason

    @property
    def address(self) -> tuple[str, int] | None:
        return self._address

    def give_up(self) -> None:
        tcp.abort(self._sock)
        self._sock.close()

    def _fields(self, stats: TcpStats | None, passed: Passed | None) -> dict[str, Any]:
        address = self._address
        known: dict[str, Any] = dict.fromkeys(TcpStats._fields)
        if stats is not None:
            known = stats._asdict()
        del known["passed"]  # the stream's own are wanted
        return {
            "path": self.path,
            "address": address,
            "is_ipv6": address is not None and ":" in address[0],
            "is_lan": False,
            "bytes_sent": passed and passed.sent,
            "bytes_received": passed and passed.received,
            "connection_bytes_sent": None,
            "connection_bytes_received": None,
            **dict.fromkeys(_MESSAGE_COUNTS),
            **known,
        }

    def passed(self) -> Passed:
        return self._carried

    def stats(self, fd: int | None = None) -> dict[str, Any]:
        stats = None if fd is None else tcp_stats.read(fd)
        if stats is None:
            return self._fields(None, None)
        (sent, received), before = stats.passed, self._before
        return self._fields(stats, Passed(sent - before.sent, received - before.received))

    def detach(self) -> int | None:
        sock, self._sock = self._sock, None
        self._before = tcp_stats.passed(sock)
        fd: int = sock.detach()
        return fd

    def carry(self, local: Any, background: Background, on_over: OnOver) -> Carried:
        def ended(outcome: Outcome) -> None:
            background.checked.discard(splice)
            self._carried = Passed(outcome.bytes_ab, outcome.bytes_ba)
            both = local, self._sock, outcome, self._close_s
            self._closing = background.spawn(close_both, *both)
            errors = [error for error in (outcome.error_a, outcome.error_b) if error is not None]
            self._closing.rawlink(lambda _: (local.close(), self._sock.close(), on_over(errors)))

        self._splice = splice = Splice(local, self._sock, background.carriers, ended)
        splice.start()
        background.checked.add(splice)
        return self

    def abort(self, error: KKP2PError) -> None:
        self._close_s = STOP_TIMEOUT_S
        if self._closing is None:
            self._splice.stop(error)
        else:
            self._closing.kill(block=False)


def _reset(local: Any) -> None:
    tcp.linger(local, STOP_TIMEOUT_S, reset=True)
