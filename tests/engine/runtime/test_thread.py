"""The engine thread and its door: every kind of caller, interruption, the end, a fork."""

from __future__ import annotations

import ctypes
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import monkey
from gevent.event import Event

import kkp2p_compat as kkp2p
from helpers.direct_support import close, ctx_to, log_of
from helpers.support import ENVIRONMENT, PATIENCE_S, in_thread
from kkp2p_compat._errors import EngineClosed, KKP2PError, TimedOut
from kkp2p_compat.engine import switchboard
from kkp2p_compat.engine.runtime import thread as thread_module
from kkp2p_compat.engine.runtime.thread import EngineThread

start_thread = monkey.get_original("_thread", "start_new_thread")
Conf = Callable[..., kkp2p.engine_conf_t]


@pytest.fixture
def log() -> logging.Logger:
    return logging.getLogger("test")


@pytest.fixture
def thread(log: logging.Logger) -> Iterator[EngineThread]:
    thread = EngineThread(log)
    thread.start()
    yield thread
    thread.stop()


def greenlet(function: Callable[[], Any]) -> Any:
    return gevent.spawn(function).get()


def fail(error: BaseException) -> None:
    raise error


@pytest.fixture(params=[greenlet, in_thread], ids=["greenlet", "native"])
def run(request: pytest.FixtureRequest) -> Callable[[Callable[[], Any]], Any]:
    return request.param  # type: ignore[no-any-return]


def test_a_result(thread: EngineThread, run: Callable[..., Any]) -> None:
    assert run(lambda: thread.call(divmod, 7, 2)) == (3, 1)
    engine_s = run(lambda: thread.call(thread_module.gevent.get_hub))
    assert engine_s is not gevent.get_hub()


def test_errors(
    thread: EngineThread, run: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(TimedOut, match="ours"):
        run(lambda: thread.call(fail, TimedOut("ours")))
    assert not caplog.records
    with pytest.raises(KKP2PError, match="a bug") as caught:
        run(lambda: thread.call(fail, ValueError("a bug")))
    assert caught.value.code == -105
    assert "bug in" in caplog.text


def test_a_wait_in_the_engine_keeps_nobody_else_waiting(thread: EngineThread) -> None:
    waiting = [gevent.spawn(thread.call, gevent.sleep, 0.02) for _ in range(5)]
    assert thread.call(int) == 0
    gevent.joinall(waiting, raise_error=True)


def test_many_callers_at_once(thread: EngineThread) -> None:
    results: list[int] = []

    def native() -> None:
        for number in range(200):
            results.append(thread.call(abs, -number))

    jobs = [gevent.spawn(in_thread, native) for _ in range(4)]
    jobs += [gevent.spawn(native) for _ in range(4)]
    gevent.joinall(jobs, raise_error=True)
    assert sorted(results) == sorted(list(range(200)) * 8)


def test_posted_commands_run_in_order_and_a_failing_one_stops_none(
    thread: EngineThread, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[int] = []
    for number in range(100):
        assert thread.post(lambda number=number: seen.append(number))
        assert thread.post(lambda: fail(ValueError("a bug")))
    thread.call(int)
    assert seen == list(range(100))
    assert "a bug" in caplog.text


def test_a_full_door(thread: EngineThread, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread_module, "MAX_COMMANDS", 3)
    stuck, go = threading.Event(), threading.Event()
    thread.post(lambda: (stuck.set(), go.wait(PATIENCE_S)))
    assert in_thread(lambda: stuck.wait(PATIENCE_S))
    assert [thread.post(int) for _ in range(4)] == [True, True, True, False]
    with pytest.raises(EngineClosed):
        thread.call(int)
    stopping = gevent.spawn(thread.stop)
    gevent.sleep(0)  # by now it waits
    go.set()
    stopping.get()


class Work:
    """A function of the engine whose stages the test watches."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.ends: list[str] = []

    def run(self) -> str:
        self.begun.set()
        try:
            gevent.sleep(PATIENCE_S)
        except gevent.GreenletExit:
            self.ends.append("killed")
            raise
        return "result"


def wait_for(condition: Callable[[], object]) -> None:
    while not condition():
        gevent.sleep(0.001)  # bounded by the test's own time limit


def test_the_caller_s_own_time_out_passes_and_cancels(thread: EngineThread) -> None:
    work = Work()
    with pytest.raises(gevent.Timeout) as caught, gevent.Timeout(0.02) as mine:
        thread.call(work.run)
    assert caught.value is mine
    wait_for(lambda: work.ends == ["killed"])


def test_a_caller_that_is_killed_cancels(thread: EngineThread) -> None:
    work = Work()
    caller = gevent.spawn(thread.call, work.run)
    wait_for(work.begun.is_set)
    caller.kill()
    wait_for(lambda: work.ends == ["killed"])


def test_a_result_that_nobody_takes_is_discarded(thread: EngineThread) -> None:
    """Whether the greenlet has ended, is just about to, or ends in spite of the kill."""
    discarded: list[str] = []
    begun = threading.Event()

    def stubborn() -> str:
        begun.set()
        try:
            gevent.sleep(PATIENCE_S)
        except gevent.GreenletExit:
            return "made"
        return "not interrupted"

    caller = gevent.spawn(lambda: thread.call(stubborn, discard=discarded.append))
    wait_for(begun.is_set)
    caller.kill()
    wait_for(lambda: discarded == ["made"])


def test_no_result_is_taken_and_discarded_both_or_neither(thread: EngineThread) -> None:
    made: list[int] = []
    taken: list[int] = []
    discarded: list[int] = []

    def make() -> int:
        gevent.sleep(0)
        made.append(len(made))
        return made[-1]

    def call(after: float) -> None:
        with gevent.Timeout(after, False):
            taken.append(thread.call(make, discard=discarded.append))

    gevent.joinall([gevent.spawn(call, i * 2e-5) for i in range(300)], raise_error=True)
    wait_for(lambda: len(taken) + len(discarded) >= len(made))
    assert sorted(taken + discarded) == made


def test_stop_ends_calls_under_way(log: logging.Logger) -> None:
    thread, works = EngineThread(log), [Work() for _ in range(6)]
    thread.start()
    calls = [gevent.spawn(thread.call, work.run) for work in works[:3]]
    calls += [gevent.spawn(in_thread, lambda w=work: thread.call(w.run)) for work in works[3:]]
    for work in works:
        wait_for(work.begun.is_set)
    thread.stop()
    for call in calls:
        with pytest.raises(EngineClosed):
            call.get()
    assert all(work.ends == ["killed"] for work in works)
    with pytest.raises(EngineClosed):
        thread.call(int)
    assert thread.post(int) is False
    assert not thread.usable


def test_stop_from_many_threads_at_once_and_again(log: logging.Logger) -> None:
    thread = EngineThread(log)
    thread.start()
    stops = [gevent.spawn(thread.stop) for _ in range(4)]
    stops += [gevent.spawn(in_thread, thread.stop) for _ in range(4)]
    gevent.joinall(stops, raise_error=True)
    thread.stop()


@pytest.mark.parametrize("count", [1, 2])
def test_the_end_is_whole_and_hurried_only_for_who_is_interrupted(
    log: logging.Logger, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """However many commands wait."""
    begun, ends = threading.Event(), []

    def at_end(hurry: Event) -> None:
        begun.set()
        ends.append(hurry.wait(PATIENCE_S))
        gevent.sleep(0)  # nor does the interruption reach this
        ends.append(thread.usable)

    thread = EngineThread(log, at_end)
    thread.start()
    monkeypatch.setattr(thread_module, "MAX_COMMANDS", 0)
    stops = [gevent.spawn(thread.stop) for _ in range(count)]
    wait_for(begun.is_set)
    assert not any(stop.ready() for stop in stops)
    assert ends == []
    stops[0].kill()
    gevent.joinall(stops, raise_error=True)
    assert ends == [True, True]
    assert not thread.usable


def test_a_bug_at_the_end_does_not_keep_the_thread(
    log: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    thread = EngineThread(log, lambda _: fail(ValueError("a bug")))
    thread.start()
    thread.stop()
    assert not thread.usable
    assert "a bug" in caplog.text


def test_stop_before_start(log: logging.Logger) -> None:
    thread = EngineThread(log)
    thread.stop()
    assert not thread.usable


def test_a_cpu_bound_program_does_not_stall_the_engine(thread: EngineThread) -> None:
    ticks: list[float] = []

    def tick() -> None:
        while True:
            gevent.sleep(0.002)
            ticks.append(time.monotonic())

    thread.post(lambda: thread.spawn(tick))
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        pass  # never lets our own hub run
    before = [at for at in ticks if at < end]
    assert len(before) >= 10


def test_a_greenlet_s_bug_is_logged_and_not_printed(
    thread: EngineThread, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    thread.post(lambda: thread.spawn(fail, ValueError("a bug")))
    wait_for(lambda: "a bug" in caplog.text)
    assert capfd.readouterr().err == ""


def test_out_of_descriptors(engine_conf: Conf) -> None:
    """engine_init fails with a code at each of the descriptors that it needs, and leaves none."""
    engine = kkp2p.engine_init(engine_conf(), 0)  # what is imported late is imported now
    kkp2p.engine_destroy(engine)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    codes = []
    for spare in range(30):
        used = len(os.listdir("/proc/self/fd")) - 1
        lowest = max(int(number) for number in os.listdir("/proc/self/fd")) + 1
        hole = [os.open("/dev/null", os.O_RDONLY) for _ in range(lowest - used)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + spare, hard))
        try:
            engine = kkp2p.engine_init(engine_conf(), 0)
            codes.append(kkp2p.error_no())
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for fd in hole:
                os.close(fd)
        if engine is not None:
            kkp2p.engine_destroy(engine)
            break
    assert codes[-1] == 0
    assert set(codes[:-1]) == {kkp2p.KKP2P_ERROR_SOCKET_FD_OVERFLOW}


def test_no_thread_to_be_had(engine_conf: Conf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        thread_module, "native_thread", lambda _: fail(RuntimeError("can't start new thread"))
    )
    assert kkp2p.engine_init(engine_conf(), 0) is None
    assert kkp2p.error_no() == kkp2p.KKP2P_ERROR_START_THREAD_POOL


# Engines.


def test_several_engines(engine_conf: Conf) -> None:
    engines = [kkp2p.engine_init(engine_conf(), 0) for _ in range(5)]
    fds = {kkp2p.listen_fd(engine) for engine in engines}
    assert len(fds) == 5
    accepts = [gevent.spawn(kkp2p.accept, e, 50, kkp2p.channel_t()) for e in engines]
    assert [accept.get() for accept in accepts] == [0] * 5
    for engine in engines:
        kkp2p.engine_destroy(engine)
        assert kkp2p.accept(engine, 0, kkp2p.channel_t()) == -1


def test_destroy_from_many_threads_at_once(engine_conf: Conf) -> None:
    for _ in range(5):
        engine = kkp2p.engine_init(engine_conf(), 0)
        ends = [gevent.spawn(kkp2p.engine_destroy, engine) for _ in range(3)]
        ends += [
            gevent.spawn(in_thread, lambda e=engine: kkp2p.engine_destroy(e)) for _ in range(3)
        ]
        gevent.joinall(ends, raise_error=True)


def test_calls_end_with_the_engine(on_loopback: None, lan_port: int, engine_conf: Conf) -> None:
    engine = kkp2p.engine_init(engine_conf(lan_search_port=lan_port), 0)
    ctx = kkp2p.connect_ctx_t("nobody", timeout=PATIENCE_S * 1000)
    accepting = gevent.spawn(kkp2p.accept, engine, PATIENCE_S * 1000, kkp2p.channel_t())
    connecting = gevent.spawn(in_thread, lambda: kkp2p.connect(engine, ctx, kkp2p.channel_t()))
    results: list[int] = []
    later = kkp2p.connect_ctx_t(
        "nobody", timeout=PATIENCE_S * 1000, func=lambda code, *_: results.append(code)
    )
    assert in_thread(lambda: kkp2p.connect(engine, later, None)) == 0
    assert kkp2p.connect(engine, later, None) == 0
    gevent.sleep(0.02)
    kkp2p.engine_destroy(engine)
    assert accepting.get() == -1
    assert connecting.get() == -1
    wait_for(lambda: results == [-1, -1])


def run_program(program: str, *options: str) -> str:
    done = subprocess.run(
        [sys.executable, *options, "-c", program],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=3 * PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


USE = """
import os, sys, tempfile
os.chdir(tempfile.mkdtemp())
import threading, time
import kkp2p_compat as kkp2p

def use(engine):
    assert kkp2p.accept(engine, 0, kkp2p.channel_t()) == 0
    assert kkp2p.accept(engine, 20, kkp2p.channel_t()) == 0
    ctx = kkp2p.connect_ctx_t("nobody", timeout=20)
    assert kkp2p.connect(engine, ctx, kkp2p.channel_t()) == -109
    done = threading.Event()
    ctx.func = lambda code, channel, param: (time.sleep(0.01), param.append(code), done.set())
    ctx.func_param = codes = []
    assert kkp2p.connect(engine, ctx, None) == 0
    assert done.wait(20) and codes == [-1]

def main():
    engines = [kkp2p.engine_init(kkp2p.engine_conf_t(lan_search_port=3549), 0) for _ in range(2)]
    threads = [threading.Thread(target=use, args=(e,)) for e in engines for _ in range(3)]
    for thread in threads: thread.start()
    use(engines[0])
    for thread in threads: thread.join()
    lines = []
    kkp2p.log_init(lambda text, length, param: lines.append(text), None, 4)
    kkp2p.engine_destroy(engines[0])
    assert kkp2p.accept(engines[0], 0, kkp2p.channel_t()) == -1
    kkp2p.log_destroy()
    return engines[1]
"""


HUB = """
import gevent

def wait(done):  # a native wait would keep the thread's greenlets from running
    while not done.is_set(): gevent.sleep(0.01)
    return True

gevent.spawn(main).get()
"""


@pytest.mark.parametrize("style", ["plain", "patched", "patched late", "hub"])
def test_styles_of_programs(style: str) -> None:
    """The second engine is left to atexit.  Nothing is printed, whatever the style."""
    patch = "from gevent import monkey; monkey.patch_all()\n"
    program = {
        "plain": USE + "main()",
        "patched": patch + USE + "main()",
        "patched late": "import threading, queue, socket, logging\n" + patch + USE + "main()",
        "hub": USE.replace("done.wait(20)", "wait(done)") + HUB,
    }[style]
    run_program(program, "-W", "error")


def test_a_signal_interrupts_a_native_wait() -> None:
    program = (
        USE
        + """
import signal
class Stop(Exception): pass
due = []
def stop(*_):
    if due:
        due.pop()
        raise Stop
signal.signal(signal.SIGUSR1, stop)
main_thread = threading.get_ident()
def interrupt():
    while due:  # Python does not notice a signal that comes just before the wait begins
        if sys._current_frames()[main_thread].f_code.co_filename.endswith("_io.py"):
            os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(0.02)
engine = kkp2p.engine_init(kkp2p.engine_conf_t(lan_search_port=3549), 0)
ctx = kkp2p.connect_ctx_t("nobody", timeout=60000)
for call in (lambda: kkp2p.accept(engine, 60000, kkp2p.channel_t()),
             lambda: kkp2p.connect(engine, ctx, kkp2p.channel_t())):
    due.append(True)
    threading.Thread(target=interrupt).start()
    print(call(), kkp2p.error_no())
"""
    )
    # An Exception of the application's own is turned into a code; what is not one, passes.
    assert (
        run_program(
            program.replace("(Exception)", "(BaseException)").replace(
                "print(call(), kkp2p.error_no())",
                "\n    try: call()\n    except Stop: print('stopped')",
            )
        )
        == "stopped\nstopped\n"
    )


FORK = """
engine = main()
kkp2p.log_init(lambda *_: None, None, 4)
pid = os.fork()
if pid == 0:
    channel, ctx = kkp2p.channel_t(), kkp2p.connect_ctx_t("nobody", timeout=20)
    results = [
        kkp2p.accept(engine, 0, channel), kkp2p.accept(engine, 60000, channel),
        kkp2p.connect(engine, ctx, channel), kkp2p.lan_search(engine, ctx, channel),
        kkp2p.listen_fd(engine), kkp2p.join_net(engine, "me", "secret"),
        kkp2p.join_lan(engine, "me"), kkp2p.get_domainip(engine, []),
        kkp2p.start_proxy(engine, "127.0.0.1", 0, ctx, channel),
        kkp2p.stop_proxy(engine, 1), kkp2p.close_channel(engine, 1),
        kkp2p.switch_log_level(engine, 1), kkp2p.proxy_address(engine, 1),
        kkp2p.engine_destroy(engine),
    ]
    expected = [-1] * 9 + [None] * 5
    if results != expected:
        print(results)
    sys.stdout.flush()
    os._exit(results != expected)
assert os.waitpid(pid, 0)[1] == 0
use(engine)
"""


@pytest.mark.parametrize("patched", [False, True], ids=["plain", "patched"])
def test_in_a_forked_child_every_call_fails_and_the_parent_goes_on(patched: bool) -> None:
    # gevent's fork begins to listen for SIGCHLD only after the fork: a child that has ended by then
    # is waited for without end.
    patch = """
from gevent import get_hub, monkey
monkey.patch_all()
get_hub().loop.install_sigchld()
"""
    run_program(patch * patched + USE + FORK)


def test_a_child_that_exits_in_order_leaves_the_parent_s_engine_alone() -> None:
    run_program(
        USE
        + """
engine = main()
pid = os.fork()
if pid:
    assert os.waitpid(pid, 0)[1] == 0
    use(engine)
"""
    )


def test_sigterm_s_default_ends_a_program_at_once() -> None:
    program = (
        USE
        + """
engine = main()
print("ready", flush=True)
kkp2p.accept(engine, 60000, kkp2p.channel_t())
"""
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], env=ENVIRONMENT, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == -signal.SIGTERM


def full_channel(
    engine: kkp2p.engine_t, peer: kkp2p.engine_t
) -> tuple[kkp2p.channel_t, kkp2p.channel_t, int]:
    """Both ends of a channel on which the peer reads nothing, and how much was written."""
    ours, theirs = kkp2p.channel_t(), kkp2p.channel_t()
    ctx = kkp2p.connect_ctx_t("peer", 0, 1, 0, 1000 * PATIENCE_S)
    assert kkp2p.connect(engine, ctx, ours) == 0
    assert kkp2p.accept(peer, 1000 * PATIENCE_S, theirs) == 1
    sent = 0
    while (count := kkp2p.write(ours.fd, bytes(65536), 65536, 500)) > 0:
        sent += count
    return ours, theirs, sent


@pytest.mark.parametrize("moment", ["at once", "while it waits for a peer"])
def test_destroy_that_is_interrupted_ends_the_whole_engine_all_the_same(
    on_loopback: None,
    make_engine: Callable[..., kkp2p.engine_t],
    peer: kkp2p.engine_t,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    monkeypatch.setattr(switchboard, "CLOSE_S", 10 * PATIENCE_S)
    engine, proxy_id = make_engine(), ctypes.c_uint32()
    ours, theirs, _ = full_channel(engine, peer)
    assert kkp2p.start_proxy(engine, "127.0.0.1", 0, ctx_to("peer"), proxy_id) == 0
    address = kkp2p.proxy_address(engine, proxy_id)
    assert address is not None
    if moment == "at once":
        with pytest.raises(gevent.Timeout), gevent.Timeout(0):
            kkp2p.engine_destroy(engine)
    else:
        accepting = gevent.spawn(kkp2p.accept, engine, PATIENCE_S * 1000, kkp2p.channel_t())
        ending = gevent.spawn(kkp2p.engine_destroy, engine)
        assert accepting.get() == -1  # the end has come so far
        ending.kill()
    assert kkp2p.listen_fd(engine) == -1
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
    buff = bytearray(1 << 20)
    assert kkp2p.read(ours.fd, buff, len(buff), PATIENCE_S * 1000) == -1
    while kkp2p.read(theirs.fd, buff, len(buff), PATIENCE_S * 1000) > 0:
        pass
    assert kkp2p.error_no() == kkp2p.KKP2P_ERROR_CONN_DISCONNECT, kkp2p.error_text()
    assert "engine destroyed" in log_of(tmp_path, 1)
    close(ours, theirs)


def test_calls_under_way_end_while_the_end_waits_for_a_peer(
    on_loopback: None,
    make_engine: Callable[..., kkp2p.engine_t],
    peer: kkp2p.engine_t,
    lan_port: int,
    monkeypatch: pytest.MonkeyPatch,
    run: Callable[[Callable[[], Any]], Any],
) -> None:
    """A peer that does not read may take the whole time that written data has; they need not."""
    monkeypatch.setattr(switchboard, "CLOSE_S", 10 * PATIENCE_S)
    engine = make_engine(lan_search_port=lan_port)
    ours, theirs, sent = full_channel(engine, peer)
    codes: list[int] = []
    ctx = kkp2p.connect_ctx_t("nobody", 0, 1, 0, 100_000)
    searching = gevent.spawn(
        lambda: codes.append(run(lambda: kkp2p.lan_search(engine, ctx, kkp2p.channel_t())))
    )
    wait_for(lambda: bool(engine.thread._calls))
    ending = gevent.spawn(kkp2p.engine_destroy, engine)
    searching.join(PATIENCE_S)
    assert codes == [-1]
    assert not ending.ready()
    assert run(lambda: kkp2p.join_lan(engine, "me")) == -1  # and new ones fail at once
    buff = bytearray(1 << 20)
    while sent:
        sent -= kkp2p.read(theirs.fd, buff, len(buff), PATIENCE_S * 1000)
    ending.get(timeout=PATIENCE_S)
    for channel in (ours, theirs):
        kkp2p.close_fd(channel.fd)
