"""How an engine's TCP connections leave its network: directly, or through an HTTP proxy.

The proxy is that of engine_conf_t.https_proxy or, if it names none, of the environment, which is
read as curl reads it: ``https_proxy`` and ``HTTPS_PROXY``, and in ``no_proxy`` and ``NO_PROXY``
what is reached directly.  One departure: this host's own addresses never go through a proxy.

A name that the user gave is left to the proxy to look up: networks with a proxy often know no
names of the Internet.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from .._address import HostPort, is_ip, parse_host_port, text_of
from .._errors import KKP2PError, ParameterError
from ..transport import dial, tcp
from ..transport.http_connect import ProxyRefuses, connect_request, read_answer
from .resolver import addresses_of, split_domain

__all__ = ["DIRECT", "WayOut", "way_out"]

DEFAULT_PORT = 1080  # curl's
RESOLVE_TIMEOUT_S = 5  # our choice: for the proxy's own name
MAX_CHARS = 4096  # our choice: of the URL, and of the exceptions

_URL = re.compile(
    r"(?:(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://)?(?:(?P<user>[^/?#]*)@)?(?P<place>[^/?#@]+)/?"
)


@dataclass(frozen=True)
class WayOut:
    """``proxy``: None means directly.  ``user``: name and password for it, with a colon between.

    ``directly``: hosts that are reached without it, as in ``no_proxy``.
    """

    proxy: HostPort | None = None
    user: str | None = None
    directly: tuple[str, ...] = ()

    def is_proxied(self, host: str) -> bool:
        """Whether connections to this name or numeric address go through the proxy."""
        return self.proxy is not None and not _is_own(host) and not self._is_excepted(host)

    def _is_excepted(self, host: str) -> bool:
        host = host.rstrip(".").lower()
        return any(entry == "*" or _matches(host, entry) for entry in self.directly)

    def knowing(self, names: Mapping[str, str]) -> WayOut:
        """The same where hosts are only known by their addresses; ``names``: by address.

        What is reached directly by its name is so by its address, too.
        """
        return replace(
            self,
            directly=(
                *self.directly,
                *(ip for ip, name in names.items() if not self.is_proxied(name)),
            ),
        )

    def to(self, host: str) -> WayOut:
        """The way to all addresses of this host."""
        return self if self.is_proxied(host) else DIRECT

    def connect(self, host: str, port: int) -> Any:
        """As ``tcp.connect``; a host that is proxied may be a name.  Raises OSError."""
        if self.proxy is None or not self.is_proxied(host):
            return tcp.connect(host, port)
        try:
            found = addresses_of(self.proxy[0], RESOLVE_TIMEOUT_S)
            sock, _ = dial.connect(found, self.proxy[1])
        except (OSError, KKP2PError) as error:
            raise ConnectionError(f"the proxy {text_of(self.proxy)}: {error}") from error
        try:
            sock.sendall(connect_request((host, port), self.user))
            read_answer(sock)
        except ProxyRefuses as error:
            sock.close()
            raise ProxyRefuses(
                f"the proxy {text_of(self.proxy)} makes no connection to "
                f"{text_of((host, port))}: {error}"
            ) from error
        except BaseException:
            sock.close()
            raise
        return sock


DIRECT = WayOut()


def _is_own(host: str) -> bool:
    if not is_ip(host):
        return host.rstrip(".").lower() == "localhost"
    return ipaddress.ip_address(host).is_loopback


def _matches(host: str, entry: str) -> bool:
    """A name stands for itself and what is in its domain, an address for itself or a network."""
    if not is_ip(host):
        return host == entry or host.endswith("." + entry)
    try:
        network = ipaddress.ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        return False
    return ipaddress.ip_address(host.partition("%")[0]) in network


def way_out(url: str | None, environ: Mapping[str, str] = os.environ) -> tuple[WayOut, str]:
    """The way that ``https_proxy`` of engine_conf_t says, and what is wrong with the environment.

    None: as the environment says; "": directly.  Raises ParameterError for a bad URL of the first;
    one of the environment, which is meant for other programs, too, is left aside.
    """
    if url is not None:
        return _parse(url, environ) if url else DIRECT, ""
    name, text = _first(environ, "https_proxy", "HTTPS_PROXY")
    if not text:
        return DIRECT, ""
    try:
        return _parse(text, environ), ""
    except ParameterError as error:
        return DIRECT, f"{name} of the environment is not used: {error}"


def _first(environ: Mapping[str, str], *names: str) -> tuple[str, str]:
    """The first that is set, though to nothing."""
    return next(((name, environ[name].strip()) for name in names if name in environ), ("", ""))


def _parse(url: str, environ: Mapping[str, str]) -> WayOut:
    """Messages show no part of the URL: there may be a password in it."""
    match = _URL.fullmatch(url) if len(url) <= MAX_CHARS else None
    if match is None:
        raise ParameterError("https_proxy: not http://[USER:PASSWORD@]HOST[:PORT]")
    if (match["scheme"] or "http").lower() != "http":
        raise ParameterError(f"https_proxy: a proxy of the kind {match['scheme'][:20]} is unknown")
    try:
        place = parse_host_port(match["place"], default=DEFAULT_PORT)
        hosts = split_domain(place[0])
    except (ValueError, KKP2PError):
        hosts = []
    if len(hosts) != 1:
        raise ParameterError("https_proxy: not HOST:PORT of one host")
    user = match["user"]
    if user is not None:
        name, _, password = user.partition(":")
        from urllib.parse import unquote  # few need it, and an import takes a millisecond

        user = f"{unquote(name)}:{unquote(password)}"
    exceptions = _first(environ, "no_proxy", "NO_PROXY")[1][:MAX_CHARS]
    entries = (entry.strip(".").lower() for entry in re.split(r"[\s,]+", exceptions))
    return WayOut(place, user, tuple(entry for entry in entries if entry))
