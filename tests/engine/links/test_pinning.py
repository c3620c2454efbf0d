"""Peers that know each other by their keys: by every way, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import kkp2p_compat as kkp2p
from helpers.direct_support import LONG, MakeEngine, accept, check_carries, close, ctx_to, log_of
from helpers.support import SECRET
from kkp2p_compat.engine.signalling.identity import Identity

pytestmark = pytest.mark.usefixtures("on_loopback")

WRONG_KEY = kkp2p.KKP2P_ERROR_INVALID_PEER_KEY
NOT_TAKEN = kkp2p.KKP2P_ERROR_OTHER_DISCONNECT


class Home:
    """Where a peer keeps its key, and those of others."""

    def __init__(self, folder: Path, name: str) -> None:
        self.identity = str(folder / f"{name}.key")
        self.known_peers = str(folder / f"{name}.known")

    def conf(self, pin: str | None = None) -> dict[str, str | None]:
        return {"identity": self.identity, "known_peers": self.known_peers, "pin": pin}

    @property
    def fingerprint(self) -> str:
        return Identity.kept_in(self.identity).fingerprint

    @property
    def known(self) -> list[str]:
        path = Path(self.known_peers)
        return path.read_text().splitlines() if path.exists() else []

    def know(self, peer_id: str, fingerprint: str) -> None:
        with open(self.known_peers, "a") as file:
            file.write(f"{peer_id} {fingerprint}\n")


@pytest.fixture
def make_home(tmp_path: Path) -> Callable[[str], Home]:
    return lambda name: Home(tmp_path, name)


def joined(engine: kkp2p.engine_t, peer_id: str) -> kkp2p.engine_t:
    assert kkp2p.join_net(engine, peer_id, SECRET) == 0
    return engine


WAYS = [(1, 0, {}), (0, 0, {}), (0, 0, {"tcp_only": 1}), (2, 1, {}), (2, 1, {"tcp_only": 1})]


@pytest.mark.parametrize(("mode", "encrypt", "conf"), WAYS)
@pytest.mark.parametrize("kind", [kkp2p.KKP2P_TCP_CHANNEL, kkp2p.KKP2P_UDP_CHANNEL])
def test_each_learns_the_others_key(
    make_engine: MakeEngine,
    make_home: Callable[[str], Home],
    mode: int,
    encrypt: int,
    conf: dict[str, int],
    kind: int,
) -> None:
    homes = make_home("caller"), make_home("callee")
    caller = joined(make_engine(**homes[0].conf(), **conf), "other")
    callee = joined(make_engine(**homes[1].conf(), **conf), "peer")
    ctx = kkp2p.connect_ctx_t("peer", kind, mode, encrypt, LONG)
    for _ in range(2):  # on a new link, and on a live one
        mine = kkp2p.channel_t()
        assert kkp2p.connect(caller, ctx, mine) == 0
        theirs = accept(callee)
        for engine, channel, other in ((caller, mine, homes[1]), (callee, theirs, homes[0])):
            stats = kkp2p.channel_stats(engine, channel.channel_id)
            assert stats is not None
            assert (stats.peer_fingerprint, stats.peer_pinned) == (other.fingerprint, True)
        check_carries(mine, theirs)
    assert homes[0].known == [f"peer {homes[1].fingerprint}"]
    assert homes[1].known == [f"other {homes[0].fingerprint}"]


def test_a_stranger_is_not_remembered(
    make_engine: MakeEngine, make_home: Callable[[str], Home]
) -> None:
    homes = make_home("caller"), make_home("callee")
    caller, callee = make_engine(**homes[0].conf()), joined(make_engine(**homes[1].conf()), "peer")
    mine = kkp2p.channel_t()
    assert kkp2p.connect(caller, ctx_to("peer"), mine) == 0
    theirs = accept(callee)
    stats = kkp2p.channel_stats(callee, theirs.channel_id)
    assert stats is not None
    assert (stats.peer_fingerprint, stats.peer_pinned) == (homes[0].fingerprint, False)
    check_carries(mine, theirs)
    assert homes[1].known == []


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_another_key_is_refused(
    make_engine: MakeEngine, make_home: Callable[[str], Home], tmp_path: Path, mode: int
) -> None:
    home, other = make_home("caller"), make_home("callee")
    home.know("peer", make_home("earlier").fingerprint)
    caller, callee = make_engine(**home.conf()), joined(make_engine(**other.conf()), "peer")
    ctx = kkp2p.connect_ctx_t("peer", 0, mode, 1, LONG)
    channel = kkp2p.channel_t()
    assert kkp2p.connect(caller, ctx, channel) == WRONG_KEY
    assert channel.fd == -1
    assert f"the key of peer is {other.fingerprint}, and not the one" in log_of(tmp_path, 0)
    home.know("peer", other.fingerprint)  # as its owner does once he has asked
    ctx.connect_desc = 1
    mine = kkp2p.channel_t()
    assert kkp2p.connect(caller, ctx, mine) == 0
    theirs = accept(callee)
    if theirs.connect_desc == 0:  # who was called has nothing against the first caller
        close(theirs)
        theirs = accept(callee)
    check_carries(mine, theirs)


def test_a_key_is_known_wherever_the_program_goes(
    make_engine: MakeEngine,
    make_home: Callable[[str], Home],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The file is looked at in each call: by a relative name it would be another one."""
    make_home("caller").know("peer", make_home("earlier").fingerprint)
    monkeypatch.chdir(tmp_path)
    caller = make_engine(identity="caller.key", known_peers="caller.known")
    joined(make_engine(**make_home("callee").conf()), "peer")
    monkeypatch.chdir("/")
    assert kkp2p.connect(caller, ctx_to("peer"), kkp2p.channel_t()) == WRONG_KEY


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_a_peer_that_proves_nothing_is_refused_if_it_is_known(
    make_engine: MakeEngine, make_home: Callable[[str], Home], tmp_path: Path, mode: int
) -> None:
    home = make_home("caller")
    home.know("peer", make_home("earlier").fingerprint)
    caller, callee = make_engine(**home.conf()), joined(make_engine(), "peer")
    ctx = ctx_to("peer", mode)
    assert kkp2p.connect(caller, ctx, kkp2p.channel_t()) == WRONG_KEY
    assert kkp2p.accept(callee, 0, kkp2p.channel_t()) == 0
    assert "peer is known by its key, and " in log_of(tmp_path, 0)


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_a_caller_that_proves_nothing_is_refused_if_it_is_known(
    make_engine: MakeEngine, make_home: Callable[[str], Home], tmp_path: Path, mode: int
) -> None:
    home = make_home("callee")
    home.know("other", make_home("earlier").fingerprint)
    caller, callee = joined(make_engine(), "other"), joined(make_engine(**home.conf()), "peer")
    assert kkp2p.connect(caller, ctx_to("peer", mode), kkp2p.channel_t()) == NOT_TAKEN
    assert kkp2p.accept(callee, 0, kkp2p.channel_t()) == 0
    assert "other is known by its key, and " in log_of(tmp_path, 1)


def test_a_caller_with_another_key_is_refused(
    make_engine: MakeEngine, make_home: Callable[[str], Home], tmp_path: Path
) -> None:
    homes = make_home("caller"), make_home("callee")
    homes[1].know("other", make_home("earlier").fingerprint)
    caller = joined(make_engine(**homes[0].conf()), "other")
    callee = joined(make_engine(**homes[1].conf()), "peer")
    assert kkp2p.connect(caller, ctx_to("peer"), kkp2p.channel_t()) == NOT_TAKEN
    assert kkp2p.accept(callee, 0, kkp2p.channel_t()) == 0
    assert f"the key of other is {homes[0].fingerprint}, and not the one" in log_of(tmp_path, 1)


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_strict_takes_only_known_ones(
    make_engine: MakeEngine, make_home: Callable[[str], Home], mode: int
) -> None:
    homes = make_home("caller"), make_home("callee")
    caller = joined(make_engine(**homes[0].conf("strict")), "other")
    callee = joined(make_engine(**homes[1].conf("strict")), "peer")
    ctx = kkp2p.connect_ctx_t("peer", 0, mode, 1, LONG)
    # Each refuses the other; the caller may hear that before it has seen the proof.
    assert kkp2p.connect(caller, ctx, kkp2p.channel_t()) in (WRONG_KEY, NOT_TAKEN)
    homes[0].know("peer", homes[1].fingerprint)
    assert kkp2p.connect(caller, ctx, kkp2p.channel_t()) == NOT_TAKEN
    homes[1].know("other", homes[0].fingerprint)
    mine = kkp2p.channel_t()
    assert kkp2p.connect(caller, ctx, mine) == 0
    check_carries(mine, accept(callee))
    assert kkp2p.connect(caller, ctx_to("peer", 2), kkp2p.channel_t()) == WRONG_KEY


def test_who_has_a_key_and_pins_nobody_takes_everybody(
    make_engine: MakeEngine, make_home: Callable[[str], Home], tmp_path: Path
) -> None:
    home = make_home("caller")
    caller, callee = make_engine(**home.conf("off")), joined(make_engine(), "peer")
    for mode in (0, 1, 2):
        mine = kkp2p.channel_t()
        assert kkp2p.connect(caller, ctx_to("peer", mode), mine) == 0
        stats = kkp2p.channel_stats(caller, mine.channel_id)
        assert stats is not None
        assert (stats.peer_fingerprint, stats.peer_pinned) == ("", False)
        check_carries(mine, accept(callee))
    assert log_of(tmp_path, 0).count("peer: taken at its word: ") == 3
    assert home.known == []


def test_on_the_lan(
    make_engine: MakeEngine, make_home: Callable[[str], Home], lan_port: int
) -> None:
    homes = make_home("caller"), make_home("callee")
    lan = {"login_domain": None, "lan_search_port": lan_port}
    caller = make_engine(**homes[0].conf(), **lan)
    callee = make_engine(**homes[1].conf("strict"), **lan)
    assert kkp2p.join_lan(callee, "lan-peer") == 0
    assert kkp2p.connect(caller, ctx_to("lan-peer"), kkp2p.channel_t()) == NOT_TAKEN
    homes[1].know("whoever", homes[0].fingerprint)  # on the LAN a key is all that tells
    mine = kkp2p.channel_t()
    assert kkp2p.connect(caller, ctx_to("lan-peer"), mine) == 0
    check_carries(mine, accept(callee))
    assert homes[0].known == [f"lan-peer {homes[1].fingerprint}"]
    Path(homes[0].known_peers).write_text(f"lan-peer {homes[0].fingerprint}\n")
    again = make_engine(**homes[0].conf(), **lan)
    assert kkp2p.connect(again, ctx_to("lan-peer"), kkp2p.channel_t()) == WRONG_KEY
