"""What a call of the API returns: its result, or the C code of its error, which error_no keeps."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from gevent.local import local

from ._codes import (
    CODE_NAMES,
    KKP2P_ERROR,
    KKP2P_ERROR_OUT_OF_MEMORY,
    KKP2P_ERROR_SYSTEM_INTERNAL,
    KKP2P_SUCCESS,
)
from ._errors import KKP2PError
from .engine.engine import Engine
from .engine.runtime.log import log_without_engine

__all__ = ["api", "error_no", "error_text", "fail_with", "note"]

P = ParamSpec("P")
T = TypeVar("T")

_SUCCESS = KKP2P_SUCCESS, ""
_last = local()  # per greenlet, and per thread: ``outcome``, a code and its reason


def api(failed: Any) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Turn errors into their code, and that into ``failed``, unless that is ``...``."""

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            try:
                _last.outcome = _SUCCESS
                return function(*args, **kwargs)
            except KKP2PError as error:
                code, reason = error.code, str(error)
            except MemoryError:
                code, reason = KKP2P_ERROR_OUT_OF_MEMORY, "out of memory"
            except Exception as error:  # noqa: BLE001 - a bug of ours: C has a code for it
                code, reason = KKP2P_ERROR_SYSTEM_INTERNAL, f"internal error: {error!r}"
            _last.outcome = code, reason
            name, engine = function.__name__, args[0] if args else None
            text = f"{name}: {CODE_NAMES.get(code, code)}: {reason}"
            if isinstance(engine, Engine) and engine.thread.usable:
                engine.log.error("%s", text)
            else:
                log_without_engine("%s", text)
            return code if failed is ... else failed  # type: ignore[return-value]

        return call

    return decorate


def error_no() -> int:
    """The code of the last call that this greenlet (or thread) made; 0: it succeeded.

    It is what the call returned, except after a ``read`` or ``write`` that returned -1: then it is
    -108 (the peer has ended in order), -107 (the channel was cut) or -1 (not an open socket).  In a
    callback of ``connect`` that gets -1 it says which error it was.
    C: ``kkp2p_error_no`` (v2), which is about engine_init only.
    """
    return getattr(_last, "outcome", _SUCCESS)[0]


def error_text() -> str:
    """Why that call failed, in one sentence: the one that the log has; "": it succeeded.

    It belongs to what error_no returns, so it is also there in a callback of ``connect``.  It is
    for people: programs decide by the code, as the words may change.  Not in C.
    """
    return getattr(_last, "outcome", _SUCCESS)[1]


def note(error: KKP2PError | None) -> None:
    """What error_no and error_text shall say in this greenlet or thread; None: it went well."""
    _last.outcome = _SUCCESS if error is None else (error.code, str(error))


def fail_with(error: KKP2PError) -> int:
    """C's -1, for every end of a channel; error_no has the code that says which it was."""
    note(error)
    return KKP2P_ERROR
