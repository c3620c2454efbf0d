"""The two ends of a meeting through NATs, for ``nat.py``: ``python -m benchmarks.nat_ends``.

One line of JSON for each question, one for each answer.  Every meeting has engines of its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import kkp2p_compat as kkp2p

from .agents import serve

PATIENCE_MS = 15_000
LOOK_S = 6.0  # how long an engine may take to know its NAT
PORT = 3080

_engine: Any = None
_answering: Any = None


def start_engine(login: str) -> Any:
    """An engine that knows its NAT: what is measured is a call, not the start of a program."""
    conf = kkp2p.engine_conf_t(login_domain=login, login_port=PORT, log_path=".")
    engine = kkp2p.engine_init(conf, PATIENCE_MS)
    if engine is None:
        with open("kkp2p_engine.log") as log:
            raise RuntimeError(f"no engine: {kkp2p.error_no()}: {log.read()[-300:]}")
    kkp2p.switch_log_level(engine, 3)
    return engine


def wait_for_nat(engine: Any) -> str:
    own = engine.thread.call(lambda: engine.network.underlay().own)
    deadline = time.monotonic() + LOOK_S
    while not (own.ready.is_set() and own.found and all(f.done for f in own.found.values())):
        if time.monotonic() > deadline:
            break
        time.sleep(0.02)  # nothing tells a program of it
    return str(own.nat.text)


def join(login: str, peer_id: str, secret: str, mapped: bool) -> dict[str, Any]:
    """The callee."""
    global _engine, _answering
    engine = _engine = start_engine(login)
    if kkp2p.join_net(engine, peer_id, secret) != 0:
        raise RuntimeError(f"not online: {kkp2p.error_no()}")
    nat = wait_for_nat(engine)
    if mapped:
        _wait_for_mapping(engine)
    _answering = threading.Thread(target=_answer, args=(engine,))
    _answering.start()
    return {"nat": nat}


def _wait_for_mapping(engine: Any) -> None:
    underlay = engine.thread.call(lambda: engine.network.underlay())
    deadline = time.monotonic() + LOOK_S
    while (
        underlay.own.mapped is None and time.monotonic() < deadline
    ):  # without: that is a result, too
        time.sleep(0.02)


def _answer(engine: Any) -> None:
    channel = kkp2p.channel_t()
    while (accepted := kkp2p.accept(engine, 1000, channel)) >= 0:
        if accepted:
            buff = bytearray(1)
            while kkp2p.read(channel.fd, buff, 1, PATIENCE_MS) == 1:
                kkp2p.write(channel.fd, buff, 1, PATIENCE_MS)
            kkp2p.close_fd(channel.fd)


def leave() -> dict[str, Any]:
    global _answering
    kkp2p.engine_destroy(_engine)
    if _answering is not None:
        _answering.join()
        _answering = None
    return {}


def start(login: str, mapped: bool) -> dict[str, Any]:
    """The caller."""
    global _engine
    _engine = start_engine(login)
    nat = wait_for_nat(_engine)
    if mapped:
        _wait_for_mapping(_engine)
    return {"nat": nat}


def meet(peer_id: str, mode: int, timeout_ms: int) -> dict[str, Any]:
    """One meeting, and a second channel."""
    return _connect_twice(_engine, peer_id, mode, timeout_ms)


def _connect_twice(engine: Any, peer_id: str, mode: int, timeout_ms: int) -> dict[str, Any]:
    took = []
    for _ in range(2):
        channel = kkp2p.channel_t()
        ctx = kkp2p.connect_ctx_t(peer_id, connect_mode=mode, timeout=timeout_ms)
        started = time.monotonic()
        result = kkp2p.connect(engine, ctx, channel)
        took.append(time.monotonic() - started)
        if result < 0:
            return {"result": result, "took_s": took[0]}
        carried = _is_echoed(channel.fd)
        kkp2p.close_fd(channel.fd)
        if not carried:
            return {"result": -1, "took_s": took[0]}
    answer = {"result": 0, "path": "relay", "took_s": took[0], "second_s": took[1]}
    if channel.transmit_mode == 1:
        answer.update(engine.thread.call(lambda: _describe(engine)))
    return answer


def stay(peer_id: str, timeout_ms: int, seconds: float) -> dict[str, Any]:
    """A channel in auto mode: its path at the first byte, and after this time."""
    channel = kkp2p.channel_t()
    ctx = kkp2p.connect_ctx_t(peer_id, timeout=timeout_ms)
    result = kkp2p.connect(_engine, ctx, channel)
    if result < 0:
        return {"result": result, "first": "none", "later": "none"}
    paths = []
    for pause_s in (0.0, seconds):
        time.sleep(pause_s)  # what comes meanwhile is the thing measured
        stats = kkp2p.channel_stats(_engine, channel.channel_id)
        carried = stats is not None and _is_echoed(channel.fd)
        paths.append(stats.path if stats is not None and carried else "none")
    kkp2p.close_fd(channel.fd)
    return {"result": result, "first": paths[0], "later": paths[1]}


def _is_echoed(fd: int) -> bool:
    buff = bytearray(1)
    if kkp2p.write(fd, b"!", 1, PATIENCE_MS) != 1:
        return False
    return kkp2p.read(fd, buff, 1, PATIENCE_MS) == 1 and buff == b"!"


def _describe(engine: Any) -> dict[str, Any]:
    (link,) = engine.links
    ip, port = link.connection.address[:2]
    kinds = {(c.address, c.port): c.kind for c in link.info.met.theirs.candidates}
    kind = "TCP" if link.paths.kind.is_tcp else kinds.get((ip, port), "prflx")
    return {
        "path": f"p2p {'IPv6 ' if ':' in ip else ''}{kind}",
        "plan": link.info.met.plan.kind,
        "rtt_s": link.connection.recovery.rtt.min_s,
    }


QUESTIONS: dict[str, Callable[..., dict[str, Any]]] = {
    "join": join,
    "leave": leave,
    "meet": meet,
    "start": start,
    "stay": stay,
}


if __name__ == "__main__":
    serve(QUESTIONS)
