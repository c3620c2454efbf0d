"""The gate installs the programs that tests ask for: there they fail where one is missing."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
ASKING = {"need", "need_program", "which"}
MISSING = ROOT / "tests" / "testing" / "test_programs.py"  # asks for some that nobody has
# Debian's package of each program that is not called as its package is.
PACKAGES = {
    "cc": "gcc",
    "ffprobe": "ffmpeg",
    "ip": "iproute2",
    "miniupnpd": "miniupnpd-nftables",
    "musl-gcc": "musl-tools",
    "nft": "nftables",
    "nm": "gcc",  # which needs binutils
    "redis-cli": "redis-server",  # which needs redis-tools
    "scp": "openssh-client",
    "ssh": "openssh-client",
    "sshd": "openssh-server",
    "turnserver": "coturn",
    "turnutils_natdiscovery": "coturn",
}
EVERYWHERE = {"stdbuf"}  # of coreutils


def programs_of(tree: ast.AST) -> Iterator[str]:
    """Those that are asked for by name, and compilers that tests give (``cc="musl-gcc"``)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", None))
            words = [keyword.value for keyword in node.keywords if keyword.arg == "cc"]
            words += node.args if name in ASKING else []
            for word in words:
                if isinstance(word, ast.Constant) and isinstance(word.value, str):
                    yield word.value


def test_the_gate_installs_what_tests_ask_for() -> None:
    (line,) = re.findall("apt-get install (.*)", (ROOT / ".ci" / "run").read_text())
    files = [*ROOT.glob("tests/**/*.py"), *ROOT.glob("kkp2p_compat/testing/**/*.py")]
    asked = {
        program
        for file in files
        if file != MISSING
        for program in programs_of(ast.parse(file.read_text()))
    }
    assert {"curl", "ip", "musl-gcc", "nft", "tayga"} <= asked  # one of each way to ask
    needed = {PACKAGES.get(program, program) for program in asked - EVERYWHERE}
    assert needed - set(line.split()) == set()
