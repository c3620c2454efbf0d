"""What the lab's tests start on its hosts: our samples, and a cloud that knows one peer."""

from __future__ import annotations

from helpers.support import ROOT, SECRET
from kkp2p_compat.testing import programs
from kkp2p_compat.testing.lab import Host, Lab
from kkp2p_compat.testing.programs import Run

__all__ = ["PORT", "SAMPLES", "start_cloud"]

SAMPLES = ROOT / "samples"
PORT = programs.CLOUD_PORT


def start_cloud(lab: Lab, run: Run, *options: str, host: Host | None = None) -> Host:
    host = host or lab.host("cloud")
    programs.start_cloud(run, host, "--account", f"peer:{SECRET}", *options)
    return host
