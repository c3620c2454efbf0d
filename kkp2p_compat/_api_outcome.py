"""What a call of the API returns: its result, or the C code of its error, which error_no keeps."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from gevent.local import local

from ._codes import CODE_NAMES, KKP2P_ERROR, KKP2P_ERROR_SYSTEM_INTERNAL, KKP2P_SUCCESS
from ._errors import KKP2PError
from .engine.engine import Engine
from .engine.runtime.log import log_without_engine

__all__ = ["api", "error_no", "fail_with"]

P = ParamSpec("P")
T = TypeVar("T")

_last = local()  # per greenlet, and per thread


def api(failed: Any) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Turn errors into their code, and that into ``failed``, unless that is ``...``."""

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            try:
                _last.code = KKP2P_SUCCESS
                result = function(*args, **kwargs)
                if isinstance(result, int) and result < 0:
                    # ``read`` and ``write`` have set the code that C's -1 does not show.
                    _last.code = _last.code or result
                return result
            except KKP2PError as error:
                code, reason = error.code, str(error)
            except Exception as error:  # noqa: BLE001 - a bug of ours: C has a code for it
                code, reason = KKP2P_ERROR_SYSTEM_INTERNAL, f"internal error: {error!r}"
            _last.code = code
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
    -108 (the peer has ended in order), -107 (the channel was cut) or -1 (not an open socket).
    C: ``kkp2p_error_no`` (v2), which is about engine_init only.
    """
    return getattr(_last, "code", KKP2P_SUCCESS)


def fail_with(code: int) -> int:
    """C's -1, for every end of a channel; error_no has the code that says which it was."""
    _last.code = code
    return KKP2P_ERROR
