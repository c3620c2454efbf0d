"""An IP packet that is read and rewritten: addresses, ports, the TTL, and their checksums.

Checksums are never computed anew: they are adjusted by the difference (RFC 1624), so a packet that
came damaged stays damaged.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from ipaddress import ip_address

from .._address import HostPort
from .._errors import BadPacket
from .nat import TCP, UDP

__all__ = ["Packet", "parse_untrusted"]

IPV4_HEADER, IPV6_HEADER = 20, 40
PORTS = struct.Struct("!HH")
WORD = struct.Struct("!H")
CHECKSUM_AT = {TCP: 16, UDP: 6}  # RFC 9293 3.1, RFC 768
ALL_ONES = 0xFFFF


@lru_cache(maxsize=65536)
def _text(ip: bytes) -> str:
    return str(ip_address(ip))


@lru_cache(maxsize=65536)
def _packed(ip: str) -> bytes:
    return ip_address(ip).packed


class Packet:
    """One packet; ``data`` is what goes on.  ``ports_at`` is 0 where there are no ports."""

    __slots__ = (
        "data",
        "origin",
        "ports_at",
        "protocol",
        "source",
        "source_port",
        "target",
        "target_port",
        "version",
    )

    def __init__(self, data: bytearray, version: int, protocol: int, ports_at: int) -> None:
        self.data = data
        self.version = version
        self.protocol = protocol
        self.ports_at = ports_at
        self.origin = ""  # the host that sent it
        at, size = (12, 4) if version == 4 else (8, 16)
        self.source = _text(bytes(data[at : at + size]))
        self.target = _text(bytes(data[at + size : at + 2 * size]))
        self.source_port, self.target_port = (
            PORTS.unpack_from(data, ports_at) if ports_at else (0, 0)
        )

    @property
    def text(self) -> str:
        name = {TCP: "TCP", UDP: "UDP"}.get(self.protocol, f"protocol {self.protocol}")
        ends = f"{self.source}:{self.source_port} > {self.target}:{self.target_port}"
        return f"{name} {ends} ttl {self.ttl} {len(self.data)} bytes"

    @property
    def ttl(self) -> int:
        return self.data[8 if self.version == 4 else 7]

    def pass_routers(self, count: int) -> bool:
        """Reduce the TTL by one for each; False: one of them has to drop the packet."""
        ttl = self.ttl - count
        if ttl < 1:
            return False
        if self.version == 6:
            self.data[7] = ttl
            return True
        self.data[8] = ttl
        self._adjust(10, -count << 8)
        return True

    def set_source(self, address: HostPort) -> None:
        self._rewrite(12, self.ports_at, (self.source, self.source_port), address)
        self.source, self.source_port = address

    def set_target(self, address: HostPort) -> None:
        self._rewrite(16, self.ports_at + 2, (self.target, self.target_port), address)
        self.target, self.target_port = address

    def _rewrite(self, ip_at: int, port_at: int, old: HostPort, new: HostPort) -> None:
        """IPv4 with ports only."""
        new_ip = _packed(new[0])
        difference = int.from_bytes(new_ip, "big") - int.from_bytes(_packed(old[0]), "big")
        self.data[ip_at : ip_at + 4] = new_ip
        WORD.pack_into(self.data, port_at, new[1])
        self._adjust(10, difference)
        checksum_at = self.ports_at + CHECKSUM_AT[self.protocol]
        if self.protocol == UDP and not any(self.data[checksum_at : checksum_at + 2]):
            return  # RFC 768: the sender made none
        self._adjust(checksum_at, difference + new[1] - old[1])
        if self.protocol == UDP and not any(self.data[checksum_at : checksum_at + 2]):
            WORD.pack_into(self.data, checksum_at, ALL_ONES)  # RFC 768: 0 would mean none

    def _adjust(self, at: int, difference: int) -> None:
        """RFC 1624 (3).  Sums of 16-bit words in ones' complement are those modulo 65,535."""
        before = ALL_ONES - int(WORD.unpack_from(self.data, at)[0])
        after = (before + difference) % ALL_ONES or ALL_ONES
        WORD.pack_into(self.data, at, ALL_ONES - after)


def parse_untrusted(data: bytes | bytearray) -> Packet:
    """Raises BadPacket.  A later fragment, and IPv6 with extension headers, has no ports."""
    version = data[0] >> 4 if data else 0
    if version == 4 and len(data) >= IPV4_HEADER:
        header = (data[0] & 15) * 4
        if header < IPV4_HEADER or len(data) < header:
            raise BadPacket("an IPv4 header of a wrong length")
        protocol = data[9]
        later_fragment = WORD.unpack_from(data, 6)[0] & 0x1FFF  # RFC 791 3.1
        has_ports = not later_fragment
    elif version == 6 and len(data) >= IPV6_HEADER:
        header, protocol, has_ports = IPV6_HEADER, data[6], True
    else:
        raise BadPacket("neither IPv4 nor IPv6")
    if protocol not in CHECKSUM_AT or not has_ports:
        header = 0
    elif len(data) < header + CHECKSUM_AT[protocol] + 2:
        raise BadPacket("a transport header that is cut short")
    return Packet(bytearray(data), version, protocol, header)
