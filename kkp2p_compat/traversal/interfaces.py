"""Every address of this host, found quickly also where there are hundreds.

On Linux the IPv4 addresses come from one system call (SIOCGIFCONF, netdevice(7)) and the IPv6 ones
from one file of /proc.  Neither needs netlink, which a sandbox may forbid (Android, systemd's
``RestrictAddressFamilies``), nor reads all interfaces again for each of them, as netifaces does.
On other systems netifaces is asked.

Where a family is missing or hidden it has no addresses here.  Only a shortage of descriptors or
memory raises, as it would otherwise look as if all addresses had gone.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import socket
import struct
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

__all__ = ["Interface", "interfaces", "source_addresses"]

# linux/sockios.h
SIOCGIFCONF = 0x8912
SIOCGIFNETMASK = 0x891B

# linux/if.h: struct ifconf (length, buffer); struct ifreq (name, a union as large as struct ifmap),
# whose address is a struct sockaddr_in.
IFCONF = struct.Struct("iP")
IFREQ_BYTES = struct.calcsize("16sLLHBBB0L")
NAME_BYTES = 16
IP_AT = slice(20, 24)

# linux/if_addr.h
IFA_F_OPTIMISTIC = 0x04
IFA_F_DADFAILED = 0x08  # another host has it
IFA_F_TENTATIVE = 0x40  # not verified yet: the link is down, or has just come up

LINK_LOCAL = 0x20  # net/ipv6.h: IPV6_ADDR_LINKLOCAL, the scope in if_inet6
IF_INET6 = "/proc/net/if_inet6"
SPARE = 16  # our choice: interfaces that may come between two system calls

# Addresses behind the default routes: of the documentation networks (RFC 5737, RFC 3849).
FAR = {int(socket.AF_INET6): "2001:db8::1", int(socket.AF_INET): "198.51.100.1"}

_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Interface(NamedTuple):
    """One address of one interface."""

    name: str
    address: str  # numeric, without a scope
    prefix_bits: int


def interfaces() -> list[Interface]:
    """Those of IPv4, then those of IPv6, each in the kernel's order of the interfaces.

    Left out are IPv6 addresses that take no packets (yet), and link-local ones, which need a scope.
    Raises OSError in a shortage.  5 ms of CPU time with 500 interfaces.
    """
    if sys.platform != "linux":
        return _from_netifaces()
    return [*_ipv4(), *_ipv6()]


def source_addresses() -> list[str]:
    """What the system sends from by its default routes, IPv6's first; OSError in a shortage.

    Connecting a UDP socket sends nothing.  (The list of gateways of netifaces2 starts a process.)
    """
    found = []
    for family, far in FAR.items():
        with _as_far_as_allowed(), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((far, 9))
            found.append(probe.getsockname()[0])
    return found


@contextlib.contextmanager
def _as_far_as_allowed() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _SHORTAGES:
            raise


def _ipv4() -> list[Interface]:
    found = []
    with _as_far_as_allowed(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for request in _requests(sock):
            name = request[:NAME_BYTES].partition(b"\0")[0].decode(errors="replace")
            mask = fcntl.ioctl(sock, SIOCGIFNETMASK, request)[IP_AT]
            bits = int.from_bytes(mask, "big").bit_count()
            found.append(Interface(name, socket.inet_ntoa(request[IP_AT]), bits))
    return found


def _requests(sock: socket.socket) -> Iterator[bytes]:
    """A struct ifreq for each IPv4 address."""
    length, _ = IFCONF.unpack(fcntl.ioctl(sock, SIOCGIFCONF, IFCONF.pack(0, 0)))
    buffer = ctypes.create_string_buffer(length + SPARE * IFREQ_BYTES)
    asked = IFCONF.pack(len(buffer), ctypes.addressof(buffer))
    length, _ = IFCONF.unpack(fcntl.ioctl(sock, SIOCGIFCONF, asked))
    for start in range(0, length, IFREQ_BYTES):
        yield buffer.raw[start : start + IFREQ_BYTES]


def _ipv6() -> list[Interface]:
    found: list[tuple[int, Interface]] = []
    with _as_far_as_allowed(), open(IF_INET6) as lines:
        for line in lines:
            digits, index, bits, scope, flag_digits, name = line.split()
            flags = int(flag_digits, 16)
            tentative = flags & IFA_F_TENTATIVE and not flags & IFA_F_OPTIMISTIC
            if int(scope, 16) == LINK_LOCAL or tentative or flags & IFA_F_DADFAILED:
                continue
            ip = socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits))
            found.append((int(index, 16), Interface(name, ip, int(bits, 16))))
    return [interface for _, interface in sorted(found, key=lambda entry: entry[0])]


def _from_netifaces() -> list[Interface]:
    import netifaces  # here, as Linux needs none of it

    found = []
    for family in (netifaces.AF_INET, netifaces.AF_INET6):
        try:
            for name in netifaces.interfaces():
                with contextlib.suppress(ValueError):  # it went away just now
                    entries: dict[Any, Any] = netifaces.ifaddresses(name)
                    found += [_from_entry(name, entry) for entry in entries.get(family, [])]
        except RuntimeError as error:  # what netifaces raises for a failing system call
            raise OSError(errno.ENOBUFS, f"cannot list the interfaces: {error}") from error
    return [interface for interface in found if not interface.address.startswith("fe80:")]


def _from_entry(name: str, entry: dict[str, str]) -> Interface:
    address = entry["addr"].partition("%")[0]
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    mask = socket.inet_pton(family, entry["mask"].partition("/")[0])
    return Interface(name, address, int.from_bytes(mask, "big").bit_count())
