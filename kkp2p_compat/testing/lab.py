"""Hosts in network namespaces, on a switch or on an internet with NATs.

Everything is named after this process, and removed at the end, programs and all.  What a killed run
has left behind is removed by the next one.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from .hosts import Host, Switch, SwitchHost, environment, ip, remove_namespace
from .internet import PUBLIC, Internet, InternetHost, KernelNat, NatHandle
from .nat import NatType

__all__ = [
    "Host",
    "Internet",
    "InternetHost",
    "KernelNat",
    "Lab",
    "NatHandle",
    "NatType",
    "SwitchHost",
    "why_not",
]

NETWORK = "10.77.0"  # of the switch

_numbers = itertools.count(1)


def why_not() -> str:
    """Why there can be no lab on this machine; empty if there can."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not Path("/dev/net/tun").exists():
        return "there is no /dev/net/tun"
    return "" if shutil.which("ip") else "not installed: ip (package iproute2)"


def _began_at(pid: int) -> int | None:
    """When that process began, by the kernel's clock; None: there is none.

    With it a number that another process has had before, as in a container that was started again,
    is not taken for the same process.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(fields.rpartition(")")[2].split()[19])  # proc(5): field 22; the name may have spaces


def _remove_left_behind() -> None:
    """Remove what a killed run could not: the names say whose they are."""
    for namespace in Path("/run/netns").glob("kkp2p*-*"):
        owner = re.match(r"kkp2p(\d+)\.(\d+)-", namespace.name)
        if owner and _began_at(int(owner[1])) != int(owner[2]):
            remove_namespace(namespace.name)


class Lab:
    """``host`` adds one to the switch; ``internet`` makes one; ``close`` removes all."""

    def __init__(self, folder: Path, env: Mapping[str, str] | None = None) -> None:
        """``folder``: each host gets one inside.  ``env``: the environment of programs on hosts."""
        self.folder = folder
        self._environment = environment(env)
        pid = os.getpid()
        self._prefix = f"kkp2p{pid}.{_began_at(pid)}-{next(_numbers)}"
        self._numbers = itertools.count(1)  # of the hosts on the switch
        self._switch: Switch | None = None
        self._to_remove = ExitStack()  # all of it, whatever fails
        _remove_left_behind()

    def host(self, name: str) -> SwitchHost:
        """Add a host to the switch, whose hosts share one Ethernet without a way out."""
        if self._switch is None:
            namespace = f"{self._prefix}-switch"
            ip("netns", "add", namespace)
            self._to_remove.callback(ip, "netns", "delete", namespace)
            self._switch = Switch(namespace, "br0", NETWORK)
        host = SwitchHost(name, *self._place(name), self._switch, next(self._numbers))
        self._to_remove.callback(host.remove)
        return host

    def internet(
        self,
        delay_s: float = 0.0,
        loss: float = 0.0,
        seed: int = 1,
        hops: int = 6,
        public: tuple[str, ...] = PUBLIC,
    ) -> Internet:
        """``delay_s``: one way between an access line and the core, so a packet takes twice that.
        ``loss``: chance of a packet between two access lines.  ``hops``: routers between them.
        ``public``: the networks of its addresses; their order is the order they are given in."""
        settings = {"delay_s": delay_s, "loss": loss, "seed": seed, "hops": hops}
        made = Internet(self._place, settings, public)
        self._to_remove.callback(made.close)
        return made

    def close(self) -> None:
        self._to_remove.close()

    def _place(self, name: str) -> tuple[str, Path, dict[str, str]]:
        return f"{self._prefix}-{name}", self.folder / name, self._environment
