"""Bytes into and out of a channel's descriptor, and its end: what needs no engine."""

from __future__ import annotations

from typing import Any

from . import _io
from ._api_checks import check_fd, check_length, check_timeout
from ._api_outcome import api, fail_with
from ._codes import MAX_MESSAGE_BYTES
from ._errors import ParameterError
from .engine.channels.descriptors import DESCRIPTORS

__all__ = ["abort_fd", "close_fd", "read", "write"]


@api(...)
def read(fd: int, buff: Any, length: int, timeout: int) -> int:
    """Read up to ``length`` bytes into the writable ``buff``.

    ``timeout``: ms, 0 or more.  Returns how many, 0 (none in time), -1 (nothing more will come),
    -106, -121 (buff is shorter).  After -1 error_no distinguishes: -108, the peer has ended its
    direction and all of it was read (we may still write); -107, the channel was cut, so something
    may be missing; -1, not an open socket.  C: ``kkp2p_read``.
    """
    timeout_s = check_timeout(timeout)
    view = check_length(buff, length, writable=True)
    try:
        count = _io.receive(check_fd(fd), view, length, timeout_s)
    except OSError as error:
        return fail_with(DESCRIPTORS.failure(fd, error))
    if count is None:
        return 0
    return count or fail_with(DESCRIPTORS.failure(fd, None))


@api(...)
def write(fd: int, buff: Any, length: int, timeout: int) -> int:
    """Write up to the first ``length`` bytes of ``buff``.

    ``timeout``: ms, 0 or more.  Returns how many were taken, which may be fewer; 0 (none in time:
    the peer does not read), -1 (nothing more is taken), -106 (also: over 65,536 bytes on a UDP
    channel, where each write is one message), -121 (buff is shorter).  After -1 error_no has
    -108 (the peer has closed), -107 (the channel was cut) or -1 (not an open socket).
    C: ``kkp2p_write``.
    """
    timeout_s = check_timeout(timeout)
    view = check_length(buff, length, writable=False)
    if length > MAX_MESSAGE_BYTES and DESCRIPTORS.takes_messages(check_fd(fd)):
        raise ParameterError(f"a message of {length} bytes, over {MAX_MESSAGE_BYTES}")
    try:
        # Not the view of bytes: that is read-only, and would be copied.
        source = buff if isinstance(buff, bytes) else view
        count = _io.send(check_fd(fd), source, length, timeout_s)
    except OSError as error:
        return fail_with(DESCRIPTORS.failure(fd, error))
    return count or 0


@api(None)
def close_fd(fd: int) -> None:
    """Close a channel's descriptor; what was written still arrives, and the peer is told.

    A number that does not belong to a channel is left alone.  C: ``kkp2p_close_fd``.
    """
    if not DESCRIPTORS.close(check_fd(fd)):
        raise ParameterError(f"descriptor {fd} is not a channel's, or was closed before")


@api(None)
def abort_fd(fd: int) -> None:
    """Close a channel's descriptor; the peer is told that the channel was cut.

    For a program that cannot finish what it was sending, so that the peer does not take the part
    that has arrived for the whole.  What was written and has not arrived yet may be lost.  A number
    that does not belong to a channel is left alone.  Not in C.
    """
    if not DESCRIPTORS.abort(check_fd(fd)):
        raise ParameterError(f"descriptor {fd} is not a channel's, or was closed before")
