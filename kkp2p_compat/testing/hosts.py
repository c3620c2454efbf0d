"""A host of the lab: a network namespace with a folder, in which programs run."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = [
    "PATIENCE_S",
    "Host",
    "Switch",
    "SwitchHost",
    "environment",
    "ip",
    "ip_batch",
    "remove_namespace",
]

PATIENCE_S = 20.0  # our choice: a bound for what must happen; never a measurement
DEVICE = "eth0"  # every host's
BRIDGE_MAC = "02:00:00:00:01:00"  # locally administered
PACKAGE_FOLDER = Path(__file__).parents[2]


def environment(given: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of programs on a host: ours, with this kkp2p_compat on the path."""
    made = dict(os.environ if given is None else given)
    paths = [str(PACKAGE_FOLDER), *filter(None, [made.get("PYTHONPATH")])]
    return {**made, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}


def ip(*arguments: str) -> None:
    """Run ``ip`` of iproute2."""
    _checked(["ip", *arguments], "")


def ip_batch(namespace: str, commands: Sequence[str]) -> None:
    """Run several lines of ``ip`` in one process."""
    _checked(["ip", "-n", namespace, "-batch", "-"], "\n".join(commands))


def remove_namespace(name: str) -> None:
    """And end the programs in it, which would run on where nobody finds them.

    Somebody else may remove it at the same moment.
    """
    killed: set[int] = set()
    while pids := _programs_in(name) - killed:  # again: one may have started another meanwhile
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        killed |= pids
    subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def _programs_in(namespace: str) -> set[int]:
    command = ["ip", "netns", "pids", namespace]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    return set(map(int, listed.stdout.split()))


def _checked(command: list[str], text: str) -> None:
    ended = subprocess.run(
        command, input=text, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    if ended.returncode:
        raise RuntimeError(f"{' '.join(command)}: {ended.stderr.strip()} ({text})")


class Host(ABC):
    """``start`` runs a program on it, in its ``folder``.  ``address`` is the first of its own."""

    def __init__(self, name: str, namespace: str, folder: Path, env: Mapping[str, str]) -> None:
        self.name = name
        self.namespace = namespace
        self.folder = folder
        self.address = ""
        folder.mkdir()
        self._environment = {**env, "TMPDIR": str(folder)}
        ip("netns", "add", namespace)

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Start a program; its standard output and error go to one pipe."""
        return subprocess.Popen(
            ["ip", "netns", "exec", self.namespace, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.folder,
            env=self._environment,
        )

    def python(self, *command: str) -> subprocess.Popen[str]:
        return self.start(sys.executable, *command)

    def run(self, *command: str, stdin: str = "") -> str:
        """Run a program that must end with status 0 within PATIENCE_S; returns its output."""
        process = self.start(*command)
        output, _ = process.communicate(stdin, timeout=PATIENCE_S)
        assert process.returncode == 0, output
        return output

    @abstractmethod
    def unplug(self) -> None:
        """From now on nothing gets in or out, and no program is told."""

    @abstractmethod
    def plug_in(self) -> None:
        """Undo ``unplug``."""

    def remove(self) -> None:
        remove_namespace(self.namespace)


class Switch:
    """An Ethernet bridge in a namespace; hosts are joined to it by cables."""

    def __init__(self, namespace: str, bridge: str, network: str) -> None:
        """``network``: the first three numbers of its addresses."""
        self.namespace = namespace
        self.bridge = bridge
        self.network = network
        # Its own address, not that of a cable, which would go on as one of the namespace's
        # interfaces when it is unplugged from the bridge.
        ip_batch(
            namespace,
            [f"link add {bridge} address {BRIDGE_MAC} type bridge", f"link set {bridge} up"],
        )


class SwitchHost(Host):
    """A host on a switch."""

    def __init__(
        self,
        name: str,
        namespace: str,
        folder: Path,
        env: Mapping[str, str],
        switch: Switch,
        number: int,
        gateway: str = "",
    ) -> None:
        super().__init__(name, namespace, folder, env)
        self.address = f"{switch.network}.{number}"
        self._switch = switch
        self._port = f"p{number}"
        ip(
            "-n",
            switch.namespace,
            "link",
            "add",
            self._port,
            "type",
            "veth",
            "peer",
            "name",
            DEVICE,
            "netns",
            namespace,
        )
        self.plug_in()
        route = [f"route add default via {gateway}"] if gateway else []
        ip_batch(
            namespace,
            [
                "link set lo up",
                f"link set {DEVICE} up",
                f"address add {self.address}/24 dev {DEVICE}",
                *route,
            ],
        )

    def unplug(self) -> None:
        ip("-n", self._switch.namespace, "link", "set", self._port, "nomaster")

    def plug_in(self) -> None:
        bridge = self._switch.bridge
        ip("-n", self._switch.namespace, "link", "set", self._port, "master", bridge, "up")

    def pull_out(self) -> None:
        """Remove the interface, for another kind of link (``link.joined``) to take its place."""
        command = ["ip", "-n", self.namespace, "link", "delete", DEVICE]
        subprocess.run(command, capture_output=True, check=False)
