"""Why calls and logins are refused: the reasons of docs/protocol.rst, and the errors of an engine.

For calls one table serves both directions.  A callee's error becomes the reason that its track
passes on; a reason, of the callee or of the track itself, becomes the error that the caller gets.
"""

from __future__ import annotations

from .._codes import KKP2P_ERROR_INVALID_PEER_ID
from .._errors import (
    BadPacket,
    CallRefused,
    DuplicateLogin,
    KKP2PError,
    LinkLost,
    LoginRefused,
    NoPath,
    NotAllowed,
    NotSupported,
    OutOfDescriptors,
    PeerOffline,
    TimedOut,
    UnprovenPeer,
)
from .._sentence import Sentence

__all__ = ["FAULT", "login_refusal", "reason_for", "refusal", "show"]

FAULT = "fault"  # the callee's program failed by an exception that nobody expected
_ANY_OTHER = "relay"  # what else goes wrong for a callee, it does on the way to the relay

_BUSY = Sentence("the peer is busy: its accept queue is full, or it is out of descriptors")
_NOT_ALLOWED = Sentence(
    "the peer does not take calls from us: only certain callers, or certain keys, may"
)

# The reason; the error that the caller gets, and its text; the callee's errors that it stands for.
_TABLE: tuple[tuple[str, type[KKP2PError], str, tuple[type[KKP2PError], ...]], ...] = (
    ("offline", PeerOffline, Sentence("the peer is not online"), ()),
    ("left", CallRefused, Sentence("the peer went offline during the call"), ()),
    ("limit", LinkLost, Sentence("a limit of the cloud was met"), ()),
    ("unavailable", LinkLost, Sentence("the cloud cannot reach the peer"), ()),
    ("busy", CallRefused, _BUSY, (CallRefused, OutOfDescriptors)),
    ("not-allowed", CallRefused, _NOT_ALLOWED, (NotAllowed, UnprovenPeer)),
    ("timeout", TimedOut, Sentence("the peer did not answer in time"), (TimedOut,)),
    (
        "unsupported",
        NotSupported,
        Sentence("the peer cannot do this channel type or mode"),
        (NotSupported, NoPath),
    ),
    ("bad-message", CallRefused, Sentence("the peer does not understand our offer"), (BadPacket,)),
    (_ANY_OTHER, CallRefused, Sentence("the peer could not reach the relay"), ()),
    (FAULT, LinkLost, Sentence("a fault in the peer's program"), ()),
)
# Why a login is refused for good.
_LOGIN = {"bad-secret": Sentence("bad-secret"), "bad-binding": Sentence("bad-binding")}
_ERRORS = {reason: (kind, text) for reason, kind, text, _ in _TABLE}
_REASONS = {kind: reason for reason, _, _, kinds in _TABLE for kind in kinds}


def show(value: object) -> str:
    """What a server sent as a text, for the log.  Nested lists and such can make repr fail."""
    return repr(value[:80]) if isinstance(value, str) else f"<{type(value).__name__}>"


def refusal(reason: object) -> KKP2PError:
    """The caller's error for a reason that came from the track."""
    known = reason if isinstance(reason, str) else ""
    if known not in _ERRORS:
        return CallRefused("refused: {reason}", reason=show(reason))
    kind, text = _ERRORS[known]
    return kind(text)


def reason_for(error: KKP2PError) -> str:
    """What a callee that cannot take a call, because of this error, tells the track."""
    kinds = type(error).__mro__
    return next((_REASONS[kind] for kind in kinds if kind in _REASONS), _ANY_OTHER)


def login_refusal(reason: object) -> KKP2PError:
    """The error for a reason for which the cloud refuses, or ends, a login."""
    if reason == "duplicate":
        return DuplicateLogin()
    if reason == "unknown-peer":
        return LoginRefused("the cloud knows no such peer", KKP2P_ERROR_INVALID_PEER_ID)
    if reason == "removed":
        return LoginRefused("the account was removed or changed", KKP2P_ERROR_INVALID_PEER_ID)
    if reason in ("bad-secret", "bad-binding"):
        return LoginRefused("the cloud refuses the login: {reason}", reason=_LOGIN[str(reason)])
    if reason == "one-time":
        return LoginRefused("the secret is that of an invitation: kkp2p join takes it up, in time")
    if reason == "limit":
        return LinkLost("the cloud limits logins from here for now: too many have failed")
    return LinkLost("the cloud refuses the login for now: {reason}", reason=show(reason))
