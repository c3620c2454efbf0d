"""``kkp2p invite``: one line with all that a peer needs to know of a cloud."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

from .._address import HostPort
from .._kept_files import read_small, write_whole
from ..cloud.directory import Directory, Verifier, new_account
from ..control.invitation import MAX_CHARS, Invitation
from ._accounts import Failed, accounts_of, add_place_options, place_of, secret_to_show
from ._arguments import parse_address, parse_peer
from ._words import _

__all__ = ["add_parser", "keep_login"]

HOURS = 24.0  # our choice
MAX_HOURS = 24.0 * 366
MAX_FINGERPRINTS = 8  # our choice: a node that is known vouches for the others
PLACE_FILE = "login"  # in the data folder of a cloud that runs, or ran


def keep_login(data: Path, line: str) -> None:
    """Remember where a cloud is, for invitations; raises OSError."""
    write_whole(str(data / PLACE_FILE), f"{line}\n".encode(), 0o644)


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "invite",
        help="print a line with which somebody can join this cloud",
        description="Prints one line that names this cloud, the SHA-256 of its certificate, and "
        "the peer.  If the peer is new it gets an account, and the line has a secret in it, which "
        "is good once: kkp2p join takes it up, and gives the account another.",
    )
    parser.add_argument("peer", metavar="PEER", type=parse_peer, help="peer id, 1 to 32 characters")
    parser.add_argument(
        "--at",
        metavar="HOST[:PORT]",
        type=_parse_place,
        help="where peers reach this cloud (default: as it said when it was started last)",
    )
    parser.add_argument(
        "--hours",
        metavar="N",
        type=_parse_hours,
        default=HOURS,
        help="how long a secret that is good once can be taken up (default: %(default)g)",
    )
    parser.add_argument(
        "--again",
        action="store_true",
        help="a peer that has an account already gets a new secret, too, which ends its login",
    )
    parser.add_argument(
        "--no-fingerprint",
        action="store_true",
        help="leave the SHA-256 out, where a CA that peers trust vouches for the certificate",
    )
    add_place_options(parser)
    parser.set_defaults(run=_run)


def _parse_place(text: str) -> HostPort:
    return parse_address(text, default=0, lowest=0)


def _parse_hours(text: str) -> float:
    try:
        hours = float(text)
    except ValueError:
        hours = 0.0
    if not 0 < hours <= MAX_HOURS:
        raise argparse.ArgumentTypeError(
            _("{text!r} is not a number of hours, up to a year").format(text=text)
        )
    return hours


def _run(options: argparse.Namespace) -> int:
    try:
        with accounts_of(options) as accounts:
            cloud = _cloud(accounts, options)
            secret = _new_secret(accounts, options)
    except Failed as error:
        print(f"kkp2p invite: {error}", file=sys.stderr)
        return 1
    print(dataclasses.replace(cloud, peer_id=options.peer, secret=secret))
    return 0


def _cloud(accounts: Directory, options: argparse.Namespace) -> Invitation:
    """Raises OSError or ValueError."""
    data = place_of(options)[1]
    cloud = _fleet(accounts) if data is None else _single(data)
    if options.at is not None:
        host, port = options.at
        cloud = dataclasses.replace(cloud, host=host, port=port or cloud.port)
    return dataclasses.replace(cloud, fingerprint=None) if options.no_fingerprint else cloud


def _single(data: Path) -> Invitation:
    try:
        return Invitation.parse(read_small(str(data / PLACE_FILE), MAX_CHARS)[0].decode())
    except FileNotFoundError:
        text = _("{data}: no cloud was started with this folder: start it first")
        raise ValueError(text.format(data=data)) from None


def _fleet(accounts: Directory) -> Invitation:
    """By one of its nodes; each of them may answer in its place, as behind a balancer."""
    nodes = [node for node in accounts.nodes() if node.port and node.fingerprint]
    if not nodes:
        raise ValueError(_("no node of this cloud is running: start one first"))
    shown = sorted({f"sha256:{node.fingerprint}" for node in nodes})
    return Invitation(nodes[0].host, nodes[0].port, ",".join(shown[:MAX_FINGERPRINTS]))


def _new_secret(directory: Directory, options: argparse.Namespace) -> str | None:
    """Of a new account, or of one that gets another; None: the peer knows its secret."""
    known = directory.account(options.peer) is not None
    if known and not options.again:
        return None
    secret, until = secret_to_show(), int(time.time() + 3600 * options.hours)
    if known:
        directory.update(options.peer, verifier=Verifier.of(secret), once_until=until)
    else:
        account = new_account(options.peer, secret)
        directory.put(dataclasses.replace(account, once_until=until))
    return secret
