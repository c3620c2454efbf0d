"""How long a peer is waited for on a live link, and when the request may go another way."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

import kkp2p_compat as kkp2p
from kkp2p_compat._errors import CallRefused, KKP2PError, LinkLost, PeerMoved
from kkp2p_compat.engine.calls import asking
from kkp2p_compat.engine.calls.asking import Asking

FIRST_S, EVERY_S, ENDS_AT = 1.0, 2.0, 10.0


class Timer:
    def __init__(self, after_s: float) -> None:
        self.after_s = after_s
        self.is_open = True

    def start(self, callback: Any) -> None:
        self.callback = callback

    def close(self) -> None:
        self.is_open = False


class Case:
    """A channel that is asked for on a link; ``answers``: whether the peer acknowledges."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, early: bytes = b"", channel_type: int = 0
    ) -> None:
        self.now, self.answers = 0.0, True
        self.timers: list[Timer] = []
        self.dropped: list[str] = []
        self.told: list[tuple[str, bool]] = []  # what, and whether another way may be tried
        self.given_up: list[int] = []
        hub = SimpleNamespace(loop=SimpleNamespace(timer=self._timer))
        monkeypatch.setattr(asking, "gevent", SimpleNamespace(get_hub=lambda: hub))
        monkeypatch.setattr(asking, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(asking, "stream_on", lambda *_: "channel")
        link: Any = SimpleNamespace(
            channels=SimpleNamespace(ask=self._ask, give_up=self.given_up.append),
            has_heard=lambda stream_id: self.answers and stream_id == 4,
        )
        self.asking = Asking(
            link,
            kkp2p.connect_ctx_t("peer", channel_type),
            EVERY_S,
            lambda error: self.dropped.append(str(error)),
            lambda answer, may_retry: self.told.append((str(answer), may_retry)),
        )
        self.asking.begin(FIRST_S, early, ENDS_AT)

    def _timer(self, after_s: float) -> Timer:
        self.timers.append(Timer(after_s))
        return self.timers[-1]

    def _ask(self, *args: Any) -> int:
        self.answer = args[3]
        return 4

    def look(self) -> None:
        """Let the one timer expire."""
        (timer,) = (timer for timer in self.timers if timer.is_open)
        self.now += timer.after_s
        timer.callback()

    def check_over(self, answer: str, *, may_retry: bool) -> None:
        assert self.told == [(answer, may_retry)]
        assert not any(timer.is_open for timer in self.timers)


@pytest.mark.parametrize("early", [b"", b"early"])
def test_a_peer_that_acknowledges_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, early: bytes
) -> None:
    case = Case(monkeypatch, early)
    for now in (1.0, 3.0, 5.0, 7.0, 9.0):
        case.look()
        assert case.now == now
        assert case.told == []
    case.look()
    assert case.now == ENDS_AT
    case.check_over("the peer did not answer in time", may_retry=False)
    assert case.given_up == [4]
    assert case.dropped == []  # the next one who asks may have a target that is faster


def test_a_peer_that_answers_late(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(monkeypatch)
    case.look()
    case.answer(None)
    case.check_over("channel", may_retry=False)
    assert case.dropped == case.given_up == []


@pytest.mark.parametrize(("early", "channel_type"), [(b"", 0), (b"datagram", 1)])
def test_another_way_is_tried_when_the_link_is_silent(
    monkeypatch: pytest.MonkeyPatch, early: bytes, channel_type: int
) -> None:
    """Of a UDP channel also with its first message: that may come twice."""
    case = Case(monkeypatch, early, channel_type)
    case.look()
    case.answers = False
    case.look()
    case.check_over("the link does not answer", may_retry=True)
    assert case.dropped == ["the link does not answer"]
    assert case.given_up == [4]


def test_what_is_sent_waits_for_a_silent_link(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others do not."""
    case = Case(monkeypatch, b"early")
    case.answers = False
    case.look()
    assert set(case.dropped) == {"the link does not answer"}
    assert case.told == []
    case.answer(None)
    case.check_over("channel", may_retry=False)


def test_what_is_sent_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(monkeypatch, b"early")
    case.answers = False
    while not case.told:
        case.look()
    assert case.now == ENDS_AT
    case.check_over("the link does not answer", may_retry=False)


@pytest.mark.parametrize(
    ("early", "error", "is_dropped", "may_retry"),
    [
        (b"", LinkLost("lost"), True, True),
        (b"early", LinkLost("lost"), True, False),
        (b"", PeerMoved(), True, True),
        (b"early", PeerMoved(), True, True),
        (b"", CallRefused(), False, False),
        (b"early", CallRefused(), False, False),
    ],
)
def test_only_what_nobody_got_may_go_another_way(
    monkeypatch: pytest.MonkeyPatch,
    early: bytes,
    error: KKP2PError,
    is_dropped: bool,
    may_retry: bool,
) -> None:
    case = Case(monkeypatch, early)
    case.answer(error)
    case.check_over(str(error), may_retry=may_retry)
    assert case.dropped == [str(error)] * is_dropped


def test_called_off(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(monkeypatch)
    case.asking.call_off()
    assert case.given_up == [4]
    assert case.told == []
    assert not case.timers[0].is_open
