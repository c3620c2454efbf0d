"""One TLS connection to a server of the cloud: logging in, heartbeats, calls.

Runs in the engine's hub.  One greenlet reads; anything may send.  When the connection breaks, every
waiter gets LinkLost and ``closed`` is set; a link is never reopened, its owner makes a new one.
The messages are in docs/protocol.rst.
"""

from __future__ import annotations

import contextlib
import ssl as _stdlib_ssl
from collections.abc import Callable, Mapping
from logging import Logger
from typing import Any

import gevent
from gevent import ssl
from gevent.event import AsyncResult, Event
from gevent.lock import RLock

from .. import _base64url
from .._address import HostPort, host_port_untrusted
from .._descriptors import keep_private
from .._errors import BadPacket, CloudUnreachable, KKP2PError, LinkLost
from .._io import shut_down, time_limit
from .._sentence import said
from ..transport import dial, tcp
from .callers import told
from .nearness import permitted
from .outgoing import OutgoingCalls, trickle_untrusted
from .refusals import login_refusal, show
from .resolver import addresses_of
from .way_out import DIRECT, WayOut
from .wire import MAX_TICKETS, PROTOCOL_VERSION, LineReader, Message, encode

__all__ = ["Link", "OfferHandler"]

OfferHandler = Callable[["Link", Message], object]

# Our choices, in seconds.
OPEN_TIMEOUT_S = 10  # TCP and TLS handshake with one address
ANSWER_TIMEOUT_S = 10  # for the cloud's answer to route, login and heartbeats, and to take a line
UNREAD_S = 0.01  # to read what came while the processor was busy with other things

# Our choices: what a server may make us hold.
MAX_UNSENT_BYTES = 1 << 20  # lines that it does not read
MAX_TRACKS = 16  # of one peer; a route's answer has the best first
MAX_CALL_CHARS = 128  # the name that a track gives an offer


class Link:
    """Call order: ``open``, then ``route``/``login``/``calls.make``, ``close`` at the end."""

    def __init__(
        self,
        address: HostPort,
        log: Logger,
        on_offer: OfferHandler,
        context: ssl.SSLContext,
        server_name: str | None,
        named_by: str | None = None,
        way_out: WayOut = DIRECT,
    ) -> None:
        """``named_by``: the IP address of the server that named this one; None: the user did."""
        self.address = address
        self.reached = address  # the same with a numeric host, once open
        self.closed = Event()
        self.moving = Event()  # the cloud wants us to log in elsewhere
        self.cut_off = Event()  # its node has lost the others: they cannot call us by this link
        self.close_reason: KKP2PError | None = None
        self.peer_id: str | None = None  # once logged in
        self.takes_offers = False  # logged in to be called, too
        self.iterations = 0  # that the login took
        self.certificate = b""  # DER, once open
        self.is_verified = False  # a CA vouches for the certificate
        self.named: object = None  # SHA-256s of other servers' certificates, as this one told
        self.is_invited = False  # our secret is there to be replaced
        self.serves_all = False  # the route said: every peer is on this very connection
        self.relays: object = None  # those that this server wants to be measured, as it told
        self.on_relays: Callable[[Link], object] = lambda link: None  # it has told of others
        self.told_nat: tuple[Message, set[str], Mapping[str, int]] | None = None
        self._log = log
        self._on_offer = on_offer
        self._context = context
        self._server_name = server_name
        self._named_by = named_by
        self.way_out = way_out
        self._opener: gevent.Greenlet[..., Any] | None = None
        self._sock: Any = None
        self._unsent: list[bytes] = []
        self._unsent_bytes = 0  # including those that are being sent
        self._send_more = Event()
        self._judged: Event | None = None  # set when a welcome has been verified, or not
        self._reply: AsyncResult[Message] | None = None
        self._unclaimed = 0  # answers under way that nobody waits for any more
        self._asking = RLock()
        self.calls = OutgoingCalls(self.send)
        self._heard = 0  # pieces of data
        self._greenlets: list[gevent.Greenlet[..., Any]] = []

    # Opening and closing.

    def open(self) -> None:
        """Connect and shake hands; raises CloudUnreachable (also for a bad certificate)."""
        late = CloudUnreachable("{cloud}: no TLS handshake in time", cloud=self._name)
        opened = False
        self._opener = gevent.getcurrent()
        try:
            with time_limit(OPEN_TIMEOUT_S, late):
                host, port = self.address
                connect = self.way_out.to(host).connect
                raw, address = dial.connect(self._addresses(), port, connect)
                self.reached = address, port
                try:
                    tcp.tune(raw)
                    raw.getpeername()  # fails if it is reset: gevent's wrap_socket would leak it
                    self._sock = keep_private(
                        self._context.wrap_socket(
                            raw, server_hostname=self._server_name, do_handshake_on_connect=False
                        )
                    )
                finally:
                    raw.close()  # nothing, once it is wrapped
                self._sock.do_handshake()
                self.certificate = self._sock.getpeercert(binary_form=True)
            self.is_verified = self._context.verify_mode == ssl.CERT_REQUIRED
            opened = True
        except _stdlib_ssl.SSLCertVerificationError:
            raise  # the owner decides whether to go on without
        except (OSError, KKP2PError, ValueError) as error:
            raise CloudUnreachable("{cloud}: {why}", cloud=self._name, why=said(error)) from error
        finally:
            self._opener = None
            if not opened:
                self.close()
        self._greenlets += [gevent.spawn(self._read), gevent.spawn(self._write)]

    def _addresses(self) -> list[str]:
        host = self.address[0]
        if self._named_by is not None:
            return permitted(host, addresses_of(host, OPEN_TIMEOUT_S), self._named_by)
        return [host] if self.way_out.is_proxied(host) else addresses_of(host, OPEN_TIMEOUT_S)

    def stop_opening(self, reason: KKP2PError) -> None:
        """An ``open`` under way fails with ``reason``: nobody need wait for its time-out."""

        def stop() -> None:  # in the hub: whoever opens the link waits for something now
            if self._opener is not None:
                self._opener.throw(reason)

        gevent.get_hub().loop.run_callback(stop)

    def close(self, reason: KKP2PError | None = None) -> None:
        """End the connection; every waiter gets ``reason``, LinkLost if none is given."""
        if self.closed.is_set():
            return
        error = reason or LinkLost("{cloud}: closed by us", cloud=self._name)
        self.close_reason = error
        self.closed.set()
        if self._sock is not None:
            shut_down(self._sock.fileno())  # the cloud is told, also if a forked child has a copy
            self._sock.close()
        if self._reply is not None and not self._reply.ready():
            self._reply.set_exception(error)
        self.calls.fail(error)
        self._unsent.clear()
        current = gevent.getcurrent()
        for greenlet in self._greenlets:
            if greenlet is not current:
                greenlet.kill(block=False)
        self._greenlets.clear()

    @property
    def is_connected(self) -> bool:
        """By TCP; that, and no more, is true of a server that is too busy for TLS."""
        return self._sock is not None and not self.closed.is_set()

    @property
    def is_track(self) -> bool:
        """Whether it carries calls, or our login."""
        return self.peer_id is not None or self.calls.made > 0

    @property
    def _name(self) -> str:
        return f"cloud {self.address[0]}:{self.address[1]}"

    # Questions with one answer.

    def route(self, peer_id: str) -> list[HostPort]:
        """The tracks of a peer, best first; empty: this very connection.  Waits its turn."""
        with self._asking:
            if self.serves_all:  # as another question has just brought out
                return []
            message = self._ask(encode("route", v=PROTOCOL_VERSION, peer=peer_id), "track")
        tracks, self.named = message.get("tracks"), message.get("certificates")
        self.relays = message.get("relays")
        if not isinstance(tracks, list) or not all(
            isinstance(track, list) and len(track) == 2 for track in tracks
        ):
            raise BadPacket("a track message without tracks")
        self.serves_all = not tracks
        return [host_port_untrusted(*track) for track in tracks[:MAX_TRACKS]]

    def login(
        self,
        peer_id: str,
        secret: str,
        session: str | None = None,
        again: bool = False,
        callers: str | None = None,
        call_only: bool = False,
        least_iterations: int = 0,
        leaves_cut_off: bool = False,
    ) -> None:
        """SCRAM-SHA-256-PLUS (RFC 5802); raises LoginRefused with -110 or -111.

        ``session`` names the login over all its connections, at most 64 characters; ``again``: it
        had one before, and must not take the place of another that was made meanwhile.
        ``callers``: who may call us (engine_conf_t); ``call_only``: nobody can call us here.  A
        challenge for fewer than ``least_iterations`` is refused.  ``leaves_cut_off``: we are logged
        in at a node that is cut off, and another one that is would be no better.
        Afterwards heartbeats run by themselves.  When it fails in any way the link is closed: a
        half-made login cannot be continued.
        """
        self._judged = Event()
        fields: Message = {
            "session": session,
            "again": again or None,
            "callers": told(callers),
            "call_only": call_only or None,
            "moves": not call_only or None,
            "relays": not call_only or None,
            "leaves_cut_off": leaves_cut_off or None,
        }
        logged_in = False
        try:
            welcome = self._log_in(peer_id, secret, fields, least_iterations)
            logged_in = True
        finally:
            if not logged_in:
                self.close()
            self.takes_offers = logged_in and not call_only
            self._judged.set()
        self.named, self.relays = welcome.get("certificates"), welcome.get("relays")
        self.is_invited = welcome.get("once") is True
        beat = welcome.get("beat")
        beat_s = beat if isinstance(beat, int | float) and 0.1 <= beat <= 600 else 25
        if self.peer_id is None:
            self._greenlets.append(gevent.spawn(self._keep_alive, beat_s))
        self.peer_id = peer_id

    def _log_in(self, peer_id: str, secret: str, fields: Message, least_iterations: int) -> Message:
        from .scram import ScramLogin  # already loaded: see Engine.join_net

        login = ScramLogin(peer_id, secret, self.certificate, self._name)
        line = encode("login", v=PROTOCOL_VERSION, peer=peer_id, scram=login.first, **fields)
        challenge = self._ask(line, "challenge").get("scram")
        proof = login.proof_untrusted(challenge, least_iterations)
        welcome = self._ask(encode("proof", scram=proof), "welcome")
        login.verify_untrusted(welcome.get("scram"))
        self.iterations = login.iterations
        return welcome

    def replace_secret(self, secret: str) -> None:
        """Give the account that ``is_invited`` another secret, for good."""
        from .scram import verifier_of

        *keys, iterations = verifier_of(secret)
        told = [*map(_base64url.encode, keys), iterations]
        self._ask(encode("secret", verifier=told), "secret")

    # What the other sides of calls hear.

    def trickle(self, call: int | str, text: str) -> None:
        """Tell more: at most 64 texts of 4,096 characters a call; not when closed.

        ``call``: the number of ours, for the callee, or the ``call`` of an offer, for its caller.
        """
        if not self.closed.is_set():
            # A link that breaks here is closed, and has told those who use it.
            with contextlib.suppress(LinkLost):
                self.send(encode("trickle", call=call, text=text))

    def tell_nat(
        self, fields: Message, tickets: Mapping[str, bytes], round_trips: Mapping[str, int] = {}
    ) -> None:
        """What the other sides of our calls hear of our NAT; at most 512 characters of JSON.

        ``tickets``: by ip, the cloud's word that it saw us there.  ``round_trips``: to relays, in
        milliseconds, for the cloud alone.
        """
        if (fields, {*tickets}, round_trips) != self.told_nat:
            self.told_nat = fields, {*tickets}, round_trips
            pairs = [[ip, _base64url.encode(tickets[ip])] for ip in tickets]
            seen, rtt = pairs[:MAX_TICKETS] or None, round_trips or None
            self.send(encode("nat", nat=fields, seen=seen, rtt=rtt))

    def check_alive(self, timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        """Something that should have come did not: close the link if it is dead.

        It is dead if nothing at all came in that time: the answer may be behind hundreds of offers.
        """
        if self.closed.is_set():
            return
        try:
            if tcp.stranded(self._sock):
                raise LinkLost("this host has another address now")
            while not self._answers(timeout_s):
                pass
        except KKP2PError as error:
            self.close(LinkLost("no heartbeat: {why}", why=said(error)))

    def _answers(self, timeout_s: float) -> bool:
        """Whether a heartbeat was answered; raises LinkLost if nothing at all was heard."""
        heard = self._heard
        late = LinkLost("no answer in time")
        try:
            with time_limit(timeout_s, late):
                self._ask(encode("beat"), "beat")
                return True
        except LinkLost as error:
            if error is not late:
                raise
            gevent.sleep(UNREAD_S)
            if self._heard == heard:
                raise
            return False

    def send(self, line: bytes) -> None:
        """Queue one line; raises why the link is closed.  Does not wait.

        A greenlet sends them: one that asks may be killed at any time, and must not leave half a
        line behind, nor take longer than its own time-out because the cloud does not read.
        """
        self._unsent_bytes += len(line)
        if self._unsent_bytes > MAX_UNSENT_BYTES:
            self.close(LinkLost("{cloud}: the cloud does not read", cloud=self._name))
        if self.close_reason is not None:
            raise self.close_reason
        self._unsent.append(line)
        self._send_more.set()

    # Inside.

    def _write(self) -> None:
        stuck = LinkLost("{cloud}: the cloud does not read", cloud=self._name)
        try:
            while self._send_more.wait():
                self._send_more.clear()
                lines = b"".join(self._unsent)
                self._unsent.clear()
                with time_limit(ANSWER_TIMEOUT_S, stuck):
                    self._sock.sendall(lines)
                self._unsent_bytes -= len(lines)
        except (OSError, ValueError) as error:  # ValueError: closed meanwhile
            self.close(LinkLost("{cloud}: {why}", cloud=self._name, why=said(error)))
        except LinkLost as error:
            self.close(error)

    def _ask(self, line: bytes, answer: str) -> Message:
        with self._asking:
            reply = self._reply = AsyncResult()
            self.send(line)
            late = LinkLost("{cloud}: no {answer} in time", cloud=self._name, answer=answer)
            try:
                with time_limit(ANSWER_TIMEOUT_S, late):
                    message: Message = reply.get()
            except LinkLost as error:
                self.close(error)
                raise
            finally:
                # Whoever asks next must not get the answer that we no longer wait for.
                if not reply.ready():
                    self._unclaimed += 1
        if message["op"] != answer:
            raise BadPacket(f"{self._name}: {show(message['op'])} instead of {answer}")
        return message

    def _keep_alive(self, beat_s: float) -> None:
        while not self.closed.is_set():
            gevent.sleep(beat_s)
            self.check_alive()

    def _read(self) -> None:
        reader = LineReader()
        try:
            while data := self._sock.recv(16384):
                self._heard += 1
                reader.feed(data)
                for message in reader.messages():
                    self._handle_untrusted(message)
            error: KKP2PError = LinkLost("{cloud}: closed by the cloud", cloud=self._name)
        except (OSError, ValueError) as problem:  # ValueError: closed meanwhile
            error = LinkLost("{cloud}: {why}", cloud=self._name, why=said(problem))
        except KKP2PError as problem:
            error = problem
        self.close(error)

    def _handle_untrusted(self, message: Message) -> None:
        op = message["op"]
        if op == "beat":
            (self.cut_off.set if message.get("cut_off") is True else self.cut_off.clear)()
        if op in ("track", "challenge", "welcome", "beat", "secret"):
            self._take_reply(message)
            if op == "welcome" and self._judged is not None:
                self._judged.wait()  # what comes behind it counts only when it has verified
        elif op == "refused":
            raise login_refusal(message.get("reason"))
        elif op == "bye":
            reason = message.get("reason")
            if reason in ("duplicate", "removed"):
                raise login_refusal(reason)
            raise LinkLost("{cloud} says good-bye: {reason}", cloud=self._name, reason=show(reason))
        elif op == "trickle" and not isinstance(message.get("call"), str):
            self.calls.handle_untrusted(message)
        elif op in ("offer", "cancel", "trickle"):
            call = message.get("call")
            if op == "trickle":
                trickle_untrusted(message)
            if not isinstance(call, str) or not 0 < len(call) <= MAX_CALL_CHARS:
                raise BadPacket(f"{self._name}: an offer without the name of a call")
            if self.takes_offers:
                self._on_offer(self, message)
        elif op == "gone":
            self._on_offer(self, message)
        elif op in ("calling", "answer", "declined"):
            self.calls.handle_untrusted(message)
        elif op == "move":
            self.moving.set()
        elif op == "relays":
            self.relays = message.get("relays")
            self.on_relays(self)
        elif op == "error":
            self._log.error("%s: error %s", self._name, show(message.get("reason")))
            if message.get("re") in ("route", "login", "proof", "beat", "secret"):
                self._take_reply(message)

    def _take_reply(self, message: Message) -> None:
        if self._unclaimed:
            self._unclaimed -= 1
        elif self._reply is not None and not self._reply.ready():
            self._reply.set(message)
