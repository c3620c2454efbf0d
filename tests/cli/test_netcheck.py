"""``kkp2p netcheck`` as a real process, and the words for what a NAT means."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.cloud_fixtures import BlackHole
from helpers.support import SECRET, CloudProcess, Program
from helpers.tool_process import StartTool, Tool, start_tool
from kkp2p_compat.cli._verdict import PEERS, meaning, who_reaches_us
from kkp2p_compat.traversal.candidates import outer_candidate
from kkp2p_compat.traversal.nat import BLOCKED, UNKNOWN, NatBehaviour

__all__ = ["start_tool"]

EI, APD = "endpoint-independent", "address-and-port-dependent"
US = [outer_candidate("srflx", ("203.0.113.7", 4000), [])]


@pytest.fixture
def check(cloud: CloudProcess, start_tool: StartTool) -> Callable[..., Tool]:
    """Of the tests' cloud; no router is asked for anything."""

    def run(*options: str) -> Tool:
        return start_tool("netcheck", "--no-upnp", "--login", f"127.0.0.1:{cloud.port}", *options)

    return run


@pytest.fixture
def server(cloud: CloudProcess, start_program: Callable[..., Program]) -> Program:
    program = start_program("server", str(cloud.port), "peer", SECRET)
    assert program.first_line == "joined"
    return program


def report_of(tool: Tool, expected: int = 0) -> dict[str, Any]:
    status, output, errors = tool.end()
    assert (status, errors) == (expected, "")
    report = json.loads(output)
    assert isinstance(report, dict)
    return report


def test_for_people(check: Callable[..., Tool]) -> None:
    tool = check()
    status, output, errors = tool.end()
    assert (status, errors) == (0, "")
    headings = [line for line in output.splitlines() if line[0] != " "]
    assert [heading.split(",")[0].split(" to ")[0] for heading in headings] == [
        "The cloud",
        "This host's addresses",
        "What is in front of it",
        "UDP",
        "How peers reach this host",
        "In short",
    ]
    assert "TCP answers after" in output
    assert "10 of 10 answered" in output
    assert "cannot see what is in front of it" in " ".join(output.split())
    assert list(tool.folder.iterdir()) == []


def test_for_programs(check: Callable[..., Tool], cloud: CloudProcess) -> None:
    report = report_of(check("--json", "--lifetime", "5"))
    assert report["cloud"]["port"] == cloud.port
    assert 0 < report["cloud"]["tcp_s"] < report["cloud"]["tcp_s"] + report["cloud"]["tls_s"]
    assert report["nat"]["mapping"] == "none"
    [outside] = report["addresses"]["outside"]
    assert outside[0] == "127.0.0.1"
    [udp] = report["udp"]["servers"]
    assert (udp["sent"], udp["answered"], udp["loss"]) == (10, 10, 0)
    trips = udp["round_trip_s"]
    assert 0 < trips["least"] <= trips["median"] <= trips["most"]
    assert report["lifetime"] == {"lived_s": 5.0, "longest_s": 5.0}
    assert report["summary"]["usable"] is True
    assert set(report["summary"]["reach"]) == set(PEERS)
    assert "port_mapping" not in report


def test_a_cloud_with_an_address_that_swallows_packets(
    cloud: CloudProcess, start_tool: StartTool, black_hole: BlackHole
) -> None:
    black_hole("127.0.0.2", cloud.port)
    login = f"127.0.0.2|127.0.0.1:{cloud.port}"
    status, output, _ = start_tool("netcheck", "--json", "--no-upnp", "--login", login).end()
    report = json.loads(output)
    assert (status, report["cloud"]["ip"]) == (0, "127.0.0.1")
    assert report["cloud"]["tls_s"] is not None


def test_no_cloud_there(start_tool: StartTool, held_port: int) -> None:
    tool = start_tool("netcheck", "--no-upnp", KKP2P_LOGIN=f"127.0.0.1:{held_port}")
    status, output, errors = tool.end()
    assert (status, errors) == (1, "")
    assert "not reached: [Errno 111] Connection refused" in output
    assert "neither by TCP nor by UDP: nothing more can be said" in output


def test_a_cloud_without_udp(
    start_tool: StartTool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """What it looks like where a firewall drops UDP."""
    cloud = CloudProcess(tmp_path_factory.mktemp("cloud"), "--no-stun")
    try:
        tool = start_tool("netcheck", "--no-upnp", "--login", f"127.0.0.1:{cloud.port}", "--json")
        report = report_of(tool)
    finally:
        assert cloud.end() == 0
    assert report["nat"]["mapping"] == "blocked"
    assert report["udp"]["servers"][0]["answered"] == 0
    assert set(report["summary"]["reach"].values()) == {"relay"}
    assert report["summary"]["text"].startswith("No UDP gets through")


def test_a_name_that_does_not_resolve(start_tool: StartTool) -> None:
    tool = start_tool("netcheck", "--no-upnp", "--login", "host.invalid:3080", "--json")
    status, output, errors = tool.end()
    assert status == 1
    assert errors.startswith("kkp2p netcheck: host.invalid")
    assert "host.invalid" in json.loads(output)["error"]


def test_on_the_lan_without_a_cloud(start_tool: StartTool, lan_port: int) -> None:
    report = report_of(start_tool("netcheck", "--no-upnp", "--lan", str(lan_port), "--json"))
    assert "cloud" not in report
    assert report["nat"]["asked"] is False
    assert report["summary"] == {
        "usable": True,
        "reach": {},
        "text": "On the LAN there is no NAT between peers.",
    }


def test_other_stun_servers(start_tool: StartTool, cloud: CloudProcess, lan_port: int) -> None:
    stun = f"127.0.0.1:{cloud.port}"
    options = ("--no-upnp", "--lan", str(lan_port), "--stun", stun, "--json")
    report = report_of(start_tool("netcheck", *options))
    assert report["nat"]["mapping"] == "none"
    assert report["udp"]["servers"][0]["server"] == ["127.0.0.1", cloud.port]


# With a peer.


def test_a_peer(check: Callable[..., Tool], server: Program) -> None:
    report = report_of(check("--json", "--peer", "peer"))["peer"]
    assert report["connected"] is True
    assert report["verdict"]["plan"] in ("direct", "punch")
    assert report["verdict"]["peer_nat"].startswith("no NAT")
    [attempt] = report["tries"]
    assert (attempt["mode"], attempt["problem"]) == ("p2p", "")
    assert attempt["stats"]["path"] == "p2p"
    assert attempt["stats"]["set_up_s"] > 0
    steps = [text for _, text in attempt["timeline"]["steps"]]
    assert steps == ["own addresses", "answer", "path"]
    events = [text for _, text in attempt["timeline"]["events"]]
    assert any(" answered after " in text for text in events)
    assert any(text.startswith("chose ") for text in events)


def test_a_peer_explained(check: Callable[..., Tool], server: Program) -> None:
    status, output, errors = check("--explain", "--peer", "peer").end()
    assert (status, errors) == (0, "")
    assert "the two of you should connect directly" in output
    assert "connected by p2p after" in output
    for words in (
        "own addresses",
        "plan: ",
        "check 1 of host",
        " answered after ",
        "checks sent: ",
    ):
        assert words in output


def test_a_peer_that_is_away(check: Callable[..., Tool]) -> None:
    tool = check("--peer", "other")
    status, output, errors = tool.end()
    assert (status, errors) == (1, "")
    assert "nothing is known about its network: it has not answered" in output
    assert output.count("failed: other: the peer is not online") == 1  # auto could do no more


def test_a_peer_that_is_known_by_a_key(
    check: Callable[..., Tool], server: Program, tmp_path: Path
) -> None:
    """It has none any more; whoever does not know it takes it at its word."""
    keys = ("--identity", str(tmp_path / "key"), "--known-peers", str(tmp_path / "known"))
    status, output, errors = check("--peer", "peer", *keys).end()
    assert (status, errors) == (0, "")
    assert "its key: it has proved none" in output
    (tmp_path / "known").write_text(f"peer sha256:{'0' * 64}\n")
    status, output, errors = check("--peer", "peer", *keys).end()
    assert (status, errors) == (1, "")
    assert "peer is known by its key, and whoever takes part in this call" in output


def test_no_stun_server(check: Callable[..., Tool], server: Program) -> None:
    report = report_of(check("--json", "--stun", "", "--peer", "peer"))
    assert report["nat"]["asked"] is False
    assert report["udp"]["servers"] == []
    assert report["peer"]["connected"] is True


def test_interrupted(check: Callable[..., Tool]) -> None:
    tool = check("--lifetime", "600")
    for _ in range(100):
        if tool.line().startswith("UDP to"):
            break
    else:
        pytest.fail("it never came so far")
    status, _, errors = tool.end(signal.SIGINT)
    assert (status, errors) == (128 + signal.SIGINT, "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--peer", "two words"],
        ["--lifetime", "0"],
        ["--lifetime", "soon"],
        ["--timeout", "-1"],
        ["--login", ":"],
        ["--lan", "70000"],
        ["--desc", "-2147483649"],
        ["unexpected"],
    ],
)
def test_used_wrongly(start_tool: StartTool, arguments: list[str]) -> None:
    status, output, errors = start_tool("netcheck", *arguments).end()
    assert (status, output) == (2, "")
    assert "Traceback" not in errors


# Words.


@pytest.mark.parametrize(
    ("nat", "relayed", "slow"),
    [
        (NatBehaviour("none", EI, "preserved"), 0, 0),
        (NatBehaviour(EI, EI, "preserved"), 0, 0),
        (NatBehaviour(EI, APD, "preserved"), 0, 1),
        (NatBehaviour(APD, APD, "sequential", 1), 1, 0),
        (NatBehaviour(APD, APD, "random"), 2, 1),
        (BLOCKED, len(PEERS), 0),
    ],
)
def test_who_reaches_us(nat: NatBehaviour, relayed: int, slow: int) -> None:
    kinds = list(who_reaches_us(nat, US).values())
    assert (kinds.count("relay"), kinds.count("birthday")) == (relayed, slow)


def test_what_it_means() -> None:
    def words(nat: NatBehaviour) -> str:
        return meaning(nat, who_reaches_us(nat, US))

    assert words(NatBehaviour(EI, EI)) == "Peers behind any kind of NAT reach you directly."
    assert words(NatBehaviour(EI, APD)) == (
        "Peers reach you directly.  Behind a symmetric NAT with random ports it may take some "
        "seconds."
    )
    text = words(NatBehaviour(APD, APD, "sequential", 1))
    assert text.startswith(
        "Peers reach you directly, except those behind a symmetric NAT with random ports: they use "
        "the relay."
    )
    assert text.endswith("(UPnP, PCP, or by hand) would let all of them in.")
    assert words(BLOCKED).startswith("No UDP gets through")
    assert words(UNKNOWN).startswith("What is in front of this host is not known")
