"""What ``kkp2p proxy`` and ``kkp2p publish`` share: both forward until they are told to end.

The engine's thread puts its events into a queue, from which they are printed: a line each, in words
or as JSON.  So neither a long explanation nor output that nobody reads or that cannot be written
stops anything, and a terminal that goes away does not end the program.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import gevent
from gevent.event import Event

from .._errors import KKP2PError
from ..engine.engine import Engine
from ..engine.proxy.proxied import Proxied
from ..engine.runtime.timeline import Timeline
from ._engines import open_engine, show_address, show_ms
from ._output import lost_as_json, lost_in_words, never_waiting
from ._signals import setting
from ._stdio import Stdio
from ._words import _, ngettext, retold, told
from .explain import explain, timeline_fields

__all__ = ["Report", "Watch", "forward"]

# Our choices, in seconds: between two look-ups of a name that does not resolve.
RETRY_FIRST_S = 0.5
RETRY_MOST_S = 5.0

ENDING_S = 1.0  # our choice: for the peer to end what we have ended
MAX_WAITING = 10_000  # our choice: events that are not printed yet; then the oldest are lost


class Report:
    """Tells the user what happens.  ``put`` may be called in any thread, all else in the main one.

    ``stdio``: standard input and output, if they are what is forwarded: all is told on standard
    error then, and the end of that connection is the program's.
    """

    def __init__(self, command: str, as_json: bool, stdio: Stdio | None) -> None:
        self.command = command
        self.as_json = as_json
        self.stdio = stdio
        self.stopping = Event()
        self.status = 0
        self.counts = {"connected": 0, "failed": 0}
        self.tells_peer = False  # of a proxy: there are several
        self._something = Event()
        self._waiting: deque[dict[str, Any]] = deque(maxlen=MAX_WAITING)
        self._async = gevent.get_hub().loop.async_()
        self._async.start(self._something.set)
        self._over = Event()  # with stdio: its connection
        for event in (self.stopping, self._over):
            event.rawlink(lambda _: self._something.set())

    def put(self, event: dict[str, Any]) -> None:
        self._waiting.append(event)
        self._async.send()

    def follow(self) -> None:
        """Show all, until it is time to stop."""
        self._follow(self.stopping, self._over)
        if self.stdio is not None and not self.status:
            self.stdio.finish()
            with gevent.Timeout(ENDING_S, False):
                self._follow(self._over)

    def _follow(self, *ends: Event) -> None:
        while not any(end.is_set() for end in ends):
            self._something.wait()
            self._something.clear()
            self.show_all()

    def show_all(self) -> None:
        """All there are by now, in order."""
        for __ in range(len(self._waiting)):
            self.show(self._waiting.popleft())

    def show(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind in self.counts:
            self.counts[kind] += 1
        self._print(json.dumps(event) if self.as_json else "\n".join(self._lines(event)))
        if self.stdio is not None and self._is_the_end(event):
            self.status = self.status or int(bool(event["problems"]))
            self._over.set()

    def complain(self, problem: str) -> None:
        """In one line, which is no event."""
        print(f"kkp2p {self.command}: {problem}", file=sys.stderr, flush=True)

    def fail(self, problem: str) -> None:
        """It is the end."""
        self.complain(problem)
        self.status = 1
        self.stopping.set()

    def close(self) -> None:
        self._async.close()

    def _is_the_end(self, event: dict[str, Any]) -> bool:
        """Of the one connection.  (A second caller for the same is refused.)"""
        return event["event"] == "ended" or (event["event"] == "failed" and "target" not in event)

    def _print(self, text: str) -> None:
        print(text, file=sys.stdout if self.stdio is None else sys.stderr, flush=True)

    def _lines(self, event: dict[str, Any]) -> list[str]:
        kind = event["event"]
        if kind in _SENTENCES:
            return [_SENTENCES[kind](event)]
        clock = time.strftime("%H:%M:%S", time.localtime(event["at"]))
        if kind in ("online", "offline"):
            text = _("online") if kind == "online" else _("offline: {problem}; trying again")
            return [f"{clock} {text.format(problem=retold(event.get('problem', '')))}"]
        who = retold(event["name"])
        if "target" in event:
            who = _("{name} from {peer}").format(name=who, peer=event["peer"] or _("a stranger"))
        elif self.tells_peer:
            who = _("{name} to {peer}").format(name=who, peer=event["peer"])
        lines = [_("{clock} {who}: {what}").format(clock=clock, who=who, what=_text(event))]
        moved = _("    moved from {move}")
        lines += [moved.format(move=retold(move)) for move in event.get("moves", ())]
        if "timeline" in event:
            lines += ["    " + line for line in explain(event["timeline"])]
        return lines


def _listening(event: dict[str, Any]) -> str:
    places = _(" and ").join(map(show_address, event["addresses"])) or _(
        "standard input and output"
    )
    udp = "UDP " * (event["protocol"] == "udp")
    text = _("listening on {places} for {peer}, mode {mode}")
    return text.format(places=udp + places, peer=event["peer"], mode=event["mode"])


def _publishing(event: dict[str, Any]) -> str:
    udp = "UDP " * (event["protocol"] == "udp")
    parts = [
        _("{target} for connect_desc {desc}").format(target=retold(target), desc=desc)
        if desc
        else retold(target)
        for desc, target in event["targets"].items()
    ]
    callers = _("anybody") if event["callers"] == "anybody" else event["callers"]
    text = _("publishing {targets} as {peer}, for {callers}")
    return text.format(targets=udp + ", ".join(parts), peer=event["peer"], callers=callers)


def _stopped(event: dict[str, Any]) -> str:
    count, failures = event["connections"], event["failures"]
    text = ngettext("stopped: {count} connection", "stopped: {count} connections", count)
    failed = _(", {failures} failed").format(failures=failures) if failures else ""
    return text.format(count=count) + failed


_SENTENCES: dict[str, Callable[[dict[str, Any]], str]] = {
    "listening": _listening,
    "publishing": _publishing,
    "stopped": _stopped,
}


def _text(event: dict[str, Any]) -> str:
    problems = "; ".join(map(retold, event.get("problems", [])))
    if event["event"] == "failed":
        text = _("failed after {time}: {problems}")
        return text.format(time=show_ms(event["age_s"]), problems=problems)
    if event["event"] == "connected":
        if "target" in event:
            text = _("connected to {target}: ").format(target=retold(event["target"]))
        else:
            text = _("connected in {time}: ").format(time=show_ms(event["set_up_s"]))
        where = _("{path}, {address}: {reason}") if event["reason"] else _("{path}, {address}")
        address, reason = show_address(event["address"]), retold(event["reason"])
        return text + where.format(path=event["path"], address=address, reason=reason)
    text = _("broken: {problems}").format(problems=problems) if problems else _("ended")
    text += _(", {bytes_sent:,} bytes to the peer, {bytes_received:,} from it, ").format_map(event)
    if "datagrams_sent" in event:
        text += _("in {datagrams_sent:,} and {datagrams_received:,} datagrams, ").format_map(event)
        lost = _("{count:,} lost ({why}), ")
        for why, count in event["datagrams_lost"].items():
            text += lost.format(count=count, why=retold(why))
    return f"{text}{event['age_s']:.1f} s"


class Watch:
    """Makes the events of channels, in the engine's hub."""

    def __init__(self, report: Report, explains: bool, is_udp: bool) -> None:
        self._report = report
        self._explains = explains
        self._is_udp = is_udp
        self._explained: Timeline | None = None

    def __call__(self, proxied: Proxied) -> None:
        event: dict[str, Any] = {
            "port": proxied.port,
            "at": time.time(),
            "name": proxied.name,
            "peer": proxied.peer_id,
        }
        if proxied.target is not None:
            event["target"] = proxied.target
        if not proxied.over:
            event |= {
                "event": "connected",
                "path": proxied.path,
                "address": proxied.address,
                "reason": proxied.reason,
                "set_up_s": proxied.set_up_s,
            }
        elif not proxied.path:
            event |= {"event": "failed", "problems": proxied.problems}
        else:
            event |= {
                "event": "ended",
                "problems": proxied.problems,
                "bytes_sent": proxied.bytes_sent,
                "bytes_received": proxied.bytes_received,
                "moves": proxied.moves,
            }
            if self._is_udp:
                event["datagrams_sent"] = proxied.datagrams_sent
                event["datagrams_received"] = proxied.datagrams_received
                event["datagrams_lost"] = dict(proxied.datagrams_lost)
        event["age_s"] = time.monotonic() - proxied.began_at
        timeline = proxied.timeline
        if self._explains and timeline is not None and timeline is not self._explained:
            self._explained = timeline  # once: connections that share one came of one attempt
            event["timeline"] = timeline_fields(timeline)
        self._report.put(event)


Begin = Callable[[Engine, Report], Callable[[], None]]


class _Patience:
    """Whether to look the cloud's name up again: says so once, and waits before each time."""

    def __init__(self, report: Report, retries: bool) -> None:
        self._report = report
        self._retries = retries
        self._pause_s = RETRY_FIRST_S
        self._told = ""

    def __call__(self, error: KKP2PError) -> bool:
        if not self._retries:
            return False
        if str(error) != self._told:
            self._told = str(error)
            if self._report.as_json:
                self._report.show({"event": "waiting", "problem": self._told})
            else:
                self._report.complain(_("{problem}; trying again").format(problem=told(error)))
        stopped = self._report.stopping.wait(self._pause_s)
        self._pause_s = min(2 * self._pause_s, RETRY_MOST_S)
        return not stopped


def forward(
    command: str,
    options: argparse.Namespace,
    begin: Begin,
    *,
    callers: str | None = None,
    by_stdio: bool = False,
) -> int:
    """``begin`` with an engine, and show what happens until the end; it returns what to stop then.

    Returns the exit status.
    """
    stdio = Stdio(lambda problem: report.fail(problem)) if by_stdio else None
    report = Report(command, options.json, stdio)
    notice = lost_as_json if options.json else lost_in_words
    with never_waiting(notice, stdio is None), setting(report.stopping, stdio is None):
        try:
            patience = _Patience(report, not options.no_retry)
            with open_engine(options, patience, callers) as engine:
                _run(engine, report, begin)
        except KKP2PError as error:
            if not report.stopping.is_set():
                report.fail(told(error))
        finally:
            report.close()
            if stdio is not None:
                stdio.close()
    return report.status


def _run(engine: Engine, report: Report, begin: Begin) -> None:
    stop = begin(engine, report)
    if report.stdio is not None:
        report.stdio.start()
    report.follow()
    stop()
    report.show_all()
    if report.stdio is not None:
        if not report.status:
            gevent.wait([report.stdio.written, report.stopping], count=1)
        return
    counts = report.counts
    report.show(
        {"event": "stopped", "connections": counts["connected"], "failures": counts["failed"]}
    )
