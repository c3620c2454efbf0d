"""--explain: what was done to reach a peer, as lines for people and as fields for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .._sentence import Sentence, listed
from ..engine.runtime.timeline import Timeline
from ..traversal.notes import NoteKind
from ..traversal.plan import Plan
from ._words import N_, _, retold

__all__ = ["explain", "timeline_fields"]

_COUNTED = {
    NoteKind.CHECK: Sentence("checks sent"),
    NoteKind.GUESS: Sentence("ports guessed"),
    NoteKind.ANSWER: Sentence("answers"),
    NoteKind.LEARNT: Sentence("addresses learnt from the peer's checks"),
}

# What the two parts of a plan mean, but "check", which both sides always do.
_PARTS = {
    "predict": N_("the {side} has its own next ports predicted"),
    "aim": N_("the {side} sends to the other's predicted ports"),
    "predict+aim": N_(
        "the {side} has its ports predicted, and sends to the other's predicted ones"
    ),
    "spread": N_("the {side} sends from many sockets"),
    "sweep": N_("the {side} sends to many random ports"),
}


def timeline_fields(timeline: Timeline) -> dict[str, Any]:
    """In the engine's hub: a copy of what is known by now."""
    plan, counts = timeline.plan, timeline.counts
    return {
        "plan": plan.kind if plan else "",
        "plan_reason": plan.reason if plan else "",
        "parts": _parts(plan) if plan else [],
        "own_nat": timeline.own_nat.text,
        "peer_nat": timeline.peer_nat.text,
        "steps": [[round(at, 6), text] for at, text in timeline.steps],
        "events": [[round(at, 6), text] for at, text in timeline.entries],
        "counts": {kind.value: counts[kind] for kind in _COUNTED},
    }


def _parts(plan: Plan) -> list[str]:
    sides = ((_("caller"), plan.caller_does), (_("callee"), plan.callee_does))
    return [_(_PARTS[part]).format(side=side) for side, part in sides if part in _PARTS]


def explain(fields: dict[str, Any]) -> list[str]:
    """Lines of what ``timeline_fields`` gave."""
    events: Sequence[tuple[float, str]] = fields["events"]
    lines = [f"{1000 * at:9.1f} ms  {retold(text)}" for at, text in events]
    counts = fields["counts"]
    numbers = [
        Sentence("{what}: {count}", what=what, count=counts[kind.value])
        for kind, what in _COUNTED.items()
    ]
    lines.append(retold(listed(numbers)))
    lines += [_("plan: {part}").format(part=part) for part in fields["parts"]]
    return lines
