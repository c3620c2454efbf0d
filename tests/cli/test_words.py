"""The tools in Chinese: by which locale, that nothing is left out, and what stays English."""

from __future__ import annotations

import configparser
import errno
import gettext
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from string import Formatter

import pytest

from helpers.support import ROOT
from helpers.tool_process import StartTool, start_tool
from kkp2p_compat import cli
from kkp2p_compat._errors import LinkLost, PeerOffline, TimedOut
from kkp2p_compat._sentence import Sentence, said
from kkp2p_compat.cli import _words, netcheck
from kkp2p_compat.cli._fold import columns, fold
from kkp2p_compat.cli._forward import Report
from kkp2p_compat.cli.explain import explain, timeline_fields
from kkp2p_compat.control.refusals import refusal
from kkp2p_compat.engine.runtime.timeline import Timeline
from kkp2p_compat.traversal.nat import UNKNOWN, NatBehaviour
from kkp2p_compat.traversal.notes import Note, NoteKind
from kkp2p_compat.traversal.plan import Side, make_plan

sys.path.insert(0, str(ROOT / "docs"))
import catalogue

__all__ = ["start_tool"]

NUMBER = re.compile(r"\d+(?:[.:]\d+)*")
CHINESE = re.compile(r"[\u4e00-\u9fff]")
COLUMNS = 100
TEXTS = catalogue.parse(catalogue.PO.read_text("utf-8"))
COMMANDS = [parser.prog.split()[1:] for parser in catalogue.parsers()]

Speak = Callable[..., None]


@pytest.fixture
def speak(monkeypatch: pytest.MonkeyPatch) -> Iterator[Speak]:
    def choose(**variables: str) -> None:
        for name in ("LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        _words.speak_as_the_locale_says()

    yield choose
    _words.speak_english()


# The catalogue: docs/catalogue.py brings it up to date.


def test_all_that_is_said_is_in_it_and_nothing_else() -> None:
    assert list(TEXTS) == ["", *catalogue.said()]


def test_all_is_translated() -> None:
    assert not [text for text, ours in TEXTS.items() if not ours]


def test_the_compiled_one_is_made_of_it() -> None:
    assert catalogue.PO.with_suffix(".mo").read_bytes() == catalogue.compiled(TEXTS)


def test_what_is_written_can_be_read() -> None:
    texts = {"": "a: b\nc: d\n", 'a "word"\\': "1\n2", "two\nlines\n": ""}
    assert catalogue.parse(catalogue.written(texts)) == texts


@pytest.mark.parametrize(
    "kind", [r"%(?:\(\w+\))?[sdrg]", r"--[a-z][a-z-]+", r"\$\w+", r"\bkkp2p [a-z]+"]
)
def test_a_translation_has_the_same(kind: str) -> None:
    for text, ours in TEXTS.items():
        if text:
            assert set(re.findall(kind, ours)) == set(re.findall(kind, text))


def test_a_translation_has_at_least_the_same_figures() -> None:
    """It may write one for a word."""
    for text, ours in TEXTS.items():
        assert set(NUMBER.findall(text)) <= set(NUMBER.findall(ours))


def test_a_translation_has_the_same_places_to_fill_in() -> None:
    for text, ours in TEXTS.items():
        if text and "%" not in text:
            assert sorted(map(str, Formatter().parse(ours)), key=str)  # it can be parsed
            assert _fields(ours) == _fields(text)


def _fields(text: str) -> list[tuple[str | None, ...]]:
    return sorted(field for _before, *field in Formatter().parse(text) if field[0] is not None)


def test_it_is_installed() -> None:
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    patterns = settings["options.package_data"]["kkp2p_compat"].split()
    package = ROOT / "kkp2p_compat"
    files = {file for pattern in patterns for file in package.glob(pattern)}
    assert catalogue.PO.with_suffix(".mo") in files


# Which language.


@pytest.mark.parametrize(
    ("variables", "chinese"),
    [
        ({}, False),
        ({"LANG": "zh_CN.UTF-8"}, True),
        ({"LANG": "zh_TW.UTF-8"}, True),  # nearer than English
        ({"LANG": "zh"}, True),
        ({"LANG": "zha_CN"}, False),  # another language
        ({"LANG": "en_US.UTF-8"}, False),
        ({"LANG": "en_US.UTF-8", "LC_MESSAGES": "zh_CN.UTF-8"}, True),
        ({"LC_MESSAGES": "zh_CN.UTF-8", "LC_ALL": "en_US.UTF-8"}, False),
        ({"LANG": "en_US.UTF-8", "LANGUAGE": "zh_CN:en"}, True),
        ({"LANG": "zh_CN.UTF-8", "LANGUAGE": "en:zh_CN"}, False),
        ({"LANG": "zh_CN.UTF-8", "LANGUAGE": ""}, True),
        ({"LC_ALL": "C", "LANG": "zh_CN.UTF-8", "LANGUAGE": "zh_CN"}, False),
        ({"LC_ALL": "C.UTF-8", "LANGUAGE": "zh_CN"}, True),
        ({"LANGUAGE": "zh_CN"}, True),
    ],
)
def test_the_language(speak: Speak, variables: dict[str, str], chinese: bool) -> None:
    speak(**variables)
    assert _words.is_chinese() == chinese
    assert gettext.gettext("options") == ("选项" if chinese else "options")  # as argparse does


def test_english_where_the_output_has_no_such_characters(
    speak: Speak, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for encoding, chinese in (("ascii", False), ("latin-1", False), ("gb18030", True)):
        with open(tmp_path / encoding, "w", encoding=encoding) as output:
            monkeypatch.setattr(sys, "stdout", output)
            speak(LANG="zh_CN")
            assert _words.is_chinese() == chinese


def test_programs_get_english(speak: Speak, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = []

    def run(options: object) -> int:
        heard.append(_words.is_chinese())
        return 0

    monkeypatch.setattr(netcheck, "_run", run)
    monkeypatch.setenv("LC_ALL", "zh_CN.UTF-8")
    cli.main(["netcheck"])
    cli.main(["netcheck", "--json"])
    assert heard == [True, False]


def test_a_cloud_speaks_to_its_user_and_logs_in_english(start_tool: StartTool) -> None:
    tool = start_tool(
        "cloud", "--listen", "127.0.0.1:0", "--data", "data", LC_ALL="zh_CN.UTF-8", PYTHONUTF8="1"
    )
    hello = []
    while not hello or "invite" not in hello[-1]:
        hello.append(tool.line())
        assert CHINESE.search(hello[-1]) or "--login" in hello[-1]
    status, _output, errors = tool.end(signal.SIGTERM)
    assert status == 0
    assert "stopped" in errors
    assert not CHINESE.search(errors)


# Help.


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_is_chinese_to_the_last_line(
    speak: Speak,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
) -> None:
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    monkeypatch.setenv("LC_ALL", "zh_CN.UTF-8")
    with pytest.raises(SystemExit):
        cli.main([*command, "--help"])
    shown = capsys.readouterr().out
    assert max(map(columns, shown.splitlines())) <= COLUMNS
    unfolded = re.sub(r"\s+", "", shown)
    english = [text for text in TEXTS if len(text.split()) > 2]
    assert not [text for text in english if re.sub(r"\s+", "", text) in unfolded]
    assert CHINESE.search(shown)


def test_errors_of_arguments(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LC_ALL", "zh_CN.UTF-8")
    for arguments, wanted in (
        (["proxy", "x", "alice"], "参数 LISTEN：'x' 不是端口，应为 0 到 65535"),
        (["invite"], "缺少必需的参数：PEER"),
        (["proxy", "--mode", "x"], "参数 --mode：无效的选择："),
        (["account", "limit", "a", "--channels", "x"], "无效的 数字或 none 值：'x'"),
    ):
        with pytest.raises(SystemExit):
            cli.main(arguments)
        assert wanted in capsys.readouterr().err
    assert cli.main(["publish", "--as", "alice"]) == 2
    assert capsys.readouterr().err == "kkp2p publish: 需要 TARGET 或 --target\n"


# Lines.


def test_lines_are_as_wide_as_the_screen_and_no_punctuation_begins_one(speak: Speak) -> None:
    speak(LC_ALL="zh_CN.UTF-8")
    text = "本机的 UDP 出不去：所有连接都经过中继（relay），走 TCP。"
    for width in range(14, 40):
        lines = fold(text, width)
        assert max(map(columns, lines)) <= width
        assert "".join(lines).replace(" ", "") == text.replace(" ", "")
        assert not [line for line in lines if line[0] in "，。：）" or line[-1] == "（"]
    assert fold("", 20) == [""]
    speak(LC_ALL="C")
    assert fold("an English text", 10) == ["an English", "text"]


# What the engine says.


def test_reasons_are_told_in_chinese_with_all_their_parts(speak: Speak) -> None:
    error = TimedOut(
        "not connected within {ms} ms: we are not logged in: {why}",
        ms=500,
        why=said(LinkLost("{cloud}: {why}", cloud="192.0.2.1:3080", why=said(_in_use()))),
    )
    speak(LC_ALL="zh_CN.UTF-8")
    text = (
        "500 毫秒内没有连上：我方没有登录成功：192.0.2.1:3080：地址已被占用：另一个程序正在那里侦听"
    )
    assert _words.told(error) == text
    speak(LC_ALL="C")
    assert _words.told(error) == str(error)
    assert str(error).endswith(f"192.0.2.1:3080: {_in_use()}")


def _in_use() -> OSError:
    return OSError(errno.EADDRINUSE, "in use")


@pytest.mark.parametrize(
    "reason", ["offline", "not-allowed", "busy", "limit", "timeout", "of later"]
)
def test_why_a_call_is_refused(speak: Speak, reason: str) -> None:
    error = refusal(reason)
    speak(LC_ALL="zh_CN.UTF-8")
    assert CHINESE.search(_words.told(error))
    assert not CHINESE.search(str(error))


def test_an_empty_text_and_one_of_others_stay_as_they_are(speak: Speak) -> None:
    speak(LC_ALL="zh_CN.UTF-8")
    assert _words.retold("") == _words.retold(Sentence("")) == ""
    # A plain text is nobody's sentence, even if there is one like it.
    assert _words.retold("the peer is not online") == "the peer is not online"
    assert _words.retold(Sentence("{not} one of ours")) == "{not} one of ours"


def test_explain_is_chinese_to_the_last_line(speak: Speak) -> None:
    timeline = Timeline()
    random = NatBehaviour("address-and-port-dependent", "address-dependent", "sequential", 2, False)
    timeline.own_nat = timeline.peer_nat = random
    timeline.plan = make_plan(Side(random, []), Side(UNKNOWN, []), "punch")
    timeline.step("called")
    timeline.note("our NAT: {nat}", timeline.own_nat.text)
    timeline.note("plan: {kind}: {reason}", timeline.plan.kind, timeline.plan.reason)
    timeline.add(
        Note(
            timeline.started_at,
            "check {number} of {kind} {address}",
            NoteKind.CHECK,
            1,
            (1, "srflx", "192.0.2.1:4000"),
        )
    )
    english = explain(timeline_fields(timeline))
    speak(LC_ALL="zh_CN.UTF-8")
    chinese = explain(timeline_fields(timeline))
    assert len(chinese) == len(english)
    assert not [line for line in chinese if not CHINESE.search(line)]
    assert any("第 1 次检查 srflx 192.0.2.1:4000" in line for line in chinese)
    assert any(
        "对称型，端口连续分配（+2），地址相关过滤，不支持 hairpin" in line for line in chinese
    )
    assert any("our NAT: symmetric, sequential ports (+2), " in line for line in english)


def test_lines_of_a_proxy_give_chinese_reasons_and_json_english_ones(
    speak: Speak, capsys: pytest.CaptureFixture[str]
) -> None:
    event = {
        "event": "failed",
        "at": 0.0,
        "name": Sentence("port {number}", number=51502),
        "peer": "alice",
        "problems": [said(PeerOffline())],
        "age_s": 0.0203,
    }
    speak(LC_ALL="zh_CN.UTF-8")
    for as_json, wanted in (
        (False, "端口 51502：20.3 ms 后失败：对方不在线"),
        (True, "not online"),
    ):
        report = Report("proxy", as_json, None)
        report.show(event)
        report.close()
        assert wanted in capsys.readouterr().out
