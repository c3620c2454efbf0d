"""``kkp2p identity``: our key's fingerprint, which its owner tells those who call him."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from .._errors import KKP2PError
from .._kept_files import data_folder
from ..engine.signalling.identity import Identity

__all__ = ["add_parser"]


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "identity",
        help="show the key by which peers may know this one",
        description="Shows the fingerprint of our key, as it stands in the known_peers of others.  "
        "The key is made if it is missing.",
    )
    parser.add_argument(
        "--identity", metavar="FILE", default=os.path.join(data_folder(), "identity"),
        help="the file with our key (default: %(default)s)",
    )  # fmt: skip
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    try:
        print(Identity.kept_in(options.identity).fingerprint, flush=True)
    except KKP2PError as error:
        print(f"kkp2p identity: {error}", file=sys.stderr)
        return 1
    return 0
