"""Relay bytes by account: whose a session is, what is told to the directory, who has had enough."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.usage_support import CountingDirectory, make_usage
from kkp2p_compat.cloud import usage as usage_module
from kkp2p_compat.cloud.usage import (
    CALLS,
    LOGINS,
    RELAY_BYTES,
    TELL_EVERY_S,
    Payer,
    Sessions,
    Usage,
    tag_of,
)

KEY = b"k" * 32
GB = 10**9
ALICE = tag_of("alice")


@pytest.fixture
def directory() -> CountingDirectory:
    return CountingDirectory()


@pytest.fixture
def usage(directory: CountingDirectory) -> Usage:
    return make_usage(KEY, directory)


def used(directory: CountingDirectory, tag: str = ALICE) -> int:
    return directory.usage(tag).get(RELAY_BYTES, 0)


# Ids of sessions.


def test_a_session_tells_who_pays_to_those_who_have_the_key() -> None:
    ours, others = Sessions(KEY), Sessions(b"o" * 32)
    payer = Payer(ALICE, 5 * GB)
    made = [ours.make(payer) for _ in range(50)]
    assert len(set(made)) == 50
    assert {len(each) for each in made} == {16}
    assert all(bytes.fromhex(ALICE) not in each for each in made)
    assert {ours.payer(each).tag for each in made} == {ALICE}
    assert all(others.payer(each).tag != ALICE for each in made)


@given(st.one_of(st.none(), st.integers(0, 2**63)))
def test_a_quota_is_rounded_up_by_two_in_a_thousand_at_most(quota: int | None) -> None:
    sessions = Sessions(KEY)
    read = sessions.payer(sessions.make(Payer(ALICE, quota))).quota
    if not quota:
        assert read == quota
    else:
        assert read is not None
        assert quota <= read <= quota * 1.002


def test_any_block_is_read() -> None:
    """Ids that somebody else with the key has made, as an older track."""
    sessions = Sessions(KEY)
    for number in range(300):
        assert len(sessions.payer(bytes([number & 255]) * 16).tag) == 16


# Counting.


def test_it_is_told_in_one_go_now_and_then(usage: Usage, directory: CountingDirectory) -> None:
    for count in (5, 6):
        usage.charge(Payer(ALICE), count)
        usage.charge(Payer(tag_of("bob")), 1)
    usage.charge(Payer(tag_of("nobody")), 0)
    usage.sweep(1000.0)
    assert directory.added == [{(ALICE, RELAY_BYTES): 11, (tag_of("bob"), RELAY_BYTES): 2}]
    usage.charge(Payer(ALICE), 1)
    usage.sweep(1000.0 + TELL_EVERY_S / 2)
    assert len(directory.added) == 1
    usage.sweep(1000.0 + TELL_EVERY_S)
    assert used(directory) == 12
    usage.sweep(1000.0 + 2 * TELL_EVERY_S)
    assert len(directory.added) == 2  # there is nothing to tell


def test_what_is_left_is_told_at_the_end(usage: Usage, directory: CountingDirectory) -> None:
    usage.charge(Payer(ALICE), 7)
    usage.close()
    assert used(directory) == 7


def test_nothing_is_lost_while_the_directory_is_away(
    usage: Usage, directory: CountingDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    directory.away = True
    usage.charge(Payer(ALICE, GB), 7)
    usage.sweep(1000.0)
    usage.charge(Payer(ALICE, GB), 8)
    usage.sweep(1000.0 + TELL_EVERY_S)
    assert "told later" in caplog.text
    directory.away = False
    usage.sweep(1000.0 + 2 * TELL_EVERY_S)
    assert used(directory) == 15


def test_only_so_many_accounts(
    usage: Usage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(usage_module, "MAX_COUNTS", 3)
    for number in range(5):
        usage.charge(Payer(tag_of(str(number))), 1)
    usage.charge(Payer(tag_of("0")), 1)
    assert usage._counts.total() == 4
    assert not usage.count("alice", LOGINS)
    usage.sweep(1000.0)
    assert "usage: 3 bytes, logins and calls are not counted" in caplog.text
    assert usage.count("alice", LOGINS)  # there is room again


def test_logins_and_calls(usage: Usage, directory: CountingDirectory) -> None:
    """They are told with the bytes, now and then, and are no bytes."""
    for what, count in ((LOGINS, 2), (CALLS, 5)):
        for _ in range(count):
            assert usage.count("alice", what)
    usage.charge(Payer(ALICE, GB), 7)
    assert directory.added == []
    usage.sweep(1000.0)
    assert directory.usage("alice") == {LOGINS: 2, CALLS: 5}
    assert used(directory) == 7


# Quotas.


def test_who_has_had_enough_elsewhere(usage: Usage, directory: CountingDirectory) -> None:
    directory.add_usage({(ALICE, RELAY_BYTES): GB})
    assert usage.is_over(Payer(ALICE, GB))
    assert not usage.is_over(Payer(ALICE, 2 * GB))
    assert not usage.is_over(Payer(ALICE))
    assert not usage.is_over(Payer(tag_of("bob"), GB))


def test_who_has_had_enough_here(usage: Usage, directory: CountingDirectory) -> None:
    payer = Payer(ALICE, 1000)
    usage.charge(payer, 600)
    assert not usage.is_over(payer)
    usage.charge(payer, 600)  # by then it is known what it had before
    assert usage.is_over(payer)
    usage.sweep(1000.0)
    assert usage.is_over(payer)
    assert used(directory) == 1200  # once each


def test_what_others_count_is_asked_for_again(usage: Usage, directory: CountingDirectory) -> None:
    payer = Payer(ALICE, 1000)
    assert not usage.is_over(payer)
    directory.add_usage({(ALICE, RELAY_BYTES): 999})
    usage.sweep(1000.0)
    assert not usage.is_over(payer)
    directory.add_usage({(ALICE, RELAY_BYTES): 1})
    usage.sweep(1000.0 + TELL_EVERY_S)
    assert usage.is_over(payer)


def test_a_directory_that_may_wait_is_asked_in_a_greenlet(
    usage: Usage, directory: CountingDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "is_local", False)
    directory.add_usage({(ALICE, RELAY_BYTES): GB})
    payer = Payer(ALICE, GB)
    assert not usage.is_over(payer)  # it does not know yet
    usage.sweep(1000.0)
    assert usage._telling is not None
    usage._telling.join()
    assert usage.is_over(payer)


def test_a_new_day_begins(
    usage: Usage, directory: CountingDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    day: Any = "2026-01-01"
    for module in (usage_module, __import__("kkp2p_compat.cloud.directory_local").cloud):
        monkeypatch.setattr(getattr(module, "directory_local", module), "today", lambda: day)
    payer = Payer(ALICE, 1000)
    usage.charge(payer, 1000)
    usage.sweep(1000.0)
    assert usage.is_over(payer)
    day = "2026-01-02"
    usage.sweep(1001.0)
    assert not usage.is_over(payer)
    assert directory.usage(ALICE, "2026-01-01") == {RELAY_BYTES: 1000}


def test_a_quota_of_nothing(usage: Usage) -> None:
    assert usage.is_over(Payer(ALICE, 0))
