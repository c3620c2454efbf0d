"""A cloud that lies: it answers calls itself, with keys of its own, calls the callee in turn, and
passes on what the two say.  Peers that know each other's keys see that; others cannot, and say so.

Each peer has logged in at what it takes for its cloud.  Here these are two real clouds, and their
owner is at both under the name of the other peer, as whoever has the accounts of a cloud can be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import gevent
import pytest

import kkp2p_compat as kkp2p
from helpers.cloud_fixtures import GENEROUS
from helpers.direct_support import LONG, MakeEngine, accept, check_carries, log_of, until
from helpers.support import SECRET, CloudProcess, write_all
from kkp2p_compat.engine.signalling.identity import Identity

pytestmark = pytest.mark.usefixtures("on_loopback")

WRONG_KEY = kkp2p.KKP2P_ERROR_INVALID_PEER_KEY
HIDDEN = b"for bob and nobody else"

# connect_mode, encrypt_data, fields of engine_conf_t.
WAYS = {
    "p2p": (1, 0, {}),
    "auto": (0, 0, {}),
    "auto, TCP only": (0, 0, {"tcp_only": 1}),
    "relay, sealed": (2, 1, {}),
    "relay, sealed, TCP only": (2, 1, {"tcp_only": 1}),
}
PLAIN = (2, 0, {})
Way = tuple[int, int, dict[str, int]]


class Scene(NamedTuple):
    """``alice`` calls "bob"; ``bob`` waits for "alice"; what the cloud's owner has ``read``."""

    alice: kkp2p.engine_t
    bob: kkp2p.engine_t
    read: list[bytes]


class Cheat:
    """The cloud's owner: is called as "bob", and calls as "alice"."""

    def __init__(self, as_bob: kkp2p.engine_t, as_alice: kkp2p.engine_t, way: Way) -> None:
        self.read: list[bytes] = []
        self._as_bob = as_bob
        self._as_alice = as_alice
        self._way = way
        self._work = [gevent.spawn(self._serve)]
        self._open: list[kkp2p.channel_t] = []

    def _serve(self) -> None:
        while kkp2p.accept(self._as_bob, LONG, called := kkp2p.channel_t()) == 1:
            self._open.append(called)
            calling = kkp2p.channel_t()
            mode, encrypt, _ = self._way
            ctx = kkp2p.connect_ctx_t(
                "bob", called.channel_type, mode, encrypt, LONG, called.connect_desc
            )
            if kkp2p.connect(self._as_alice, ctx, calling) == 0:
                self._open.append(calling)
                for source, target in ((called, calling), (calling, called)):
                    self._work.append(gevent.spawn(self._pass_on, source.fd, target.fd))

    def _pass_on(self, source: int, target: int) -> None:
        buff = bytearray(1 << 16)
        while (count := kkp2p.read(source, buff, len(buff), LONG)) > 0:
            self.read.append(bytes(buff[:count]))
            write_all(target, bytes(buff[:count]))

    def close(self) -> None:
        gevent.killall(self._work)
        for channel in self._open:
            kkp2p.close_fd(channel.fd)


MakeScene = Callable[..., Scene]


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    """Of the cloud that Alice takes for hers, and of Bob's."""
    accounts = [option for who in ("alice", "bob") for option in ("--account", f"{who}:{SECRET}")]
    folder = tmp_path_factory.mktemp("clouds")
    with ExitStack() as clouds:

        def start(name: str) -> int:
            cloud = CloudProcess(folder / name, *accounts, *GENEROUS)
            clouds.callback(cloud.end)
            return cloud.port

        yield start("alices"), start("bobs")


@pytest.fixture
def make_scene(ports: tuple[int, int], make_engine: MakeEngine) -> Iterator[MakeScene]:
    """``alice``, ``bob``, ``cheat``: more fields of their engine_conf_t."""
    cheats: list[Cheat] = []

    def make(way: Way, alice: Any, bob: Any, cheat: Any) -> Scene:
        engines = []
        for port, name, fields in (
            (ports[0], "alice", alice),
            (ports[1], "bob", bob),
            (ports[0], "bob", cheat),
            (ports[1], "alice", cheat),
        ):
            engines.append(make_engine(login_port=port, **fields, **way[2]))
            assert kkp2p.join_net(engines[-1], name, SECRET) == 0
        cheats.append(Cheat(engines[2], engines[3], way))
        return Scene(engines[0], engines[1], cheats[0].read)

    yield make
    for cheat in cheats:
        cheat.close()


def home(folder: Path, name: str, pin: str = "first-use", **known: str) -> dict[str, str]:
    """Where a peer has its key, and the keys of others."""
    path = folder / f"{name}.known"
    path.write_text("".join(f"{peer} {fingerprint}\n" for peer, fingerprint in known.items()))
    return {"identity": str(folder / f"{name}.key"), "known_peers": str(path), "pin": pin}


def key_of(folder: Path, name: str) -> str:
    return Identity.kept_in(str(folder / f"{name}.key")).fingerprint


def call(engine: kkp2p.engine_t, way: Way, channel: kkp2p.channel_t) -> int:
    mode, encrypt, _ = way
    return kkp2p.connect(engine, kkp2p.connect_ctx_t("bob", 0, mode, encrypt, LONG), channel)


@pytest.mark.parametrize("way", [*WAYS.values(), PLAIN], ids=[*WAYS, "relay, plain"])
@pytest.mark.parametrize("has_key", [False, True])
def test_who_knows_the_callee_refuses_it(
    tmp_path: Path, make_scene: MakeScene, way: Way, has_key: bool
) -> None:
    """Whether the proofs are taken out of the call, or are those of another key."""
    scene = make_scene(
        way,
        home(tmp_path, "alice", bob=key_of(tmp_path, "bob")),
        home(tmp_path, "bob"),
        home(tmp_path, "cheat", "off") if has_key else {},
    )
    channel = kkp2p.channel_t()
    assert call(scene.alice, way, channel) == WRONG_KEY
    assert channel.fd == -1
    assert scene.read == []
    is_shown = has_key and way is not PLAIN
    shown = key_of(tmp_path, "cheat") if is_shown else "and not proven"
    told = f"the key of bob is {shown}" if is_shown else "bob is known by its key, and"
    assert told in log_of(tmp_path, 0)


@pytest.mark.parametrize("way", [*WAYS.values(), PLAIN], ids=[*WAYS, "relay, plain"])
@pytest.mark.parametrize("has_key", [False, True])
def test_who_knows_the_caller_refuses_it(
    tmp_path: Path, make_scene: MakeScene, way: Way, has_key: bool
) -> None:
    """Alice knows nobody, so she takes it for Bob; but what she says does not reach him."""
    scene = make_scene(
        way,
        {},
        home(tmp_path, "bob", alice=key_of(tmp_path, "alice")),
        home(tmp_path, "cheat", "off") if has_key else {},
    )
    channel = kkp2p.channel_t()
    assert call(scene.alice, way, channel) == 0
    is_shown = has_key and way is not PLAIN
    told = "the key of alice is" if is_shown else "alice is known by its key, and"
    until(lambda: told in log_of(tmp_path, 1))
    assert kkp2p.accept(scene.bob, 0, kkp2p.channel_t()) == 0
    kkp2p.close_fd(channel.fd)


@pytest.mark.parametrize("way", [*WAYS.values(), PLAIN], ids=[*WAYS, "relay, plain"])
def test_who_knows_nobody_is_read_and_says_what_it_could_not_know(
    tmp_path: Path, make_scene: MakeScene, way: Way
) -> None:
    scene = make_scene(way, home(tmp_path, "alice"), home(tmp_path, "bob"), {})
    mine = kkp2p.channel_t()
    assert call(scene.alice, way, mine) == 0
    theirs = accept(scene.bob)
    assert theirs.caller_id == "alice"  # as the cloud says
    write_all(mine.fd, HIDDEN)
    buff = bytearray(len(HIDDEN))
    assert kkp2p.read(theirs.fd, buff, len(buff), LONG) > 0
    assert scene.read[0] == buff[: len(scene.read[0])] == HIDDEN[: len(scene.read[0])]
    for number, (engine, channel) in enumerate(((scene.alice, mine), (scene.bob, theirs))):
        stats = kkp2p.channel_stats(engine, channel.channel_id)
        assert stats is not None
        assert (stats.peer_fingerprint, stats.peer_pinned) == ("", False)
        assert "taken at its word: " in log_of(tmp_path, number)
        kkp2p.close_fd(channel.fd)


def test_a_first_key_that_was_a_lie_is_not_that_of_the_peer(
    tmp_path: Path, make_scene: MakeScene, make_engine: MakeEngine
) -> None:
    """Who asks the peer by another way sees it; and once the cloud is honest, all do."""
    way = WAYS["p2p"]
    scene = make_scene(
        way, home(tmp_path, "alice"), home(tmp_path, "bob"), home(tmp_path, "cheat", "off")
    )
    mine = kkp2p.channel_t()
    assert call(scene.alice, way, mine) == 0
    theirs = accept(scene.bob)
    stats = kkp2p.channel_stats(scene.alice, mine.channel_id)
    assert stats is not None
    assert stats.peer_fingerprint == key_of(tmp_path, "cheat") != key_of(tmp_path, "bob")
    check_carries(mine, theirs)
    fields = {"known_peers": str(tmp_path / "alice.known")}
    honest = make_engine(
        login_port=scene.bob.conf.login_port, identity=str(tmp_path / "alice.key"), **fields
    )
    assert call(honest, way, kkp2p.channel_t()) == WRONG_KEY


def test_an_honest_cloud_is_in_nobodys_way(
    tmp_path: Path, ports: tuple[int, int], make_engine: MakeEngine
) -> None:
    engines = []
    for name, other in (("alice", "bob"), ("bob", "alice")):
        fields = home(tmp_path, name, "strict", **{other: key_of(tmp_path, other)})
        engines.append(make_engine(login_port=ports[0], **fields))
        assert kkp2p.join_net(engines[-1], name, SECRET) == 0
    for way in (WAYS["p2p"], WAYS["auto"], WAYS["relay, sealed"]):
        mine = kkp2p.channel_t()
        assert call(engines[0], way, mine) == 0
        check_carries(mine, accept(engines[1]))
