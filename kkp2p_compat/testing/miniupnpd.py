"""A router of the lab that maps ports when asked: miniupnpd, as many home routers run it.

It speaks PCP, NAT-PMP and UPnP-IGD.  The program must be one that works with nftables (Debian's
package miniupnpd-nftables).  It maps no port of a router whose outside address is of a private or a
documentation network, so the internet needs others: ``lab.internet(public=PUBLIC)``.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import gevent

from .hosts import PATIENCE_S
from .internet import KernelNat
from .programs import Run

__all__ = ["PUBLIC", "mappings", "start_miniupnpd"]

PUBLIC = ("11.0.0.0/24",)  # our choice: any that counts as public; nothing of a lab leaves it

# Chains that miniupnpd fills; the router's own table lets in what they translate.
NFT_RULES = """
table inet filter {
    chain miniupnpd { }
    chain prerouting_miniupnpd { }
    chain postrouting_miniupnpd { }
    chain prerouting {
        type nat hook prerouting priority dstnat; policy accept;
        jump prerouting_miniupnpd
    }
}
"""
CONFIGURATION = """\
ext_ifname=eth0
listening_ip=lan0
ipv6_disable=yes
enable_natpmp={pcp}
enable_upnp={upnp}
min_lifetime={min_lease_s}
max_lifetime=86400
secure_mode=yes
uuid=800176c1-9082-4455-bd04-44e9ead394d2
upnp_table_name=filter
upnp_nat_table_name=filter
allow 1024-65535 {network}.0/24 1024-65535
deny 0-65535 0.0.0.0/0 0-65535
"""


def start_miniupnpd(
    run: Run, router: KernelNat, *, pcp: bool = True, upnp: bool = True, min_lease_s: int = 120
) -> subprocess.Popen[str]:
    """``pcp``: both PCP and NAT-PMP.  ``min_lease_s``: a PCP lease is at least that long.

    Its log is the file miniupnpd.log in the router's folder.  It listens when this returns.
    """
    router.run("nft", "-f", "-", stdin=NFT_RULES)
    network = router.inner_address.rpartition(".")[0]
    yes = {True: "yes", False: "no"}
    text = CONFIGURATION.format(
        pcp=yes[pcp], upnp=yes[upnp], min_lease_s=min_lease_s, network=network
    )
    (router.folder / "miniupnpd.conf").write_text(text)
    log = router.folder / "miniupnpd.log"
    # A file, since nobody would empty a pipe.
    command = "exec miniupnpd -d -f miniupnpd.conf -P miniupnpd.pid > miniupnpd.log 2>&1"
    process = run(router, None, "-c", command, program="sh")
    _wait_for(log, process, "NAT-PMP/PCP traffic" if pcp else "HTTP listening")
    return process


def _wait_for(log: Path, process: subprocess.Popen[str], line: str) -> None:
    with gevent.Timeout(PATIENCE_S):
        while not log.exists() or line not in log.read_text():
            if process.poll() is not None:
                raise RuntimeError(f"miniupnpd ended: {log.read_text()}")
            gevent.sleep(0.01)


def mappings(router: KernelNat) -> list[tuple[int, str, int]]:
    """What the router's kernel forwards: (outside UDP port, inside address, inside port)."""
    rules = router.run("nft", "list", "chain", "inet", "filter", "prerouting_miniupnpd")
    found = re.findall(r"dport (\d+) .*dnat ip to ([0-9.]+):(\d+)", rules)
    return [(int(outside), ip, int(inside)) for outside, ip, inside in found]
