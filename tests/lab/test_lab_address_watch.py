"""What the kernel tells of a host's addresses and routes."""

from __future__ import annotations

from pathlib import Path

from kkp2p_compat.testing.hosts import ip, ip_batch
from kkp2p_compat.testing.lab import Lab
from kkp2p_compat.testing.programs import Run, output_of, wait_for
from programs import start_cloud
from transfers import check_ends, start_pair

MANY_INTERFACES_BYTES = 64 << 20
PROGRAM = str(Path(__file__).with_name("watched.py"))


def test_addresses_routes_and_links_that_change(lab: Lab, run: Run) -> None:
    host = lab.host("host")
    watcher = run(host, rf"watching .*{host.address}", PROGRAM)

    def change(*command: str) -> None:
        ip("-n", host.namespace, *command)

    change("address", "add", "10.77.0.200/24", "dev", "eth0")
    wait_for(watcher, r"changed .*10\.77\.0\.200")
    change("route", "add", "default", "via", "10.77.0.254")
    wait_for(watcher, r"changed .*gateway='10\.77\.0\.254'")
    # Nothing that matters: no line.  What comes next is the next change's.
    change("route", "add", "10.99.0.0/24", "via", "10.77.0.254")
    change("address", "add", "2001:db8:77::5/64", "dev", "eth0", "nodad")
    wait_for(watcher, r"changed .*2001:db8:77::5")
    change("link", "set", "eth0", "down")
    wait_for(watcher, r"changed .*, \[\]\)")  # the routes go with it
    change("link", "set", "eth0", "up")
    change("route", "add", "default", "via", "10.77.0.253")
    wait_for(watcher, r"changed .*gateway='10\.77\.0\.253'")
    assert watcher.stdin is not None
    watcher.stdin.write("\n")
    watcher.stdin.flush()
    assert output_of(watcher).splitlines()[-1] == "closed"


def test_a_move_to_another_network(lab: Lab, run: Run) -> None:
    """As a phone from one Wi-Fi to the next: another address, another router."""
    net = lab.internet()
    first, second = net.nat("first"), net.nat("second")
    host = first.host("host")
    watcher = run(host, rf"watching .*{host.address}", PROGRAM)
    net.move(host, second)
    wait_for(watcher, rf"changed .*{host.address}.*gateway='192\.168\.2\.1'")
    watcher.terminate()


def test_a_transfer_on_a_host_of_many_interfaces(lab: Lab, run: Run) -> None:
    """While links come and go there, as on a host of containers."""
    cloud, one, two = start_cloud(lab, run), lab.host("receiver"), lab.host("sender")
    pairs = range(100)
    ip_batch(
        one.namespace,
        [f"link add v{n} type veth peer name w{n}" for n in pairs]
        + [f"address add 10.80.{n}.1/24 dev v{n}" for n in pairs]
        + [f"link set {side}{n} up" for n in pairs for side in "vw"],
    )
    receiver, sender = start_pair(run, cloud, one, two, MANY_INTERFACES_BYTES)
    for turn in range(20):
        ip("-n", one.namespace, "link", "set", "w1", "down" if turn % 2 == 0 else "up")
    assert check_ends(receiver, sender) == MANY_INTERFACES_BYTES
