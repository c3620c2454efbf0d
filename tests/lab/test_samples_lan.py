"""The samples between two hosts of a LAN that has no cloud."""

from __future__ import annotations

import random
import re
from pathlib import Path

from helpers.support import PATIENCE_S
from kkp2p_compat.testing.lab import Lab
from kkp2p_compat.testing.programs import Run, output_of
from programs import SAMPLES

LAN = ("--lan", "3549")  # in the document's programs


def test_a_file(lab: Lab, run: Run, tmp_path: Path) -> None:
    one, two = lab.host("one"), lab.host("two")
    data = random.Random(1).randbytes(3_000_000)
    (two.folder / "file").write_bytes(data)
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    arguments = ("anyone", "-", str(inbox), "--once", *LAN)
    receiver = run(one, "waiting for files as anyone", str(SAMPLES / "recv_file.py"), *arguments)
    sender = run(two, None, str(SAMPLES / "send_file.py"), "anyone", "file", *LAN)
    # The sender tells of the path, too, if the channel has not ended by then.
    assert re.search(r" MB/s, mode is 1\.\n(p2p: .*\.\n)?\Z", output_of(sender))
    assert output_of(receiver).endswith(" MB/s, mode is 1.\n")
    assert (inbox / "file").read_bytes() == data


def test_chat_and_many_connects(lab: Lab, run: Run) -> None:
    """One who waits hears the line of async_connect, which finds nobody else."""
    one, two = lab.host("one"), lab.host("two")
    waiting = run(one, "Waiting as anyone", str(SAMPLES / "chat.py"), "--id", "anyone", *LAN)
    arguments = ("anyone", "nobody", *LAN, "--line", "good day", "--timeout", "2000")
    connects = run(two, None, str(SAMPLES / "async_connect.py"), *arguments)
    output, _ = connects.communicate(timeout=PATIENCE_S)
    assert connects.returncode == 1
    assert re.fullmatch(
        r"anyone: connected,fd:\d+, mode is 1\.\nnobody: connect error,ret:-1 \(.*\)\.\n", output
    )
    # Its input ends now, and so does the chat.
    assert output_of(waiting) == "Connected, mode is 1.\n> good day\nThe other one has ended.\n"
