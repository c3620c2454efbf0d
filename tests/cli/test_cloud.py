"""``kkp2p cloud``: its command line."""

from __future__ import annotations

import pytest

from kkp2p_compat.cli import main
from kkp2p_compat.cloud.settings import Limits


@pytest.mark.parametrize(
    "arguments",
    [
        ["--role", "king"],
        ["--beat-s", "-1"],
        ["--beat-s", "nan"],
        ["--open-calls", "1.5"],
        ["--account", "alice"],
        ["--listen", "nonsense"],
        ["--role", "route"],
        ["--role", "relay", "--relay-key", "/nonexistent"],
    ],
)
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = main(["cloud", *arguments])
    except SystemExit as error:
        status = int(error.code or 0)
    assert status == 2
    assert "Traceback" not in capsys.readouterr().err


def test_every_limit_is_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["cloud", "--help"])
    text = capsys.readouterr().out
    for name in Limits.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in text
