"""The proxies of one engine, by their ids."""

from __future__ import annotations

import itertools
from typing import Any

import gevent

from ..._codes import KKP2P_UDP_CHANNEL
from ..._structs import connect_ctx_t
from ..calls.dialer import Dialer
from ..links.background import Background
from .base import Proxy
from .listening import show_place
from .proxied import Watch, ignore
from .tcp_proxy import TcpProxy
from .udp_proxy import UdpProxy

__all__ = ["Proxies"]


class Proxies:
    def __init__(self, dialer: Dialer, background: Background) -> None:
        self._dialer = dialer
        self._background = background
        self._by_id: dict[int, Proxy] = {}
        self._ids = itertools.count(1)  # never used twice: a late stop hits nobody

    def start(self, place: str, port: int, ctx: connect_ctx_t, watch: Watch | None) -> Proxy:
        """A UDP port if ``ctx`` asks for UDP channels, else a TCP port, or a Unix socket."""
        self._dialer.check(ctx)
        kind = UdpProxy if ctx.channel_type == KKP2P_UDP_CHANNEL else TcpProxy
        proxy = kind(self._dialer, self._background, next(self._ids), ctx, watch or ignore)
        proxy.start(place, port)
        self._by_id[proxy.proxy_id] = proxy
        self._background.log.warning(
            "%s: proxy %d listens on %s (%s)",
            ctx.peer_id,
            proxy.proxy_id,
            show_place(proxy.address),
            proxy.kind,
        )
        return proxy

    def carry(self, local: Any, name: str, ctx: connect_ctx_t, watch: Watch) -> Proxy:
        """A proxy of one connection, which exists already, and nothing else."""
        proxy = TcpProxy(self._dialer, self._background, next(self._ids), ctx, watch)
        self._by_id[proxy.proxy_id] = proxy
        proxy.carry(local, name=name)
        return proxy

    def find(self, proxy_id: int) -> Proxy | None:
        return self._by_id.get(proxy_id)

    def stop(self, proxy_id: int) -> bool:
        """Returns when its connections have ended; False: there is no such proxy."""
        proxy = self._by_id.pop(proxy_id, None)
        if proxy is None:
            return False
        proxy.stop()
        self._background.log.warning("%s: proxy %d stopped", proxy.peer_id, proxy_id)
        return True

    def stop_soon(self, proxy: Proxy) -> gevent.Greenlet[..., Any]:
        return self._background.thread.spawn(self.stop, proxy.proxy_id)

    def stop_all(self) -> None:
        gevent.joinall([self.stop_soon(proxy) for proxy in self._by_id.values()])
