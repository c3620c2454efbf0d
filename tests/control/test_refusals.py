"""Reasons for which calls are refused, from the callee's error to the caller's."""

from __future__ import annotations

import pytest

from kkp2p_compat import _errors
from kkp2p_compat.control.refusals import reason_for, refusal


@pytest.mark.parametrize(
    ("error", "reason", "heard"),
    [
        (_errors.CallRefused(), "busy", _errors.CallRefused),
        (_errors.OutOfDescriptors(), "busy", _errors.CallRefused),
        (_errors.NotAllowed(), "not-allowed", _errors.CallRefused),
        (_errors.TimedOut(), "timeout", _errors.TimedOut),
        (_errors.NotSupported(), "unsupported", _errors.NotSupported),
        (_errors.BadPacket(), "bad-message", _errors.CallRefused),
        (_errors.LinkLost(), "relay", _errors.CallRefused),
        (_errors.EngineClosed(), "relay", _errors.CallRefused),
    ],
    ids=lambda value: getattr(value, "__name__", None) or str(value)[:20],
)
def test_what_a_callers_engine_makes_of_a_callees_error(
    error: _errors.KKP2PError, reason: str, heard: type[_errors.KKP2PError]
) -> None:
    assert reason_for(error) == reason
    assert type(refusal(reason)) is heard


def test_a_new_kind_of_error_is_told_as_the_kind_that_it_is_one_of() -> None:
    class Late(_errors.TimedOut):
        """later than the others"""

    assert reason_for(Late()) == "timeout"
