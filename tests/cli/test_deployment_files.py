"""The files of docs/operations name options that exist, and values that are accepted."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from kkp2p_compat.cli import cloud
from kkp2p_compat.cli._layers import Layers

FOLDER = Path(__file__).parents[2] / "docs" / "operations"


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser()
    commands: Any = whole.add_subparsers()
    cloud.add_parser(commands)
    found: argparse.ArgumentParser = commands.choices["cloud"]
    return found


@pytest.mark.parametrize("name", ["kkp2p-cloud.service", "Dockerfile", "compose.yaml"])
def test_flags_and_variables_exist(name: str) -> None:
    text = (FOLDER / name).read_text()
    options = {key for key in vars(parser().parse_args([])) if key != "run"}
    variables = re.findall(r"KKP2P_CLOUD_([A-Z_]+)", text)
    flags = re.findall(r"(?:kkp2p cloud |cloud\", \"|- )--([a-z-]+)", text)
    assert variables or flags
    for found in (*variables, *flags):
        assert found.lower().replace("-", "_") in options


def test_the_unit_starts_what_is_accepted() -> None:
    (command,) = re.findall("ExecStart=(.*)", (FOLDER / "kkp2p-cloud.service").read_text())
    _, name, *arguments = shlex.split(command)
    assert name == "cloud"
    assert parser().parse_args(arguments).config == "/etc/kkp2p/cloud.toml"


def test_the_unit_leaves_the_signal_for_workers_to_their_parent() -> None:
    """Each that gets SIGTERM twice, from systemd and from the parent, ends without draining."""
    assert "\nKillMode=mixed\n" in (FOLDER / "kkp2p-cloud.service").read_text()


def test_every_line_of_the_options_file_is_accepted(tmp_path: Path) -> None:
    """Those that are there as examples, too."""
    text = (FOLDER / "cloud.toml").read_text()
    file = tmp_path / "cloud.toml"
    file.write_text(re.sub(r"^# ([a-z-]+ = )", r"\1", text, flags=re.MULTILINE))
    options = Layers(parser(), [f"--config={file}"], {}, "KKP2P_CLOUD_").read()
    assert options.relay_session_bytes == 10_000_000_000
    assert options.admin == ("127.0.0.1", 9080)
    assert options.name == ["cloud.example.net"]
