"""Hosts and ports: their types, and the one parser of ``HOST:PORT``."""

from __future__ import annotations

import functools
import ipaddress
import re

from ._errors import BadPacket

__all__ = [
    "Address",
    "HostPort",
    "host_port_untrusted",
    "is_ip",
    "network_of",
    "parse_host_port",
    "text_of",
]

HostPort = tuple[str, int]  # a name or a numeric IP address, and a port

# Where datagrams come from and go to: a numeric IP address and a port, and the number of our own
# extra socket that it is reached by, if not by the main one of the family.  It serves as a key:
# take items 0 and 1 of it, and do not unpack it to two.
Address = HostPort | tuple[str, int, int]

_HOST_PORT = re.compile(r"(?:\[(?P<ipv6>[^\]]*)\]|(?P<host>[^][:]+))(?::(?P<port>[0-9]{1,5}))?")
_HOST = re.compile(r"[0-9A-Za-z_.:%-]{1,253}")  # it is resolved, and logged


@functools.lru_cache(1024)  # a call asks a dozen times about the same few
def is_ip(text: str) -> bool:
    """Whether it is a numeric IP address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def network_of(ip: str, bits: int = 64) -> str:
    """An IPv4 address itself, or the network of so many bits around an IPv6 one.

    By 64 it is what one host may have for itself.
    """
    if ":" not in ip:
        return ip
    address = ipaddress.IPv6Address(ip.partition("%")[0])
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return f"{ipaddress.IPv6Address(int(address) >> 128 - bits << 128 - bits)}/{bits}"


def parse_host_port(text: str, *, default: int | None = None, lowest: int = 1) -> HostPort:
    """``HOST:PORT`` or ``[IPV6]:PORT``; ValueError if it is neither.

    With a ``default`` port also HOST, [IPV6] and IPV6 alone.  Whether a name is one is for the
    resolver to judge.  ``lowest``: the lowest port, 0 where the system may choose one.
    """
    if default is not None and is_ip(text):
        return text, default
    found = _HOST_PORT.fullmatch(text)
    if found is not None and (found["host"] or _is_ipv6(found["ipv6"])):
        host, port = found["host"] or found["ipv6"], found["port"]
        if not port and default is not None:
            return host, default
        if port and lowest <= int(port) <= 65535:
            return host, int(port)
    raise ValueError(f"{text[:100]!r} is not HOST:PORT")


def _is_ipv6(text: str) -> bool:
    return ":" in text and is_ip(text)


def host_port_untrusted(host: object, port: object) -> HostPort:
    """A host and a port out of JSON values."""
    if not isinstance(host, str) or _HOST.fullmatch(host) is None:
        raise BadPacket("an address with a bad host")
    if type(port) is not int or not 0 < port < 65536:
        raise BadPacket("an address with a bad port")
    return host, port


def text_of(address: Address) -> str:
    """``IP:PORT`` or ``[IPV6]:PORT``, and the number of the extra socket, if there is one."""
    ip, port, *number = address
    by = f" by socket {number[0]}" if number else ""
    return (f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}") + by
