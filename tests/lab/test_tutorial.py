"""The commands of docs/tutorial.rst, in their order, on machines with the addresses it names."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from helpers.installed import installed_environment
from helpers.support import ROOT
from kkp2p_compat.testing.hosts import DEVICE, Host
from kkp2p_compat.testing.lab import Lab
from kkp2p_compat.testing.plugin import need
from kkp2p_compat.testing.programs import Run, output_of, wait_for

PAGE = (ROOT / "docs" / "tutorial.rst").read_text()
BLOCK = re.compile(r"^\.\. code-block:: console\n   :caption: ([\d.]+), .*\n\n((?:   .*\n)+)", re.M)
VALUE = re.compile(r"\b([0-9a-f]{4})\.\.\.")  # one that is different each time


class Command(NamedTuple):
    address: str
    line: str
    shown: list[str]
    is_last: bool  # of its block: it may go on


def commands() -> Iterator[Command]:
    for address, text in BLOCK.findall(PAGE):
        first, *parts = re.split(r"^   \$ ", text, flags=re.MULTILINE)
        assert first == ""
        for number, part in enumerate(parts, 1):
            line, *shown = [row.removeprefix("   ").rstrip() for row in part.splitlines()]
            yield Command(address, line.removeprefix("   "), shown, number == len(parts))


def pattern(shown: str) -> str:
    """``...`` stands for anything, ``41d0...`` for a word, and a time of day for any."""
    text = re.escape(VALUE.sub(r"<\1>", shown)).replace(r"\.\.\.", ".*")
    text = re.sub(r"<([0-9a-f]{4})>", r"(?P<v\1>\\w+)", text)
    return r"^\s*" + re.sub(r"^\d\d:\d\d:\d\d", r"\\d\\d:\\d\\d:\\d\\d", text)


@pytest.fixture
def lab_environment(tmp_path: Path) -> Mapping[str, str]:
    return installed_environment(tmp_path)


def machine(lab: Lab, address: str) -> Host:
    """On the one switch, without the others' networks."""
    host = lab.host(address)
    host.run("ip", "address", "flush", "dev", DEVICE)
    host.run("ip", "address", "add", f"{address}/32", "dev", DEVICE)
    host.run("ip", "route", "add", "default", "dev", DEVICE)
    (host.folder / "samples").symlink_to(ROOT / "samples")
    return host


def test_every_shell_line_of_the_page_is_run() -> None:
    assert len(BLOCK.findall(PAGE)) == PAGE.count("code-block::") > 15
    assert PAGE.count("\n   $ ") == len(list(commands()))


def test_the_page_holds(lab: Lab, run: Run) -> None:
    """``-rP`` shows how long each command took, until it showed what the page shows."""
    need("curl", "openssl")
    hosts: dict[str, Host] = {}
    values: dict[str, str] = {}
    going_on: list[subprocess.Popen[str]] = []
    for command in commands():
        if command.address not in hosts:
            hosts[command.address] = machine(lab, command.address)
        host = hosts[command.address]
        line = VALUE.sub(lambda found: values[found[1]], command.line)
        started = time.monotonic()
        process = run(host, None, f"HOME={host.folder}", "bash", "-c", line, program="env")
        for shown in filter("...".__ne__, map(str.strip, command.shown)):
            found = re.search(pattern(shown), wait_for(process, pattern(shown)))
            assert found is not None
            for name, value in found.groupdict().items():
                assert values.setdefault(name[1:], value) == value
        if command.is_last:
            going_on.append(process)
        else:
            output_of(process)
        print(f"{time.monotonic() - started:.2f} s at {command.address}: {line}")
    assert all(process.poll() in (None, 0) for process in going_on)
