"""Which STUN servers an engine asks."""

from __future__ import annotations

from ..._errors import ParameterError
from ..._structs import engine_conf_t
from ...control.resolver import is_address, split_domain

__all__ = ["MAX_STUN_SERVERS", "stun_servers_of"]

MAX_STUN_SERVERS = 8  # our choice: of each family, three are asked


def stun_servers_of(conf: engine_conf_t) -> list[tuple[str, int]]:
    """Hosts and ports: those that are configured, else the cloud's own.

    Raises ParameterError for what is no list of ``host:port``, and with -101 for a malformed host.
    """
    if conf.stun_servers is None:
        if conf.login_domain is None:
            return []
        return [(host, conf.login_port) for host in split_domain(conf.login_domain)]
    parts = [part.strip() for part in conf.stun_servers.split(",") if part.strip()]
    if len(parts) > MAX_STUN_SERVERS:
        raise ParameterError(f"stun_servers are {len(parts)}, not up to {MAX_STUN_SERVERS}")
    return [_parse(part) for part in parts]


def _parse(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    number = int(port) if port.isascii() and port.isdecimal() and len(port) <= 5 else 0
    if not 1 <= number <= 65535 or (":" in host) != bracketed or "|" in host:
        raise ParameterError(f"stun_servers: {text[:100]!r} is not host:port")
    if bracketed and not is_address(host):
        raise ParameterError(f"stun_servers: {text[:100]!r} is not [address]:port")
    split_domain(host)
    return host, number
