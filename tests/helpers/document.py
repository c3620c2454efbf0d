"""What the document's programs answer and print, and the clients that it shows."""

from __future__ import annotations

import re
import shutil
import subprocess
import time

import gevent

from helpers.support import PATIENCE_S
from kkp2p_compat.testing.plugin import need

__all__ = ["ACCEPTED", "REQUEST", "check_answer", "need_program", "run_client"]

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
# The document's answer, to the letter.
ANSWER = (
    r"HTTP/1\.1 200 OK\r\n"
    r"Date: Tue, 01 Oct 2022 10:10:10 GMT\r\n"
    r"Server: Apache\r\n"
    r"X-Powered-By: kkp2p %s\r\n"
    r"Content-Type: text/xml; charset=utf-8\r\n"
    r"Content-Length:(\d+)\r\n"
    r"Connection: close\r\n"
    r"\r\n"
    r"(\d+)\n"
)
ACCEPTED = r"accept new connection,fd:\d+, mode is %s,channel id:\d+\.\n"


def check_answer(answer: str, protocol: str) -> None:
    match = re.fullmatch(ANSWER % protocol, answer)
    assert match, answer
    assert int(match[1]) == len(match[2]) + 1
    assert abs(int(match[2]) - time.time()) < 3600  # the body is the time


def need_program(name: str) -> str:
    """The path of a program that the machine may lack; then the test is skipped."""
    need(name)
    return str(shutil.which(name))


def run_client(*command: str, data: bytes = b"") -> str:
    """A client program on a thread of the pool, so that a time limit can end the wait."""

    def run() -> str:
        ended = subprocess.run(
            command, input=data, capture_output=True, timeout=PATIENCE_S, check=True
        )
        return ended.stdout.decode()

    return str(gevent.get_hub().threadpool.apply(run))
