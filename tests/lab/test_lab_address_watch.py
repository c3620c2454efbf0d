"""What the kernel tells of a host's addresses and routes."""

from __future__ import annotations

from pathlib import Path

from kkp2p_compat.testing.hosts import ip
from kkp2p_compat.testing.lab import Lab
from kkp2p_compat.testing.programs import Run, output_of, wait_for

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
