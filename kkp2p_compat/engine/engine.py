"""The engine: builds the parts, is the application's door to them, and ends them in order.

Methods under "From the application" may be called from any thread or greenlet; all others belong
to the engine's own thread.  Methods raise KKP2PError; the API turns that into a code.
"""

from __future__ import annotations

import atexit
import os
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import gevent
from gevent import monkey
from gevent.event import Event

from .. import _codes
from .._errors import EngineClosed, KKP2PError, OutOfDescriptors, ParameterError, from_os_error
from .._sentence import said
from .._structs import channel_stats_t, connect_ctx_t, engine_conf_t
from ..control.callers import Callers
from ..control.client import CloudClient, OnOnline
from ..control.link import Link
from ..control.trust import parse_fingerprints
from ..control.way_out import way_out
from ..control.wire import Message
from .channels.accept_queue import AcceptQueue
from .links.pins import Pins
from .paths.network import Network
from .paths.relay_meter import RelayMeter
from .paths.stun_servers import stun_servers_of
from .paths.udp_use import UdpUse
from .paths.underlay import Underlay
from .runtime.callbacks import Callbacks
from .runtime.engine_settings import EngineSettings
from .runtime.log import EngineLog
from .runtime.thread import EngineThread

if TYPE_CHECKING:
    from .calls.dialer import Dialer
    from .channels.acceptor import Acceptor
    from .channels.kinds import Channel
    from .channels.table import ChannelTable
    from .links.link_table import LinkTable
    from .proxy.base import Proxy
    from .proxy.proxied import Watch
    from .proxy.published import Targets
    from .switchboard import Switchboard

__all__ = ["Engine"]

# Our choices.
SWEEP_S = 5.0  # how often channels are looked at for what no event tells
CALLBACK_THREADS = 4  # with enable_engine_thread_pool

_alive: weakref.WeakSet[Engine] = weakref.WeakSet()


class Engine:
    """One engine: a thread, a cloud client, and a switchboard.  Ends with ``destroy``."""

    settings = EngineSettings()  # of all engines; tests replace it

    def __init__(self, conf: engine_conf_t, timeout_s: float) -> None:
        self.conf = conf = replace(conf)
        self._pid = os.getpid()
        self._callers = Callers.parse_untrusted(conf.callers)
        pin = conf.login_fingerprint
        fingerprints = frozenset() if pin is None else parse_fingerprints(pin)
        self.stun_servers = stun_servers_of(conf)  # names stay names: servers move
        self.way_out, problem = way_out(conf.https_proxy)
        self.log = log = _open_log(conf)
        if problem:
            log.warning("%s", problem)
        self.thread = EngineThread(log, self._end)
        spawn = self.thread.spawn
        try:
            self.pins = Pins.of(conf, log, spawn)
            places = self.settings.accept_queue_places
            self.accept_queue: AcceptQueue[Channel] = AcceptQueue(places)
        except KKP2PError:
            log.close()
            raise
        self._callbacks = Callbacks(CALLBACK_THREADS if conf.enable_engine_thread_pool else 1)
        self._making = monkey.get_original("_thread", "allocate_lock")()
        self._switchboard: Switchboard | None = None
        self.network = Network(
            self.stun_servers,
            not conf.disable_upnp,
            UdpUse(bool(conf.tcp_only), log),
            log,
            spawn,
            self._handle_network_change,
            self._handle_addresses,
        )
        self._meter = RelayMeter(self.network, self.way_out, self._handle_round_trips, log, spawn)
        try:
            self.client = self._make_client(fingerprints)
            self.thread.start()
            self.thread.call(self._set_up, timeout_s)
        except BaseException as error:
            log.error("engine_init: %s", error)
            self.destroy()
            raise
        _alive.add(self)

    @property
    def switchboard(self) -> Switchboard:
        """Made for the first who joins or connects, and loaded by his thread.

        It takes half of the time and memory of all that an engine is, and the engine's own thread
        goes on meanwhile.
        """
        with self._making:
            if self._switchboard is None:
                from .switchboard import Switchboard

                self._switchboard = Switchboard(
                    self.conf,
                    self.settings,
                    self._callers,
                    self.client,
                    self.network,
                    self.pins,
                    self.accept_queue,
                    self._check_cloud,
                    self.thread,
                    self.log,
                )
            return self._switchboard

    @property
    def acceptor(self) -> Acceptor:
        return self.switchboard.acceptor

    @property
    def channels(self) -> ChannelTable:
        return self.switchboard.channels

    @property
    def dialer(self) -> Dialer:
        return self.switchboard.dialer

    @property
    def links(self) -> LinkTable:
        return self.switchboard.links

    def busy(self) -> bool:
        """Whether closed channels still have data on its way out, or calls are being made."""
        return self._switchboard is not None and self._switchboard.busy

    # From the application.

    def destroy(self) -> None:
        """End everything; what was written still gets 5 s to arrive, unless this is interrupted."""
        _alive.discard(self)
        if os.getpid() != self._pid:
            return  # a fork's copy: thread, sockets and peers are the parent's
        try:
            self.thread.stop()
        finally:
            self.accept_queue.close()
            self._callbacks.close()
            self.log.close()

    def get_addresses(self) -> list[str]:
        return self.thread.call(lambda: self.client.addresses if self.client else [])

    def join_net(self, peer_id: str, secret: str) -> None:
        if self.client is None:
            raise KKP2PError("no login_domain is set", _codes.KKP2P_ERROR_INVALID_DOMAIN)
        # Loaded only for those who log in, as it takes a third of the time of all our imports; and
        # by their own thread, so that the engine goes on meanwhile.
        from ..control import scram  # noqa: F401

        self.pins.net_id = peer_id
        self.thread.call(self.switchboard.incoming.join, self.client, peer_id, secret)

    def join_lan(self, peer_id: str) -> None:
        self.pins.lan_id = peer_id
        self.thread.call(self.switchboard.lan.join, peer_id)

    def accept(self, timeout_s: float) -> Channel | None:
        return self.accept_queue.take(timeout_s)

    def open_channel(self, ctx: connect_ctx_t, lan: bool) -> Channel:
        """Connect, over the LAN only or as ctx says, and make a channel of it."""
        switchboard = self.switchboard
        return self.thread.call(
            switchboard.open_channel, ctx, lan, discard=switchboard.channels.discard
        )

    def open_channel_later(
        self, ctx: connect_ctx_t, lan: bool, done: Callable[[Channel | KKP2PError], object]
    ) -> None:
        """The same, without waiting: ``done`` runs on a callback thread."""
        switchboard = self.switchboard
        result: Channel | KKP2PError = EngineClosed()  # when the engine ends before

        def connect() -> None:
            nonlocal result
            try:
                result = switchboard.open_channel(ctx, lan)
            except KKP2PError as error:
                self.log.error("asynchronous connect: %s", error)
                result = error

        def connected(_: object) -> None:
            if not self._callbacks.submit(done, result):
                self.log.error("%s: a callback is dropped: too many wait", ctx.peer_id)
                if not isinstance(result, KKP2PError):
                    switchboard.channels.discard(result)

        if not self.thread.post(lambda: self.thread.spawn_call(connect).rawlink(connected)):
            raise EngineClosed

    def metrics(self) -> str:
        return self.thread.call(self.switchboard.metrics)

    def channel_stats(self, channel_id: int) -> channel_stats_t:
        """Raises ParameterError for a channel that is not there (any more)."""
        return self.thread.call(self.switchboard.channel_stats, channel_id)

    def close_channel(self, channel_id: int) -> None:
        channel = self.channels.get(channel_id)
        if channel is not None:
            channel.close(and_fd=False)

    def linger(self, fd: int) -> None:
        """The end of a raw channel whose descriptor was lent, and has come back as ``fd``."""
        if not self.thread.post(lambda: self.switchboard.linger(fd)):
            os.close(fd)

    def start_proxy(
        self, place: str, port: int, ctx: connect_ctx_t, watch: Watch | None = None
    ) -> Proxy:
        """``place``: an IP address or a name, or the absolute path of a Unix socket."""
        proxies = self.switchboard.proxies
        return self.thread.call(proxies.start, place, port, ctx, watch, discard=proxies.stop_soon)

    def proxy_socket(self, local: Any, name: str, ctx: connect_ctx_t, watch: Watch) -> Proxy:
        """Forward one socket, which the engine closes in the end."""
        proxies = self.switchboard.proxies
        return self.thread.call(proxies.carry, local, name, ctx, watch, discard=proxies.stop_soon)

    def proxy_address(self, proxy_id: int) -> tuple[str, int] | None:
        proxy = self.switchboard.proxies.find(proxy_id)
        return None if proxy is None else proxy.address

    def stop_proxy(self, proxy_id: int) -> bool:
        return self.thread.call(self.switchboard.proxies.stop, proxy_id)

    def publish(self, targets: Targets, is_udp: bool, watch: Watch) -> None:
        """Forward what peers open, in place of ``accept``.  Once, before joining."""
        self.thread.call(self.switchboard.publish, targets, is_udp, watch)

    def unpublish(self) -> None:
        """End what is forwarded; the engine is then to be destroyed."""
        self.thread.call(self.switchboard.unpublish)

    def watch_login(self, watch: OnOnline) -> None:
        """``watch(None)`` in the engine's hub at each login, ``watch(error)`` when it is lost."""
        if self.client is not None:
            self.client.on_online = watch

    # Set-up and end.

    def _make_client(self, fingerprints: frozenset[bytes]) -> CloudClient | None:
        conf = self.conf
        if not conf.login_domain:
            return None
        return CloudClient(
            conf.login_domain,
            conf.login_port,
            [],
            self.log,
            ca_file=conf.login_ca,
            on_offer=self._handle_message,
            on_login_lost=self._handle_login_lost,
            on_login=self.network.look_again,
            on_relays=self._meter.handle_relays_untrusted,
            callers=conf.callers,
            fingerprints=fingerprints,
            way_out=self.way_out,
        )

    def _set_up(self, timeout_s: float) -> None:
        conf = self.conf
        if self.client is not None:
            self.client.look_up(timeout_s)
            self.thread.spawn(self.client.prepare)
            try:
                self.network.underlay()  # to know our addresses before the first call
            except KKP2PError as error:
                self.log.error("no p2p: %s", error)
        self.thread.spawn(self._sweep_on)
        self.log.warning(
            "engine started: cloud %s, port %d", conf.login_domain or "none", conf.login_port
        )

    def _end(self, hurry: Event) -> None:
        """``hurry``: when it is set, what was written is not waited for any more."""
        self.thread.end_calls()
        if self.client is not None:
            self.client.close()
        self._meter.close()
        if self._switchboard is not None:
            self._switchboard.close(hurry)
        self.network.close()
        self.log.warning("engine destroyed")

    def _sweep_on(self) -> None:
        while True:
            gevent.sleep(SWEEP_S)
            self.sweep()

    def sweep(self) -> None:
        """Find out what no event tells."""
        if self._switchboard is not None:
            self._switchboard.sweep()

    # In the engine's thread.

    def _handle_message(self, link: Link, message: Message) -> None:
        self.switchboard.incoming.handle_message(link, message)

    def _handle_login_lost(self, error: KKP2PError) -> None:
        self.switchboard.incoming.handle_login_lost(error)

    def _handle_network_change(self) -> None:
        if self._switchboard is not None:
            self._switchboard.dialer.handle_network_change()
        self._meter.forget()
        self._check_cloud()
        if self._switchboard is not None:
            self._switchboard.links.ask()

    def _check_cloud(self) -> None:
        """Whether it is there, and what a STUN server there sees of us."""
        self.network.doubt()
        if self.client is not None:
            self.client.check_links()

    def _handle_addresses(self, underlay: Underlay) -> None:
        if self.client is not None:
            self.client.set_nat(underlay.own.nat.fields(), lambda: underlay.own.tickets)

    def _handle_round_trips(self, round_trips: Mapping[str, int]) -> None:
        if self.client is not None:
            self.client.set_round_trips(round_trips)


def _open_log(conf: engine_conf_t) -> EngineLog:
    try:
        return EngineLog(conf.log_path, conf.max_log_size)
    except OSError as error:
        problem = from_os_error(error, "log_path")
        if isinstance(problem, OutOfDescriptors):
            raise problem from error
        raise ParameterError(said(problem)) from error


@atexit.register
def _destroy_all() -> None:
    """A program that forgets engine_destroy still delivers what it wrote."""
    for engine in list(_alive):
        engine.destroy()
