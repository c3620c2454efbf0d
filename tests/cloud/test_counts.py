"""What a cloud counts, from logins and calls of real clients to the numbers of the last minutes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from helpers.cloud_client import Client, Scene, running_cloud, running_scene, until
from kkp2p_compat.cloud.counts import LAST_MINUTES, MAX_TROUBLE_CHARS, MAX_TROUBLES, Counts, Spread


def test_a_spread_has_every_value_once() -> None:
    spread = Spread((0.1, 1.0))
    for value in (0.05, 0.1, 0.2, 5.0):
        spread.add(value)
    assert spread.counts == [2, 1, 1]
    assert spread.sum == pytest.approx(5.35)


def test_the_last_minutes_are_kept_and_no_others() -> None:
    now = 600.0
    counts = Counts(lambda: now)
    counts.path("p2p-tcp", "none + none", 0.2)
    counts.path("lane", "none + none", None)
    now += 60
    counts.call("offline")
    counts.call("answered")  # it has a path, or none, later
    counts.path("none", "none + none", None)
    minute, calls = counts.minutes()
    assert minute == 11
    assert [calls[what][-2:] for what in ("p2p", "relay", "failed")] == [[1, 0], [1, 0], [0, 2]]
    now += 60 * LAST_MINUTES
    assert not any(map(sum, counts.minutes()[1].values()))
    counts.call("busy")
    assert len(counts._minutes) == 1


def test_troubles_are_bounded() -> None:
    counts = Counts()
    for number in range(2 * MAX_TROUBLES):
        counts.trouble("192.0.2.1", f"{number} " + "x" * 1000)
    assert len(counts.troubles) == MAX_TROUBLES
    assert {len(trouble.reason) for trouble in counts.troubles} == {MAX_TROUBLE_CHARS}


def test_logins_are_counted_by_outcome() -> None:
    with running_cloud({"peer": "right"}) as cloud:
        for peer_id, secret in (("peer", "right"), ("peer", "wrong"), ("nobody", "x")):
            with Client(cloud.address) as client:
                client.login(peer_id, secret)
        assert cloud.gate.counts.logins == {"ok": 1, "bad-secret": 1, "unknown-peer": 1}
        reasons = [trouble.reason for trouble in cloud.gate.counts.troubles]
        assert reasons[0].startswith("login as 'peer': bad-secret")
        assert reasons[1].startswith("login as 'nobody': unknown-peer")


def answered(scene: Scene, number: int) -> None:
    scene.caller.call("callee", number)
    offer = scene.callee.receive()
    scene.callee.send("answer", call=offer["call"], answer="{}")
    assert scene.caller.receive()["op"] == "answer"


def test_a_caller_tells_the_path() -> None:
    with running_scene() as scene:
        counts = scene.cloud.gate.counts
        scene.callee.send("nat", nat={"mapping": "address-dependent"})
        scene.caller.send("nat", nat={"mapping": "endpoint-independent"})
        answered(scene, 1)
        scene.caller.send("over", call=1, path="p2p", ms=140)
        until(lambda: counts.paths)
        assert counts.paths == {("p2p", "endpoint-independent + symmetric"): 1}
        assert (counts.set_up["p2p"].sum, sum(counts.set_up["p2p"].counts)) == (0.14, 1)
        answered(scene, 2)
        scene.caller.send("cancel", call=2)
        until(lambda: counts.paths.total() == 2)
        assert counts.paths["none", "endpoint-independent + symmetric"] == 1
        assert counts.calls == {"answered": 2}


@pytest.mark.parametrize(
    "told", [{}, {"path": "magic", "ms": 1}, {"path": ["p2p"]}, {"path": {}}, {"ms": 3}]
)
def test_what_is_no_path_is_not_counted(told: dict[str, Any]) -> None:
    with running_scene() as scene:
        answered(scene, 1)
        scene.caller.send("over", call=1, **told)
        answered(scene, 2)
        assert not scene.cloud.gate.counts.paths


@pytest.mark.parametrize("ms", [-1, 600_001, 1e999, "1", None, [1], True, 1.5])
def test_a_time_that_cannot_be_is_left_out(ms: Any) -> None:
    with running_scene() as scene:
        counts = scene.cloud.gate.counts
        answered(scene, 1)
        scene.caller.send_raw(b'{"op":"over","call":1,"path":"lane","ms":%s}\n' % encoded(ms))
        until(lambda: counts.paths)
        assert counts.paths == {("lane", "unknown + unknown"): 1}
        assert sum(counts.set_up["lane"].counts) == 0


def encoded(ms: Any) -> bytes:
    return b"1e999" if ms == 1e999 else json.dumps(ms).encode()


def test_each_refusal_has_its_outcome_and_its_limit() -> None:
    with running_scene(open_calls=1) as scene:
        counts = scene.cloud.gate.counts
        assert scene.caller.call("nobody", 1)["reason"] == "offline"
        scene.caller.call("callee", 2)
        assert scene.caller.call("callee", 3)["reason"] == "limit"
        assert counts.limits == {"open_calls": 1}
        scene.callee.send("decline", call=scene.callee.receive()["call"], reason="<b>no</b>")
        assert scene.caller.receive()["reason"] == "<b>no</b>"
        assert counts.calls == {"offline": 1, "limit": 1, "declined": 1}
        assert counts.troubles[-1].reason == "call of a stranger to callee: declined: <b>no</b>"
