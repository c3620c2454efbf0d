"""Options from a file, the environment and the command line: who wins, and what is refused."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import pytest

from kkp2p_compat.cli import cloud
from kkp2p_compat.cli._layers import Layers, WrongOption
from kkp2p_compat.cloud.settings import Limits


def layers(*arguments: str, **environment: str) -> Layers:
    parser = argparse.ArgumentParser()
    cloud.add_parser(parser.add_subparsers())
    (command,) = parser._subparsers._group_actions[0].choices.values()  # type: ignore
    variables = {f"KKP2P_CLOUD_{name.upper()}": value for name, value in environment.items()}
    return Layers(command, arguments, variables, "KKP2P_CLOUD_")


def in_file(path: Path, text: str) -> str:
    path.write_text(text)
    return f"--config={path}"


def test_nothing_given_is_what_the_command_line_has_without_arguments() -> None:
    options = layers().read()
    assert options.listen == ("0.0.0.0", 3080)
    assert options.drain == 5.0
    assert options.account == []
    assert options.no_stun is False
    assert options.admin is None


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    file = in_file(tmp_path / "c.toml", 'drain = 1\nlog-level = "error"\nadmin = "9090"\n')
    options = layers("--drain", "3", file, drain="2", log_level="debug").read()
    assert (options.drain, options.log_level) == (3.0, "debug")
    assert options.admin == ("127.0.0.1", 9090)


def test_every_option_can_stand_in_a_file(tmp_path: Path) -> None:
    text = """
        listen = "127.0.0.1:1"
        role = "all"
        name = ["a.example", "b.example"]
        account = "peer:its secret"
        no-stun = true
        no_lane = true
        stun_address = "192.0.2.1"

        [limits]
        calls-per-s = 7
        beat_s = 2.5
        limit-loopback = true
    """
    options = layers(in_file(tmp_path / "c.toml", text)).read()
    assert options.listen == ("127.0.0.1", 1)
    assert options.name == ["a.example", "b.example"]
    assert options.account == [("peer", "its secret")]
    assert (options.no_stun, options.no_lane, options.limit_loopback) == (True, True, True)
    assert (options.calls_per_s, options.beat_s) == (7.0, 2.5)


def test_lists_and_flags_of_the_environment(tmp_path: Path) -> None:
    file = in_file(tmp_path / "c.toml", "no-stun = true\nlimit-loopback = true")
    found = layers(file, name="a.example b.example", no_lane="yes", no_stun="0").read()
    assert found.name == ["a.example", "b.example"]
    assert (found.no_lane, found.no_stun, found.limit_loopback) == (True, False, True)


def test_a_list_of_a_higher_layer_replaces_that_of_a_lower_one(tmp_path: Path) -> None:
    file = in_file(tmp_path / "c.toml", 'name = ["a.example", "b.example"]')
    assert layers("--name", "c.example", file).read().name == ["c.example"]
    assert layers(file, name="").read().name == []


def test_the_file_may_be_named_by_the_environment(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("drain = 9")
    assert layers(config=str(tmp_path / "c.toml")).read().drain == 9.0


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("drian = 1", "there is no option 'drian'"),
        ('config = "other.toml"', "there is no option 'config'"),
        ("[limit]\ncalls-per-s = 1", "there is no option 'limit'"),
        ("limits = 1", "limits is not a table"),
        ("calls-per-s = 1\n[limits]\ncalls_per_s = 2", "calls_per_s is there twice"),
        ('drain = "soon"', "drain: 'soon' is not a number, 0 or more"),
        ("connections = 1.5", "connections: '1.5' is not a whole number, 0 or more"),
        ("drain = [1, 2]", r"drain: \[1, 2\] is not a text or a number"),
        ("drain = true", "drain: True is not a text or a number"),
        ("drain = 2026-01-01", "drain: .* is not a text or a number"),
        ("name = [[]]", "is not a text or a number"),
        ('no-stun = "yes"', "no-stun: 'yes' is not true or false"),
        ('role = "boss"', "role: invalid choice: 'boss'"),
        ("drain = ", "c.toml: Invalid value"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(WrongOption, match=why):
        layers(in_file(tmp_path / "c.toml", text)).read()


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(WrongOption, match=r"none\.toml: .*No such file"):
        layers(f"--config={tmp_path / 'none.toml'}").read()


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("no_stun", "perhaps", "KKP2P_CLOUD_NO_STUN: 'perhaps' is not true or false"),
        ("drain", "soon", "KKP2P_CLOUD_DRAIN: 'soon' is not a number"),
    ],
)
def test_what_is_wrong_in_the_environment_is_named(name: str, text: str, why: str) -> None:
    with pytest.raises(WrongOption, match=why):
        layers(**{name: text}).read()


def test_variables_that_are_no_options_are_named() -> None:
    assert layers(port="tcp://10.0.0.1:3080", drain="1").unknown == ["KKP2P_CLOUD_PORT"]


def test_every_limit_can_be_read_again(tmp_path: Path) -> None:
    names = [entry.name for entry in dataclasses.fields(Limits) if entry.default is not False]
    found = layers()
    found.file = tmp_path / "c.toml"
    found.file.write_text("\n".join(f"{name} = 3" for name in names))
    options = found.read()
    assert {getattr(options, name) for name in names} == {3}
