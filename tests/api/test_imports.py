"""What is loaded when: an import of the package brings only what every engine needs."""

from __future__ import annotations

import subprocess
import sys

IMPORT = """
import sys
before = set(sys.modules)
import kkp2p_compat
print(*set(sys.modules) - before)
"""

# Not needed by everybody, or not at all; the largest first.
NOT_YET = {
    "scramp", "asn1crypto", "cryptography.x509", "OpenSSL", "asyncio", "email", "http", "pathlib",
    "urllib.parse", "concurrent.futures", "netifaces", "argparse", "subprocess", "tempfile",
    "kkp2p_compat.cli", "kkp2p_compat.cloud", "kkp2p_compat.testing", "kkp2p_compat.tls",
}  # fmt: skip

JOIN = """
import _thread, sys, tempfile
import kkp2p_compat as kkp2p

class Watcher:
    threads = {}

    def find_spec(self, name, path, target=None):
        self.threads.setdefault(name.partition(".")[0], _thread.get_ident())

sys.meta_path.insert(0, Watcher())
with tempfile.TemporaryDirectory() as folder:
    conf = kkp2p.engine_conf_t()
    conf.login_domain, conf.login_port, conf.log_path = "127.0.0.1", 1, f"{folder}/log"
    engine = kkp2p.engine_init(conf, 1000)
    assert engine is not None
    assert "scramp" not in Watcher.threads
    kkp2p.join_net(engine, "alice", "secret")
    assert Watcher.threads["scramp"] == _thread.get_ident()
    kkp2p.engine_destroy(engine)
"""


def _run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return done.stdout


def test_an_import_brings_only_what_every_engine_needs() -> None:
    loaded = set(_run(IMPORT).split())
    assert "kkp2p_compat.engine.engine" in loaded
    assert not {name for name in loaded for bad in NOT_YET if f"{name}.".startswith(f"{bad}.")}


def test_who_logs_in_loads_what_that_takes_and_the_engine_does_not() -> None:
    """It takes long enough to be felt by the calls that an engine's thread serves meanwhile."""
    _run(JOIN)
