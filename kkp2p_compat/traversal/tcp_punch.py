"""A direct TCP connection between two hosts behind NATs, where no UDP passes (RFC 6544's ideas).

Each side binds one port of each family, which all its sockets here share.  From there it asks a
server of the cloud by TCP how its NAT shows it; there it listens, and from there it connects to
every address that the peer has told, while the peer does the same.  Both NATs see a connection that
goes out: whichever SYN comes second passes, and TCP's simultaneous open (RFC 9293 section 3.5)
makes one connection of two.  That takes NATs whose mapping does not depend on the destination; or
one of them, if it lets everybody in.

Which connection is the peer's, and which one is kept, tcp_proof.py decides.

Runs in the engine's hub.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Sequence
from logging import Logger
from typing import Any

import gevent
from gevent.event import AsyncResult
from gevent.pool import Pool

from .._address import HostPort, text_of
from .._descriptors import keep_private
from .._errors import BadPacket, KKP2PError, LinkLost, NoPath
from .._io import time_limit
from ..transport import tcp
from . import stun
from .candidates import (
    MAX_CANDIDATES,
    Candidate,
    family_of,
    host_candidates,
    is_private,
    outer_candidate,
    parse_untrusted,
    plausible,
)
from .tcp_proof import GREETING_BYTES, NONCE_BYTES, PROOF_BYTES, TcpProof

__all__ = ["TcpPunch"]

# Our choices.
ASK_S = 2.0  # for a server to say how it sees us
TRY_S = 4.0  # of one connect; the kernel repeats its SYN after 1 and 3 s
AGAIN_S = 0.2  # before the next one to the same address, if one fails at once
TRIES = 25  # to one address
PROVE_S = 4.0  # for a connection that was made to show that it is the peer's
MAX_TARGETS = 12
MAX_STRANGERS = 8  # connections to our port that are still to prove themselves
LOWEST_PORT = 1024  # below are services, which a peer could make us annoy

_FAMILIES = (socket.AF_INET, socket.AF_INET6)


class TcpPunch:
    """Call order: ``find``, whose result the peer is to be told; ``handle_peer_untrusted`` with
    what it tells, at any time and more than once; ``run``; ``close`` in any case.

    ``key``: of this call, and for nothing else.
    """

    def __init__(self, key: bytes, is_caller: bool, log: Logger) -> None:
        self._key = key
        self._is_caller = is_caller
        self._log = log
        self._listeners: dict[int, Any] = {}  # by family
        self._asking: list[Any] = []  # the connections by which servers see us: they keep the port
        self._own: list[Candidate] = []
        self._named: list[Candidate] = []  # by the peer, before we knew our own
        self._targets: set[HostPort] = set()
        self._greenlets = Pool()
        self._strangers = Pool(MAX_STRANGERS)
        self._unproved: set[Any] = set()  # connections to our port
        self._made: AsyncResult[Any] = AsyncResult()  # until it is taken
        self._is_over = False  # there is one
        self._runs = False

    # Where we are.

    def find(self, servers: Sequence[HostPort], with_private: bool = True) -> list[str]:
        """Our own addresses for the peer, as texts of candidates; waits for ASK_S at most.

        ``servers``: numeric, of the cloud; one of each family is asked.  ``with_private``: also
        those that only hosts of our network can reach.  Raises NoPath if no port can be had.
        """
        for family in _FAMILIES:
            try:
                listener = tcp.shared_socket(family)
                listener.listen(MAX_STRANGERS)
            except OSError as error:
                self._log.info("TCP punch: no port of %s: %s", family.name, error)
            else:
                self._listeners[family] = listener
        if not self._listeners:
            raise NoPath("no TCP port to punch from")
        self._own = host_candidates(self._ports())
        first = {family_of(ip): (ip, port) for ip, port in reversed(servers)}
        asking = [gevent.spawn(self._ask, server) for server in first.values()]
        gevent.joinall(asking, timeout=ASK_S)
        gevent.killall(asking, block=False)
        told = [one for one in self._own if with_private or not is_private(one.address)]
        seen = [each.value for each in asking if each.successful() and each.value is not None]
        told += [outer_candidate("srflx", mapped, self._own) for mapped in seen]
        self._aim(self._named)
        return list(dict.fromkeys(one.text for one in told))

    def _ports(self) -> dict[int, int]:
        return {family: sock.getsockname()[1] for family, sock in self._listeners.items()}

    def _ask(self, server: HostPort) -> HostPort | None:
        """How a server sees a connection from our port; None: it does not say."""
        try:
            own_port = self._ports().get(family_of(server[0]))
            if own_port is None:
                return None
            sock = tcp.connect(*server, own_port)
            self._asking.append(sock)
            request = stun.Message(stun.Kind.REQUEST, secrets.token_bytes(12))
            sock.sendall(request.encode(None))
            answer = b""
            while (missing := stun.size_untrusted(answer) - len(answer)) > 0:
                answer += _receive(sock, missing)
            message = stun.parse_untrusted(answer)
        except (OSError, KKP2PError) as error:
            self._log.info("TCP punch: %s does not say how it sees us: %s", text_of(server), error)
            return None
        is_answer = message.kind is stun.Kind.RESPONSE
        if not is_answer or message.transaction_id != request.transaction_id:
            return None
        return message.mapped

    # Where the peer is.

    def handle_peer_untrusted(self, texts: object) -> None:
        """The candidates that the peer tells; BadPacket if they are malformed."""
        named = parse_untrusted(texts)
        if self._own:
            self._aim(named)
        elif len(self._named) < MAX_CANDIDATES:  # what is plausible depends on our own addresses
            self._named += named

    def _aim(self, named: Sequence[Candidate]) -> None:
        for candidate in named:
            place = candidate.address, candidate.port
            if (
                len(self._targets) < MAX_TARGETS
                and place not in self._targets
                and candidate.port >= LOWEST_PORT
                and plausible(candidate.address, self._own)
                and family_of(candidate.address) in self._listeners
            ):
                self._targets.add(place)
                if self._runs:
                    self._greenlets.spawn(self._try, place)

    def run(self, timeout_s: float) -> Any:
        """A connection with the peer, which is the taker's from now on; raises NoPath."""
        self._runs = True
        for listener in self._listeners.values():
            self._greenlets.spawn(self._accept, listener)
        for place in self._targets:
            self._greenlets.spawn(self._try, place)
        with time_limit(timeout_s, NoPath("no TCP connection was punched in time")):
            made = self._made.get()
        self._made = AsyncResult()
        self._log.info("TCP punch: connected with %s", text_of(made.getpeername()[:2]))
        return made

    def close(self) -> None:
        """May be called at any time, and again."""
        self._greenlets.kill(block=False)
        self._strangers.kill(block=False)
        for listener in self._listeners.values():
            tcp.close_listener(listener)
        for sock in self._asking:
            tcp.abort(sock)  # nothing of it is to stay in TIME_WAIT, on either side
            sock.close()
        for sock in self._unproved:  # of greenlets that never ran
            _drop(sock)
        self._listeners.clear()
        self._asking.clear()
        self._unproved.clear()
        if self._made.ready():
            _drop(self._made.get())
            self._made = AsyncResult()

    # Connections.

    def _try(self, place: HostPort) -> None:
        """Connect, again and again: a NAT may answer the first SYN with a reset."""
        own_port = self._ports()[family_of(place[0])]
        for _ in range(TRIES):
            if self._is_over:
                return
            try:
                with time_limit(TRY_S, LinkLost("no answer")):
                    sock = tcp.connect(*place, own_port)
            except (OSError, LinkLost) as error:
                self._log.debug("TCP punch: %s: %s", text_of(place), error)
            else:
                self._judge(sock)
            gevent.sleep(AGAIN_S)

    def _accept(self, listener: Any) -> None:
        while True:
            self._strangers.wait_available()
            try:
                sock, _ = listener.accept()
            except OSError as error:
                self._log.info("TCP punch: %s", error)
                gevent.sleep(AGAIN_S)  # out of descriptors
                continue
            self._unproved.add(keep_private(sock))
            self._strangers.spawn(self._judge, sock)

    def _judge(self, sock: Any) -> None:
        """Keep the connection if it is the peer's, and the one that the caller takes."""
        self._unproved.discard(sock)
        try:
            tcp.hurry(sock)
            with time_limit(PROVE_S, LinkLost("no proof in time")):
                proof = self._meet_untrusted(sock)
            if self._is_over:
                raise LinkLost("there is one already")
            if self._is_caller:
                sock.send(proof)  # of a fresh connection: there is room, so nobody else has a turn
            self._is_over = True
            self._made.set(sock)
        except (OSError, BadPacket, LinkLost) as error:
            self._log.debug("TCP punch: a connection is dropped: %s", error)
            _drop(sock)
        except BaseException:  # killed
            _drop(sock)
            raise

    def _meet_untrusted(self, sock: Any) -> bytes:
        """Until the peer is known; returns our proof, which the callee has sent by then."""
        proof = TcpProof(self._key, self._is_caller, secrets.token_bytes(NONCE_BYTES))
        sock.sendall(proof.greeting)
        proof.handle_greeting_untrusted(_receive_all(sock, GREETING_BYTES))
        own = proof.own_proof()
        if not self._is_caller:
            sock.sendall(own)
        proof.check_untrusted(_receive_all(sock, PROOF_BYTES))
        return own


def _receive(sock: Any, most: int) -> bytes:
    data: bytes = sock.recv(most)
    if not data:
        raise LinkLost("the other side has closed it")
    return data


def _receive_all(sock: Any, count: int) -> bytes:
    data = b""
    while len(data) < count:
        data += _receive(sock, count - len(data))
    return data


def _drop(sock: Any) -> None:
    """By a reset: a new connection between the same two ports may follow."""
    tcp.abort(sock)
    sock.close()
