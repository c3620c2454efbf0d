"""The log on a bad day: full disks, folders that cannot be written, what others have put there.

A limit on the size of files stands for a full disk: writes end in the middle of a line and then
fail, also those of the superuser.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gevent
import pytest

import kkp2p_compat as kkp2p
from helpers.support import ENVIRONMENT, PATIENCE_S, SECRET, CloudProcess
from kkp2p_compat.engine.runtime import log as log_module
from kkp2p_compat.engine.runtime.log import LOG_FILE, EngineLog

BAK = LOG_FILE + ".bak"
LONG = 1000 * PATIENCE_S

DISK = """
import resource, signal, os, sys
def set_room(more):
    size = os.path.getsize("kkp2p_engine.log") if more is not None else -1
    soft = resource.RLIM_INFINITY if more is None else size + more
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, resource.RLIM_INFINITY))
import kkp2p_compat as kkp2p
from kkp2p_compat.engine.runtime.log import EngineLog
"""


def run(program: str, folder: Path, stderr: str | None = None) -> subprocess.CompletedProcess[str]:
    """In that working folder; ``stderr``: a file for it, else it is kept."""
    with open(stderr or os.devnull, "w") as file:
        return subprocess.run(
            [sys.executable, "-c", DISK + program],
            cwd=folder,
            env=ENVIRONMENT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=file if stderr else subprocess.PIPE,
            timeout=2 * PATIENCE_S,
        )


def text(folder: Path, name: str = LOG_FILE) -> str:
    return (folder / name).read_text(encoding="utf-8")


FILLS_UP = """
log = EngineLog(None, 0)
count = 0
def say(times):
    global count
    for _ in range(times):
        log.error("line %04d.", count)
        count += 1
say(5); set_room(100); say(30); set_room(None); say(5)
log.close()
"""


@pytest.mark.parametrize("stderr", ["/dev/full", None])
def test_what_a_full_disk_takes_is_counted(tmp_path: Path, stderr: str | None) -> None:
    done = run(FILLS_UP, tmp_path, stderr)
    assert done.returncode == 0
    lines = text(tmp_path).splitlines()
    kept = [found[1] for line in lines if (found := re.search(r"line (\d{4})\.$", line))]
    (told,) = (line for line in lines if "lost" in line)
    lost = int(re.search(r"error (\d+) lines were lost: File too large$", told)[1])  # type: ignore[index]
    assert len(kept) + lost == 40
    assert kept[-5:] == [f"{number:04d}" for number in range(35, 40)]
    if stderr is None:
        where = tmp_path / LOG_FILE
        assert done.stderr == (
            f"kkp2p: cannot write {where}: File too large; until it can be, lines are lost\n"
        )


RENAMED = """
log = EngineLog(None, 0)
log.error("first")
os.rename("kkp2p_engine.log", "elsewhere")
resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
log.error("lost")
log.error("lost")
set_room(None)
log.error("last")
log.close()
"""


def test_a_log_that_is_renamed_while_the_disk_is_full(tmp_path: Path) -> None:
    assert run(RENAMED, tmp_path, "/dev/full").returncode == 0
    assert text(tmp_path, "elsewhere").endswith("error first\n")
    assert re.fullmatch(r".+ 2 lines were lost: .+\n.+ error last\n", text(tmp_path))


STDERRS = {
    "closed": "sys.stderr.close()",
    "none": "sys.stderr = None",
    "raises": "class Bad:\n    def write(self, text): raise RuntimeError\nsys.stderr = Bad()",
    "nobody reads": "reader, writer = os.pipe(); os.set_blocking(writer, False)\n"
    "while True:\n    try: os.write(writer, b'x')\n    except BlockingIOError: break\n"
    "os.set_blocking(writer, True); os.dup2(writer, 2)",
    "no reader": "reader, writer = os.pipe(); os.close(reader); os.dup2(writer, 2)",
}
NO_WORD = """
import logging, threading
from kkp2p_compat.engine.runtime.callbacks import Callbacks
set_room_none = resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
{stderr}
engine = kkp2p.engine_init(kkp2p.engine_conf_t(), 0)
assert engine is not None
assert kkp2p.accept(None, 0, None) == -106
assert kkp2p.join_net(engine, "peer", "secret") == kkp2p.KKP2P_ERROR_INVALID_DOMAIN
callbacks, went_on = Callbacks(1), threading.Event()
def fail(): raise ValueError("x" * 100000)
callbacks.submit(fail)
callbacks.submit(went_on.set)
assert went_on.wait({patience})
callbacks.close()
kkp2p.engine_destroy(engine)
os._exit(7)
"""


@pytest.mark.parametrize("stderr", STDERRS.values(), ids=list(STDERRS))
def test_no_word_can_be_written_anywhere(tmp_path: Path, stderr: str) -> None:
    """Neither in the log nor on standard error; the API gives its codes, callbacks run."""
    program = NO_WORD.format(stderr=stderr, patience=PATIENCE_S)
    # "nobody reads" cannot have accept's line: that is the application's logging, which waits.
    if "BlockingIOError" in stderr:
        program = program.replace("assert kkp2p.accept(None, 0, None) == -106", "")
    assert run(program, tmp_path).returncode == 7


PEER = """
from kkp2p_compat.control import client
client.BACKOFF_MOST_S = 1.0
engine = kkp2p.engine_init(kkp2p.engine_conf_t("127.0.0.1", int(sys.argv[1])), 5000)
assert kkp2p.join_net(engine, "peer", sys.argv[2]) == 0
kkp2p.switch_log_level(engine, 4)
set_room(0)
print("online", flush=True)
channel = kkp2p.channel_t()
while kkp2p.accept(engine, 1000, channel) == 0: pass
set_room(None)
kkp2p.engine_destroy(engine)
print(channel.peer_id)
"""


def test_a_peer_with_a_full_disk_comes_back_after_the_cloud_does(
    tmp_path: Path,
    start_cloud: Callable[..., CloudProcess],
    make_engine: Callable[..., kkp2p.engine_t],
) -> None:
    account = ("--account", f"peer:{SECRET}")
    cloud = start_cloud(*account)
    caller = make_engine(login_port=cloud.port)
    with open("/dev/full", "w") as full:
        peer = subprocess.Popen(
            [sys.executable, "-c", DISK + PEER, str(cloud.port), SECRET],
            cwd=tmp_path,
            env=ENVIRONMENT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=full,
        )
    assert peer.stdout is not None
    try:
        assert peer.stdout.readline() == "online\n"
        cloud.kill()
        start_cloud(*account, port=cloud.port)
        ctx = kkp2p.connect_ctx_t("peer", connect_mode=2, timeout=LONG)
        channel = kkp2p.channel_t()
        with gevent.Timeout(2 * PATIENCE_S):
            while kkp2p.connect(caller, ctx, channel) != 0:  # it has to log in again first
                gevent.sleep(0.1)
        kkp2p.close_fd(channel.fd)
        assert peer.wait(PATIENCE_S) == 0
        assert re.search(r" error \d+ lines were lost: File too large\n", text(tmp_path))
    finally:
        peer.kill()
        peer.wait()
        peer.stdout.close()


# Folders.


def unwritable(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder" / LOG_FILE).mkdir(parents=True)
    return {
        "below a file": str(tmp_path / "file" / "logs"),
        "proc": "/proc/kkp2p",
        "the file is a folder": str(tmp_path / "folder"),
        "a long name": str(tmp_path / ("x" * 300)),
    }


@pytest.mark.parametrize("case", ["below a file", "proc", "the file is a folder", "a long name"])
def test_an_unwritable_log_path(case: str, tmp_path: Path) -> None:
    """In a program without any logging set up: one line on stderr, no traceback."""
    program = f"""
conf = kkp2p.engine_conf_t(log_path={unwritable(tmp_path)[case]!r})
assert kkp2p.engine_init(conf, 0) is None
assert kkp2p.error_no() == kkp2p.KKP2P_ERROR_PARAMETER
"""
    done = run(program, tmp_path)
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("engine_init: KKP2P_ERROR_PARAMETER: log_path")


WITHOUT_A_FILE = """
{before}
engine = kkp2p.engine_init(kkp2p.engine_conf_t(), 0)
assert engine is not None, kkp2p.error_no()
for _ in range(100):
    assert kkp2p.join_lan(engine, "") == -110
kkp2p.engine_destroy(engine)
"""
WORKING_FOLDERS = {
    "unwritable": ("os.chdir('/proc/self')", "/proc/"),
    # CPython 3.13.0 cannot import from a folder that is gone.
    "removed": (
        "sys.path.remove(''); os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone')",
        "./",
    ),
    "a folder of that name": ("os.mkdir('kkp2p_engine.log')", ""),
    "a link of that name": ("os.symlink('other', 'kkp2p_engine.log')", ""),
}


@pytest.mark.parametrize(("before", "where"), WORKING_FOLDERS.values(), ids=list(WORKING_FOLDERS))
def test_a_working_folder_that_takes_no_log(tmp_path: Path, before: str, where: str) -> None:
    """Nobody asked for a file: the engine runs, and says once that there is none."""
    done = run(WITHOUT_A_FILE.format(before=before), tmp_path)
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"kkp2p: cannot write {where}")
    assert LOG_FILE in line
    assert not (tmp_path / "other").exists()


def test_a_full_disk_is_no_reason_to_be_without_an_engine(
    engine_conf: Callable[..., kkp2p.engine_conf_t],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also where a log_path is given: there may be room later."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(log_module.LogFile, "_open", full)
    engine = kkp2p.engine_init(engine_conf(), 0)
    assert engine is not None
    assert kkp2p.join_lan(engine, "") == -110
    assert capsys.readouterr().err.count("No space left on device") == 1
    monkeypatch.undo()
    kkp2p.engine_destroy(engine)
    assert re.match(r".* 2 lines were lost: No space left on device\n", text(tmp_path))


def test_a_folder_in_which_nothing_can_be_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file grows to twice its size and starts over."""
    limit, sizes = 2000, []

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    log = EngineLog(str(tmp_path), limit)
    for number in range(200):
        log.error("line %04d", number)
        sizes.append((tmp_path / LOG_FILE).stat().st_size)
    assert limit < max(sizes) <= 2 * limit
    assert any(after < before for before, after in itertools.pairwise(sizes))
    assert text(tmp_path).endswith("line 0199\n")
    assert capsys.readouterr().err == ""
    monkeypatch.undo()
    for number in range(200, 300):
        log.error("line %04d", number)
    log.close()
    assert (tmp_path / BAK).exists(), "it is renamed as soon as that works again"


# What others have put there.


def link(path: Path) -> None:
    path.symlink_to(path.with_name("elsewhere"))


def fifo(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize("put", [link, fifo])
def test_no_link_and_no_pipe_is_taken_for_the_log(
    tmp_path: Path, put: Callable[[Path], None]
) -> None:
    put(tmp_path / LOG_FILE)
    with pytest.raises(OSError, match="not a regular file"):
        EngineLog(str(tmp_path), 0)
    assert not (tmp_path / "elsewhere").exists()


def test_a_pipe_with_a_reader_is_not_taken_either(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / LOG_FILE)
    reader = os.open(tmp_path / LOG_FILE, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(OSError, match="not a regular file"):
            EngineLog(str(tmp_path), 0)
        assert os.read(reader, 1) == b""
    finally:
        os.close(reader)


def test_a_link_that_comes_later_gets_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = EngineLog(str(tmp_path), 0)
    log.error("before")
    (tmp_path / LOG_FILE).rename(tmp_path / "old")
    link(tmp_path / LOG_FILE)
    log.error("during")
    assert "not a regular file" in capsys.readouterr().err
    (tmp_path / LOG_FILE).unlink()
    log.error("after")
    log.close()
    assert not (tmp_path / "elsewhere").exists()
    assert re.fullmatch(r".* 1 lines were lost: .*\n.* after\n", text(tmp_path))


def test_a_link_in_place_of_the_renamed_log_is_replaced(tmp_path: Path) -> None:
    link(tmp_path / BAK)
    log = EngineLog(str(tmp_path), 200)
    for number in range(10):
        log.error("line %04d", number)
    log.close()
    assert not (tmp_path / "elsewhere").exists()
    assert not (tmp_path / BAK).is_symlink()


@pytest.mark.parametrize(("before", "after"), [(None, 0o600), (0o640, 0o640)])
def test_who_may_read_it(tmp_path: Path, before: int | None, after: int) -> None:
    """Its owner; or those who may read the file that was there, also after a renaming."""
    path = tmp_path / LOG_FILE
    if before is not None:
        path.touch()
        path.chmod(before)
    log = EngineLog(str(tmp_path), 200)
    for number in range(10):
        log.error("line %04d", number)
    log.close()
    assert {stat.S_IMODE(each.stat().st_mode) for each in tmp_path.iterdir()} == {after}
    assert (tmp_path / BAK).exists()


def test_what_cannot_be_told_is_told_so(tmp_path: Path) -> None:
    """An argument whose text is the application's, and fails."""

    class Mute:
        def __str__(self) -> str:
            raise RuntimeError

    log = EngineLog(str(tmp_path), 0)
    log.error("it says %s", Mute())
    log.close()
    assert text(tmp_path).endswith("error 'it says %s': cannot be told: RuntimeError\n")
