"""Two Connections that know each other, in the simulated network, and transfers between them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from kkp2p_compat._codes import KKP2P_TCP_CHANNEL
from kkp2p_compat.transport.udp.events import ChannelOffered
from kkp2p_compat.transport.udp.peer_connection import PeerConnection
from kkp2p_compat.transport.udp.transport_settings import TransportSettings

from .drive import Body, Incoming, Peer
from .simnet import Address, Conditions, Link, Network

__all__ = ["Pair", "SidePath", "Transfer", "mbit_per_s"]

CIPHER = "aes-128-gcm"
_ADDED = 100  # in the addresses of paths that are added
_FIRST_ADDED = (f"192.0.2.{_ADDED}", 1000)  # its caller's


def mbit_per_s(rate: float) -> float:
    """A rate in bytes per second."""
    return rate * 1e6 / 8


@dataclass(frozen=True)
class SidePath:
    """Another path between the two of a Pair: a link each way, and the addresses at its ends."""

    there: Link
    back: Link
    of_caller: Address
    of_callee: Address

    def blackout(self, start: float, stop: float) -> None:
        self.there.blackout(start, stop)
        self.back.blackout(start, stop)


@dataclass
class Transfer:
    """A body each way over one channel, and its readers."""

    stream_id: int
    up: Body
    down: Body
    at_caller: Incoming
    at_callee: Incoming

    @property
    def done(self) -> bool:
        return self.at_caller.done and self.at_callee.done


class Pair:
    """A caller, a callee, and a link each way; or, ``beside`` another pair, on its links."""

    def __init__(
        self,
        seed: object = 1,
        there: Conditions | None = None,
        back: Conditions | None = None,
        *,
        beside: Pair | None = None,
        wake_s: float = 0.00025,
        apart: Conditions | None = None,
        **settings: Any,
    ) -> None:
        """``apart``: of another path, on which the callee begins: ``self.apart``."""
        if beside is None:
            self.network = Network(seed)
            there = there or Conditions()
            self.there = Link(self.network, "there", there, wake_s)
            self.back = Link(self.network, "back", back or there, wake_s)
            self.number = 1
        else:
            self.network, self.there, self.back = beside.network, beside.there, beside.back
            self.number = beside.number + 1
        self.transfers: dict[int, Transfer] = {}
        self.reading: dict[str, Any] = {}  # how the callee reads: see Incoming
        number, random = self.number, self.network.random
        secrets = random(f"secrets {number}").randbytes(32), random(f"s {number}").randbytes(32)
        addresses = (f"192.0.2.{number}", 1000), (f"198.51.100.{number}", 2000)
        begins_at = addresses[1], addresses[0] if apart is None else _FIRST_ADDED
        ids = random(f"ids {number}").getrandbits(64), random(f"i {number}").getrandbits(64)

        def make(name: str, me: int, link: Link) -> Peer:
            connection = PeerConnection(
                send_secret=secrets[me],
                receive_secret=secrets[1 - me],
                cipher=CIPHER,
                is_caller=me == 0,
                local_id=ids[me],
                remote_id=ids[1 - me],
                address=begins_at[me],
                now=self.network.now,
                settings=replace(TransportSettings(), **settings),
                random=random(f"{name} {number}"),
            )
            return Peer(self.network, f"{name} {number}", connection, addresses[me], link)

        self.caller = make("caller", 0, self.there)
        self.callee = make("callee", 1, self.back)
        self.callee.on_offer = self._accept
        self.apart = None if apart is None else self.add_path(apart)
        before = self.network.state
        self.network.state = lambda: f"{before()}\n{self.caller}\n{self.callee}"

    def add_path(self, there: Conditions, back: Conditions | None = None) -> SidePath:
        """Each side reaches the other at one more address, over links of its own."""
        network, number = self.network, _ADDED + len(self.caller.routes)
        wake_s = self.there.wake_s
        made = SidePath(
            Link(network, f"there {number}", there, wake_s),
            Link(network, f"back {number}", back or there, wake_s),
            (f"192.0.2.{number}", 1000),
            (f"198.51.100.{number}", 2000),
        )
        self.caller.routes[made.of_callee] = made.of_caller, made.there
        self.callee.routes[made.of_caller] = made.of_callee, made.back
        network.hosts[made.of_caller] = self.caller.receive
        network.hosts[made.of_callee] = self.callee.receive
        return made

    def _accept(self, offer: ChannelOffered) -> None:
        transfer = self.transfers[offer.stream_id]
        callee = self.callee
        callee.connection.streams.accept(offer.stream_id)
        callee.send(offer.stream_id, transfer.down)
        callee.incoming[offer.stream_id] = transfer.at_callee
        callee.look(offer.stream_id)

    def start(self, up: int, down: int = 0, early: int = 0) -> Transfer:
        """Open a channel and send ``up`` bytes to the callee and ``down`` bytes back.

        The first ``early`` bytes go along with OPEN.
        """
        caller, number = self.caller, len(self.transfers)
        first = Body(up, 4 * number + 1).piece(0, early)
        stream_id = caller.connection.streams.open(KKP2P_TCP_CHANNEL, 0, number, first)
        assert not early or stream_id == 2 * number  # no other way was used to open one
        bodies = Body(up, 2 * stream_id + 1), Body(down, 2 * stream_id + 2)
        made = Transfer(
            stream_id,
            *bodies,
            at_caller=caller.expect(stream_id, bodies[1]),
            at_callee=Incoming(bodies[0], **self.reading),
        )
        self.transfers[stream_id] = made
        caller.send(stream_id, bodies[0]).written = early
        caller.drive()
        return made

    def transfer(self, up: int, down: int = 0, limit_s: float = 600.0) -> float:
        """``start``, and run until all has arrived; the virtual seconds that it took."""
        made = self.start(up, down)
        return self.run(lambda: made.done, limit_s)

    def run(self, *args: Any) -> float:
        return self.network.run(*args)

    def finish(self) -> None:
        """On a path that is good again all is quiet soon, and a close reaches the other side."""
        for link in (self.there, self.back):
            link.change(loss=0.0, burst_enter=0.0, burst_leave=1.0, corrupt=0.0)
        self.run(None, 60.0)  # what is left of the search for the path's MTU
        before = self.there.counts["sent"] + self.back.counts["sent"]
        self.run(None, 5.0)
        chatter = self.there.counts["sent"] + self.back.counts["sent"] - before
        assert chatter <= 20, f"{chatter} packets in 5 s with nothing to do"
        self.caller.connection.close(0, "done", self.network.now)
        self.caller.drive()
        self.run(lambda: self.caller.closed and self.callee.closed, 30.0)
