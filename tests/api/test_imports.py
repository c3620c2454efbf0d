"""What is loaded when: an import of the package brings only what every engine needs."""

from __future__ import annotations

import subprocess
import sys

import pytest

IMPORT = """
import sys
before = set(sys.modules)
import kkp2p_compat
print(*set(sys.modules) - before)
"""

# Not needed by everybody, or not at all; the largest first.
NOT_YET = {
    "scramp",
    "asn1crypto",
    "cryptography",
    "OpenSSL",
    "asyncio",
    "email",
    "http",
    "pathlib",
    "urllib.parse",
    "concurrent.futures",
    "netifaces",
    "miniupnpc",
    "argparse",
    "subprocess",
    "tempfile",
    "kkp2p_compat.cli",
    "kkp2p_compat.cloud",
    "kkp2p_compat.testing",
    "kkp2p_compat.tls",
    "kkp2p_compat.engine.switchboard",
    "kkp2p_compat.engine.calls",
    "kkp2p_compat.engine.proxy",
    "kkp2p_compat.engine.paths.searches",
    "kkp2p_compat.transport.udp.peer_connection",
    "kkp2p_compat.traversal.port_mapping",
}

ENGINE = """
import sys, tempfile
import kkp2p_compat as kkp2p

def started(folder, port):
    conf = kkp2p.engine_conf_t()
    conf.login_domain, conf.login_port, conf.log_path = "127.0.0.1", port, f"{folder}/log"
    engine = kkp2p.engine_init(conf, 1000)
    assert engine is not None
    return engine
"""

IDLE = f"""{ENGINE}
with tempfile.TemporaryDirectory() as folder:
    engine = started(folder, 1)
    engine.thread.call(engine.sweep)
    kkp2p.accept(engine, 0, kkp2p.channel_t())
    print(*sys.modules)
    kkp2p.engine_destroy(engine)
"""

JOIN = f"""
import _thread{ENGINE}
class Watcher:
    threads = {{}}

    def find_spec(self, name, path, target=None):
        self.threads.setdefault(name, _thread.get_ident())

sys.meta_path.insert(0, Watcher())
SLOW = "scramp", "cryptography", "kkp2p_compat.engine.switchboard"
with tempfile.TemporaryDirectory() as folder:
    engine = started(folder, 1)
    assert not Watcher.threads.keys() & set(SLOW)
    kkp2p.join_net(engine, "alice", "secret")
    assert {{Watcher.threads[name] for name in SLOW}} == {{_thread.get_ident()}}
    kkp2p.engine_destroy(engine)
"""

ALL_AT_ONCE = f"""{ENGINE}
from gevent import monkey, spawn, joinall
start_new_thread = monkey.get_original("_thread", "start_new_thread")
Lock = monkey.get_original("_thread", "allocate_lock")
with tempfile.TemporaryDirectory() as folder:
    engine = started(folder, 1)
    found, ends = [], [Lock() for _ in range(6)]

    def look(end):
        found.extend(greenlet.get() for greenlet in spawn_two())
        end.release()

    def spawn_two():
        greenlets = [spawn(lambda: engine.switchboard) for _ in range(2)]
        joinall(greenlets)
        return greenlets

    for end in ends:
        end.acquire()
        start_new_thread(look, (end,))
    found.extend(greenlet.get() for greenlet in spawn_two())
    for end in ends:
        end.acquire()
    assert len(found) == 14 and len(set(map(id, found))) == 1, found
    kkp2p.engine_destroy(engine)
"""
PATCH = "from gevent import monkey\nmonkey.patch_all()\n"


def _run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return done.stdout


def test_an_import_brings_only_what_every_engine_needs() -> None:
    loaded = set(_run(IMPORT).split())
    assert "kkp2p_compat.engine.engine" in loaded
    assert not {name for name in loaded for bad in NOT_YET if f"{name}.".startswith(f"{bad}.")}


def test_an_engine_that_nobody_calls_needs_no_more() -> None:
    loaded = set(_run(IDLE).split())
    assert "kkp2p_compat.engine.paths.underlay" in loaded
    calls = {name for name in NOT_YET if name.startswith(("kkp2p_compat.", "crypto", "scramp"))}
    assert not {name for name in loaded for bad in calls if f"{name}.".startswith(f"{bad}.")}


def test_who_logs_in_loads_what_that_takes_and_the_engine_does_not() -> None:
    """It takes long enough to be felt by the calls that an engine's thread serves meanwhile."""
    _run(JOIN)


@pytest.mark.parametrize("patch", ["", PATCH], ids=["plain", "patched"])
def test_threads_and_greenlets_that_join_at_once_load_it_once(patch: str) -> None:
    _run(patch + ALL_AT_ONCE)
