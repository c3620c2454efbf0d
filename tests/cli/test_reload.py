"""A running cloud takes over new limits, certificates and log levels, and drops nobody."""

from __future__ import annotations

import json
import signal
import ssl
from pathlib import Path

import pytest

from helpers.cloud_client import Client
from helpers.tool_process import StartTool, Tool, start_tool
from kkp2p_compat.cloud.limits import Gatekeeper
from kkp2p_compat.cloud.settings import Limits

__all__ = ["start_tool"]  # a fixture


def write(path: Path, text: str) -> None:
    """At once, as an editor or a deployment does."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


def started(start_tool: StartTool, *arguments: str, **environment: str) -> tuple[Tool, int]:
    tool = start_tool("cloud", "--listen", "127.0.0.1:0", *arguments, **environment)
    assert tool.line().startswith("kkp2p cloud")
    return tool, int(tool.line().rpartition(":")[2])


def logged(tool: Tool, part: str) -> str:
    """The next line of the log that has this."""
    while (line := tool.error_line()) and part not in line:
        pass
    assert line, f"it never said {part!r}"
    return line


def test_changed_files_are_taken_over_and_nobody_is_dropped(
    start_tool: StartTool, tmp_path: Path
) -> None:
    file, data = tmp_path / "cloud.toml", tmp_path / "data"
    write(file, 'drain = 1\nlog-format = "json"\n[limits]\nopen-calls = 2\n')
    tool, port = started(
        start_tool, f"--config={file}", "--account", "peer:s", KKP2P_CLOUD_DATA=str(data)
    )
    with Client(("127.0.0.1", port)) as peer, Client(("127.0.0.1", port)) as caller:
        assert peer.login("peer", "s")["op"] == "welcome"
        write(file, 'drain = 2\nlog-format = "json"\n[limits]\nopen-calls = 1\n')
        line = json.loads(logged(tool, "options have changed"))
        assert line["level"] == "warning"
        assert line["message"] == "options have changed: open-calls"
        late = json.loads(tool.error_line())["message"]
        assert late == "these take effect when the cloud is started again: drain"
        assert caller.call("peer", 1)["op"] == "calling"
        assert caller.call("peer", 2)["reason"] == "limit"
        write(file, "open-calls = many")
        logged(tool, "the options stay as they are")
        old = ssl.get_server_certificate(("127.0.0.1", port))
        for name in ("cloud.crt", "cloud.key"):  # which are made anew
            (data / name).unlink()
        other, _ = started(start_tool, KKP2P_CLOUD_DATA=str(data))
        write(file, 'log-format = "json"\nlog-level = "debug"\n')
        tool.process.send_signal(signal.SIGHUP)
        logged(tool, "new connections are shown another certificate")
        logged(tool, "log-level")
        assert ssl.get_server_certificate(("127.0.0.1", port)) != old
        assert peer.receive()["op"] == "offer"
        assert peer.ask("beat")["op"] == "beat"
        assert other.end(signal.SIGTERM)[0] == 0
    assert tool.end(signal.SIGTERM)[0] == 0


def test_a_wrong_file_is_an_error_of_usage(start_tool: StartTool, tmp_path: Path) -> None:
    write(tmp_path / "c.toml", "drian = 1")
    code, _, errors = start_tool("cloud", "--config", str(tmp_path / "c.toml")).end()
    assert code == 2
    assert errors == f"kkp2p cloud: {tmp_path / 'c.toml'}: there is no option 'drian'\n"


@pytest.mark.parametrize("limits", [Limits(connects_per_s=1, burst_s=1, limit_loopback=True)])
def test_rates_are_those_of_the_new_limits(limits: Limits) -> None:
    gate = Gatekeeper(Limits(limit_loopback=True))
    assert all(gate.enter("192.0.2.1") for _ in range(10))
    gate.change_limits(limits)
    assert [gate.enter("192.0.2.1") for _ in range(2)] == [True, False]
    gate.change_limits(Limits(connects_per_s=1, burst_s=1, limit_loopback=True))  # the same
    assert not gate.enter("192.0.2.1")
    assert gate.connections == 11
