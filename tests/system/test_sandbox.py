"""A cloud as its systemd unit runs it: another user, nothing to write to, no rights."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.cloud_client import Client
from helpers.support import ENVIRONMENT

ROOT = Path(__file__).parents[2]
NOBODY = "65534"

# In a mount namespace of its own: everything is read-only but the data folder.  What other tests
# have mounted in /run (network namespaces) goes away meanwhile.
SANDBOX = f"""
set -e
mount -t tmpfs -o uid={NOBODY},gid={NOBODY},mode=700 none "$1"
cut -d ' ' -f 2 /proc/self/mounts | sort -r | while read -r place; do
    case $(printf '%b' "$place") in
        "$1" | /proc* | /sys* | /dev* | /run/netns*) ;;
        *) mount -o remount,bind,ro "$(printf '%b' "$place")" ;;
    esac
done
shift
exec setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups --no-new-privs \\
    --inh-caps=-all --bounding-set=-all "$@"
"""


def may_be_read(folder: Path) -> bool:
    """By another user."""
    return all(each.stat().st_mode & 0o005 == 0o005 for each in (folder, *folder.parents))


@pytest.fixture
def data() -> Iterator[Path]:
    """A folder that another user reaches."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def test_a_cloud_needs_nothing_but_its_data_folder(data: Path) -> None:
    if os.getuid() or not may_be_read(ROOT) or not may_be_read(Path(sys.prefix)):
        pytest.skip("needs root, and a checkout that others may read")
    command = [
        sys.executable,
        "-m",
        "kkp2p_compat",
        "cloud",
        "--listen",
        "127.0.0.1:0",
        "--data",
        str(data),
        "--account",
        "peer:s",
        "--admin",
        "0",
    ]
    process = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", SANDBOX, "sh", str(data), *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=ENVIRONMENT | {"HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1"},
    )
    try:
        assert process.stdout is not None
        hello = process.stdout.readline() + process.stdout.readline()
        port = re.search(r"at 127\.0\.0\.1:(\d+)", hello)
        assert port is not None, process.communicate()
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert re.findall(r"^Cap\w+:\t(\w+)", status, re.MULTILINE) == ["0" * 16] * 5
        assert "NoNewPrivs:\t1" in status
        assert f"Uid:\t{NOBODY}\t{NOBODY}" in status
        kept = f"/proc/{process.pid}/root{data}"
        assert {"cloud.crt", "cloud.key", "accounts.db"} <= set(os.listdir(kept))
        with Client(("127.0.0.1", int(port[1]))) as peer:
            assert peer.login("peer", "s")["op"] == "welcome"
            assert peer.call("peer")["op"] == "calling"
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=60)
        assert process.returncode == 0, log
        assert "Error" not in log
        assert "Permission" not in log
    finally:
        process.kill()
        process.communicate()


def test_the_unit_asks_for_the_same() -> None:
    unit = (ROOT / "docs" / "operations" / "kkp2p-cloud.service").read_text()
    assert re.search(r"^ExecStart=/opt/kkp2p/bin/kkp2p cloud --config", unit, re.MULTILINE)
    for line in (
        "CapabilityBoundingSet=",
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "User=kkp2p",
        "StateDirectory=kkp2p",
    ):
        assert f"\n{line}\n" in unit
    assert shlex.split(re.findall("ExecReload=(.*)", unit)[0])[:2] == ["/bin/kill", "-HUP"]
