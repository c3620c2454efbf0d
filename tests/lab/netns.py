"""Hosts in network namespaces, joined by a switch: real processes, real TCP, cables to pull.

Everything is named after this process and removed at the end, also what a killed run left behind.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from support import ENVIRONMENT, PATIENCE_S

__all__ = ["Host", "Lab", "why_not"]

NETWORK = "10.77.0"


def why_not() -> str:
    """Why there can be no lab on this machine; empty if there can."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [tool for tool in ("ip", "curl", "openssl") if shutil.which(tool) is None]
    return f"not installed: {', '.join(missing)}" if missing else ""


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=PATIENCE_S)


def _remove_left_behind() -> None:
    """What a killed run could not remove: the names begin with its process id."""
    for namespace in Path("/run/netns").glob("kkp2p*-*"):
        process = re.match(r"kkp2p(\d+)-", namespace.name)
        if process and not Path("/proc", process[1]).exists():
            _ip("netns", "delete", namespace.name)


class Host:
    """A namespace with one interface.  ``start`` runs a program in it."""

    def __init__(self, lab: Lab, name: str, number: int) -> None:
        self.address = f"{NETWORK}.{number}"
        self.folder = lab.folder / name
        self.folder.mkdir()
        self.namespace = f"{lab.prefix}-{name}"
        self._switch = lab.switch
        self._port = f"p{number}"
        _ip("netns", "add", self.namespace)
        _ip("-n", lab.switch, "link", "add", self._port, "type", "veth",
            "peer", "name", "eth0", "netns", self.namespace)  # fmt: skip
        _ip("-n", lab.switch, "link", "set", self._port, "master", "br0", "up")
        for device in ("lo", "eth0"):
            _ip("-n", self.namespace, "link", "set", device, "up")
        _ip("-n", self.namespace, "address", "add", f"{self.address}/24", "dev", "eth0")

    def start(self, *command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["ip", "netns", "exec", self.namespace, *command],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            cwd=self.folder, env={**ENVIRONMENT, "TMPDIR": str(self.folder)},
        )  # fmt: skip

    def python(self, *command: str) -> subprocess.Popen[str]:
        return self.start(sys.executable, *command)

    def run(self, *command: str, stdin: str = "") -> str:
        process = self.start(*command)
        output, _ = process.communicate(stdin, timeout=PATIENCE_S)
        assert process.returncode == 0, output
        return output

    def unplug(self) -> None:
        """Nothing gets in or out any more, and nobody is told."""
        _ip("-n", self._switch, "link", "set", self._port, "nomaster")

    def plug_in(self) -> None:
        _ip("-n", self._switch, "link", "set", self._port, "master", "br0")

    def pull_out(self) -> None:
        """Remove the interface, for another kind of link (``link.joined``) to take its place."""
        subprocess.run(["ip", "-n", self.namespace, "link", "delete", "eth0"], capture_output=True)

    def remove(self) -> None:
        subprocess.run(["ip", "netns", "delete", self.namespace], capture_output=True)


class Lab:
    """``host`` adds one; ``close`` removes all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.prefix = f"kkp2p{os.getpid()}"
        self.switch = f"{self.prefix}-switch"
        self._hosts: list[Host] = []
        _remove_left_behind()
        _ip("netns", "add", self.switch)
        _ip("-n", self.switch, "link", "add", "br0", "type", "bridge")
        _ip("-n", self.switch, "link", "set", "br0", "up")

    def host(self, name: str) -> Host:
        host = Host(self, name, len(self._hosts) + 1)
        self._hosts.append(host)
        return host

    def close(self) -> None:
        for host in self._hosts:
            host.remove()
        subprocess.run(["ip", "netns", "delete", self.switch], capture_output=True)
