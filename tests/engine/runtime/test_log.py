"""Where the log goes: the file and its .bak, levels, the callback; from any thread."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import gevent
import pytest

import kkp2p_compat as kkp2p
from helpers.line_server import wait_for
from helpers.support import ENVIRONMENT, PATIENCE_S, in_thread
from kkp2p_compat.engine.runtime import log as log_module
from kkp2p_compat.engine.runtime.log import LOG_FILE, EngineLog, PeerLog

Conf = Callable[..., kkp2p.engine_conf_t]
SAY = ("error", "warning", "info", "debug")  # the logging module's names of C's levels 1 to 4


@pytest.fixture(autouse=True)
def _defaults_afterwards() -> Iterator[None]:
    yield
    kkp2p.log_destroy()
    kkp2p.log_switch_level(2)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EngineLog]:
    log = EngineLog(str(tmp_path), 0)
    yield log
    log.close()


def text(folder: Path, name: str = LOG_FILE) -> str:
    return (folder / name).read_text(encoding="utf-8")


def say_all(log: EngineLog) -> None:
    for level in SAY:
        getattr(log, level)("a line of %s", level)


def said(found: str) -> list[str]:
    return re.findall(r"a line of (\w+)", found)


def test_lines_about_a_peer_name_it(log: EngineLog, tmp_path: Path) -> None:
    """Whatever it is called, and at the level that the engine's log has."""
    log.set_level(3)
    about = PeerLog(log, "100%s")
    about.info("nothing else")
    about.debug("not wanted")
    log.set_level(4)
    about.debug("%s and %d", "text", 7)
    lines = [line.split(" ", 3)[3] for line in text(tmp_path).splitlines()]
    assert lines == ["100%s: nothing else", "100%s: text and 7"]


def test_the_file_and_its_lines(log: EngineLog, tmp_path: Path) -> None:
    log.set_level(4)
    say_all(log)
    assert LOG_FILE == "kkp2p_engine.log"
    when = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}"
    lines = text(tmp_path).splitlines()
    for line, name, level in zip(lines, ("error", "normal", "info", "debug"), SAY, strict=True):
        assert re.fullmatch(f"{when} {name} a line of {level}", line)


@pytest.mark.parametrize("level", range(5))
@pytest.mark.parametrize("how", ["switch_log_level", "log_switch_level", "log_init"])
def test_levels(engine_conf: Conf, tmp_path: Path, level: int, how: str) -> None:
    engine = kkp2p.engine_init(engine_conf(), 0)
    assert engine is not None
    lines: list[str] = []
    if how == "switch_log_level":
        kkp2p.switch_log_level(engine, level)
    elif how == "log_switch_level":
        kkp2p.log_switch_level(level)
    else:
        assert kkp2p.log_init(lambda line, *_: lines.append(line), None, level) == 0
    say_all(engine.log)
    if how == "log_init":
        wait_for(lambda: len(lines) == level)
    found = "\n".join(lines) if lines else text(tmp_path)
    assert said(found) == list(SAY[:level])
    kkp2p.engine_destroy(engine)


def test_the_default_is_normal(log: EngineLog, tmp_path: Path) -> None:
    say_all(log)
    assert said(text(tmp_path)) == ["error", "warning"]


def test_an_engine_s_own_level_counts_more_than_the_process_s(tmp_path: Path) -> None:
    logs = [EngineLog(str(tmp_path / name), 0) for name in ("own", "process")]
    logs[0].set_level(1)
    kkp2p.log_switch_level(3)
    for log in logs:
        say_all(log)
        log.close()
    assert said(text(tmp_path / "own")) == ["error"]
    assert said(text(tmp_path / "process")) == ["error", "warning", "info"]


def test_rotation_past_the_limit_and_not_before(tmp_path: Path) -> None:
    limit = 1000
    log = EngineLog(str(tmp_path), limit)
    count = 0
    while not (tmp_path / "kkp2p_engine.log.bak").exists():
        size = os.path.getsize(tmp_path / LOG_FILE)
        log.error("line %04d", count)
        count += 1
    line = len(text(tmp_path))
    assert size <= limit < size + 2 * line
    assert len(text(tmp_path, "kkp2p_engine.log.bak")) == size
    for _ in range(200):
        log.error("line %04d", count)
        count += 1
    log.close()
    assert sorted(os.listdir(tmp_path)) == [LOG_FILE, "kkp2p_engine.log.bak"]
    assert os.path.getsize(tmp_path / LOG_FILE) <= limit
    numbers = re.findall(r"line (\d+)", text(tmp_path, "kkp2p_engine.log.bak") + text(tmp_path))
    assert [int(number) for number in numbers] == list(range(count))[-len(numbers) :]


def test_without_a_limit_ten_mebibytes() -> None:
    assert log_module.DEFAULT_MAX_BYTES == 10 * 1024 * 1024


def test_engines_that_share_a_file_do_not_lose_it_to_each_other(tmp_path: Path) -> None:
    logs = [EngineLog(str(tmp_path), 2000) for _ in range(3)]
    for number in range(90):
        logs[number % 3].error("line %04d", number)
    for log in logs:
        log.close()
    kept = text(tmp_path, "kkp2p_engine.log.bak") + text(tmp_path)
    numbers = [int(number) for number in re.findall(r"line (\d+)", kept)]
    assert numbers == list(range(90))[-len(numbers) :]
    assert len(numbers) > 50


def test_an_existing_file_is_continued(tmp_path: Path) -> None:
    for _ in range(2):
        log = EngineLog(str(tmp_path), 0)
        log.error("a line of %s", "error")
        log.close()
    assert said(text(tmp_path)) == ["error"] * 2


def test_nothing_is_written_or_opened_after_the_end(log: EngineLog, tmp_path: Path) -> None:
    log.close()
    before = os.listdir("/proc/self/fd")
    log.error("too late")
    assert len(os.listdir("/proc/self/fd")) == len(before)
    assert text(tmp_path) == ""


@pytest.mark.parametrize(
    "told", ["two\nlines", "cr\r", "\x1b[2J", "\u2028", "\ud800", "\x9b1m", "\0", "\x7f"], ids=repr
)
def test_what_strangers_say_stays_on_its_line(log: EngineLog, tmp_path: Path, told: str) -> None:
    log.error("%s", told)
    written = text(tmp_path)
    assert written.endswith("\n")
    assert written[:-1].isprintable()
    assert repr(told)[1:-1] in written


def test_many_threads_and_greenlets(log: EngineLog, tmp_path: Path) -> None:
    def write(name: str) -> None:
        for number in range(100):
            log.error("from %s %d", name, number)

    native = [gevent.spawn(in_thread, lambda name=f"native{i}": write(name)) for i in range(4)]
    gevent.joinall(
        [*native, *(gevent.spawn(write, f"green{i}") for i in range(4))], raise_error=True
    )
    lines = text(tmp_path).splitlines()
    assert len(lines) == 800
    for name in (f"{kind}{i}" for kind in ("native", "green") for i in range(4)):
        mine = [line for line in lines if f"from {name} " in line]
        assert [int(line.rsplit(" ", 1)[1]) for line in mine] == list(range(100))


# The callback.


def test_the_callback_gets_all_and_the_file_nothing(engine_conf: Conf, tmp_path: Path) -> None:
    got: list[tuple[str, int, object]] = []
    param = object()
    assert kkp2p.log_init(lambda *args: got.append(args), param, 4) == 0
    engine = kkp2p.engine_init(engine_conf(), 0)
    assert engine is not None
    engine.log.info("a line of %s", "\u00e9\u00e8")
    assert kkp2p.join_lan(engine, "") == -110
    assert kkp2p.accept(None, 0, None) == -106  # type: ignore[arg-type]
    kkp2p.engine_destroy(engine)
    assert not (tmp_path / LOG_FILE).exists()
    wait_for(lambda: bool(got) and "destroyed" in got[-1][0])
    assert all(length == len(line.encode()) and given is param for line, length, given in got)
    everything = "\n".join(line for line, *_ in got)
    for part in ("engine started", "\u00e9\u00e8", "join_lan", "accept"):
        assert part in everything


def test_log_destroy_goes_back_to_the_file(engine_conf: Conf, tmp_path: Path) -> None:
    lines: list[str] = []
    kkp2p.log_init(lambda line, *_: lines.append(line), None, 2)
    engine = kkp2p.engine_init(engine_conf(), 0)
    assert engine is not None
    kkp2p.log_destroy()
    kkp2p.log_destroy()
    engine.log.error("to the file")
    assert "to the file" in text(tmp_path)
    kkp2p.engine_destroy(engine)
    wait_for(lambda: lines)
    assert "to the file" not in "".join(lines)


@pytest.mark.parametrize("run", [lambda function: function(), in_thread], ids=["green", "native"])
def test_log_destroy_waits_for_the_last_lines(
    log: EngineLog, run: Callable[[Callable[[], object]], object]
) -> None:
    """Afterwards the program may close what its callback writes to."""
    begun, go, lines = threading.Event(), threading.Event(), []

    def write(line: str, *_: object) -> None:
        begun.set()
        go.wait(PATIENCE_S)
        lines.append(line)

    kkp2p.log_init(write, None, 2)
    for number in range(3):
        log.error("line %d", number)
    wait_for(begun.is_set)
    ending = gevent.spawn(run, kkp2p.log_destroy)
    wait_for(lambda: not log_module._process.has_callback)
    assert not ending.ready()
    go.set()
    ending.get()
    assert len(lines) == 3


def test_log_destroy_does_not_wait_for_a_callback_that_hangs_or_calls_it(
    log: EngineLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_module, "FLUSH_S", 0)
    go = threading.Event()
    kkp2p.log_init(lambda *_: go.wait(PATIENCE_S), None, 2)
    log.error("a line")
    kkp2p.log_destroy()
    go.set()
    monkeypatch.setattr(log_module, "FLUSH_S", 10 * PATIENCE_S)
    ended = threading.Event()
    kkp2p.log_init(lambda *_: (kkp2p.log_destroy(), ended.set()), None, 2)
    log.error("a line")
    wait_for(ended.is_set)


FORKED = """
import os, sys, threading
import kkp2p_compat as kkp2p
from kkp2p_compat.engine.runtime import log as log_module

def write(line, *_):
    os.write(1, f"{who}: {line.rpartition('error ')[2]}\\n".encode())

who, log = "parent", log_module.EngineLog(sys.argv[1], 0)
kkp2p.log_init(write, None, 2)
log.error("before")
held, go = threading.Event(), threading.Event()

def hold():
    with log_module._process._lock, log_module._process._sink[0]._lock:
        held.set()
        go.wait()

holder = threading.Thread(target=hold)
holder.start()
held.wait()
child = os.fork()
if child:
    go.set()
    holder.join()
    assert os.waitpid(child, 0)[1] == 0
else:
    who, log = "child", log_module.EngineLog(sys.argv[1], 0)
log.error("after")
kkp2p.log_destroy()
os._exit(0)
"""


def test_a_forked_child_has_the_callback_too(tmp_path: Path) -> None:
    """But neither its thread, nor lines of the parent; and a lock may have been locked."""
    done = subprocess.run(
        [sys.executable, "-c", FORKED, str(tmp_path)],
        check=True,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
        timeout=3 * PATIENCE_S,
    )
    assert sorted(done.stdout.splitlines()) == ["child: after", "parent: after", "parent: before"]


def test_a_second_log_init_takes_over(log: EngineLog) -> None:
    first: list[tuple[str, object]] = []
    second: list[tuple[str, object]] = []
    kkp2p.log_init(lambda line, _, param: first.append((line, param)), 1, 2)
    log.error("to the first")
    kkp2p.log_init(lambda line, _, param: second.append((line, param)), 2, 2)
    log.error("to the second")
    wait_for(lambda: first and second)
    assert [param for _, param in first + second] == [1, 2]
    assert "to the first" in first[0][0]


def test_switching_under_fire_loses_and_mixes_nothing(log: EngineLog, tmp_path: Path) -> None:
    got: list[tuple[str, int, object]] = []
    stop = threading.Event()

    def switch() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            kkp2p.log_init(lambda *args, n=number: got.append((args[0], n, args[2])), number, 2)
            kkp2p.log_destroy()

    switching = gevent.spawn(in_thread, switch)

    def write(name: int) -> None:
        for number in range(300):
            log.error("line %d-%d.", name, number)

    gevent.joinall([gevent.spawn(in_thread, lambda i=i: write(i)) for i in range(3)])
    stop.set()
    switching.get()

    def everything() -> str:
        return text(tmp_path) + "".join(line for line, *_ in got)

    wait_for(lambda: len(re.findall(r"line \d-\d+\.", everything())) >= 900)
    found = re.findall(r"line (\d-\d+)\.", everything())
    assert sorted(found) == sorted(f"{i}-{n}" for i in range(3) for n in range(300))
    assert all(number == param for _, number, param in got)


def test_a_callback_may_log_and_call_the_api(log: EngineLog) -> None:
    lines: list[str] = []

    def callback(line: str, *_: object) -> None:
        lines.append(line)
        if len(lines) == 1:
            log.error("from the callback")
            assert kkp2p.join_lan(None, "x") == -106  # type: ignore[arg-type]

    kkp2p.log_init(callback, None, 1)
    log.error("first")
    wait_for(lambda: len(lines) == 3)


def test_a_callback_that_hangs_holds_nobody_up(
    log: EngineLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kkp2p_compat.engine.runtime.callbacks.MAX_WAITING", 10)
    begun, go = threading.Event(), threading.Event()

    def hang(*_: object) -> None:
        begun.set()
        go.wait(PATIENCE_S)

    kkp2p.log_init(hang, None, 2)
    log.error("line 0")
    wait_for(begun.is_set)  # from now on nothing is taken from those that wait
    for number in range(1, 50):
        log.error("line %d", number)
    assert "line 49" in text(tmp_path), "what the callback cannot take goes to the file"
    go.set()


def test_the_working_folder_is_the_default(
    engine_conf: Conf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    engine = kkp2p.engine_init(engine_conf(log_path=None), 0)
    kkp2p.engine_destroy(engine)
    assert "engine destroyed" in text(tmp_path)


PATCHED = """
from gevent import monkey; monkey.patch_all()
import sys, gevent, threading
from kkp2p_compat.engine.runtime.log import EngineLog
log = EngineLog(sys.argv[1], 0)
start = monkey.get_original("_thread", "start_new_thread")
def write():
    for _ in range(500): log.error("a line of error")
for _ in range(4): start(write, ())
gevent.joinall([gevent.spawn(write) for _ in range(4)], raise_error=True)
while open(sys.argv[1] + "/kkp2p_engine.log").read().count("\\n") < 4000: gevent.sleep(0.01)
log.close()
"""


def test_native_threads_under_monkey_patching(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-c", PATCHED, str(tmp_path)],
        check=True,
        env=ENVIRONMENT,
        timeout=3 * PATIENCE_S,
    )
    assert set(map(len, text(tmp_path).splitlines())) == {45}
