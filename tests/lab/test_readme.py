"""Every command and every Python block of README.rst is run, on one machine of the lab.

Those of the Chinese README are the same to the byte (tests/test_chinese.py).
"""

from __future__ import annotations

import re
import subprocess
import textwrap
from collections.abc import Mapping
from pathlib import Path

import pytest

from helpers.installed import installed_environment
from helpers.support import ROOT
from kkp2p_compat.testing.hosts import Host
from kkp2p_compat.testing.lab import Lab
from kkp2p_compat.testing.plugin import need
from kkp2p_compat.testing.programs import Run, output_of, wait_for

PAGE = (ROOT / "README.rst").read_text()
BLOCK = re.compile(r"^(?:.*::|\.\. code-block:: (python))\n\n((?:(?: {4}.*)?\n)+)", re.MULTILINE)
COMMAND = re.compile(r"(?:[A-Z0-9_]+=\"[^\"]*\" )?(?:kkp2p|openssl|python3?) ")
# Blocks that are not commands, by how they begin, and the commands that are run elsewhere.
VENV = "python3 -m venv .venv && .venv/bin/"
ELSEWHERE = {
    VENV + "pip install -q . && .venv/bin/kkp2p demo": ".ci/run",
    VENV + "pip install -q -e '.[test]' && .venv/bin/python -m pytest": ".ci/run",
    "4. The https server": "tests/system/test_demo.py",  # what the demonstration prints
    "while(run_flag) {": "tests/samples/test_samples.py",  # C, and the sample's lines beside it
    "use-auth-secret": "tests/system/test_turn.py",  # coturn's configuration
    "cc program.c": "tests/capi/test_samples_c.py",
}
# What is different here: addresses, a secret, and where the cloud keeps its data.
CHANGES = {
    "HOST:PORT": "127.0.0.1:3080",
    "/var/lib/kkp2p": "lib",
    "--data DIR": "--data dir",
    "redis.example.net": "127.0.0.1",
}


def blocks() -> tuple[list[str], list[str]]:
    """Those of Python, and of the others each command, or how the block begins."""
    python, others = [], []
    for language, text in BLOCK.findall(PAGE):
        body = textwrap.dedent(text).strip("\n")
        lines = body.splitlines()
        if language:
            python.append(body)
        else:
            others += lines if all(map(COMMAND.match, lines)) else lines[:1]
    return python, others


class Machine:
    """Takes the page's commands one by one; ``left``: those that have not been run."""

    def __init__(self, host: Host, run: Run) -> None:
        self._host = host
        self._run = run
        self.changes = dict(CHANGES)
        self.python, commands = blocks()
        self.left = [command for command in commands if not command.startswith(tuple(ELSEWHERE))]

    def changed(self, text: str) -> str:
        for shown, here in self.changes.items():
            text = text.replace(shown, here)
        return text

    def start(self, begin: str, line: str | None = None, before: str = "") -> subprocess.Popen[str]:
        """The next command of the page that begins so; ``line`` is what it says when it is up."""
        command = next(one for one in self.left if one.startswith(begin))
        self.left.remove(command)
        return self.shell(before + self.changed(command), line)

    def shell(self, command: str, line: str | None = None) -> subprocess.Popen[str]:
        home = f"HOME={self._host.folder}"
        return self._run(self._host, line, home, "bash", "-c", command, program="env")

    def program(self, name: str, text: str) -> subprocess.Popen[str]:
        """In a folder of its own, as its log is there."""
        folder = self._host.folder / name
        folder.mkdir()
        (folder / "program.py").write_text(self.changed(text))
        return self.shell(f"cd {name} && exec python program.py")


def end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    process.wait(10)


@pytest.fixture
def lab_environment(tmp_path: Path) -> Mapping[str, str]:
    return installed_environment(tmp_path)


def test_the_gate_takes_the_commands_that_install_from_the_page() -> None:
    gate = (ROOT / ".ci" / "run").read_text()
    (taken,) = re.findall(r"sed -n 's/(.+)/\\1/p' README.rst", gate)
    found = re.findall(taken.replace(r"\(", "(").replace(r"\)", ")"), PAGE, re.MULTILINE)
    assert found == [command for command, where in ELSEWHERE.items() if where == ".ci/run"]


def test_what_is_run_elsewhere_is_there() -> None:
    _, commands = blocks()
    assert all(any(command.startswith(begin) for command in commands) for begin in ELSEWHERE)
    assert all((ROOT / where).exists() for where in ELSEWHERE.values())


def test_the_page_holds(lab: Lab, run: Run) -> None:
    need("curl", "openssl", "redis-server")
    host = lab.host("machine")
    (host.folder / "samples").symlink_to(ROOT / "samples")
    machine = Machine(host, run)
    assert all(f"``{command}``" in PAGE for command in ("kkp2p cloud", "kkp2p account add alice"))
    cloud = machine.shell("exec kkp2p cloud", "invite one")
    secret = output_of(machine.shell("kkp2p account add alice")).split()[-1]
    machine.changes["her secret"] = secret

    publish_a_port(machine, secret)
    two_programs(machine)
    send_a_file(machine)
    end(cloud)
    run_a_cloud(machine)
    assert not machine.left


def publish_a_port(machine: Machine, secret: str) -> None:
    """With a web server at the port of ssh, which tests/system/test_published_programs.py has."""
    web = machine.shell("exec python -m http.server 22 --bind 127.0.0.1", "Serving")
    published = machine.start("kkp2p publish", "online", f"KKP2P_SECRET={secret} exec ")
    proxy = machine.start("kkp2p proxy 2222", "listening", "exec ")
    assert "samples" in output_of(machine.shell("curl -sS http://localhost:2222/"))
    for process in (proxy, published, web):
        end(process)


def two_programs(machine: Machine) -> None:
    answering, calling, forwarding = machine.python
    answers = machine.program("answering", answering)
    log = machine.shell("exec tail -n +1 -F answering/kkp2p_engine.log", "alice: logged in")
    assert "hello" in output_of(machine.program("calling", calling))
    *before, last = calling.splitlines()
    assert last == "kkp2p.engine_destroy(engine)"
    text = "\n".join([*before, forwarding, "print('up')", "gevent.sleep(60)"])
    forwarder = machine.program("forwarding", f"import gevent\n{text}")
    wait_for(forwarder, "up")
    say = "exec 3<>/dev/tcp/127.0.0.1/8443; printf hello >&3; head -c 5 <&3"
    assert output_of(machine.shell(say)) == "hello"
    end(forwarder)
    proxy = machine.start("kkp2p proxy 8443", "listening", "exec ")
    assert output_of(machine.shell(say)) == "hello"
    end(proxy)
    assert "connected by p2p" in output_of(machine.start("kkp2p netcheck"))
    for process in (log, answers):
        end(process)


def send_a_file(machine: Machine) -> None:
    output_of(machine.shell("mkdir Downloads && head -c 100000 /dev/urandom > holiday.mp4"))
    login = "export KKP2P_LOGIN=127.0.0.1:3080; "
    receiver = machine.start('KKP2P_SECRET="her secret" python', "waiting for files", login)
    assert "sent 100000 bytes" in output_of(machine.start("python samples/send_file.py"))
    output_of(machine.shell("cmp holiday.mp4 Downloads/holiday.mp4"))
    end(receiver)


def run_a_cloud(machine: Machine) -> None:
    """Each that is shown; services at other ports than those before go on beside them."""
    machine.shell("exec redis-server --save '' --port 6379", "Ready to accept")
    running: dict[str, subprocess.Popen[str]] = {}
    for command in list(machine.left):
        listen = re.search(r"--listen \S+:(\d+)", command)
        port = listen[1] if listen else "3080"
        if not command.startswith("kkp2p cloud"):
            output_of(machine.start(command))
            continue
        if port == "3080":
            for process in running.values():
                end(process)
            running.clear()
        running[port] = machine.start(command, rf"at \S+:{port}", "exec ")
