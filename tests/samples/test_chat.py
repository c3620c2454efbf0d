"""samples/chat.py as real processes: lines both ways, the ends, and peers that mean harm."""

from __future__ import annotations

import os
import pty
import signal
from pathlib import Path

import pytest

import kkp2p_compat as kkp2p
from helpers.sample_process import SampleProcess, StartSample, load_sample, start_sample
from helpers.support import PATIENCE_S, SECRET, read_all, write_all

__all__ = ["start_sample"]

CHAT_DESC = 4
RELAY = ("--mode", "relay")
LONG_MS = PATIENCE_S * 1000
ENDED = "The other one has ended.\n"


@pytest.fixture
def waiting(start_sample: StartSample) -> SampleProcess:
    """One that waits for a call, as "peer"."""
    sample = start_sample("chat", "--id", "peer")
    assert sample.line() == "Waiting as peer.\n", sample.end()
    return sample


def call(engine: kkp2p.engine_t, desc: int = CHAT_DESC, encrypt: int = 0) -> kkp2p.channel_t:
    channel = kkp2p.channel_t()
    ctx = kkp2p.connect_ctx_t("peer", connect_mode=2, encrypt_data=encrypt, timeout=LONG_MS)
    ctx.connect_desc = desc
    assert kkp2p.connect(engine, ctx, channel) == 0
    return channel


@pytest.mark.parametrize(
    ("options", "mode"), [((), 1), (("--mode", "p2p"), 1), (RELAY, 2), ((*RELAY, "--encrypt"), 2)]
)
def test_two_people(
    waiting: SampleProcess, start_sample: StartSample, options: tuple[str, ...], mode: int
) -> None:
    other = start_sample("chat", "peer", *options)
    assert waiting.line() == f"Connected, mode is {mode}.\n"
    assert other.line() == f"Connected, mode is {mode}.\n"
    other.type("nǐ hǎo 你好\n".encode())
    assert waiting.line() == "> nǐ hǎo 你好\n"
    waiting.type(b"hello\n\nhow are you?\n")
    assert [other.line() for _ in range(3)] == ["> hello\n", "> \n", "> how are you?\n"]
    other.type(b"without an end")
    other.end_input()
    assert waiting.line() == "> without an end\n"
    assert waiting.line() == ENDED
    waiting.type(b"bye\n")  # the other direction is open still
    assert other.line() == "> bye\n"
    waiting.end_input()
    assert other.end() == (0, ENDED, "")
    assert waiting.end() == (0, "", "")


def test_input_that_is_no_terminal_and_no_pipe(
    waiting: SampleProcess, start_sample: StartSample, tmp_path: Path
) -> None:
    """A file is always ready to be read, in the eyes of the kernel's event queue."""
    text = tmp_path / "text"
    text.write_bytes(b"one\ntwo\n")
    with text.open("rb") as file:
        other = start_sample("chat", "peer", *RELAY, keyboard=file.fileno())
    assert waiting.line() == "Connected, mode is 2.\n"
    waiting.end_input()
    assert other.end() == (0, "Connected, mode is 2.\n" + ENDED, "")
    assert waiting.end() == (0, "> one\n> two\n" + ENDED, "")


def test_a_terminal(waiting: SampleProcess, start_sample: StartSample) -> None:
    """Typed on a real one: Ctrl-D is the end of input."""
    typist, keyboard = pty.openpty()
    try:
        other = start_sample("chat", "peer", *RELAY, keyboard=keyboard)
        assert waiting.line() == "Connected, mode is 2.\n"
        os.write(typist, b"hello\n")
        assert waiting.line() == "> hello\n"
        os.write(typist, b"\x04")
        assert waiting.line() == ENDED
        waiting.end_input()
        assert other.end() == (0, "Connected, mode is 2.\n" + ENDED, "")
    finally:
        os.close(typist)
        os.close(keyboard)


@pytest.mark.parametrize("encrypt", [0, 1])
def test_what_could_harm_a_terminal_is_taken_out(
    waiting: SampleProcess, engine: kkp2p.engine_t, encrypt: int
) -> None:
    channel = call(engine, encrypt=encrypt)
    assert waiting.line() == "Connected, mode is 2.\n"
    hostile = (
        "\x1b]0;title\x07\x1b[2Jred\x1b[31m\r\b\x00\x7f \x9b2J \u202egnp.exe\u2069\u2028 \tend\n"
    )
    write_all(channel.fd, hostile.encode() + b"\xff\xfe\x80\xe4\xbd\n")
    assert waiting.line() == "> ]0;title[2Jred[31m 2J gnp.exe \tend\n"
    assert waiting.line() == "> \ufffd\ufffd\ufffd\ufffd\n"
    kkp2p.close_fd(channel.fd)
    waiting.end_input()
    assert waiting.end() == (0, ENDED, "")


def test_a_line_without_end(waiting: SampleProcess, engine: kkp2p.engine_t) -> None:
    """It is shown in pieces, so that it takes no memory."""
    channel = call(engine)
    assert waiting.line() == "Connected, mode is 2.\n"
    write_all(channel.fd, "é".encode() * 1_000_500)
    for _ in range(1000):
        assert waiting.line() == f"> {'é' * 1000}\n"
    write_all(channel.fd, b"\n")
    assert waiting.line() == f"> {'é' * 500}\n"
    kkp2p.close_fd(channel.fd)
    waiting.end_input()
    assert waiting.end() == (0, ENDED, "")


def test_lines_cut_anywhere() -> None:
    """The same lines, however the bytes come."""
    chat = load_sample("chat")
    text = "one\n\n" + "é" * 1000 + "\n" + "你" * 1001 + "\nlast \x1b"
    expected = ["one", "", "é" * 1000, "你" * 1000, "你", "last "]
    data = text.encode()
    for step in (1, 2, 3, 1000, len(data)):
        lines = chat.Lines()
        found = []
        for start in range(0, len(data), step):
            found += lines.take(data[start : start + step])
            assert len(lines.pending) <= chat.MAX_LINE
        found += lines.take(b"")
        assert found == expected, step


def test_others_are_told_to_wait(waiting: SampleProcess, start_sample: StartSample) -> None:
    first = start_sample("chat", "peer", *RELAY)
    assert first.line() == "Connected, mode is 2.\n"
    assert waiting.line() == "Connected, mode is 2.\n"
    second = start_sample("chat", "peer", *RELAY)
    second.end_input()
    assert second.end() == (0, "Connected, mode is 2.\n> Busy.\n" + ENDED, "")
    first.type(b"still here\n")
    assert waiting.line() == "> still here\n"


def test_another_protocol_is_closed(waiting: SampleProcess, engine: kkp2p.engine_t) -> None:
    channel = call(engine, desc=1)
    assert read_all(channel.fd) == b""
    kkp2p.close_fd(channel.fd)
    channel = call(engine)
    assert waiting.line() == "Connected, mode is 2.\n"
    kkp2p.close_fd(channel.fd)


def test_the_other_one_is_killed(waiting: SampleProcess, start_sample: StartSample) -> None:
    other = start_sample("chat", "peer", *RELAY)
    assert other.line() == "Connected, mode is 2.\n"
    assert waiting.line() == "Connected, mode is 2.\n"
    other.kill()
    assert waiting.line() == ENDED
    waiting.end_input()
    assert waiting.end()[0] in (0, 1)


def test_refused(start_sample: StartSample) -> None:
    offline = "error,ret:-109 (other: the peer is not online).\n"
    assert start_sample("chat", "other").end() == (1, "", offline)
    mode = start_sample("chat", "other", "--mode", "p2p")
    assert mode.end() == (1, "", offline)
    wrong = start_sample("chat", "--id", "peer", "--secret", "wrong")
    refused = "the cloud refuses the login"
    assert wrong.end() == (1, "", f"error,ret:-111 ({refused}: bad-secret).\n")
    nobody = start_sample("chat", "--id", "nobody", "--secret", SECRET)
    assert nobody.end() == (1, "", "error,ret:-110 (the cloud knows no such peer).\n")
    for arguments in ((), ("peer", "--id", "other")):
        status, output, errors = start_sample("chat", *arguments).end()
        assert (status, output) == (2, "")
        assert errors.endswith("error: either PEER_ID or --id\n")
    status, output, errors = start_sample("chat", "peer", "--login", "no host").end()
    assert (status, output) == (1, "")
    assert errors.endswith(
        "engine_init error,ret:-101 (login_domain 'no host' is not a domain or up to 16 IPs).\n"
    )


def test_interrupted(waiting: SampleProcess) -> None:
    assert waiting.end(signal.SIGINT) == (1, "", "interrupted.\n")
