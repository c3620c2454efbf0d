"""``kkp2p netcheck --peer``: connect to one peer by p2p, and if that fails in auto mode.

The peer's program gets a channel that is closed at once, with the connect_desc that was given.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from typing import Any

from .. import close_fd
from .._codes import CODE_NAMES, CONNECT_AUTO, CONNECT_P2P
from .._errors import KKP2PError, PeerOffline
from .._sentence import said
from .._structs import connect_ctx_t
from ..engine.channels.kinds import Channel
from ..engine.channels.stats import channel_stats
from ..engine.engine import Engine
from ..engine.runtime.timeline import Timeline
from ..traversal.nat import BLOCKED, UNKNOWN
from ..traversal.plan import Side, make_plan
from ._engines import show_address, show_ms
from ._show import show
from ._verdict import HOW
from ._words import N_, _, retold
from .explain import explain, timeline_fields

__all__ = ["examine_peer", "show_peer"]

BY_TCP = N_("by TCP, directly or else through the relay")


def examine_peer(engine: Engine, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The report on the peer, growing with each attempt."""
    report: dict[str, Any] = {"id": options.peer, "connected": False, "verdict": None, "tries": []}
    modes = {"p2p": CONNECT_P2P} if options.lan else {"p2p": CONNECT_P2P, "auto": CONNECT_AUTO}
    for name, mode in modes.items():
        ctx = connect_ctx_t(
            options.peer,
            connect_mode=mode,
            timeout=int(1000 * options.timeout),
            connect_desc=options.desc,
        )
        attempt = {"mode": name} | _connect(engine, ctx, bool(options.lan))
        report["tries"].append(attempt)
        report["verdict"] = attempt.pop("verdict") or report["verdict"]
        report["connected"] = not attempt["problem"]
        if report["connected"] or attempt["is_offline"]:
            break
    yield report


def _connect(engine: Engine, ctx: connect_ctx_t, lan: bool) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "problem": "",
        "code": 0,
        "is_offline": False,
        "stats": None,
        "timeline": None,
    }
    channel: Channel | None = None
    try:
        channel = engine.open_channel(ctx, lan)
    except KKP2PError as error:
        is_offline = isinstance(error.__cause__, PeerOffline)
        fields |= {"problem": said(error), "code": error.code, "is_offline": is_offline}
    try:
        fields |= engine.thread.call(_look, engine, ctx, channel, lan)
    finally:
        if channel is not None:
            close_fd(channel.fd)
    return fields


def _look(engine: Engine, ctx: connect_ctx_t, channel: Channel | None, lan: bool) -> dict[str, Any]:
    """In the engine's hub: the outcome, and the attempt that led to it."""
    recent = engine.dialer.last_attempt(ctx.peer_id, ctx.connect_mode, lan)
    timeline = recent if channel is None else channel.stream.timeline
    if timeline is None:
        return {"verdict": None}
    stats = None
    if channel is not None and channel.channel_id in engine.channels:
        stats = dataclasses.asdict(channel_stats(channel, engine.network.nat))
    return {
        "verdict": _verdict(engine, timeline),
        "stats": stats,
        "timeline": timeline_fields(timeline),
    }


def _verdict(engine: Engine, timeline: Timeline) -> dict[str, Any] | None:
    """What the two networks allow: the plan of the call, or one of what the peer told the cloud."""
    plan = timeline.plan
    if plan is None:
        if timeline.peer_nat == UNKNOWN:
            return None
        own = engine.network.underlay().own
        plan = make_plan(Side(own.nat, own.candidates()), Side(timeline.peer_nat, []))
    blocked = BLOCKED.mapping in (engine.network.nat.mapping, timeline.peer_nat.mapping)
    how = BY_TCP if blocked else HOW[plan.kind]
    return {
        "plan": plan.kind,
        "reason": plan.reason,
        "how": how,
        "peer_nat": timeline.peer_nat.text,
    }


def show_peer(report: dict[str, Any], explains: bool) -> None:
    verdict = report["verdict"]
    if verdict is None:
        lines = [_("nothing is known about its network: it has not answered")]
    else:
        lines = [
            _("its NAT: {nat}").format(nat=retold(verdict["peer_nat"])),
            _("the two of you should connect {how} ({reason})").format(
                how=_(verdict["how"]), reason=retold(verdict["reason"])
            ),
        ]
    show(_("The peer {peer}").format(peer=report["id"]), lines)
    for attempt in report["tries"]:
        show(_("Connecting in mode {mode}").format_map(attempt), _lines(attempt, explains))


def _lines(attempt: dict[str, Any], explains: bool) -> list[str]:
    lines = []
    if attempt["problem"]:
        code = CODE_NAMES.get(attempt["code"])
        problem = retold(attempt["problem"])
        lines.append(_("failed: {problem} ({code})").format(problem=problem, code=code))
    stats = attempt["stats"]
    if stats is not None:
        if stats["path"] == "p2p":
            where = _("with the peer at {address}, round trip {time}")
        else:
            where = _("with the relay at {address}, round trip {time}")
        key = stats["peer_fingerprint"] or _("it has proved none")
        lines += [
            _("connected by {path} after {time}: {reason}").format(
                path=stats["path"], time=show_ms(stats["set_up_s"]), reason=retold(stats["reason"])
            ),
            _("its key: {key}").format(key=key) + _(", the known one") * stats["peer_pinned"],
            where.format(address=show_address(stats["address"]), time=show_ms(stats["rtt_s"])),
        ]
    timeline = attempt["timeline"]
    if timeline is None:
        return lines
    if explains:
        return lines + explain(timeline)
    return lines + [f"{1000 * at:9.1f} ms  {retold(text)}" for at, text in timeline["steps"]]
