"""What errors and events say: in English, and in such a way that a tool can say it otherwise.

A log, ``error_text`` and programs get the English text, which is a ``str`` as any other.  A tool
that speaks its user's language looks up the template instead, and fills in the same parts; no
sentence has to be taken apart for that.  docs/catalogue.py finds the templates in the code.
"""

from __future__ import annotations

import errno
import functools
import socket
from collections.abc import Sequence

__all__ = ["Sentence", "listed", "said"]


class Sentence(str):
    """``template`` with its ``parts`` filled in, as str.format does; a part may be a Sentence."""

    __slots__ = ("parts", "template")
    template: str
    parts: dict[str, object]

    def __new__(cls, template: str, /, **parts: object) -> Sentence:
        self = super().__new__(cls, template.format(**parts) if parts else template)
        self.template, self.parts = template, parts
        return self


def listed(parts: Sequence[str]) -> str:
    """Joined with commas, at least one."""
    return functools.reduce(
        lambda one, other: Sentence("{one}, {other}", one=one, other=other), parts
    )


def said(error: BaseException) -> str:
    """``str`` of it, as a Sentence if it is an error of ours, or a common one of the system."""
    if error.args and isinstance(error.args[0], Sentence):
        return error.args[0]
    text = Sentence(str(error))
    # Not of ssl and others: theirs have numbers of their own.
    if isinstance(error, OSError) and type(error).__module__ in ("builtins", "socket"):
        text.template = _SYSTEM.get(error.errno or 0, text.template)
    return text


_SYSTEM = {
    errno.EACCES: Sentence("permission denied"),
    errno.EADDRINUSE: Sentence("the address is in use: another program listens there"),
    errno.EADDRNOTAVAIL: Sentence("this host has no such address"),
    errno.ECONNABORTED: Sentence("the connection was cut"),
    errno.ECONNREFUSED: Sentence("the connection is refused: nothing listens there"),
    errno.ECONNRESET: Sentence("the connection was reset"),
    errno.EHOSTUNREACH: Sentence("the host cannot be reached"),
    errno.EISDIR: Sentence("it is a folder"),
    errno.EMFILE: Sentence("the process is out of descriptors"),
    errno.ENETUNREACH: Sentence("the network cannot be reached"),
    errno.ENOENT: Sentence("there is no such file"),
    errno.ENOSPC: Sentence("the disk is full"),
    errno.EPERM: Sentence("not permitted"),
    errno.EPIPE: Sentence("the other side has closed"),
    errno.ETIMEDOUT: Sentence("no answer in time"),
    socket.EAI_AGAIN: Sentence("the resolver does not answer"),
    socket.EAI_NONAME: Sentence("no such name is known"),
}
