"""The datagrams of a LAN search, and what a responder remembers of those it has heard.

Sans-IO: no socket and no clock; ``now`` is passed in, in seconds.  The layout is that of
docs/protocol.rst, "The LAN search".  Two rules are kept here.  A search is padded to SEARCH_BYTES,
the size of the largest answer, so nobody can use a responder to send a victim more than they send
themselves.  And a search is remembered by its id while its copies come in, so that it is answered
once, however many interfaces and repeats it is heard through.
"""

from __future__ import annotations

import struct
from collections import Counter, OrderedDict
from enum import Enum
from typing import NamedTuple

from .._address import Address
from .._codes import MAX_PEER_ID
from .._errors import BadPacket
from .._peer_id import is_peer_id

__all__ = [
    "ANSWER",
    "ID_BYTES",
    "MAX_TEXT_BYTES",
    "SEARCH",
    "SEARCH_BYTES",
    "Heard",
    "Message",
    "SearchMemory",
    "Verdict",
    "encode",
    "parse_untrusted",
]

MAGIC = b"KKLS"
VERSION = 1
SEARCH = 1
ANSWER = 2
ID_BYTES = 16  # random: nobody who has not heard the search can answer it
MAX_TEXT_BYTES = 1000  # our choice: the engine's offers and answers, in UTF-8

# magic, version, type, search id, peer id padded with NUL, bytes of text
_HEADER = struct.Struct(f"!4sBB{ID_BYTES}s{MAX_PEER_ID}sH")
SEARCH_BYTES = _HEADER.size + MAX_TEXT_BYTES  # 1,056: fits any link's MTU in one datagram

# Our choices.
MAX_SEARCHES = 4096  # remembered at once, by one responder: at most 1.5 KB each
MAX_SOURCE_SEARCHES = 256  # of them from one address: about 50 a second
MEMORY_S = 5.0  # a search repeats at least every second: one not heard for so long is over
RESEND_S = 0.025  # half a search's shortest interval: more repeats than that are a flood


class Message(NamedTuple):
    """What a datagram says."""

    kind: int  # SEARCH or ANSWER
    search_id: bytes  # ID_BYTES
    peer_id: str  # of the peer that is looked for
    text: str  # the engine's offer, or answer


def encode(message: Message) -> bytes:
    """A datagram of at most SEARCH_BYTES; ValueError if the message is not one."""
    kind, search_id, peer_id, text = message
    name, body = peer_id.encode(), text.encode()
    if len(search_id) != ID_BYTES or not is_peer_id(peer_id):
        raise ValueError(f"a LAN message for {peer_id!r} with an id of {len(search_id)} bytes")
    if len(body) > MAX_TEXT_BYTES:
        raise ValueError(f"a LAN message of {len(body)} bytes of text, over {MAX_TEXT_BYTES}")
    datagram = _HEADER.pack(MAGIC, VERSION, kind, search_id, name, len(body)) + body
    return datagram.ljust(SEARCH_BYTES, b"\0") if kind == SEARCH else datagram


def parse_untrusted(datagram: bytes) -> Message:
    """What a stranger's datagram says; raises BadPacket."""
    if not _HEADER.size <= len(datagram) <= SEARCH_BYTES:
        raise BadPacket("a LAN message of a bad length")
    magic, version, kind, search_id, name, length = _HEADER.unpack_from(datagram)
    peer_id = name.rstrip(b"\0").decode("latin-1")
    if magic != MAGIC or version != VERSION or kind not in (SEARCH, ANSWER):
        raise BadPacket("not a LAN message of this version")
    if not is_peer_id(peer_id):
        raise BadPacket("a LAN message with a bad peer id")
    end = _HEADER.size + length
    # What pads a search is ignored, but it must be there.
    if end > len(datagram) or len(datagram) != (SEARCH_BYTES if kind == SEARCH else end):
        raise BadPacket("a LAN message of a bad length")
    try:
        text = datagram[_HEADER.size : end].decode()
    except UnicodeDecodeError as error:
        raise BadPacket("a LAN message with text that is not UTF-8") from error
    return Message(kind, search_id, peer_id, text)


class Verdict(Enum):
    """What to do with a search; the values name the drops in counts."""

    NEW = "new"  # make an answer, and leave it in Heard.answer
    REPEAT = "repeat"  # the answer was lost: send it again
    PENDING = "its answer is being made, or there is none"
    OTHER_WAY = "heard from another address of the same host before"
    TOO_SOON = "repeated too soon"
    SOURCE_LIMIT = "too many searches from one address"
    LIMIT = "too many searches"


class Heard:
    """One search, as a responder remembers it."""

    __slots__ = ("answer", "heard_at", "repeats", "sent_at", "source")

    def __init__(self, source: Address, now: float) -> None:
        self.source = source  # where it was heard from first, and where the answer goes
        self.heard_at = now
        self.sent_at = now
        self.repeats = 0  # of the answer
        self.answer = b""  # the datagram to send again; empty: none (yet)


class SearchMemory:
    """The searches that a responder has heard lately, by id.

    Where a limit is met, new searches are refused and nothing is forgotten: a search must not be
    answered twice because a stranger floods us with others.
    """

    __slots__ = ("_of_source", "_searches")

    def __init__(self) -> None:
        self._searches: OrderedDict[bytes, Heard] = OrderedDict()  # heard last comes last
        self._of_source: Counter[str] = Counter()  # searches remembered from each address

    def __len__(self) -> int:
        return len(self._searches)

    def hear(self, search_id: bytes, source: Address, now: float) -> tuple[Verdict, Heard | None]:
        """What to do, and the search to do it with, if there is something to do."""
        self._expire(now)
        heard = self._searches.get(search_id)
        if heard is None:
            return self._hear_new(search_id, source, now)
        if heard.source != source:
            return Verdict.OTHER_WAY, None
        heard.heard_at = now
        self._searches.move_to_end(search_id)
        if not heard.answer:
            return Verdict.PENDING, None
        if now - heard.sent_at < RESEND_S:
            return Verdict.TOO_SOON, None
        heard.sent_at = now
        heard.repeats += 1
        return Verdict.REPEAT, heard

    def forget(self, search_id: bytes) -> None:
        """The next copy of a search is a new one."""
        heard = self._searches.pop(search_id)
        host = heard.source[0]
        self._of_source[host] -= 1
        if not self._of_source[host]:
            del self._of_source[host]

    def _hear_new(
        self, search_id: bytes, source: Address, now: float
    ) -> tuple[Verdict, Heard | None]:
        if len(self._searches) >= MAX_SEARCHES:
            return Verdict.LIMIT, None
        if self._of_source[source[0]] >= MAX_SOURCE_SEARCHES:
            return Verdict.SOURCE_LIMIT, None
        heard = self._searches[search_id] = Heard(source, now)
        self._of_source[source[0]] += 1
        return Verdict.NEW, heard

    def _expire(self, now: float) -> None:
        while self._searches:
            search_id, heard = next(iter(self._searches.items()))
            if now - heard.heard_at < MEMORY_S:
                return
            self.forget(search_id)
