"""What is kept of an attempt, in order and counted by kind."""

from __future__ import annotations

from kkp2p_compat.cli.explain import explain, timeline_fields
from kkp2p_compat.engine.runtime import timeline as timeline_module
from kkp2p_compat.engine.runtime.timeline import Timeline
from kkp2p_compat.traversal.notes import Note, NoteKind


def test_notes_come_in_order_and_are_counted_by_kind() -> None:
    timeline = Timeline()
    began = timeline.started_at
    timeline.add(Note(began + 2.0, "answered after 3 probes of check 1", NoteKind.ANSWER))
    timeline.add(Note(began + 1.0, "one more", NoteKind.CHECK))
    timeline.add(Note(began + 3.0, "many at once", NoteKind.GUESS, 256))
    assert [text for _, text in timeline.entries] == [
        "one more",
        "answered after 3 probes of check 1",
        "many at once",
    ]
    fields = timeline_fields(timeline)
    assert fields["counts"] == {
        "checks_sent": 1,
        "ports_guessed": 256,
        "answers": 1,
        "addresses_learnt": 0,
    }
    assert explain(fields)[-1] == (
        "checks sent: 1, ports guessed: 256, answers: 1, addresses learnt from the peer's checks: 0"
    )


def test_steps_are_notes_too_and_make_the_summary() -> None:
    timeline = Timeline()
    timeline.step("answer")
    timeline.note("something else")
    timeline.step("path")
    assert [text for _, text in timeline.entries] == ["answer", "something else", "path"]
    assert [text for _, text in timeline.steps] == ["answer", "path"]
    first, second = timeline.summary.split(", ")
    assert first.startswith("answer after ")
    assert second.startswith("path after ")


def test_the_beginning_is_kept() -> None:
    timeline = Timeline()
    for number in range(timeline_module.MAX_NOTES + 10):
        timeline.note(str(number))
    assert len(timeline.entries) == timeline_module.MAX_NOTES
    assert timeline.entries[0][1] == "0"
