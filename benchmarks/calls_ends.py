"""The ends of many calls at once, for ``calls.py``: ``python -m benchmarks.calls_ends``.

One line of JSON for each question, one for each answer.  A program is the callee, or the callers of
one host: as many engines, which share nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import kkp2p_compat as kkp2p

from .agents import serve
from .nat_ends import PATIENCE_MS, start_engine, wait_for_nat

AT_ONCE = 10  # engines being started: TLS handshakes cost processor time
TRIES = 5  # until an engine knows its NAT; packets get lost on a machine that is busy

_engines: list[Any] = []
_channels: list[kkp2p.channel_t] = []
_threads: list[threading.Thread] = []


def join(login: str, peer_id: str, secret: str) -> dict[str, Any]:
    """The callee: sends back the first byte of each channel, and keeps the channel."""
    engine = start_engine(login)
    _engines.append(engine)
    if kkp2p.join_net(engine, peer_id, secret) != 0:
        raise RuntimeError(f"not online: {kkp2p.error_no()}")
    _threads.append(threading.Thread(target=_answer, args=(engine,)))
    _know_nat(engine)
    _threads[0].start()
    return {}


def _know_nat(engine: Any) -> None:
    for _ in range(TRIES):
        nat = wait_for_nat(engine)
        if nat.startswith("endpoint-independent mapping, preserved ports, address-and-port"):
            return
        engine.thread.call(lambda: engine.network.underlay().own.refresh("it must be known"))
    raise RuntimeError(f"an engine does not know its NAT: {nat}")


def _answer(engine: Any) -> None:
    channel = kkp2p.channel_t()
    while (accepted := kkp2p.accept(engine, 1000, channel)) >= 0:
        if accepted:
            _channels.append(channel)
            threading.Thread(target=_echo, args=(channel,)).start()  # one that waits holds up none
            channel = kkp2p.channel_t()


def _echo(channel: kkp2p.channel_t) -> None:
    buff = bytearray(1)
    if kkp2p.read(channel.fd, buff, 1, PATIENCE_MS) == 1:
        kkp2p.write(channel.fd, buff, 1, PATIENCE_MS)


def state() -> dict[str, Any]:
    """What the callee's engine has."""
    (engine,) = _engines
    return dict(engine.thread.call(lambda: _state_of(engine)))


def _state_of(engine: Any) -> dict[str, Any]:
    underlay = engine.network.underlay()
    return {
        "channels": len(engine.channels),
        "links": len(engine.links),
        "searches": len(underlay.searches.finder),
        "accepted": len(_channels),
    }


def start(login: str, count: int) -> dict[str, Any]:
    """The callers, which know their NAT when this is over."""

    def one(_: object) -> None:
        engine = start_engine(login)
        _engines.append(engine)
        _know_nat(engine)

    _all(one, range(count), AT_ONCE)
    return {}


def call(peer_id: str, mode: int, timeout_ms: int) -> dict[str, Any]:
    """All engines at once: a call each, and a byte there and back."""
    calls: list[dict[str, Any]] = []

    def one(engine: Any) -> None:
        channel = kkp2p.channel_t()
        ctx = kkp2p.connect_ctx_t(peer_id, connect_mode=mode, timeout=timeout_ms)
        started = time.monotonic()
        result = kkp2p.connect(engine, ctx, channel)
        took_s, path = time.monotonic() - started, ""
        if result == 0:
            path = "p2p" if channel.transmit_mode == 1 else "relay"
            _channels.append(channel)
            result = 0 if _carries(channel) else -1
        calls.append({"result": result, "took_s": took_s, "path": path})

    _all(one, _engines, len(_engines))
    return {"calls": calls}


def _carries(channel: kkp2p.channel_t) -> bool:
    buff = bytearray(1)
    return (
        kkp2p.write(channel.fd, b"!", 1, PATIENCE_MS) == 1
        and kkp2p.read(channel.fd, buff, 1, PATIENCE_MS) == 1
        and buff == b"!"
    )


def _all(what: Callable[[Any], object], items: Any, at_once: int) -> None:
    waiting = list(items)
    errors: list[Exception] = []

    def work() -> None:
        while waiting:
            try:
                what(waiting.pop())
            except Exception as error:  # noqa: BLE001 - raised again below
                errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(min(at_once, len(waiting)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def close() -> dict[str, Any]:
    """All channels of this end."""
    for channel in _channels:
        kkp2p.close_fd(channel.fd)
    _channels.clear()
    return {}


def part() -> dict[str, Any]:
    """The links, too, which would be kept for the next channel."""
    for engine in _engines:
        engine.thread.call(lambda: [link.destroy() for link in list(engine.links)])  # noqa: B023
    return {}


def leave() -> dict[str, Any]:
    close()
    _all(kkp2p.engine_destroy, _engines, AT_ONCE)
    _engines.clear()
    for thread in _threads:
        thread.join()
    return {}


QUESTIONS: dict[str, Callable[..., dict[str, Any]]] = {
    "join": join,
    "state": state,
    "start": start,
    "call": call,
    "close": close,
    "part": part,
    "leave": leave,
}


if __name__ == "__main__":
    serve(QUESTIONS)
