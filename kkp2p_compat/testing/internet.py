"""The internet of a lab, as a test sees it: hosts, NATs, and what can happen to them.

``Internet`` starts a ``world_process``, which carries the packets, and tells it what there is.

Addresses are of the documentation ranges (RFC 5737, RFC 3849), and of 192.168/16 behind NATs.
Names of hosts and NATs are unique in a lab.
"""

from __future__ import annotations

import ipaddress
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .hosts import DEVICE, PATIENCE_S, Host, Switch, SwitchHost, environment, ip_batch
from .nat import NatType

__all__ = ["Internet", "InternetHost", "KernelNat", "NatHandle"]

PUBLIC = ("203.0.113.0/24", "198.51.100.0/24", "192.0.2.0/24")  # RFC 5737
PRIVATE = "192.168.0.0/16"  # RFC 1918; a /24 of it for each NAT
SITE6 = "2001:db8:0:{:x}::"  # RFC 3849; each site, a NAT or a host of its own, has a /64
MTU = 1500
SETTLE_S = 0.001  # our choice: how often it is asked whether packets are under way

# What a home router is set to: its own services and the hosts behind it are not reached from
# outside, unless an answer is, or a port was forwarded.  What is dropped leaves no connection
# tracking entry behind.
NFT_RULES = """
table ip lab {{
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        oifname "{device}" masquerade {random}
    }}
    chain input {{
        type filter hook input priority filter; policy accept;
        iifname "{device}" ct state established,related accept
        iifname "{device}" {input}
    }}
    chain forward {{
        type filter hook forward priority filter; policy accept;
        iifname "{device}" ct state established,related accept
        iifname "{device}" ct status dnat accept
        iifname "{device}" drop
    }}
}}
"""


class InternetHost(Host):
    """A host with a TUN device; ``addresses`` are its IPv4 ones, ``address6`` the other, or ""."""

    def __init__(self, net: Internet, name: str) -> None:
        super().__init__(name, *net.place(name))
        self.addresses: list[str] = []
        self.address6 = ""
        self.firewall = False
        self._net = net

    def unplug(self) -> None:
        self._net.cut(self)

    def plug_in(self) -> None:
        self._net.mend(self)

    def set_addresses(self, addresses: list[str], address6: str, subnet: str) -> None:
        """Inside its namespace only; ``Internet`` tells the world."""
        self.addresses, self.address6 = addresses, address6
        self.address = (*addresses, address6)[0]
        prefix = ipaddress.IPv4Network(subnet).prefixlen if subnet else 32
        broadcast = " brd +" if subnet else ""
        gateway = f" via {_gateway_of(subnet)}" if subnet else ""
        lines = [f"address add {one}/{prefix}{broadcast} dev {DEVICE}" for one in addresses]
        lines += [f"route replace default{gateway} dev {DEVICE}"] * bool(addresses)
        if address6:
            lines.append(f"address add {address6}/64 dev {DEVICE} nodad")
            lines.append(f"route replace ::/0 dev {DEVICE}")
        ip_batch(self.namespace, [f"address flush dev {DEVICE}", *lines])


class _Site:
    """A network that assigns addresses: the core of the internet, or that behind a NAT."""

    def __init__(self, network: str, subnet: str, free: Iterator[str]) -> None:
        self.network = network  # its name in the world
        self.subnet = subnet
        self.free = free
        self.number6 = 0  # of the site's /64; 0: none yet
        self.hosts6 = itertools.count(2)


class NatHandle:
    """A NAT of the world; hosts are behind it."""

    def __init__(self, net: Internet, name: str, nat_type: NatType, subnet: str) -> None:
        self.name = name
        self.type = nat_type
        self.addresses: list[str] = []
        """Its outside ones."""
        self.subnet = subnet
        hosts = (str(one) for one in ipaddress.IPv4Network(subnet).hosts())
        self.site = _Site(name, subnet, itertools.islice(hosts, 1, None))
        self._net = net

    @property
    def address(self) -> str:
        return self.addresses[0]

    def host(self, name: str, **fields: Any) -> InternetHost:
        """As ``Internet.host``, behind this NAT, with a private IPv4 address.  IPv6 is public."""
        return self._net.add_host(name, self.site, **fields)

    def reboot(self, new_address: bool = False) -> None:
        """Forget all bindings, and perhaps come back with another outside address."""
        self._net.reboot(self, new_address)

    def become(self, nat_type: NatType) -> None:
        """Become a NAT of another type, without bindings."""
        self.type = nat_type
        self._net.ask("become", name=self.name, nat_type=asdict(nat_type))

    def bindings(self) -> list[tuple[int, tuple[str, int], tuple[str, int]]]:
        """Protocol, inside address and outside address of each binding."""
        return [
            (protocol, (inner[0], inner[1]), (outer[0], outer[1]))
            for protocol, inner, outer in self._net.ask("bindings", name=self.name)
        ]


class KernelNat(InternetHost):
    """A Linux router: masquerade of nftables, and a switch with hosts behind it.

    Programs can run on it, as on any host: ``start``, ``run``.
    """

    def __init__(self, net: Internet, name: str, network: str) -> None:
        super().__init__(net, name)
        self.inner_address = f"{network}.1"
        self._switch: Switch
        self._network = network
        self._numbers = itertools.count(2)
        self._hosts: list[SwitchHost] = []

    def set_up(self, random: str, rule: str) -> None:
        self._switch = Switch(self.namespace, "lan0", self._network)
        ip_batch(self.namespace, [f"address add {self.inner_address}/24 brd + dev lan0"])
        self.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        rules = NFT_RULES.format(device=DEVICE, random=random, input=rule)
        self.run("nft", "-f", "-", stdin=rules)

    def host(self, name: str) -> SwitchHost:
        place, number = self._net.place(name), next(self._numbers)
        host = SwitchHost(name, *place, self._switch, number, self.inner_address)
        self._hosts.append(host)
        return host

    def remove(self) -> None:
        for host in self._hosts:
            host.remove()
        super().remove()


class Internet:
    """Made by ``Lab.internet``.  A host or a NAT is named by its handle."""

    def __init__(
        self,
        place: Callable[[str], tuple[str, Path, dict[str, str]]],
        settings: dict[str, Any],
        public: tuple[str, ...] = PUBLIC,
    ) -> None:
        """``place``: a namespace, a folder and an environment for the host of that name."""
        self.place = place
        ranges = (ipaddress.IPv4Network(one).hosts() for one in public)
        self._core = _Site("", "", map(str, itertools.chain.from_iterable(ranges)))
        self._subnets = ipaddress.IPv4Network(PRIVATE).subnets(new_prefix=24)
        next(self._subnets)  # 192.168.0.0/24 looks like a mistake in a log
        self._sites6 = itertools.count(1)
        self._hosts: list[InternetHost] = []
        self._outer: dict[str, _Site] = {}  # of each NAT
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kkp2p_compat.testing.world_process", json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        self._answer()

    # What there is.

    def host(self, name: str, **fields: Any) -> InternetHost:
        """A host with public addresses.  By keyword: ``ipv4`` (True) and how many ``addresses`` of
        it (1); ``ipv6`` (False), one address, which may be behind a ``firewall`` that lets in what
        answers (False); ``udp`` (True), else it is dropped at the access, both ways; ``delay_s``
        of this access line (that of all)."""
        return self.add_host(name, self._core, **fields)

    def nat(
        self,
        name: str,
        nat_type: NatType | None = None,
        *,
        behind: NatHandle | None = None,
        addresses: int = 1,
        subnet: str = "",
        udp: bool = True,
        delay_s: float | None = None,
    ) -> NatHandle:
        """A NAT with public addresses, or ``behind`` another one (a CGNAT).  ``subnet``: of its
        inside (a 192.168.x.0/24 that no other has)."""
        made = NatHandle(self, name, nat_type or NatType(), subnet or str(next(self._subnets)))
        site = self._outer[name] = self._core if behind is None else behind.site
        made.addresses = self._take(site, addresses)
        self.ask(
            "nat",
            name=name,
            outer=site.network,
            addresses=made.addresses,
            subnet=made.subnet,
            nat_type=asdict(made.type),
            udp=udp,
            delay_s=delay_s,
        )
        return made

    def kernel_nat(
        self, name: str, random: str = "", input: str = "drop", behind: NatHandle | None = None
    ) -> KernelNat:
        """A Linux router; ``random``: the flag of its masquerade ("", "random", "fully-random");
        ``input``: what it does to strangers' packets to itself ("drop", "accept")."""
        if random not in ("", "random", "fully-random") or input not in ("drop", "accept"):
            raise ValueError(f"no such router: {random!r}, {input!r}")
        network = str(next(self._subnets).network_address).rpartition(".")[0]
        site = self._core if behind is None else behind.site
        router = KernelNat(self, name, network)
        self._join(router, site, 1, ipv6=False)
        router.set_up(random, input)
        return router

    # What happens to it.

    def cut(self, host: InternetHost | NatHandle) -> None:
        """Drop everything that goes in or out, without an error."""
        self.ask("cut", name=host.name, on=True)

    def mend(self, host: InternetHost | NatHandle) -> None:
        self.ask("cut", name=host.name, on=False)

    def cut_between(self, one: InternetHost, other: InternetHost) -> None:
        self.ask("cut_between", one=one.name, other=other.name, on=True)

    def mend_between(self, one: InternetHost, other: InternetHost) -> None:
        self.ask("cut_between", one=one.name, other=other.name, on=False)

    def block_udp(self, host: InternetHost | NatHandle, on: bool = True) -> None:
        """Drop UDP at the access of a host or a NAT, in both directions."""
        self.ask("block_udp", name=host.name, on=on)

    def set_line(self, host: InternetHost | NatHandle, **fields: float | None) -> None:
        """The access line of a host or a NAT, from now on.  ``delay_s`` (None: that of all);
        ``loss``, the chance of a packet in each direction; ``udp_bps``, a policer that drops UDP
        beyond this many bits a second; ``mtu``, over which IP packets are dropped (0: no limit),
        and of which only a host's own kernel knows."""
        self.ask("line", name=host.name, **fields)
        if "mtu" in fields and isinstance(host, InternetHost):
            ip_batch(host.namespace, [f"link set {DEVICE} mtu {fields['mtu'] or MTU}"])

    def move(
        self,
        host: InternetHost,
        to: NatHandle | Internet,
        *,
        ipv6: bool | None = None,
        firewall: bool | None = None,
    ) -> None:
        """To a new address, behind a NAT or in public; ``ipv6``, ``firewall`` None: as before.
        Its interface stays, and the kernel reports the change as usual."""
        site = to.site if isinstance(to, NatHandle) else self._core
        with_ipv6 = bool(host.address6) if ipv6 is None else ipv6
        host.firewall = host.firewall if firewall is None else firewall
        addresses = self._take(site, len(host.addresses))
        address6 = self._take6(site) if with_ipv6 else ""
        self.ask(
            "addresses",
            name=host.name,
            network=site.network,
            addresses=[*addresses, *filter(None, [address6])],
            firewall=host.firewall,
        )
        host.set_addresses(addresses, address6, site.subnet)

    def reboot(self, nat: NatHandle, new_address: bool = False) -> None:
        """``NatHandle.reboot``."""
        if new_address:
            nat.addresses = self._take(self._outer[nat.name], len(nat.addresses))
        self.ask("reboot", name=nat.name, addresses=nat.addresses if new_address else None)

    def set(self, **fields: float) -> None:
        """``delay_s``, ``loss``, ``hops``, as of ``Lab.internet``; from now on."""
        self.ask("set", **fields)

    def age(self, seconds: float) -> None:
        """Advance the clocks of the NATs (not the kernel's), so that idle bindings time out."""
        self.ask("age", seconds=seconds)

    # What is seen of it.

    def counters(self) -> dict[str, Any]:
        """``carried``: packets by sender and receiver.  ``dropped``: by sender and reason.
        ``nats``: bindings made, and what was refused, by NAT.  ``refused``: by hosts' devices."""
        counted: dict[str, Any] = self.ask("counters")
        return counted

    def trace(self, on: bool) -> list[str]:
        """Begin, go on with (True) or end (False) noting what happens to every packet; what was
        noted since the last call, the newest 10,000 lines."""
        lines: list[str] = self.ask("trace", on=on)
        return lines

    def settle(self) -> None:
        """Return when all that hosts had sent before the call has arrived or was dropped; for
        hosts that do not go on sending.  What has arrived is in the sockets of its host."""
        self.ask("flying")  # what was sent before is read by the end of the turn of this question
        while self.ask("flying"):
            time.sleep(SETTLE_S)

    def ask(self, op: str, **fields: Any) -> Any:
        """Send a command to the process, and return its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"op": op, **fields}) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """Raises RuntimeError when its process has failed."""
        for host in self._hosts:
            host.remove()
        self.process.communicate(timeout=PATIENCE_S)
        if self.process.returncode:
            raise RuntimeError(f"the internet ended with status {self.process.returncode}")

    def add_host(
        self,
        name: str,
        site: _Site,
        *,
        ipv4: bool = True,
        addresses: int = 1,
        ipv6: bool = False,
        firewall: bool = False,
        udp: bool = True,
        delay_s: float | None = None,
    ) -> InternetHost:
        """``host`` and ``NatHandle.host``."""
        host = InternetHost(self, name)
        host.firewall = firewall
        fields = {"firewall": firewall, "udp": udp, "delay_s": delay_s}
        self._join(host, site, addresses * ipv4, ipv6, **fields)
        return host

    def _join(
        self, host: InternetHost, site: _Site, addresses: int, ipv6: bool, **fields: Any
    ) -> None:
        self._hosts.append(host)
        given = self._take(site, addresses)
        address6 = self._take6(site) if ipv6 else ""
        if not given and not address6:
            raise ValueError(f"{host.name} has no address")
        self.ask(
            "host",
            name=host.name,
            namespace=host.namespace,
            device=DEVICE,
            network=site.network,
            addresses=[*given, *filter(None, [address6])],
            **fields,
        )
        up = f"link set {DEVICE} mtu {MTU} addrgenmode none up"
        ip_batch(host.namespace, ["link set lo up", up])
        host.set_addresses(given, address6, site.subnet)

    def _take(self, site: _Site, count: int) -> list[str]:
        taken = list(itertools.islice(site.free, count))
        if len(taken) < count:
            raise ValueError(f"no address left in {site.subnet or 'the public ranges'}")
        return taken

    def _take6(self, site: _Site) -> str:
        if site is self._core:
            return SITE6.format(next(self._sites6)) + "1"
        site.number6 = site.number6 or next(self._sites6)
        return f"{SITE6.format(site.number6)}{next(site.hosts6):x}"

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the internet ended with status {self.process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise ValueError(answer["error"])
        return answer["value"]


def _gateway_of(subnet: str) -> str:
    return str(next(ipaddress.IPv4Network(subnet).hosts()))
