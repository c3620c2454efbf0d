"""The engine: what the C-shaped API calls, and what ties the parts together.

Methods under "From the application" may be called from any thread or greenlet; all others belong
to the engine's own thread.  Methods raise KKP2PError; the API turns that into a code.
"""

from __future__ import annotations

import atexit
import functools
import os
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gevent
from gevent.event import AsyncResult, Event

from .. import _codes
from .._errors import (
    EngineClosed,
    KKP2PError,
    LinkLost,
    NotAllowed,
    NotSupported,
    OurFault,
    OutOfDescriptors,
    ParameterError,
    TimedOut,
    from_os_error,
)
from .._io import time_limit
from .._peer_id import is_peer_id
from .._structs import connect_ctx_t, engine_conf_t
from ..control.callers import Callers
from ..control.client import CloudClient
from ..control.link import Link
from ..control.refusals import FAULT, reason_for
from ..control.resolver import resolve
from ..control.trust import parse_fingerprints
from ..control.wire import MAX_BUDGET_MS, Message, encode, number_untrusted
from ..transport.udp.events import ChannelOffered
from ..transport.udp.stream_table import REFUSED_MOVED, REFUSED_UNSUPPORTED
from .calls.callee import Incoming, share_of
from .calls.cloud_call import (
    answer_call,
    go_to_relay,
    make_call,
    may_be_relayed,
)
from .channels.acceptor import ACCEPT_QUEUE_PLACES, Acceptor
from .channels.kinds import Channel
from .channels.table import ChannelTable
from .direct import Direct
from .links.background import Background
from .links.peer_link import PeerLink
from .links.streams import DirectStream, OpenStream
from .paths.stun_servers import stun_servers_of
from .paths.underlay import Underlay
from .proxy import Proxies, Proxy, Watch
from .runtime.callbacks import Callbacks
from .runtime.log import EngineLog
from .runtime.thread import EngineThread
from .runtime.timeline import Timeline
from .signalling.keys import make_private_key
from .signalling.offer import Offer, parse_offer_untrusted, vouched_untrusted

__all__ = ["Engine"]

# Our choices.
MAX_ANSWERING = 2 * ACCEPT_QUEUE_PLACES  # offers that are being answered, or refused
VERDICT_S = 3.0  # how long join_net waits for the cloud's word
DESTROY_S = 5.0  # how long engine_destroy lets written data go out
SWEEP_S = 5.0  # how often channels are looked at for what no event tells
CALLBACK_THREADS = 4  # with enable_engine_thread_pool

_alive: weakref.WeakSet[Engine] = weakref.WeakSet()


class Engine:
    """One engine: a thread, a cloud client, channels and proxies.  Ends with ``destroy``."""

    def __init__(self, conf: engine_conf_t, timeout_s: float) -> None:
        self.conf = replace(conf)
        self.callers = Callers.parse_untrusted(conf.callers)
        self.stun_servers = stun_servers_of(conf)  # names stay names: servers move
        self.log = _open_log(conf)
        self.thread = EngineThread(self.log)
        self._background = Background(self.thread, self.log)
        self.channels = ChannelTable(self._background)
        try:
            self.acceptor = Acceptor(self.channels, self.log)
        except KKP2PError:
            self.log.close()
            raise
        self._proxies = Proxies(self, self._background)
        self.direct = Direct(self, self._handle_offered)
        self._pid = os.getpid()
        self._callbacks = Callbacks(CALLBACK_THREADS if conf.enable_engine_thread_pool else 1)
        self.client: CloudClient | None = None
        self._answering: dict[tuple[Link, str], gevent.Greenlet[..., Any]] = {}
        self._incoming: dict[tuple[Link, str], Incoming] = {}  # of those, what may end directly
        self._peer_id = ""
        self._torn_down: Event | None = None  # set at the end; None: not yet being destroyed
        try:
            self.thread.start()
            self.thread.call(self._set_up, timeout_s)
        except BaseException as error:
            self.log.error("engine_init: %s", error)
            self.destroy()
            raise
        _alive.add(self)

    def underlay(self) -> Underlay:
        """For the tools that show what the network does; in the engine's thread."""
        return self.direct.underlay()

    def busy(self) -> bool:
        """Whether closed channels still have data on its way out, or calls are being made."""
        return bool(self._background.busy or self._answering or self.direct.busy)

    # From the application.

    def destroy(self) -> None:
        """End everything; what was written still gets DESTROY_S seconds to arrive."""
        _alive.discard(self)
        if os.getpid() != self._pid:
            return  # a fork's copy: thread, sockets and peers are the parent's
        try:
            self.thread.call(self._tear_down)
        except EngineClosed:
            pass  # by another thread, at the same time or before; or it never started
        finally:
            self.thread.stop()
            self.acceptor.queue.close()
            self._callbacks.close()
            self.log.close()

    def get_addresses(self) -> list[str]:
        return self.thread.call(lambda: self.client.addresses if self.client else [])

    def join_net(self, peer_id: str, secret: str) -> None:
        self.thread.call(self._join_net, peer_id, secret)

    def join_lan(self, peer_id: str) -> None:
        self.thread.call(self.direct.callee.join_lan, peer_id)

    def accept(self, timeout_s: float) -> Channel | None:
        return self.acceptor.queue.take(timeout_s)

    def open_channel(self, ctx: connect_ctx_t, lan: bool) -> Channel:
        """Connect, over the LAN only or as ctx says, and make a channel of it."""
        return self.thread.call(self._open_channel, ctx, lan, discard=self.channels.discard)

    def open_channel_later(
        self, ctx: connect_ctx_t, lan: bool, done: Callable[[Channel | KKP2PError], object]
    ) -> None:
        """The same, without waiting: ``done`` runs on a callback thread."""

        result: Channel | KKP2PError = EngineClosed()  # when the engine ends before

        def connect() -> None:
            nonlocal result
            try:
                result = self._open_channel(ctx, lan)
            except KKP2PError as error:
                self.log.error("asynchronous connect: %s", error)
                result = error

        def connected(_: object) -> None:
            if not self._callbacks.submit(done, result):
                self.log.error("%s: a callback is dropped: too many wait", ctx.peer_id)
                if isinstance(result, Channel):
                    self.channels.discard(result)

        if not self.thread.post(lambda: self.thread.spawn_call(connect).rawlink(connected)):
            raise EngineClosed

    def close_channel(self, channel_id: int) -> None:
        channel = self.channels.get(channel_id)
        if channel is not None:
            channel.close(and_fd=False)

    def start_proxy(
        self, ip: str, port: int, ctx: connect_ctx_t, watch: Watch | None = None
    ) -> Proxy:
        start, discard = self._proxies.start, self._proxies.stop_soon
        return self.thread.call(start, ip, port, ctx, watch, discard=discard)

    def proxy_address(self, proxy_id: int) -> tuple[str, int] | None:
        proxy = self._proxies.find(proxy_id)
        return None if proxy is None else proxy.address

    def stop_proxy(self, proxy_id: int) -> bool:
        return self.thread.call(self._proxies.stop, proxy_id)

    # Set-up and end.

    def _set_up(self, timeout_s: float) -> None:
        conf = self.conf
        try:
            make_private_key()
        except NotSupported as error:
            self.log.error("no p2p, no LAN and no encrypt_data: %s", error)
        if conf.login_domain:
            addresses = resolve(conf.login_domain, timeout_s)
            pin = conf.login_fingerprint
            fingerprints = frozenset() if pin is None else parse_fingerprints(pin)
            self.client = CloudClient(
                conf.login_domain, conf.login_port, addresses, self.log, ca_file=conf.login_ca,
                on_offer=self._handle_offer, on_login_lost=self._handle_login_lost,
                on_login=self.direct.handle_login, callers=conf.callers,
                fingerprints=fingerprints,
            )  # fmt: skip
            self.thread.spawn(self.client.prepare)
            self.direct.start()
        self.thread.spawn(self._sweep)
        self.log.warning(
            "engine started: cloud %s, port %d", conf.login_domain or "none", conf.login_port
        )

    def _tear_down(self) -> None:
        if self._torn_down is not None:
            self._torn_down.wait()
            return
        self._torn_down = Event()
        self.thread.end_calls()
        if self.client is not None:
            self.client.close()
        self.direct.callee.close()
        gevent.killall(list(self._answering.values()))
        self._proxies.stop_all()
        self.acceptor.close()
        self.channels.close()
        with gevent.Timeout(DESTROY_S, False):
            self.direct.drain()
            self._background.drain()
        self._background.kill()
        self.direct.close()
        self.log.warning("engine destroyed")
        self._torn_down.set()

    def _sweep(self) -> None:
        while True:
            gevent.sleep(SWEEP_S)
            self.channels.sweep()
            self._background.sweep()
            self.direct.sweep()

    # The cloud.

    def _need_client(self) -> CloudClient:
        if self.client is None:
            raise KKP2PError("no login_domain is set", _codes.KKP2P_ERROR_INVALID_DOMAIN)
        return self.client

    def _join_net(self, peer_id: str, secret: str) -> None:
        verdict = self._need_client().login(peer_id, secret)
        if peer_id != self._peer_id:
            self._retire()
        self._peer_id = peer_id
        try:
            verdict.get(timeout=VERDICT_S)
        except gevent.Timeout:
            self.log.error("%s: the cloud does not answer; logging in goes on", peer_id)
            verdict.rawlink(self._handle_late_verdict)

    def _handle_late_verdict(self, verdict: AsyncResult[None]) -> None:
        if verdict.exception is not None:
            self._handle_login_lost(verdict.exception)

    def _handle_login_lost(self, error: KKP2PError) -> None:
        """The cloud ended our login for good: accept says so, once."""
        self._retire()
        if not self.acceptor.queue.put(error):
            self.log.error("%s: nobody accepts: %s", self._peer_id, error)

    def _retire(self) -> None:
        """Who calls, or has just called, the peer that we were does not mean us any more."""
        self.direct.retire(self._peer_id)
        for answering in self._answering.values():
            answering.kill(block=False)

    # Calls.

    def connect(self, ctx: connect_ctx_t, lan: bool = False) -> OpenStream:
        """By the path that ctx asks for; ctx.timeout is the budget for all of it."""
        began = time.monotonic()
        connection = self._connect(ctx, lan, began + ctx.timeout / 1000)
        connection.set_up_s = time.monotonic() - began
        return connection

    def last_attempt(self, peer_id: str) -> Timeline | None:
        """How the last one to reach a peer went, whatever came of it."""
        return self.direct.recent.get(peer_id)

    def _connect(self, ctx: connect_ctx_t, lan: bool, deadline: float) -> OpenStream:
        why_relay = "the relay was asked for"
        with time_limit(ctx.timeout / 1000, TimedOut(f"not connected within {ctx.timeout} ms")):
            if self.client is None or lan:
                if ctx.connect_mode == _codes.CONNECT_RELAY:
                    raise KKP2PError("no relay on the LAN", _codes.KKP2P_ERROR_LANMODE_MUSTUSE_P2P)
                return self.direct.connect_lan(ctx, deadline)
            if ctx.connect_mode != _codes.CONNECT_RELAY:
                try:
                    return self.direct.connect(self.client, ctx, deadline)
                except (NotSupported, TimedOut, LinkLost, OurFault) as error:
                    if not may_be_relayed(ctx):
                        # By the peer, or this network: mode 1 has no other word for it.
                        by_mode = ctx.connect_mode == _codes.CONNECT_P2P
                        if by_mode and isinstance(error, NotSupported):
                            raise TimedOut(f"no p2p: {error}") from error
                        raise
                    why_relay = str(error)
                    self.log.info("%s: no p2p: %s", ctx.peer_id, why_relay)
            if ctx.channel_type != _codes.KKP2P_TCP_CHANNEL:
                raise NotSupported("UDP channels are p2p only")
            connection = make_call(self.client, ctx, deadline - time.monotonic())
            connection.reason = why_relay
            return connection

    def _open_channel(self, ctx: connect_ctx_t, lan: bool) -> Channel:
        try:
            stream = self.connect(ctx, lan)
            try:
                channel = self.channels.open(stream, ctx.peer_id)
            except KKP2PError:
                stream.give_up()
                raise
        except KKP2PError as error:
            raise KKP2PError(f"{ctx.peer_id}: {error}", error.code) from error
        self.log.info(
            "%s: channel %d: connected by %s", ctx.peer_id, channel.channel_id, stream.how
        )
        return channel

    def _handle_offer(self, link: Link, message: Message) -> None:
        """An offer, what its caller trickles, or the news that the caller gave up.

        Or that a peer is gone with which a call has connected us once.
        """
        if message["op"] == "gone":
            peer_id, calls = message.get("peer"), message.get("calls")
            self.direct.handle_gone(
                peer_id if isinstance(peer_id, str) else "",
                calls if isinstance(calls, list) else [],
                message.get("back") is True,
            )
            return
        key = link, message["call"]
        if message["op"] == "offer" and key not in self._answering:
            if len(self._answering) >= share_of(MAX_ANSWERING, bool(_caller_id(message))):
                self._decline(link, message, "busy")
                return
            greenlet = self.thread.spawn(self._answer, link, message)
            self._answering[key] = greenlet
            greenlet.rawlink(lambda _: self._answering.pop(key, None))
        elif message["op"] == "cancel" and key in self._answering:
            self._answering[key].kill(block=False)
        elif message["op"] == "trickle" and key in self._incoming:
            meeting = self._incoming[key].meeting
            if meeting is not None:
                meeting.handle_text_untrusted(message.get("text"))

    def _answer(self, link: Link, message: Message) -> None:
        try:
            if not self.callers.allow(_caller_id(message)):  # an old track lets everybody through
                raise NotAllowed
            offer = parse_offer_untrusted(message.get("offer"))
            budget_ms = number_untrusted(message, "ms", 1, MAX_BUDGET_MS)
            answer = self._accept_call if offer.direct is None else self._meet_caller
            answer(link, message, offer, budget_ms / 1000)
        except KKP2PError as error:
            # Not an error of ours: any stranger can make as many of these as the cloud lets pass.
            self.log.info("%s: a call from %s failed: %s", self._peer_id, _caller(message), error)
            self._decline(link, message, reason_for(error))
        except Exception:  # logged; the caller may have another way
            self.log.exception("bug in the answer to a call from %s", _caller(message))
            self._decline(link, message, FAULT)

    def _accept_call(self, link: Link, message: Message, offer: Offer, budget_s: float) -> None:
        caller_id = _caller_id(message)
        # Who has not been at the relay may never come there: his place is taken when he has.
        is_there = bool(caller_id) or message.get("shown") is True
        with (
            self.acceptor.place(self._peer_id, caller_id, held=is_there),
            time_limit(budget_s, TimedOut("the caller did not come to the relay")),
        ):
            stream = answer_call(link, message, offer, str(message.get("offer")))
        self._take_relayed(stream, message)

    def _meet_caller(self, link: Link, message: Message, offer: Offer, budget_s: float) -> None:
        if offer.restarts is None:
            # Only to refuse early: what the caller opens takes a place of its own.
            self.acceptor.check(self._peer_id, _caller_id(message))
        assert offer.direct is not None
        asked = replace(offer.direct, vouched=vouched_untrusted(message.get("seen")))
        offer = replace(offer, direct=asked)
        key = link, message["call"]
        call = self._incoming[key] = Incoming(
            offer, str(message.get("offer")), self._peer_id, _caller(message), budget_s,
            lambda text: link.send(encode("answer", call=key[1], answer=text)),
            functools.partial(link.trickle_back, key[1]),
            lambda: go_to_relay(message, link, is_caller=False),
            lambda stream: self._take_relayed(stream, message), _caller_id(message),
            message["call"], _is_far_stranger(message),
        )  # fmt: skip
        try:
            self.direct.callee.answer(call)
        finally:
            del self._incoming[key]

    def _take_relayed(self, stream: OpenStream, message: Message) -> None:
        """The caller is at the relay, and counts as connected."""
        self.acceptor.take(stream, self._peer_id, _caller_id(message), _caller(message))

    def _handle_offered(self, link: PeerLink, offered: ChannelOffered) -> None:
        """A peer opens a channel on a live link."""
        if link.retired:
            link.channels.refuse(offered.stream_id, REFUSED_MOVED)
            return
        if offered.channel_type not in (_codes.KKP2P_TCP_CHANNEL, _codes.KKP2P_UDP_CHANNEL):
            link.channels.refuse(offered.stream_id, REFUSED_UNSUPPORTED)
            return
        stream = DirectStream(
            link, offered.stream_id, offered.channel_type, offered.encrypt_data, offered.desc
        )
        self.acceptor.take(stream, link.info.own_id, link.info.caller_id, link.name)

    def _decline(self, link: Link, message: Message, reason: str) -> None:
        try:
            link.send(encode("decline", call=message.get("call"), reason=reason))
        except KKP2PError as error:
            self.log.error("%s: cannot decline: %s", self._peer_id, error)


def _caller(message: Message) -> str:
    """Who calls, for the log: the cloud knows those that have logged in."""
    peer_id = _caller_id(message)
    return repr(peer_id) if peer_id else "a stranger"


def _is_far_stranger(message: Message) -> bool:
    """A caller without an account, in another network; not so if an old track does not tell."""
    is_far = "seen" in message and message.get("same_network") is not True
    return is_far and not _caller_id(message)


def _caller_id(message: Message) -> str:
    """The id that the cloud vouches for; "" for a stranger."""
    peer_id = message.get("from")
    return str(peer_id) if is_peer_id(peer_id) else ""


def _open_log(conf: engine_conf_t) -> EngineLog:
    try:
        return EngineLog(conf.log_path, conf.max_log_size)
    except OSError as error:
        problem = from_os_error(error, "log_path")
        if isinstance(problem, OutOfDescriptors):
            raise problem from error
        raise ParameterError(str(problem)) from error


@atexit.register
def _destroy_all() -> None:
    """A program that forgets engine_destroy still delivers what it wrote."""
    for engine in list(_alive):
        engine.destroy()
