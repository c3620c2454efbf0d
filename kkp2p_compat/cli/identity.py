"""``kkp2p identity``: our key's fingerprint, and the keys by which we know peers."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from .._errors import KKP2PError
from .._kept_files import data_folder
from ..engine.signalling.identity import Identity
from ..engine.signalling.known_peers import KnownPeers, is_fingerprint
from ._arguments import parse_peer
from ._words import _

__all__ = ["add_parser"]


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "identity",
        help="show the key by which peers may know this one; list, add or forget keys of peers",
        description="Shows the fingerprint of our key, as it stands in the known_peers of others.  "
        "The key is made if it is missing.  With a command it is about the keys by which we know "
        "peers.",
    )
    parser.add_argument(
        "--identity",
        metavar="FILE",
        default=os.path.join(data_folder(), "identity"),
        help="the file with our key (default: %(default)s)",
    )
    parser.set_defaults(run=_run, act=_show)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    peers = commands.add_parser("peers", help="list the peers whose keys we know")
    add = commands.add_parser("add", help="know a peer by this key, too")
    add.add_argument("peer", metavar="PEER", type=parse_peer)
    add.add_argument("fingerprint", metavar="sha256:HEX", type=_parse_fingerprint)
    forget = commands.add_parser("forget", help="know peers by no key any more")
    forget.add_argument("peers", metavar="PEER", nargs="+", type=parse_peer)
    for command, act in ((peers, _list), (add, _add), (forget, _forget)):
        command.add_argument(
            "--known-peers",
            metavar="FILE",
            default=os.path.join(data_folder(), "known_peers"),
            help="the file with their keys (default: %(default)s)",
        )
        command.set_defaults(act=act)


def _parse_fingerprint(text: str) -> str:
    if not is_fingerprint(text):
        raise argparse.ArgumentTypeError(
            _("{text!r} is not sha256: and 64 hex digits").format(text=text)
        )
    return text


def _run(options: argparse.Namespace) -> int:
    try:
        return int(options.act(options))
    except KKP2PError as error:
        print(f"kkp2p identity: {error}", file=sys.stderr)
        return 1


def _show(options: argparse.Namespace) -> int:
    print(Identity.kept_in(options.identity).fingerprint, flush=True)
    return 0


def _list(options: argparse.Namespace) -> int:
    for peer_id, keys in sorted(KnownPeers(options.known_peers).keys().items()):
        for fingerprint in sorted(keys):
            print(peer_id, fingerprint)
    return 0


def _add(options: argparse.Namespace) -> int:
    KnownPeers(options.known_peers).add(options.peer, options.fingerprint)
    return 0


def _forget(options: argparse.Namespace) -> int:
    known = KnownPeers(options.known_peers)
    unknown = [peer for peer in options.peers if not known.forget(peer)]
    for peer in unknown:
        text = _("{path} has no key of {peer}").format(path=known.path, peer=peer)
        print(f"kkp2p identity: {text}", file=sys.stderr)
    return int(bool(unknown))
