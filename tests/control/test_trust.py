"""Who the cloud is: somebody on the path, with a certificate of his own, gets nothing."""

from __future__ import annotations

import math
import shutil
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gevent
import pytest

import kkp2p_compat as kkp2p
from helpers.interceptor import Interceptor
from helpers.line_server import Visitor, wait_for
from helpers.sample_process import StartSample, start_sample
from helpers.shared_directory import Shared, running_node
from helpers.support import PATIENCE_S, SECRET, CloudProcess, read_all, write_all
from helpers.tool_process import StartTool, start_tool
from kkp2p_compat._errors import KKP2PError
from kkp2p_compat.cli.demo import make_certificate
from kkp2p_compat.cloud.certificate import load_identity
from kkp2p_compat.cloud.directory import Node
from kkp2p_compat.control import client as client_module
from kkp2p_compat.control import trust as trust_module
from kkp2p_compat.control.trust import Trust
from kkp2p_compat.control.wire import Message

__all__ = ["start_sample", "start_tool"]

LONG = PATIENCE_S * 1000
SHORT_MS = 1500  # for what must not succeed, ever
NEAR, FAR = "near", "far"  # peers at the first and at the second track
PEERS = [NEAR, FAR, "peer0", "bob"]
ACCOUNTS = [option for peer in PEERS for option in ("--account", f"{peer}:{SECRET}")]
FAILURES = (kkp2p.KKP2P_ERROR_CONN_DISCONNECT, kkp2p.KKP2P_ERROR_CONNECT_TIMEOUT)
StartCloud = Callable[..., CloudProcess]
Intercept = Callable[[CloudProcess], Interceptor]
MakeEngine = Callable[..., kkp2p.engine_t]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "BACKOFF_MOST_S", 1.0)


@pytest.fixture
def intercept(tmp_path: Path) -> Iterator[Intercept]:
    """Somebody before a cloud; he passes everything on until he cuts."""
    made: list[Interceptor] = []

    def place(cloud: CloudProcess) -> Interceptor:
        made.append(Interceptor(("127.0.0.1", cloud.port), load_identity(tmp_path / "his")))
        return made[-1]

    yield place
    for interceptor in made:
        interceptor.close()


def fingerprint(cloud: CloudProcess) -> str:
    """As ``kkp2p cloud`` prints it at its start."""
    return cloud.pinned().partition("#")[2]


def call(engine: kkp2p.engine_t, to: str, timeout: int = LONG, **fields: Any) -> int:
    """The result of a sealed connect by the relay; what is connected is closed."""
    ctx = kkp2p.connect_ctx_t(to, connect_mode=2, encrypt_data=1, timeout=timeout, **fields)
    channel = kkp2p.channel_t()
    result = kkp2p.connect(engine, ctx, channel)
    if result == 0:
        kkp2p.close_fd(channel.fd)
    return result


def until_it_works(engine: kkp2p.engine_t, to: str) -> None:
    with gevent.Timeout(2 * PATIENCE_S):
        while call(engine, to) != 0:
            gevent.sleep(0.05)


def silent(visitor: Visitor, message: Message) -> None:
    """A login gets no answer."""


def refusing(visitor: Visitor, message: Message) -> None:
    visitor.send("refused", reason="unknown-peer")


def guessing(visitor: Visitor, message: Message) -> None:
    """What a server says that wants a proof to guess the secret from."""
    if message["op"] == "login":
        nonce = message["scram"].rpartition("r=")[2]
        visitor.send("challenge", scram=f"r={nonce}x,s=c2FsdHNhbHRzYWx0,i=4096")
    else:
        visitor.send("welcome", scram="v=AAAA", beat=60)


@pytest.mark.parametrize("answer_login", [silent, refusing, guessing])
def test_who_cuts_a_peer_off_cannot_answer_its_calls(
    start_cloud: StartCloud,
    intercept: Intercept,
    make_engine: MakeEngine,
    answer_login: Callable[[Visitor, Message], None],
) -> None:
    cloud = start_cloud(*ACCOUNTS)
    path = intercept(cloud)
    path.answer_login = answer_login
    callee, bob = make_engine(login_port=cloud.port), make_engine(login_port=path.port)
    assert kkp2p.join_net(callee, "peer0", SECRET) == 0
    assert kkp2p.join_net(bob, "bob", SECRET) == 0
    assert call(bob, "peer0") == 0
    path.cut()
    for mode in (2, 0):
        ctx = kkp2p.connect_ctx_t("peer0", connect_mode=mode, encrypt_data=1, timeout=SHORT_MS)
        assert kkp2p.connect(bob, ctx, kkp2p.channel_t()) in FAILURES
    wait_for(lambda: "login" in path.ops)
    assert path.ops <= {"route", "login"}  # no call, no word of bob's NAT, nothing to guess from
    path.is_cutting = False
    until_it_works(bob, "peer0")


def test_who_is_there_from_the_start_cannot_answer_the_calls_of_who_logs_in(
    start_cloud: StartCloud, intercept: Intercept, make_engine: MakeEngine
) -> None:
    path = intercept(start_cloud(*ACCOUNTS))
    path.cut()
    bob = make_engine(login_port=path.port)
    joining = gevent.spawn(kkp2p.join_net, bob, "bob", SECRET)
    wait_for(lambda: "login" in path.ops)
    assert call(bob, "peer0", SHORT_MS) in FAILURES
    assert path.ops <= {"route", "login"}
    assert joining.get() == 0  # "the cloud does not answer yet"


def test_who_has_logged_in_once_calls_no_false_cloud_later(
    start_cloud: StartCloud, intercept: Intercept, make_engine: MakeEngine
) -> None:
    """Not even when its login has ended for good."""
    cloud = start_cloud(*ACCOUNTS)
    path = intercept(cloud)
    bob = make_engine(login_port=path.port)
    assert kkp2p.join_net(bob, "bob", SECRET) == 0
    other = make_engine(login_port=cloud.port)
    assert kkp2p.join_net(other, "bob", SECRET) == 0  # ends bob's
    assert kkp2p.accept(bob, LONG, kkp2p.channel_t()) == kkp2p.KKP2P_ERROR_DUPLICATE_ID
    path.cut()
    assert call(bob, "peer0", SHORT_MS) in FAILURES
    assert path.ops <= {"route"}


def test_a_caller_without_an_account_trusts_the_path(
    start_cloud: StartCloud, intercept: Intercept, make_engine: MakeEngine
) -> None:
    """As in the C SDK; this is what a fingerprint is for."""
    path = intercept(start_cloud(*ACCOUNTS))
    path.cut()
    # He answers, but without an offer of paths that a sealed call could use.
    result = call(make_engine(login_port=path.port), "peer0", SHORT_MS)
    assert result == kkp2p.KKP2P_ERROR_PARAMETER
    assert "call" in path.ops


def test_a_fingerprint_closes_that(
    start_cloud: StartCloud, intercept: Intercept, make_engine: MakeEngine
) -> None:
    cloud = start_cloud(*ACCOUNTS)
    path = intercept(cloud)
    callee = make_engine(login_port=cloud.port)
    assert kkp2p.join_net(callee, "peer0", SECRET) == 0
    pin = fingerprint(cloud)
    caller = make_engine(login_port=path.port, login_fingerprint=f"{'00' * 32}, {pin.upper()}")
    assert call(caller, "peer0") == 0
    path.cut()
    assert call(caller, "peer0", SHORT_MS) in FAILURES
    fresh = make_engine(login_port=path.port, login_fingerprint=pin)
    assert kkp2p.join_net(fresh, "bob", SECRET) == 0  # which goes on trying
    assert call(fresh, "peer0", SHORT_MS) in FAILURES
    assert path.ops == set()
    path.is_cutting = False
    until_it_works(fresh, "peer0")


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        ",",
        "sha256:",
        "00" * 31,
        "00" * 33,
        "sha1:" + "00" * 20,
        "0g" * 32,
        "00" * 32 + ",",
        ":".join(["00"] * 31),
        5,
        b"\xff",
    ],
)
def test_a_malformed_fingerprint(engine_conf: Callable[..., Any], wrong: object) -> None:
    conf = engine_conf(login_domain="127.0.0.1", login_port=1, login_fingerprint=wrong)
    assert kkp2p.engine_init(conf, 0) is None
    assert kkp2p.error_no() == kkp2p.KKP2P_ERROR_PARAMETER


# Tools and samples.


def test_a_tool_takes_the_line_that_the_cloud_prints(
    cloud: CloudProcess, peer: kkp2p.engine_t, start_tool: StartTool
) -> None:
    good = start_tool("proxy", "0", "peer", "--mode", "relay", "--json", KKP2P_LOGIN=cloud.pinned())
    wrong = f"127.0.0.1:{cloud.port}#sha256:{'00' * 32}"
    bad = start_tool("proxy", "0", "peer", "--mode", "relay", "--json", "--login", wrong)
    for tool, ends in ((good, "connected"), (bad, "failed")):
        port = tool.event()["address"][1]
        with socket.create_connection(("127.0.0.1", port)):
            event = tool.event()
            while event["event"] not in ("connected", "failed"):
                event = tool.event()
            assert event["event"] == ends, event
        tool.end(signal.SIGTERM)
    assert "certificate refused" in str(event)
    check = start_tool("netcheck", "--no-upnp", "--login", wrong)
    status, output, _ = check.end()
    assert status == 1
    assert f"another certificate: {cloud.pinned().partition('#')[2]}" in output


SAMPLES = {
    "async_connect": ["peer"],
    "chat": ["peer"],
    "https_server": ["peer", SECRET, "{key}", "{certificate}"],
    "proxy_client": ["127.0.0.1", "0", "peer", "2", "1"],
    "recv_file": ["peer", "-", "."],
    "send_file": ["peer", "{key}"],
    "single_process": ["peer", "-", "{key}", "{certificate}"],
}


@pytest.mark.parametrize("name", SAMPLES)
def test_no_sample_goes_on_without_the_fingerprint_that_it_was_given(
    start_sample: StartSample, tmp_path: Path, name: str
) -> None:
    key, certificate = make_certificate(tmp_path)
    arguments = [text.format(key=key, certificate=certificate) for text in SAMPLES[name]]
    sample = start_sample(name, *arguments, "--login", "127.0.0.1:3080#sha256:00")
    status, output, errors = sample.end()
    assert status != 0
    assert "is not the SHA-256 of a certificate" in output + errors


# Several servers.


class Tracks:
    """A route and two tracks; the way to the second one may be intercepted.

    The second one is a cloud of its own: what the others know of it is what ``name_second`` says.
    """

    def __init__(self, start: StartCloud, tmp_path: Path, intercept: Intercept) -> None:
        self._start = start
        self._folder = tmp_path
        self._intercept = intercept
        self._shared = Shared()
        self._running = ExitStack()

    def begin(self, data: tuple[str, str, str], second: list[str] = ACCOUNTS) -> None:
        """``data``: folders, and so certificates, of route and tracks; ``second``: options."""
        self.second = self._start(*second, data=data[2])
        self.path = self._intercept(self.second)
        self.second_pin = fingerprint(self.second)
        accounts = dict.fromkeys(PEERS, SECRET)
        self._first, self._route = (
            self._running.enter_context(
                running_node(role, self._shared, accounts, data=self._folder / name)
            )
            for role, name in (("all", data[1]), ("route", data[0]))
        )
        self.port = self._route.address[1]
        self.route_pin = self._route.fingerprint

    def name_second(self, first: bool, pin: str) -> None:
        """To peers that log in or call from now on; ``first``: before the other track."""
        sha256, load = pin.removeprefix("sha256:"), -1.0 if first else 2.0
        node = Node("5" * 16, "track", "127.0.0.1", self.path.port, fingerprint=sha256, load=load)
        self._shared.leases[node.id] = node, math.inf
        for cloud in (self._first, self._route):
            assert cloud.nodes is not None
            cloud.nodes.take_turn()

    def join(self, near: kkp2p.engine_t, far: kkp2p.engine_t | None, pin: str) -> None:
        """Each at its track.  What they call is looked for at the second one at first."""
        self.name_second(True, pin)
        if far is not None:
            assert kkp2p.join_net(far, FAR, SECRET) == 0
        self.name_second(False, pin)
        assert kkp2p.join_net(near, NEAR, SECRET) == 0
        self.name_second(True, pin)

    def close(self) -> None:
        self._running.close()


@pytest.fixture
def tracks(start_cloud: StartCloud, tmp_path: Path, intercept: Intercept) -> Iterator[Tracks]:
    made = Tracks(start_cloud, tmp_path, intercept)
    yield made
    made.close()


def test_another_track_that_shows_a_false_certificate(
    tracks: Tracks, make_engine: MakeEngine
) -> None:
    tracks.begin(("one", "one", "one"))
    caller, callee = (make_engine(login_port=tracks.port) for _ in range(2))
    tracks.join(caller, callee, tracks.second_pin)
    tracks.path.cut()
    assert call(caller, FAR, SHORT_MS) in FAILURES
    assert tracks.path.ops <= {"login"}
    tracks.path.is_cutting = False
    until_it_works(caller, FAR)


def test_another_track_is_logged_in_at_to_call(tracks: Tracks, make_engine: MakeEngine) -> None:
    """Each track has a certificate of its own, and nobody has named the second one's: the login
    proves it, and makes us known there without making us reachable there."""
    tracks.begin(("one", "one", "two"))
    caller, callee = (make_engine(login_port=tracks.port) for _ in range(2))
    tracks.join(caller, callee, "")
    mine, theirs = kkp2p.channel_t(), kkp2p.channel_t()
    ctx = kkp2p.connect_ctx_t(FAR, connect_mode=2, encrypt_data=1, timeout=LONG)
    assert kkp2p.connect(caller, ctx, mine) == 0
    assert kkp2p.accept(callee, LONG, theirs) == 1
    assert theirs.caller_id == NEAR
    write_all(mine.fd, b"hello")
    kkp2p.close_fd(mine.fd)
    assert read_all(theirs.fd) == b"hello"
    kkp2p.close_fd(theirs.fd)
    wait_for(lambda: not _is_online(tracks.second, NEAR))
    assert _is_online(tracks.second, FAR)


def _is_online(track: CloudProcess, peer_id: str) -> bool:
    return any(f"({peer_id}): online" in line for line in track.output)


@pytest.mark.parametrize("accounts", [[], ACCOUNTS], ids=["without", "with"])
def test_a_cloud_of_three_certificates_that_vouches_for_its_servers(
    tracks: Tracks, make_engine: MakeEngine, accounts: list[str]
) -> None:
    """The first track names the route's certificate, and the route those of the tracks."""
    tracks.begin(("route", "one", "two"), [*accounts, "--account", f"{'z' * 32}:{SECRET}"])
    caller = make_engine(login_port=tracks.port)
    tracks.join(caller, None, tracks.second_pin)
    tracks.name_second(False, tracks.second_pin)
    assert call(caller, NEAR) == 0  # itself
    tracks.name_second(True, tracks.second_pin)
    assert call(caller, FAR) == kkp2p.KKP2P_ERROR_CONNECT_TIMEOUT  # which is offline
    pinned = make_engine(login_port=tracks.port, login_fingerprint=tracks.route_pin)
    assert call(pinned, NEAR) == 0
    tracks.path.cut()
    assert call(pinned, FAR, SHORT_MS) in FAILURES
    assert tracks.path.ops == set()


@pytest.mark.parametrize(
    ("given", "is_name", "asks"),
    [(frozenset(), True, True), (frozenset(), False, False), (frozenset({bytes(32)}), True, False)],
)
def test_the_systems_certificates_are_loaded_only_where_they_count(
    monkeypatch: pytest.MonkeyPatch, given: frozenset[bytes], is_name: bool, asks: bool
) -> None:
    """They take longer than all else in the start of an engine."""
    system = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    monkeypatch.setattr(trust_module, "_system_context", lambda: system)
    trust = Trust(None, given, is_name)
    assert trust.asks_ca is asks
    assert (trust.verified is system) is asks
    assert trust.verified.verify_mode == ssl.CERT_REQUIRED
    assert not trust.verified.get_ca_certs()


def test_login_ca_is_read_again_when_it_was_replaced(tmp_path: Path) -> None:
    for name in ("first", "second"):
        load_identity(tmp_path / name)
    ca_file = str(tmp_path / "first" / "cloud.crt")
    trust = Trust(ca_file, frozenset(), has_name=False)
    before = trust.verified
    (first,) = before.get_ca_certs(binary_form=True)
    trust.refresh()
    assert trust.verified is before
    for broken in (lambda: Path(ca_file).unlink(), lambda: Path(ca_file).write_text("no PEM")):
        broken()
        with pytest.raises(KKP2PError, match="login_ca"):
            trust.refresh()
        trust.refresh()  # that is told once
        assert trust.knows(first)
    shutil.copy(tmp_path / "second" / "cloud.crt", ca_file)
    trust.refresh()
    (second,) = trust.verified.get_ca_certs(binary_form=True)
    assert trust.knows(second)
    assert not trust.knows(first)


def test_engines_share_the_contexts_that_hold_nothing_of_theirs(tmp_path: Path) -> None:
    one, other = (Trust(None, frozenset(), has_name=False) for _ in range(2))
    assert one.unverified is other.unverified
    assert one.unverified.verify_mode == ssl.CERT_NONE
    assert one.verified is other.verified
    _, ca_file = make_certificate(tmp_path)
    with_ca = Trust(ca_file, frozenset(), has_name=False)
    assert with_ca.verified is not Trust(ca_file, frozenset(), has_name=False).verified
    assert with_ca.verified.cert_store_stats()["x509"] == 1
    assert one.verified.cert_store_stats()["x509"] == 0
