"""What a packet has besides its sealed content; see protection.py.

Apart from it, so that who only receives datagrams needs no cryptography.
"""

from __future__ import annotations

import struct

__all__ = ["FIRST_BYTE", "HEADER", "HEADER_BYTES", "OVERHEAD_BYTES", "TAG_BYTES"]

HEADER = struct.Struct(">QQ")  # FIRST_BYTE and the packet number, connection id
HEADER_BYTES = HEADER.size
TAG_BYTES = 16  # RFC 5116 section 5.1, RFC 8439 section 2.8
OVERHEAD_BYTES = HEADER_BYTES + TAG_BYTES
FIRST_BYTE = 0x40  # RFC 9443 section 3 leaves 64 to 127 to QUIC's short header; STUN has 0 to 3
