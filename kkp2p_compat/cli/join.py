"""``kkp2p join``: take an invitation up, after which the tools need no options."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from typing import Any

import gevent

from .._address import text_of
from .._errors import KKP2PError, LoginRefused
from ..control import invitation
from ..control.client import CloudClient
from ..control.invitation import Invitation, kept_at
from ..control.resolver import resolve
from ..control.scram import new_secret
from ..control.trust import parse_fingerprints
from ..control.way_out import way_out
from ._engines import RESOLVE_S, NoSecret, ask_for_secret
from ._words import _, told

__all__ = ["add_parser"]

PATIENCE_S = 20.0  # our choice: for all that the cloud has to answer


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "join",
        help="take an invitation up; afterwards publish, proxy and netcheck need no --login",
        description="Keeps for this user what an invitation says: where the cloud is, and as whom "
        "to log in there.  A secret that is good once is replaced by another, which only this "
        "machine knows.",
    )
    parser.add_argument(
        "line",
        metavar="LINE",
        help="the invitation, as kkp2p invite prints it, or HOST:PORT#sha256:HEX of a cloud that "
        "is only called through; - reads it from standard input",
    )
    parser.add_argument(
        "--ca", metavar="FILE", help="the cloud's certificate must verify with this one"
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    line = sys.stdin.readline() if options.line == "-" else options.line
    try:
        given = Invitation.parse(line)
        kept = _join(given, options.ca)
        invitation.keep(kept)
    except (KKP2PError, NoSecret, OSError, ValueError) as error:
        print(f"kkp2p join: {told(error)}", file=sys.stderr)
        return 1
    if kept.peer_id:
        text = _("joined the cloud at {address} as {peer}; kept in {path}")
    else:
        text = _("joined the cloud at {address}; kept in {path}")
    address = text_of((kept.host, kept.port))
    print(text.format(address=address, peer=kept.peer_id, path=kept_at()))
    return 0


def _join(given: Invitation, ca_file: str | None) -> Invitation:
    """What to keep."""
    if given.peer_id is None:
        return given
    secret = given.secret or ask_for_secret(given.peer_id)
    # The answer to a new secret may be lost on its way: so each try offers the same one, and the
    # next may find that the account has it.
    joined = invitation.begun()
    is_begun = joined is not None and dataclasses.replace(joined, secret=given.secret) == given
    if joined is None or not is_begun:
        joined = dataclasses.replace(given, secret=new_secret())
        invitation.begin(joined)
    try:
        if not _take_up(given, secret, str(joined.secret), ca_file):
            return dataclasses.replace(given, secret=secret)
    except LoginRefused:
        if not is_begun:
            raise
        _take_up(joined, str(joined.secret), "", ca_file)
    return joined


def _take_up(cloud: Invitation, secret: str, new_secret: str, ca_file: str | None) -> bool:
    """Whether the secret was replaced by the new one; raises KKP2PError."""
    way, problem = way_out(None)
    if problem:
        print(f"kkp2p join: {problem}", file=sys.stderr)
    client = CloudClient(
        cloud.host,
        cloud.port,
        list(resolve(cloud.host, RESOLVE_S, way.is_proxied)),
        logging.getLogger(__name__),
        ca_file=ca_file,
        way_out=way,
        fingerprints=parse_fingerprints(cloud.fingerprint) if cloud.fingerprint else frozenset(),
        on_offer=lambda link, message: None,
        on_login_lost=lambda error: None,
    )
    try:
        with gevent.Timeout(PATIENCE_S, LoginRefused("no answer in time")):
            return client.take_up(str(cloud.peer_id), secret, new_secret)
    finally:
        client.close()
