"""The default routes of this host: where port mappings are asked for, and what a move changes.

They are read from the files that Linux has in /proc/net, without starting a program.  The files
show the main table of the process's network namespace.  Where there are none no route is known:
port mapping is then off, and a change of routes is noticed by the addresses that come with it.
"""

from __future__ import annotations

import ipaddress
import socket
import sys
from os import PathLike
from typing import NamedTuple

__all__ = ["DefaultRoute", "default_routes", "ipv4_gateways"]

PROC = "/proc/net"
MAX_CHARACTERS = 1 << 20  # of a file; our choice: about 8,000 routes, more are not looked through

# linux/route.h
RTF_UP = 0x1
RTF_REJECT = 0x200

NOWHERE = "0" * 32  # of 0.0.0.0 the first eight


# The mask of 0.0.0.0/1, and 128.0.0.0, as /proc/net/route writes them.
HALF = f"{int.from_bytes(bytes([128, 0, 0, 0]), sys.byteorder):08X}"


class DefaultRoute(NamedTuple):
    family: int
    gateway: str  # numeric; empty where the interface itself leads out (PPP, a tunnel)
    interface: str


def default_routes(proc: str | PathLike[str] = PROC) -> list[DefaultRoute]:
    """IPv4's first, each family's in the order in which the kernel prefers them.

    Where VPN programs have added routes for the two halves of IPv4, those count as the default
    routes, as nothing uses the real ones then.
    """
    found: list[tuple[int, int, DefaultRoute]] = []
    lines = [fields for fields in _lines(f"{proc}/route") if len(fields) >= 8]
    halves = {fields[1] for fields in lines if fields[7] == HALF} == {NOWHERE[:8], HALF}
    for fields in lines:
        if fields[1] == NOWHERE[:8] and fields[7] == (HALF if halves else NOWHERE[:8]):
            gateway = ipaddress.IPv4Address(int(fields[2], 16).to_bytes(4, sys.byteorder))
            route = DefaultRoute(socket.AF_INET, str(gateway) if int(gateway) else "", fields[0])
            found.append((int(fields[3], 16), int(fields[6]), route))
    found.sort(key=lambda entry: entry[1])
    of_ipv6: list[tuple[int, int, DefaultRoute]] = []
    for fields in _lines(f"{proc}/ipv6_route", f"{NOWHERE} 00 "):
        if len(fields) >= 10:
            hop = ipaddress.IPv6Address(int(fields[4], 16))
            route = DefaultRoute(socket.AF_INET6, str(hop) if int(hop) else "", fields[9])
            of_ipv6.append((int(fields[8], 16), int(fields[5], 16), route))
    found += sorted(of_ipv6, key=lambda entry: entry[1])
    routes = [route for flags, _, route in found if flags & RTF_UP and not flags & RTF_REJECT]
    return list(dict.fromkeys(routes))


def _lines(path: str, start: str = "") -> list[list[str]]:
    """The fields of those lines that begin so."""
    try:
        with open(path) as file:
            lines = file.read(MAX_CHARACTERS).splitlines()
            return [line.split() for line in lines if line.startswith(start)]
    except OSError:  # another system, or IPv6 is switched off
        return []


def ipv4_gateways(proc: str | PathLike[str] = PROC) -> list[str]:
    """The routers of IPv4's default routes, the preferred one first; none if that is a tunnel."""
    ways = [route for route in default_routes(proc) if route.family == socket.AF_INET]
    if ways and not ways[0].gateway:
        return []
    return list(dict.fromkeys(route.gateway for route in ways if route.gateway))
