"""Find out what the NAT in front of us does, by asking STUN servers.  Sans-IO.

``Discovery`` does the tests of RFC 5780 for one address family, in three steps:

1. Mapping.  The main socket asks both ports of each server at once: this tells our outside address,
   and whether it depends on the port, in one round trip.  By convention the second port is the one
   after the first, until OTHER-ADDRESS tells it.  Departure: our servers with one address send
   OTHER-ADDRESS with that.
2. Allocation.  Fresh sockets ask in order: this tells how outside ports are allocated.  (Without a
   NAT one is enough, for the third step.)  The main socket asks the server's other address, if it
   has one.  Without one, address-dependent mapping cannot be told from endpoint-independent, nor no
   filtering from address-dependent filtering: they count as the latter.
3. Filtering.  One of the fresh sockets asks for answers from where it never sent to.  Two of our
   sockets send to each other's outside addresses (hairpin).

What a server says is a stranger's word.  A mapped address must be one that a peer may have, and a
private one counts only from a server with a private address.  Step 3 sends to two of our own mapped
addresses, as told.  The other address that a server names must be as plausible, and gets one
question, four datagrams.  MAX_MAPPED mapped addresses are kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from enum import Enum
from random import Random

from .._address import Address, HostPort
from .candidates import family_of, is_private, may_be_peer
from .nat import (
    ADDRESS_AND_PORT_DEPENDENT,
    ADDRESS_DEPENDENT,
    BLOCKED,
    ENDPOINT_INDEPENDENT,
    UNKNOWN,
    NatBehaviour,
    judge_allocation,
)
from .stun_client import Ask, Asks, at, over

__all__ = ["EXTRA_SOCKETS", "MAX_MAPPED", "MAX_SERVERS", "Discovery"]

# Our choices.
MAX_SERVERS = 3  # that are asked, of one family
MAX_MAPPED = 2  # mapped addresses that are kept: more are a symmetric NAT's, and of no use
EXTRA_SOCKETS = 4  # fresh ones, to see the allocation: three differences, one of which may be odd
PATIENCE_S = 0.3  # beyond two round trips, for more answers after the first


class _Phase(Enum):
    """Of a Discovery: what is being found out."""

    MAPPING = 1
    ALLOCATION = 2
    FILTERING = 3
    DONE = 4


class Discovery:
    """Send all that ``poll_transmit`` gives; feed ``handle_datagram_untrusted`` and
    ``handle_timer``, which is due at ``next_timer``; look at the properties after each.
    """

    def __init__(
        self,
        servers: Sequence[HostPort],
        *,
        port: int,
        open_fresh: Callable[[int], Mapping[int, int]],
        local: Collection[str],
        now: float,
        random: Random,
    ) -> None:
        """``servers``: numeric, of one family, the first MAX_SERVERS of which are asked.

        ``port``: of the main socket.  ``open_fresh``: opens so many fresh sockets, once, up to
        EXTRA_SOCKETS; it gives number and port of each, and with fewer, less is found out.
        ``local``: the addresses of this host.
        """
        self._servers = list(servers[:MAX_SERVERS])
        self._port = port
        self._open_fresh = open_fresh
        self._fresh_port: Mapping[int, int] = {}  # by the number of a fresh socket
        self._local = local
        self._now = now
        self._asks = Asks(random)
        self._main: dict[HostPort, Ask] = {}  # questions of the main socket
        # (server, where it saw the main socket), as of the last input.
        self._answers: list[tuple[HostPort, HostPort]] = []
        self._fresh: list[Ask] = []
        self._changed_ip: Ask | None = None
        self._changed_port: Ask | None = None
        self._hairpins: list[Ask] = []
        self._other: HostPort | None = None  # of the server that the later steps are about
        self._server: HostPort | None = None
        self._first_answer_at = math.inf
        self._behaviour: NatBehaviour | None = None  # as judged since the last input
        self._phase = _Phase.MAPPING
        self.verdict = False  # the mapping and the mapped addresses are known, or UDP is blocked
        for ip, first in self._servers:
            for number in (first, first + 1):
                self._ask_main((ip, number))
        self._go_on()

    # Input and output.

    def handle_datagram_untrusted(self, data: bytes, source: Address, now: float) -> bool:
        """Whether it was an answer to a question of ours.  Never raises."""
        self._now = max(self._now, now)
        ask = self._asks.handle_datagram_untrusted(data, source, self._now)
        if ask is None:
            return False
        if ask.answer_from is not None and not (ask.mapped and _can_be(ask.mapped, ask.to[0])):
            ask.refused, ask.answer = True, None
        self._go_on()
        return True

    def handle_timer(self, now: float) -> None:
        self._now = max(self._now, now)
        self._asks.handle_timer(self._now)
        self._go_on()

    def poll_transmit(self) -> tuple[bytes, Address] | None:
        return self._asks.poll_transmit()

    def next_timer(self) -> float | None:
        due_at = self._asks.next_timer()
        if not self.verdict and self._first_answer_at < math.inf and due_at is not None:
            due_at = min(due_at, self._patience_ends_at())
        return due_at

    # Results.

    @property
    def done(self) -> bool:
        """Nothing more will be found out; the extra sockets may be closed."""
        return self._phase is _Phase.DONE

    @property
    def server(self) -> HostPort | None:
        """The first of the given ones that answers."""
        return self._server

    @property
    def mapped(self) -> list[HostPort]:
        """Where the main socket is seen, as the first server that answered said first."""
        found = [mapped for _, mapped in self._answers]
        return list(dict.fromkeys(found))[:MAX_MAPPED]

    @property
    def tickets(self) -> dict[str, bytes]:
        """The servers' proof, for their cloud, that they saw us at an IP address."""
        answers = [ask.answer for ask in self._main.values()]
        return {
            answer.mapped[0]: answer.ticket
            for answer in answers
            if answer and answer.mapped and answer.ticket
        }

    def seen_from(self, server: Address) -> HostPort | None:
        """Where this server saw the main socket."""
        return dict(self._answers).get((server[0], server[1]))

    @property
    def fresh_ports(self) -> list[tuple[int, int]]:
        """(our port, outside port) of the fresh sockets, in the order of asking."""
        pairs = ((self._fresh_port[ask.number], ask.mapped) for ask in self._fresh)
        return [(ours, mapped[1]) for ours, mapped in pairs if mapped is not None]

    @property
    def round_trip_s(self) -> float | None:
        """The shortest to a server."""
        trips = [ask.round_trip_s for ask in self._main.values()]
        return min((trip for trip in trips if trip is not None), default=None)

    @property
    def behaviour(self) -> NatBehaviour:
        """As far as it is known by now.  A call asks many times; only an input can change it."""
        if self._behaviour is None:
            self._behaviour = self._judge()
        return self._behaviour

    def _judge(self) -> NatBehaviour:
        if not self._answers:
            # A server that answers shows that UDP gets through, whatever it says: its own NAT may
            # hide from it who asks.
            heard = any(ask.refused for ask in self._main.values())
            return BLOCKED if self.verdict and not heard else UNKNOWN
        mapping, filtering = self._mapping(), self._filtering()
        allocation, step = (
            ("preserved", 0) if mapping == "none" else judge_allocation(self.fresh_ports)
        )
        return NatBehaviour(mapping, filtering, allocation, step, self._hairpin(mapping, filtering))

    def _mapping(self) -> str:
        answers = self._answers
        if all(ip in self._local and port == self._port for _, (ip, port) in answers):
            return "none"
        if len(answers) == 1:
            return "unknown"
        if len({mapped for _, mapped in answers}) == 1:
            return ENDPOINT_INDEPENDENT
        by_ip: dict[str, HostPort] = {}
        if any(by_ip.setdefault(server[0], mapped) != mapped for server, mapped in answers):
            return ADDRESS_AND_PORT_DEPENDENT
        if len(by_ip) < len(answers):
            return ADDRESS_DEPENDENT
        return ADDRESS_AND_PORT_DEPENDENT  # it may be address-dependent: treated alike

    def _filtering(self) -> str:
        by_ip, by_port = self._changed_ip, self._changed_port
        if by_ip is not None and by_ip.answer is not None:
            return ENDPOINT_INDEPENDENT
        if by_port is None or by_port.refused or not over(by_ip, by_port):
            return "unknown"
        if by_ip is not None and by_ip.refused:
            return "unknown"
        return ADDRESS_AND_PORT_DEPENDENT if by_port.failed else ADDRESS_DEPENDENT

    def _hairpin(self, mapping: str, filtering: str) -> bool | None:
        if any(ask.answer is not None for ask in self._hairpins):
            return True
        # Behind other NATs each of the two got a new outside port, which the other did not expect.
        told = mapping == ENDPOINT_INDEPENDENT or filtering == ENDPOINT_INDEPENDENT
        return False if told and self._hairpins and over(*self._hairpins) else None

    # The steps.

    def _ask_main(self, to: HostPort) -> None:
        if to not in self._main and to[1] <= 65535:
            self._main[to] = self._asks.ask(to, self._now)

    def _go_on(self) -> None:
        self._behaviour = None
        self._answers = [(to, seen) for to, ask in self._main.items() if (seen := ask.mapped)]
        if self._answers and self._first_answer_at == math.inf:
            self._first_answer_at = self._now
        if self._phase is _Phase.MAPPING and self._mapping_is_known():
            self.verdict = True
            self._choose_server()
            self._phase = _Phase.DONE
            if self._server is not None:
                self._phase = _Phase.ALLOCATION
                self._ask_fresh(self._server)
        if self._phase is _Phase.ALLOCATION and self._server is not None and over(*self._fresh):
            self._phase = _Phase.FILTERING
            self._ask_filters(self._server)
        if self._phase is _Phase.FILTERING and over(
            *self._main.values(), self._changed_ip, self._changed_port, *self._hairpins
        ):
            self._phase = _Phase.DONE

    def _mapping_is_known(self) -> bool:
        answered = [to for to, _ in self._answers]
        return (
            over(*self._main.values())
            or len({ip for ip, _ in answered}) > 1
            or len(answered) > len({ip for ip, _ in answered})
            or self._now >= self._patience_ends_at()
        )

    def _patience_ends_at(self) -> float:
        """Until when more answers are waited for after the first."""
        started_at = min((ask.started_at for ask in self._main.values()), default=0.0)
        return self._first_answer_at + 2 * (self._first_answer_at - started_at) + PATIENCE_S

    def _choose_server(self) -> None:
        answered = [to for to, _ in self._answers]
        self._server = next((to for to in self._servers if to in answered), None)
        if self._server is None and answered:
            self._server = answered[0]
        answer = self._main[self._server].answer if self._server else None
        other = answer.other if answer else None
        if not self._server or not other or other[1] in (0, self._server[1]):
            return
        if is_private(other[0]) and not is_private(self._server[0]):
            # A cloud behind a 1:1 NAT knows its inner address only; its ports are the same.
            other = self._server[0], other[1]
        if _can_be(other, self._server[0]):
            self._other = other

    def _ask_fresh(self, server: HostPort) -> None:
        # Without a NAT the ports are our own: one socket will do, for the filtering.
        self._fresh_port = self._open_fresh(1 if self._mapping() == "none" else EXTRA_SOCKETS)
        for number in self._fresh_port:
            self._fresh.append(self._asks.ask(at(server, number), self._now))
        if self._other is not None:
            self._ask_main((server[0], self._other[1]))
            self._ask_main(self._other)

    def _ask_filters(self, server: HostPort) -> None:
        answered = [ask for ask in self._fresh if ask.mapped is not None]
        other, ours = self._other, self.mapped
        if answered and other is not None:
            to = answered[0].to
            self._changed_port = self._asks.ask(
                to, self._now, change_port=True, answer_from=(server[0], other[1])
            )
            if other[0] != server[0]:
                self._changed_ip = self._asks.ask(
                    to, self._now, change_ip=True, change_port=True, answer_from=other
                )
        if len(answered) > 1 and self._mapping() != "none":
            theirs = answered[1].mapped
            if theirs is not None and ours:
                # Each opens its filter for the other.
                number = answered[1].number
                self._hairpins = [
                    self._asks.ask_ourselves(theirs, number, self._now),
                    self._asks.ask_ourselves(at(ours[0], number), 0, self._now),
                ]


def _can_be(address: HostPort, server_ip: str) -> bool:
    """Whether a server may have told the truth about an address of ours, or of its own."""
    return (
        may_be_peer(*address)
        and family_of(address[0]) == family_of(server_ip)
        and (is_private(server_ip) or not is_private(address[0]))
    )
