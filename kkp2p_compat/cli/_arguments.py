"""Parsers of what the tools are given on the command line; argparse shows the user their errors."""

from __future__ import annotations

import os
from argparse import ArgumentTypeError

from .._address import HostPort, parse_host_port
from .._codes import MAX_PEER_ID
from .._peer_id import is_peer_id
from ._words import _

__all__ = [
    "LOOPBACKS",
    "parse_address",
    "parse_desc",
    "parse_path",
    "parse_peer",
    "parse_port",
    "parse_seconds",
]

MAX_S = 3600  # our choice: of any time that is given
MAX_PATH_BYTES = 107  # unix(7): sun_path
LOOPBACKS = "127.0.0.1", "::1"  # what a bare port means
UNIX = "unix:"


def parse_address(text: str, *, default: int | None = None, lowest: int = 1) -> HostPort:
    """As ``parse_host_port``."""
    try:
        return parse_host_port(text, default=default, lowest=lowest)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from error


def parse_port(text: str, *, lowest: int = 1) -> int:
    if not (text.isascii() and text.isdecimal()) or not lowest <= int(text[:6]) <= 65535:
        raise ArgumentTypeError(
            _("{text!r} is not a port, {lowest} to 65535").format(text=text, lowest=lowest)
        )
    return int(text)


def parse_peer(text: str) -> str:
    if not is_peer_id(text):
        raise ArgumentTypeError(
            _("{text!r} is not a peer id: 1 to {most} printable ASCII characters").format(
                text=text, most=MAX_PEER_ID
            )
        )
    return text


def parse_path(text: str) -> str | None:
    """The absolute path of ``unix:PATH``; None: it is something else."""
    if not text.startswith(UNIX):
        return None
    path = text[len(UNIX) :]
    whole = os.path.abspath(path)
    if not path or "\0" in path or len(os.fsencode(whole)) > MAX_PATH_BYTES:
        raise ArgumentTypeError(
            _("{text!r} is not unix:PATH, of at most {most} bytes").format(
                text=text, most=MAX_PATH_BYTES
            )
        )
    return whole


def parse_desc(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 2**31
    if not -(2**31) <= value < 2**31:
        raise ArgumentTypeError(_("{text!r} is not a number of 32 bits").format(text=text))
    return value


def parse_seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.001 <= value <= MAX_S:
        raise ArgumentTypeError(
            _("{text!r} is not 0.001 to {most} seconds").format(text=text, most=MAX_S)
        )
    return value
