"""The status page in a real browser: live, on a phone and a desktop, whatever peers are called."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.chromium import Page, chromium, has_chromium
from helpers.cloud_client import Client, Scene, running_admin, running_cloud
from kkp2p_compat.cloud.admin import Admin
from kkp2p_compat.cloud.directory import Node
from kkp2p_compat.cloud.server import Cloud

EVIL_PEER = "<img/src=x/onerror=alert(1)>"
EVIL_REASON = "<script>alert(2)</script><b>no</b>"
ACCOUNTS = {"callee": "c", "caller": "d", EVIL_PEER: "e"}
EVIL_NODE = Node(
    "f" * 16,
    "all",
    "192.0.2.7",
    3080,
    "192.0.2.7",
    3080,
    "<svg/onload=alert(3)>",
    "1.0.0",
    stats={
        "peers": "<b>many</b>",
        "calls": float("nan"),
        "minutes": {"p2p": [1e300] * 30},
        "nats": {"<i>evil</i>": [1, 2, 3], "__proto__": [4, 5, 6]},
        "minute": -1,
    },
)

pytestmark = pytest.mark.skipif(
    not has_chromium() and not os.environ.get("KKP2P_REQUIRE_LAB"), reason="there is no chromium"
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("chromium")) as page:
        yield page
        shots = os.environ.get("KKP2P_SCREENSHOTS")
        if shots:
            for shot in tmp_path_factory.getbasetemp().glob("**/*.png"):
                shutil.copy(shot, shots)


@pytest.fixture
def cloud() -> Iterator[Cloud]:
    with running_cloud(ACCOUNTS) as cloud:
        yield cloud


@pytest.fixture
def admin(cloud: Cloud) -> Iterator[Admin]:
    with running_admin(cloud) as admin:
        yield admin


def url_of(admin: Admin) -> str:
    return "http://{}:{}/".format(*admin.address)


def make_calls(scene: Scene) -> None:
    """A direct one, a relayed one, one that is declined, and one without a path."""
    scene.callee.send("nat", nat={"mapping": "endpoint-independent"})
    ends = [{"path": "p2p", "ms": 150}, {"path": "lane", "ms": 400}, None, None]
    for number, end in enumerate(ends):
        scene.caller.call("callee", number)
        call = scene.callee.receive()["call"]
        if number == 2:
            scene.callee.send("decline", call=call, reason=EVIL_REASON)
        else:
            scene.callee.send("answer", call=call, answer="{}")
        scene.caller.receive()
        if end is not None:
            scene.caller.send("over", call=number, **end)
        else:
            scene.caller.send("cancel", call=number)


def test_the_page_is_live_and_shows_strangers_words_as_text(
    page: Page, cloud: Cloud, admin: Admin, tmp_path: Path
) -> None:
    page.asked.clear()
    scene = Scene(cloud)
    assert cloud.directory is not None
    assert cloud.nodes is not None
    cloud.directory.lease(EVIL_NODE)
    cloud.nodes.take_turn()
    make_calls(scene)
    page.resize(1280, 800, False)
    page.open(url_of(admin))
    page.wait_for("document.querySelector('#peers')?.textContent === '1'")
    assert page.text("#state") == "ready"
    with Client(cloud.address) as evil:
        assert evil.login(EVIL_PEER, "e")["op"] == "welcome"
        page.wait_for("document.querySelector('#peers').textContent === '2'")  # without a reload
        page.wait_for("document.querySelectorAll('#troubles li').length >= 2")
        assert page.text("#newest a") == EVIL_PEER
        assert EVIL_REASON in page.text("#troubles")
        assert "<svg/onload=alert(3)>" in page.text("#nodes")
        assert "endpoint-independent + unknown" in page.text("#nats")
        assert "33 % of 3" in page.text("#nats")
        assert page.evaluate("document.querySelectorAll('#chart rect').length") == 3
        assert page.evaluate("document.querySelectorAll('img, main script, b b, i').length") == 0
        for name, width, height, mobile in (
            ("desktop", 1280, 800, False),
            ("phone", 390, 844, True),
        ):
            page.resize(width, height, mobile)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
            page.screenshot(tmp_path / f"{name}.png")
        page.evaluate("document.querySelector('#newest a').click()")
        page.wait_for("document.querySelector('#peer-facts dd') !== null")
        assert page.text("#peer-name") == EVIL_PEER
        assert page.text("#peer-state") == "online"
        assert "may log in" in page.text("#peer-facts")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.screenshot(tmp_path / "peer.png")
    page.wait_for("document.querySelector('#peer-state').textContent === 'offline'")
    page.be_dark()
    page.evaluate("location.hash = ''")
    page.wait_for("!document.querySelector('#overview').hidden")
    page.resize(1280, 800, False)
    page.screenshot(tmp_path / "dark.png")
    assert page.complaints == []
    assert {address.split("?")[0] for address in page.asked if not address.startswith("data:")} == {
        url_of(admin) + path for path in ("", "page.css", "page.js", "api/status", "api/peer")
    }
    scene.close()


def test_the_page_says_when_nobody_answers(page: Page, cloud: Cloud, admin: Admin) -> None:
    page.open(url_of(admin))
    page.wait_for("document.querySelector('#state')?.textContent === 'ready'")
    cloud.is_draining = True
    page.wait_for("document.querySelector('#state').textContent.startsWith('draining')")
    admin.stop()
    page.wait_for("document.querySelector('#state').textContent.startsWith('no answer')")


def test_what_is_no_peer_id_is_not_asked_for(page: Page, cloud: Cloud, admin: Admin) -> None:
    page.open(url_of(admin) + "#" + "%20evil")
    page.wait_for("document.querySelector('#peer-state')?.textContent === 'that is no peer id'")
    page.open(url_of(admin) + "#nobody")
    page.wait_for("document.querySelector('#peer-facts')?.textContent.includes('there is none')")
