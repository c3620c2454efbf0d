"""Errors, sorted by who is at fault.

They travel inside the SDK only: the C-shaped API turns each into the result code that is its
``code``.  The first line of each docstring is what the log says when nothing better is known.
"""

from __future__ import annotations

import errno

from . import _codes
from ._sentence import Sentence, said

__all__ = [
    "BadPacket",
    "CallRefused",
    "CloudUnreachable",
    "DuplicateLogin",
    "EngineClosed",
    "KKP2PError",
    "LinkLost",
    "LoginRefused",
    "NoPath",
    "NoRoomYet",
    "NotAllowed",
    "NotSupported",
    "OurFault",
    "OutOfDescriptors",
    "ParameterError",
    "PeerMoved",
    "PeerOffline",
    "TimedOut",
    "UnprovenPeer",
    "from_os_error",
]


class KKP2PError(Exception):
    """the operation failed"""

    code: int = _codes.KKP2P_ERROR

    def __init__(self, reason: str = "", code: int | None = None, /, **parts: object) -> None:
        """``parts`` are filled into ``reason``, as a Sentence has it."""
        if parts or not isinstance(reason, Sentence):
            reason = Sentence(reason or (type(self).__doc__ or "").strip(), **parts)
        super().__init__(reason)
        if code is not None:
            self.code = code


# Our caller's fault.


class ParameterError(KKP2PError):
    """an argument is out of range"""

    code = _codes.KKP2P_ERROR_PARAMETER


class NotSupported(ParameterError):
    """this version does not support that; see docs/status.rst"""


class EngineClosed(KKP2PError):
    """the engine is destroyed, or belongs to the process that forked this one"""


# This host's fault.


class OutOfDescriptors(KKP2PError):
    """this process, or the host, is out of descriptors"""

    code = _codes.KKP2P_ERROR_SOCKET_FD_OVERFLOW


class OurFault(KKP2PError):
    """a fault of ours; the log has where"""

    code = _codes.KKP2P_ERROR_SYSTEM_INTERNAL


# The peer's or the cloud's word.


class LoginRefused(KKP2PError):
    """the cloud refuses the login"""

    code = _codes.KKP2P_ERROR_INVALID_PEER_KEY


class DuplicateLogin(KKP2PError):
    """another login under the same peer id ended this one"""

    code = _codes.KKP2P_ERROR_DUPLICATE_ID


class PeerOffline(KKP2PError):
    """the peer is not online"""

    code = _codes.KKP2P_ERROR_CONNECT_TIMEOUT


class CallRefused(KKP2PError):
    """the other peer refuses the call"""

    code = _codes.KKP2P_ERROR_OTHER_DISCONNECT


class NotAllowed(CallRefused):
    """this caller may not call us"""


class UnprovenPeer(KKP2PError):
    """the peer does not prove that it has the key that we know"""

    code = _codes.KKP2P_ERROR_INVALID_PEER_KEY


# The network's fault.


class TimedOut(KKP2PError):
    """not done in time"""

    code = _codes.KKP2P_ERROR_CONNECT_TIMEOUT


class NoPath(KKP2PError):
    """there is no direct path to the peer"""

    code = _codes.KKP2P_ERROR_CONNECT_TIMEOUT


class CloudUnreachable(KKP2PError):
    """no server of the cloud answers"""

    code = _codes.KKP2P_ERROR_CONNECT_TIMEOUT


class LinkLost(KKP2PError):
    """the connection broke"""

    code = _codes.KKP2P_ERROR_CONN_DISCONNECT


class PeerMoved(LinkLost):
    """the peer is elsewhere now"""


class NoRoomYet(LinkLost):
    """the cloud cannot carry the call at this moment"""


class BadPacket(KKP2PError):
    """bytes from the network break the protocol"""

    code = _codes.KKP2P_ERROR_CONN_DISCONNECT


def from_os_error(error: OSError, what: str) -> KKP2PError:
    """The error for a failing system call on a connection."""
    kind = OutOfDescriptors if error.errno in (errno.EMFILE, errno.ENFILE) else LinkLost
    return kind("{what}: {why}", what=what, why=said(error))
