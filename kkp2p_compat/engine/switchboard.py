"""What an engine has as soon as somebody may call: links, channels, calls both ways, and proxies.

Apart from the engine, which has it made by the first who joins or connects.  Its methods belong to
the engine's own thread.
"""

from __future__ import annotations

from collections.abc import Callable

import gevent
from gevent.event import Event

from .._errors import KKP2PError, NotSupported
from .._sentence import said
from .._structs import channel_stats_t, connect_ctx_t, engine_conf_t
from ..control.callers import Callers
from ..control.client import CloudClient
from .calls.callee import Callee
from .calls.dialer import Dialer
from .calls.incoming import IncomingCalls
from .calls.lan import LanCallee
from .calls.metrics import metrics_text
from .channels.accept_queue import AcceptQueue
from .channels.acceptor import Acceptor
from .channels.kinds import Channel, linger
from .channels.stats import channel_stats
from .channels.table import ChannelTable
from .links.background import Background
from .links.link_table import LinkTable
from .links.peer_link import PeerLink
from .links.pins import Pins
from .links.roaming import Roaming
from .paths.network import Network
from .proxy.proxied import Watch
from .proxy.published import Published, Targets
from .proxy.table import Proxies
from .runtime.engine_settings import EngineSettings
from .runtime.log import EngineLog
from .runtime.thread import EngineThread
from .signalling.keys import make_private_key

__all__ = ["Switchboard"]

CLOSE_S = 5.0  # our choice: how long engine_destroy lets written data go out


class Switchboard:
    """``check_cloud``: called when there is a doubt whether it is there.

    It does nothing until it is asked to, and may be made by any thread.
    """

    def __init__(
        self,
        conf: engine_conf_t,
        settings: EngineSettings,
        callers: Callers,
        client: CloudClient | None,
        network: Network,
        pins: Pins,
        queue: AcceptQueue[Channel],
        check_cloud: Callable[[], object],
        thread: EngineThread,
        log: EngineLog,
    ) -> None:
        spawn, port = thread.spawn, conf.lan_search_port
        self._client = client
        self._network = network
        self._log = log
        self._background = Background(thread, log)
        self.channels = ChannelTable(self._background)
        self.acceptor = Acceptor(self.channels, queue, settings.accept_s, log)
        roaming = Roaming(self._redial, check_cloud, log, spawn)
        self.links = LinkTable(network, roaming, pins, self.acceptor.handle_offered, log)
        callee = Callee(network, self.links, pins, log)
        self.lan = LanCallee(port, callers, callee, self.links, network, log, spawn)
        self.incoming = IncomingCalls(callers, callee, self.acceptor, self.links, pins, log, spawn)
        self.dialer = Dialer(client, port, network, self.links, pins, settings, log, spawn)
        self.proxies = Proxies(self.dialer, self._background)
        self._published: Published | None = None
        try:
            make_private_key()
        except NotSupported as error:
            log.error("no p2p, no LAN and no encrypt_data: %s", error)

    @property
    def busy(self) -> bool:
        """Whether closed channels still have data on its way out, or calls are being made."""
        return bool(
            self._background.busy or self.links.busy or self.incoming.busy or self.dialer.busy
        )

    def open_channel(self, ctx: connect_ctx_t, lan: bool) -> Channel:
        """Connect, over the LAN only or as ctx says, and make a channel of it."""
        try:
            stream = self.dialer.connect(ctx, lan)
            try:
                channel = self.channels.open(stream, ctx.peer_id)
            except KKP2PError:
                stream.give_up()
                raise
        except KKP2PError as error:
            raise KKP2PError(
                "{peer}: {why}", error.code, peer=ctx.peer_id, why=said(error)
            ) from error
        self._log.info(
            "%s: channel %d: connected by %s", ctx.peer_id, channel.channel_id, stream.how
        )
        return channel

    def channel_stats(self, channel_id: int) -> channel_stats_t:
        """Raises ParameterError for a channel that is not there (any more)."""
        return channel_stats(self.channels.need(channel_id), self._network.nat)

    def linger(self, fd: int) -> None:
        """The end of a raw channel whose descriptor was lent, and has come back as ``fd``."""
        linger(self._background, fd)

    def publish(self, targets: Targets, is_udp: bool, watch: Watch) -> None:
        """Forward what peers open, in place of ``accept``."""
        self._published = Published(self._background, targets, is_udp, watch)
        self.acceptor.taker = self._published.take

    def unpublish(self) -> None:
        published, self._published = self._published, None
        if published is not None:
            published.close()

    def metrics(self) -> str:
        return metrics_text(
            self._client, self.dialer, self.acceptor, self.channels.values(), self.links
        )

    def sweep(self) -> None:
        """Find out what no event tells, every few seconds."""
        self.acceptor.sweep()
        self.channels.sweep()
        self._background.sweep()
        self.links.sweep()
        if self._client is not None and self.links.has_called:
            self._client.keep_links()

    def _redial(self, link: PeerLink, budget_s: float, needs_tcp: bool) -> None:
        self.dialer.redial(link, budget_s, needs_tcp)

    def close(self, hurry: Event) -> None:
        """What was written has CLOSE_S to go out, or until ``hurry`` is set."""
        self.lan.close()
        self.incoming.close()
        self.proxies.stop_all()
        self.unpublish()
        self.acceptor.close()
        self.channels.close()
        drain = gevent.spawn(self._drain)
        gevent.wait([drain, hurry], CLOSE_S, count=1)
        drain.kill()
        self._background.kill()
        self.links.close()

    def _drain(self) -> None:
        self.links.drain()
        self._background.drain()
