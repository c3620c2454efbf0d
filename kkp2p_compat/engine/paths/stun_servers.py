"""Which STUN servers an engine asks."""

from __future__ import annotations

from ..._address import HostPort, parse_host_port
from ..._errors import ParameterError
from ..._structs import engine_conf_t
from ...control.resolver import split_domain

__all__ = ["MAX_STUN_SERVERS", "stun_servers_of"]

MAX_STUN_SERVERS = 8  # our choice: of each family, three are asked


def stun_servers_of(conf: engine_conf_t) -> list[HostPort]:
    """Hosts and ports: those that are configured, else the cloud's own.

    Raises ParameterError for what is not a list of ``host:port``, KKP2PError with -101 for a
    malformed host.
    """
    if conf.stun_servers is None:
        if conf.login_domain is None:
            return []
        return [(host, conf.login_port) for host in split_domain(conf.login_domain)]
    parts = [part.strip() for part in conf.stun_servers.split(",") if part.strip()]
    if len(parts) > MAX_STUN_SERVERS:
        raise ParameterError(f"stun_servers are {len(parts)}, not up to {MAX_STUN_SERVERS}")
    return [_parse(part) for part in parts]


def _parse(text: str) -> HostPort:
    try:
        host, port = parse_host_port(text)
    except ValueError as error:
        raise ParameterError(f"stun_servers: {error}") from error
    if "|" in host:
        raise ParameterError(f"stun_servers: {text[:100]!r} names several hosts")
    split_domain(host)
    return host, port
