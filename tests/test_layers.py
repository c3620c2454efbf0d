"""The imports keep to the layers of docs/architecture.rst, whose tables are read here."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))

import pictures  # noqa: E402 - docs/ is no package

ENGINE = "kkp2p_compat/engine/engine.py"
TRANSPORT = "kkp2p_compat/transport/udp/"
DRIVERS = (
    "endpoint.py",
    "alarm.py",
    "doors.py",
    "batch_socket.py",
    "nat64_socket.py",
    "framed_socket.py",
    "pipe.py",
    "first_hop.py",
)


def test_an_import_goes_downwards() -> None:
    upwards = {
        f"{file} imports {other}"
        for file, others in pictures.imports().items()
        for other in others
        if not pictures.place_of(file).may_import(pictures.place_of(other))
    }
    assert not upwards


def test_every_file_of_the_engine_is_in_a_room() -> None:
    outside = [
        file for file in pictures.imports() if pictures.place_of(file).name == pictures.ENGINE
    ]
    assert outside == ["kkp2p_compat/engine/__init__.py"]


def test_no_imports_form_a_circle() -> None:
    """What imports nothing that is left, or is imported by nothing that is left, is in none."""
    left = dict(pictures.imports())
    size = 0
    while size != len(left):
        size = len(left)
        left = {file: others for file, others in left.items() if others & left.keys()}
        imported = set().union(*left.values())
        left = {file: others for file, others in left.items() if file in imported}
    assert not left


def test_the_imports_are_found() -> None:
    """Those of each kind: of a module, of a name in it, of a package, in a function, for types."""
    imports = pictures.imports()
    assert "kkp2p_compat/_io.py" in imports["kkp2p_compat/__init__.py"]
    assert ENGINE in imports["kkp2p_compat/_api_checks.py"]
    assert "kkp2p_compat/__init__.py" in imports["samples/chat.py"]
    assert "kkp2p_compat/traversal/checks.py" in imports["kkp2p_compat/traversal/punch.py"]


def test_who_knows_the_engine() -> None:
    above = tuple(f"kkp2p_compat/{name}.py" for name in ("__init__", "_api_checks", "_api_outcome"))
    folders = ("kkp2p_compat/cli/", "kkp2p_compat/testing/", "samples/")
    knowing = {file for file, others in pictures.imports().items() if ENGINE in others}
    assert not {file for file in knowing if file not in above and not file.startswith(folders)}


@pytest.mark.parametrize(
    "file", [str(path.relative_to(ROOT)) for path in sorted((ROOT / TRANSPORT).rglob("*.py"))]
)
def test_the_transport_has_no_clock_and_no_socket(file: str) -> None:
    if file.removeprefix(TRANSPORT) in DRIVERS:
        return
    modules = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            modules.add(str(node.module).partition(".")[0])
    assert not modules & {"gevent", "select", "socket", "threading", "time"}
