"""The two ends of channels that move, for ``moves.py``: ``python -m benchmarks.moves_ends``.

One line of JSON for each question, one for each answer.  Over every channel both ends send numbered
records at the rate that the caller asks for (a record is a message, where there are messages), or
the caller sends as fast as it can.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import kkp2p_compat as kkp2p
from kkp2p_compat.engine.links.link_paths import LinkPaths
from kkp2p_compat.engine.links.path_option import ChoiceSettings
from kkp2p_compat.testing.flow import Arrivals, records

from .agents import serve

PORT = 3080
START_MS = 15_000
STEP_MS = 1_000  # of one read or write
RECORD_BYTES = 1000
BULK = 64  # records that are written at once, at most
LOOK_S = 0.005  # how often it is asked which path a channel has

KINDS = {"stream": 0, "messages": 1}  # channel_type

_engine: Any = None
_flows: list[Flow] = []
_changed = threading.Condition()


class Flow:
    """Both directions of one channel."""

    def __init__(self, channel: kkp2p.channel_t, rate: int, sends: bool = True) -> None:
        """``rate``: records a second; 0: as fast as it goes."""
        self.channel_id = channel.channel_id
        self.sent = 0
        self.over = 0  # error_no, when no more will come
        self._fd = channel.fd
        self._rate = rate
        self._is_messages = channel.channel_type == KINDS["messages"]
        self._arrivals = Arrivals(RECORD_BYTES, time.monotonic())
        self._stopping = threading.Event()
        self._receiver = threading.Thread(target=self._receive)
        self._receiver.start()
        self._sender: threading.Thread | None = None
        if sends:
            self.go()

    def go(self) -> None:
        """Send (again)."""
        self._stopping.clear()
        self._sender = threading.Thread(target=self._send)
        self._sender.start()

    def _send(self) -> None:
        began_at = time.monotonic() - (self.sent / self._rate if self._rate else 0.0)
        while not self._stopping.is_set():
            count = BULK
            if self._rate:
                due_s = self.sent / self._rate - (time.monotonic() - began_at)
                if due_s > 0:
                    self._stopping.wait(due_s)
                    continue
                count = min(1 + int(-due_s * self._rate), BULK)
            if self._is_messages:
                count = 1
            if not self._write(records(self.sent, count, RECORD_BYTES)):
                return
            self.sent += count

    def _write(self, data: bytes) -> bool:
        """A stream's records are written whole, even while it is being stopped."""
        while data:
            taken = kkp2p.write(self._fd, data, len(data), STEP_MS)
            if taken < 0:
                return False
            data = data[taken:]
        return True

    def _receive(self) -> None:
        buff = bytearray(65_536)
        while True:
            count = kkp2p.read(self._fd, buff, len(buff), STEP_MS)
            code, now = kkp2p.error_no(), time.monotonic()
            with _changed:
                if count < 0:
                    self.over = code
                elif count and self._is_messages:
                    self._arrivals.take_message(bytes(buff[:count]), now)
                elif count:
                    self._arrivals.take(bytes(buff[:count]), now)
                _changed.notify_all()
            if count < 0:
                return

    @property
    def received(self) -> int:
        return self._arrivals.received

    def look(self, sent: int = 0) -> dict[str, Any]:
        """``sent``: what the other side has."""
        with _changed:
            arrivals, now = self._arrivals, time.monotonic()
            pause_s, until = arrivals.pause(now)
            return {
                "at": now,
                "pause_s": pause_s,
                "until": until,
                "over": self.over,
                "sent": self.sent,
                "received": arrivals.received,
                "bytes": arrivals.bytes,
                "lost": arrivals.lost(sent),
                "repeated": arrivals.repeated,
                "reordered": arrivals.reordered,
                "wrong": arrivals.wrong,
            }

    def await_records(self, count: int, timeout_s: float) -> None:
        """In all.  Of messages some may never come."""
        with _changed:
            _changed.wait_for(lambda: self.received >= count or self.over, timeout_s)

    def stop(self) -> int:
        self._stopping.set()
        if self._sender is not None:
            self._sender.join()
        return self.sent

    def close(self) -> None:
        kkp2p.close_fd(self._fd)
        self._receiver.join()


def start(login: str, peer_id: str = "", secret: str = "", hold_s: float = 0) -> dict[str, Any]:
    """``peer_id``: who takes calls.  ``hold_s``: how long a path that has failed is left alone,
    however often that has happened; 0: as always."""
    global _engine
    if hold_s:
        LinkPaths.settings = ChoiceSettings(hold_first_s=hold_s, hold_most_s=hold_s)
    made = kkp2p.engine_conf_t(login_domain=login, login_port=PORT, log_path=".")
    _engine = kkp2p.engine_init(made, START_MS)
    if _engine is None:
        raise RuntimeError(f"no engine: {kkp2p.error_no()}")
    kkp2p.switch_log_level(_engine, 3)
    if peer_id:
        if kkp2p.join_net(_engine, peer_id, secret) != 0:
            raise RuntimeError(f"not online: {kkp2p.error_no()}")
        threading.Thread(target=_accept, args=(_engine,)).start()
    return {}


def _accept(engine: Any) -> None:
    channel = kkp2p.channel_t()
    while (accepted := kkp2p.accept(engine, STEP_MS, channel)) >= 0:
        if accepted:
            rate = channel.connect_desc
            with _changed:
                _flows.append(Flow(channel, rate, sends=rate > 0))
                _changed.notify_all()


def connect(
    peer_id: str, mode: int, kind: str, rate: int, timeout_ms: int, encrypt: int = 0
) -> dict[str, Any]:
    """``number``: by which both ends know the channel, if the same two make no others meanwhile."""
    channel, began_at = kkp2p.channel_t(), time.monotonic()
    ctx = kkp2p.connect_ctx_t(peer_id, KINDS[kind], mode, encrypt, timeout_ms, connect_desc=rate)
    result = kkp2p.connect(_engine, ctx, channel)
    took_s = time.monotonic() - began_at
    if result < 0:
        return {"result": result, "took_s": took_s}
    with _changed:
        _flows.append(Flow(channel, rate))
    answer = {"result": 0, "took_s": took_s, "number": len(_flows) - 1}
    return {**answer, "mode": channel.transmit_mode, "path": _path(_flows[-1])}


def accepted(number: int, timeout_s: float) -> dict[str, Any]:
    with _changed:
        if not _changed.wait_for(lambda: len(_flows) > number, timeout_s):
            raise RuntimeError(f"channel {number} has not come")
    return {}


def _path(flow: Flow) -> str:
    """As the log names it; or "spliced", where a relay joins two TCP connections."""
    stats = kkp2p.channel_stats(_engine, flow.channel_id)
    if stats is None:
        return ""
    if stats.connection_bytes_sent is None:
        return "spliced"
    kinds: list[str] = _engine.thread.call(
        lambda: [link.paths.kind.value for link in _engine.links]
    )
    return kinds[-1] if kinds else ""  # the two have one connection for all channels of a mode


def path(number: int) -> dict[str, Any]:
    return {"path": _path(_flows[number])}


def until_path(number: int, paths: list[str], timeout_s: float) -> dict[str, Any]:
    """Wait until the channel has one of these; ``at`` is None if that does not come."""
    flow, deadline = _flows[number], time.monotonic() + timeout_s
    while (now := time.monotonic()) < deadline and not flow.over:
        found = _path(flow)
        if found in paths:
            return {"at": now, "path": found}
        time.sleep(LOOK_S)  # it is the engine's, and calls nobody
    return {"at": None, "path": _path(flow), "over": flow.over}


def look(number: int) -> dict[str, Any]:
    return _flows[number].look()


def hears(number: int, more: int, timeout_s: float) -> dict[str, Any]:
    """Wait for this many records from now on."""
    flow = _flows[number]
    flow.await_records(flow.received + more, timeout_s)
    return {"over": flow.over, "path": _path(flow)}


def stop(number: int) -> dict[str, Any]:
    return {"sent": _flows[number].stop()}


def go(number: int) -> dict[str, Any]:
    _flows[number].go()
    return {}


def drain(number: int, sent: int, timeout_s: float) -> dict[str, Any]:
    """Wait for all that the other side has sent."""
    _flows[number].await_records(sent, timeout_s)
    return _flows[number].look(sent)


def close(number: int) -> dict[str, Any]:
    _flows[number].close()
    return {}


QUESTIONS: dict[str, Callable[..., dict[str, Any]]] = {
    "start": start,
    "connect": connect,
    "accepted": accepted,
    "path": path,
    "until_path": until_path,
    "look": look,
    "hears": hears,
    "stop": stop,
    "go": go,
    "drain": drain,
    "close": close,
}


if __name__ == "__main__":
    serve(QUESTIONS)
