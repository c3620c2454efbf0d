"""--explain: what was done to reach a peer, as lines for people and as fields for programs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ..engine.runtime.timeline import Timeline
from ..traversal.plan import Plan

__all__ = ["explain", "timeline_fields"]

_CHECK = re.compile(r"check \d+ of ")
_GUESSES = re.compile(r"(\d+) probes of ")

# What the two parts of a plan mean, but "check", which both sides always do.
_PARTS = {
    "predict": "has its own next ports predicted",
    "aim": "sends to the other's predicted ports",
    "predict+aim": "has its ports predicted, and sends to the other's predicted ones",
    "spread": "sends from many sockets",
    "sweep": "sends to many random ports",
}


def timeline_fields(timeline: Timeline) -> dict[str, Any]:
    """In the engine's hub: a copy of what is known by now."""
    plan = timeline.plan
    return {
        "plan": plan.kind if plan else "",
        "plan_reason": plan.reason if plan else "",
        "parts": _parts(plan) if plan else [],
        "own_nat": timeline.own_nat.text,
        "peer_nat": timeline.peer_nat.text,
        "steps": [[round(at, 6), text] for at, text in timeline.steps],
        "events": [[round(at, 6), text] for at, text in timeline.entries],
    }


def _parts(plan: Plan) -> list[str]:
    sides = (("caller", plan.caller_does), ("callee", plan.callee_does))
    return [f"the {side} {_PARTS[part]}" for side, part in sides if part in _PARTS]


def explain(fields: dict[str, Any]) -> list[str]:
    """Lines of what ``timeline_fields`` gave."""
    events: Sequence[tuple[float, str]] = fields["events"]
    texts = [text for _, text in events]
    lines = [f"{1000 * at:9.1f} ms  {text}" for at, text in events]
    checks = sum(_CHECK.match(text) is not None for text in texts)
    guessed = sum(int(found[1]) for text in texts if (found := _GUESSES.match(text)))
    answers = sum(" answered after " in text for text in texts)
    learnt = sum(text.startswith("learnt ") for text in texts)
    lines.append(
        f"checks sent: {checks}, ports guessed: {guessed}, answers: {answers}, "
        f"addresses learnt from the peer's checks: {learnt}"
    )
    lines += [f"plan: {part}" for part in fields["parts"]]
    return lines
