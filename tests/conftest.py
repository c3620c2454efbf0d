"""For every test: a leak check, and the fixtures that the files share."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import gevent
import hypothesis
import pytest

import kkp2p_compat as kkp2p
from helpers.cloud_fixtures import (
    black_hole,
    cloud,
    engine,
    held_port,
    lan_pair,
    lan_port,
    make_engine,
    make_pair,
    on_loopback,
    out_of_reach,
    peer,
    start_cloud,
    start_program,
)
from helpers.line_server import (
    identity,
    make_link,
    offers,
    open_link,
    quick_backoff,
    quick_link,
    serve,
)
from helpers.redis_server import redis_server, start_redis
from helpers.support import PATIENCE_S

__all__ = [
    "black_hole",
    "cloud",
    "engine",
    "held_port",
    "identity",
    "lan_pair",
    "lan_port",
    "make_engine",
    "make_link",
    "make_pair",
    "offers",
    "on_loopback",
    "open_link",
    "out_of_reach",
    "peer",
    "quick_backoff",
    "quick_link",
    "redis_server",
    "serve",
    "start_cloud",
    "start_program",
    "start_redis",
]

# A script's background job ignores SIGINT, and so would the programs that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples in each run, however long the machine takes over them.  They may share fixtures.
hypothesis.settings.register_profile(
    "suite",
    deadline=None,
    derandomize=True,
    suppress_health_check=[
        hypothesis.HealthCheck.too_slow,
        hypothesis.HealthCheck.function_scoped_fixture,
    ],
)
hypothesis.settings.load_profile("suite")

# What the process keeps for good: the hub of the tests, and the first thread of its pool.
gevent.get_hub().threadpool.apply(int)

LAB = Path(__file__).with_name("lab")
MAX_WORKERS = 8  # our choice: each starts a cloud of its own
# For each test; LIMIT_S of a test's file says otherwise.
LIMIT_S = 3 * PATIENCE_S
LAB_LIMIT_S = 6 * PATIENCE_S
THREAD_LIMIT_S = 600  # beyond that, for a wait that no greenlet's time-out ends


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """For a folder two workers a CPU, as tests often wait; for single files none: to start them
    takes time."""
    folder = config.invocation_params.dir
    if not any((folder / argument).is_dir() for argument in config.args):
        return 0
    return min(2 * (os.cpu_count() or 1), MAX_WORKERS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The lab's tests, which wait more than they compute, each stand between several that compute,
    so that the CPUs always have work; none of them is among the last, for which all wait."""
    waiting = [item for item in items if item.path.parent == LAB]
    others = [item for item in items if item.path.parent != LAB]
    step = 4 * len(others) // (5 * len(waiting) or 1)
    items.clear()
    for number, item in enumerate(waiting):
        items += [item, *others[number * step : (number + 1) * step]]
    items += others[len(waiting) * step :]


def _descriptors() -> dict[str, str]:
    """But for the one by which the hub of the tests waits.

    libev makes that anew when something comes for a descriptor that was closed while a copy lives
    on, as those of relayed channels are; and another thread may take the number in between.
    """
    found = {}
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one that listed the folder
            found[number] = os.readlink(f"/proc/self/fd/{number}")
    found.pop(str(gevent.get_hub().loop.fileno()), None)
    return found


def _native_threads() -> int:
    """Those of the pool belong to the hub of the tests, which resolves names in them."""
    return len(os.listdir("/proc/self/task")) - gevent.get_hub().threadpool.size


def _greenlets() -> list[gevent.Greenlet[..., object]]:
    """That run, and are not frozen."""
    return [
        thing
        for thing in gc.get_objects()
        if isinstance(thing, gevent.Greenlet) and not thing.dead and thing.started
    ]


@pytest.fixture(autouse=True)
def _nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """No descriptor, native thread or greenlet outlives the test that made it."""
    if "make_engine" in request.fixturenames:
        request.getfixturevalue("cloud")  # lives for the session
    gc.collect()
    gc.freeze()  # what was there before the test is not looked through after it
    descriptors, threads = _descriptors(), _native_threads()
    yield
    deadline = time.monotonic() + PATIENCE_S
    while True:
        gc.collect()
        left: list[object] = [
            f"descriptor {number}: {target}"
            for number, target in _descriptors().items()
            if descriptors.get(number) != target
        ]
        left += [f"{_native_threads() - threads} threads"] * (_native_threads() > threads)
        left += _greenlets()
        if not left:
            return
        if time.monotonic() > deadline:
            pytest.fail(f"left behind: {left}")
        gevent.sleep(0.005)  # nothing tells of the end of a native thread


@pytest.fixture(autouse=True)
def _time_limit(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that waits for what never comes fails instead of hanging.

    The signal is for one that keeps the whole thread waiting, as subprocess.run does.
    """
    usual_s = LAB_LIMIT_S if request.path.parent == LAB else LIMIT_S
    limit_s = getattr(request.module, "LIMIT_S", usual_s)
    before = signal.signal(signal.SIGALRM, _handle_alarm)
    signal.setitimer(signal.ITIMER_REAL, limit_s + THREAD_LIMIT_S)
    try:
        with gevent.Timeout(limit_s):
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _handle_alarm(*_: object) -> None:
    raise TimeoutError("the test has kept its whole thread waiting for too long")


@pytest.fixture(autouse=True)
def _tuned(request: pytest.FixtureRequest) -> None:
    """``@pytest.mark.tuned(head_start_s=9)``: the engines of a test have other settings."""
    for mark in request.node.iter_markers("tuned"):
        settings = kkp2p.engine_t.settings._replace(**mark.kwargs)
        request.getfixturevalue("monkeypatch").setattr(kkp2p.engine_t, "settings", settings)


@pytest.fixture
def engine_conf(tmp_path: Path) -> Callable[..., kkp2p.engine_conf_t]:
    """Configurations that log below tmp_path; without a cloud unless one is named."""

    def make(**fields: object) -> kkp2p.engine_conf_t:
        conf = kkp2p.engine_conf_t(log_path=str(tmp_path))
        for name, value in fields.items():
            assert hasattr(conf, name), name
            setattr(conf, name, value)
        return conf

    return make


@pytest.fixture
def lone_engine(
    on_loopback: None, lan_port: int, engine_conf: Callable[..., kkp2p.engine_conf_t]
) -> Iterator[kkp2p.engine_t]:
    """An engine that has no cloud, and nobody on the LAN."""
    made = kkp2p.engine_init(engine_conf(lan_search_port=lan_port), 0)
    assert made is not None, kkp2p.error_no()
    yield made
    kkp2p.engine_destroy(made)
