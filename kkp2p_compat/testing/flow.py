"""Numbered records that are sent at a steady rate, and what has become of them; sans-IO.

A record is its number, again and again, so that every byte of it says where it belongs.  It is sent
as a piece of a stream, or as a message.
"""

from __future__ import annotations

import struct

__all__ = ["Arrivals", "records"]

NUMBER = struct.Struct("!Q")


def record(number: int, size: int) -> bytes:
    """``size``: bytes, a multiple of 8."""
    return NUMBER.pack(number) * (size // NUMBER.size)


def records(first: int, count: int, size: int) -> bytes:
    return b"".join(record(number, size) for number in range(first, first + count))


class Arrivals:
    """What has come of a flow's records, and the longest pause between two of them.

    A record that is not its number throughout is counted as ``wrong``, and as nothing else.
    """

    def __init__(self, size: int, now: float) -> None:
        self.received = 0
        self.repeated = 0
        self.reordered = 0
        self.wrong = 0
        self.bytes = 0
        self._size = size
        self._next = 0
        self._missing: set[int] = set()
        self._part = b""  # of a record of a stream
        self._last_at = now
        self._pause = (0.0, now)

    def lost(self, sent: int) -> int:
        """Of the first ``sent`` records."""
        return len(self._missing) + max(sent - self._next, 0)

    def pause(self, now: float) -> tuple[float, float]:
        """The longest one since the last question, in seconds, and when it ended.  One that goes on
        counts, and counts again in the next answer."""
        longest = max(self._pause, (now - self._last_at, now))
        self._pause = (0.0, now)
        return longest

    def take(self, data: bytes, now: float) -> None:
        """The next bytes of a stream, cut anywhere."""
        self._came(len(data), now)
        data = self._part + data
        whole = len(data) // self._size
        expected = records(self._next, whole, self._size)
        end = whole * self._size
        if data.startswith(expected):  # as it should be, and quickly
            self._next += whole
            self.received += whole
        else:
            for start in range(0, end, self._size):
                self._count(data[start : start + self._size])
        self._part = data[end:]

    def take_message(self, message: bytes, now: float) -> None:
        self._came(len(message), now)
        self._count(message)

    def _came(self, count: int, now: float) -> None:
        self.bytes += count
        self._pause = max(self._pause, (now - self._last_at, now))
        self._last_at = now

    def _count(self, data: bytes) -> None:
        number = NUMBER.unpack_from(data)[0] if len(data) == self._size else -1
        if data != record(max(number, 0), self._size):
            self.wrong += 1
        elif number >= self._next:
            self._missing.update(range(self._next, number))
            self._next = number + 1
            self.received += 1
        elif number in self._missing:
            self._missing.remove(number)
            self.reordered += 1
            self.received += 1
        else:
            self.repeated += 1
