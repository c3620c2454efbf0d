"""What one turn of each row measures: figures by name, of one of those who are compared.

Names that begin with ``NOTES`` say how far a turn can be trusted; there is no point in their ratio.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

from kkp2p_compat.testing.lab import Lab
from kkp2p_compat.testing.programs import runner

from .calls import MODES as CALL_MODES
from .calls import Crowd
from .p2p import FLOOR, KIB, OURS, PORT, Bench, Turn, both
from .relay import Program

Figures = dict[str, float]

MS, US = 1e3, 1e6
NOTES = ("disturbed", "emulator")


def transfer(bench: Bench, kind: str) -> Figures:
    """One channel, as fast as it goes."""
    return _of_transfer(bench.transfer(kind, bench.seconds))


def _of_transfer(turn: Turn) -> Figures:
    figures = {
        "one channel, MB/s": turn.mb_s,
        "CPU s/GB, sending": turn.cpu_s_per_gb[0],
        "CPU s/GB, receiving": turn.cpu_s_per_gb[1],
        "disturbed, %": turn.disturbed * 100,
    }
    if did := turn.emulator:
        figures |= {
            "emulator: % of a core": did["core"] * 100,
            "emulator: frames lost": did["lost"],
            "emulator: frames without room": did["overflowed"],
            "emulator: late on average, us": did["late_s"] * US,
            "emulator: late at worst, ms": did["worst_s"] * MS,
        }
    return figures


def trips(bench: Bench, kind: str) -> Figures:
    """One byte there and back, again and again, and what both processes spend on it."""
    count = bench.load.trips
    with bench.ends(kind) as (server, client):
        both(server, client, ("open", "open"), count=1)
        begin = client.cpu_s(), server.cpu_s()
        _, answer = both(server, client, ("echo", "trips"), count=count)
        cpu = client.cpu_s() - begin[0], server.cpu_s() - begin[1]
    return {
        "one byte there and back, p50 us": answer["p50_us"],
        "one byte there and back, p99 us": answer["p99_us"],
        "CPU us a trip, asking": cpu[0] / count * US,
        "CPU us a trip, answering": cpu[1] / count * US,
    }


def many(bench: Bench, kind: str) -> Figures:
    """Many channels at once, beside one."""
    turns = {
        count: bench.transfer(kind, bench.seconds, count) for count in (1, *bench.load.at_once)
    }
    figures = {"1 channel, MB/s": turns.pop(1).mb_s}
    for count, turn in turns.items():
        figures[f"{count} channels, MB/s"] = turn.mb_s
        figures[f"{count} channels, of one channel's MB/s"] = turn.mb_s / figures["1 channel, MB/s"]
        figures[f"{count} channels, the slowest of their mean"] = turn.smallest
    return figures


def new_channels(bench: Bench, kind: str) -> Figures:
    """Channels of a live connection, or TCP connections, beside one that stays."""
    count = bench.load.channels
    with bench.ends(kind) as (server, client):
        both(server, client, ("open", "open"), count=1)
        answers = both(server, client, ("accept_and_close", "connect_and_close"), count=count)
    return {"new channels a second": count / (answers[0]["last_s"] - answers[1]["first_s"])}


def memory(bench: Bench, kind: str) -> Figures:
    """Of idle channels: open some, look, open as many again, look at the difference."""
    with bench.ends(kind) as ends:
        called, calling = _growth(*ends, "open", bench.load.idle_channels)
    with bench.ends(kind) as ends:
        connection, _ = _growth(*ends, "open_new", bench.load.idle_connections)
    return {
        "KB per idle channel, calling": calling,
        "KB per idle channel, called": called,
        "KB per idle connection with a channel, called": connection,
    }


def _growth(server: Program, client: Program, opening: str, count: int) -> tuple[float, float]:
    both(server, client, ("open", opening), count=count)
    before = server.rss_kb(), client.rss_kb()
    both(server, client, ("open", opening), count=count)
    return (server.rss_kb() - before[0]) / count, (client.rss_kb() - before[1]) / count


def calls(bench: Bench, kind: str) -> Figures:
    """Calls one after the other, each by a new engine: how long, and the processor's share."""
    count = bench.load.calls
    with bench.ends(kind) as (server, client):
        both(server, client, ("answer_calls", "calls"), count=1)  # the first of all is slower
        (cloud,) = bench.others
        begin = server.cpu_s(), cloud.cpu_s()
        _, parts = both(server, client, ("answer_calls", "calls"), count=count)
        called, clouds = server.cpu_s() - begin[0], cloud.cpu_s() - begin[1]
    took = sorted(parts.pop("took"))
    cpu = {f"caller's {name}": sum(values) for name, values in parts.items()}
    cpu |= {"callee": called, "cloud": clouds}
    return {
        "connect, p50 ms": statistics.median(took) * MS,
        "connect, p95 ms": took[count * 95 // 100] * MS,
        "connect, slowest ms": took[-1] * MS,
        "CPU ms a call, all sides": sum(cpu.values()) / count * MS,
        **{f"CPU ms a call, {who}": cpu_s / count * MS for who, cpu_s in cpu.items()},
    }


def calls_at_once(bench: Bench, kind: str) -> Figures:
    """All engines of a crowd behind NATs at one moment, to one engine behind another NAT."""
    with (
        tempfile.TemporaryDirectory() as folder,
        runner() as run,
        closing(Lab(Path(folder))) as lab,
    ):

        def from_tree(host: Any, line: str | None, *command: str, program: str = "") -> Any:
            python = (f"PYTHONPATH={bench.tree}", sys.executable)
            return run(host, line, *python, *command, program="env")

        crowd = Crowd(lab, from_tree, *bench.load.crowd)
        crowd.start()
        before = crowd.cpu_s()
        answers = crowd.call(CALL_MODES["p2p"])
        cpu = {who: cpu_s - before[who] for who, cpu_s in crowd.cpu_s().items()}
    took = sorted(call["took_s"] for call in answers if call["result"] == 0)
    emulator = cpu.pop("lab")
    count = len(answers)
    return {
        "calls that failed": count - len(took),
        "connect, p50 ms": statistics.median(took) * MS,
        "connect, p95 ms": took[len(took) * 95 // 100] * MS,
        "CPU ms a call, all sides": sum(cpu.values()) / count * MS,
        **{f"CPU ms a call, {who}": cpu_s / count * MS for who, cpu_s in cpu.items()},
        "emulator: CPU ms a call": emulator / count * MS,
    }


def lan_search(bench: Bench, kind: str) -> Figures:
    """To find a peer on the cable, and a channel to it."""
    with bench.ends(kind) as (_, client):
        client.ask("search", count=bench.load.searches)
        answer = client.answer()
    return {
        f"LAN search, {name}, p50 ms": statistics.median(times) * MS
        for name, times in answer.items()
    }


START = """
import time
wall, cpu = time.perf_counter(), time.process_time()
{imports}
took = time.perf_counter() - wall, time.process_time() - cpu
{engine}
time.sleep(1)  # what an engine does at its start is over
import json, sys
print(json.dumps({{"wall": took[0], "cpu": took[1]}}), flush=True)
sys.stdin.read()
"""
STARTS = {
    OURS: (
        "import kkp2p_compat as kkp2p",
        "engine = kkp2p.engine_init(kkp2p.engine_conf_t({host!r}, {port}), 5000); assert engine",
    ),
    # What no engine of ours can do without.
    FLOOR: (
        "import ssl, threading, gevent.event, gevent.socket, gevent.ssl\n"
        "from cryptography.hazmat.primitives.ciphers.aead import AESGCM",
        "threading.Thread(target=lambda: gevent.event.Event().wait(9), daemon=True).start()",
    ),
}


def start(bench: Bench, kind: str) -> Figures:
    """A process that imports us and has one engine, which then has nothing to do."""
    imports, engine = STARTS[kind]
    engine = engine.format(host=bench.server.address, port=PORT)
    code = START.format(imports=imports, engine=engine)
    answers = []
    for _ in range(1 + bench.load.starts):
        with bench.started(bench.client, "-c", code) as program:
            answers.append({**program.answer(), "rss_mb": program.rss_kb() / KIB})
    del answers[0]  # it may have had to compile
    middle = {name: statistics.median(one[name] for one in answers) for name in answers[0]}
    return {
        "import, ms": middle["wall"] * MS,
        "import, CPU ms": middle["cpu"] * MS,
        "memory with one idle engine, MB": middle["rss_mb"],
    }
