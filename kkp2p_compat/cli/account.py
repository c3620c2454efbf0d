"""``kkp2p account``: who may log in to a cloud.  A running cloud notices changes in seconds."""

from __future__ import annotations

import argparse
import getpass
import secrets
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any

from ..cloud.accounts import default_data
from ..cloud.directory import Directory, UnknownAccount
from ..cloud.open_directory import open_directory

__all__ = ["add_parser"]

# Our choice: somebody who sees a login or the verifier can guess offline, in vain among 2^128.
SECRET_BYTES = 16


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "account",
        help="add, list and remove the peers that may log in",
        description="The accounts of a cloud: its data folder holds them in accounts.db, as SCRAM "
        "verifiers, from which nobody can get the secrets back.  Unless a secret is given, a "
        "random one is generated and shown once.",
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    for name, help_text, run in (
        ("add", "let a peer log in", _add),
        ("passwd", "give a peer another secret, which ends its present login", _passwd),
        ("remove", "remove a peer, which ends its present login", _remove),
        ("list", "show the peers that may log in", _list),
    ):
        action = actions.add_parser(name, help=help_text, description=help_text)
        if name != "list":
            action.add_argument("peer", metavar="PEER", help="peer id, 1 to 32 characters")
        if name in ("add", "passwd"):
            secret = action.add_mutually_exclusive_group()
            secret.add_argument(
                "--secret",
                metavar="S",
                help="the secret; other users of this host can see it while the command runs",
            )
            secret.add_argument(
                "--secret-stdin", action="store_true", help="read the secret from standard input"
            )
            secret.add_argument(
                "--ask", action="store_true", help="ask for the secret at the terminal"
            )
        action.add_argument(
            "--data",
            metavar="DIR",
            type=Path,
            default=default_data(),
            help="the cloud's data folder (default: %(default)s)",
        )
        action.set_defaults(run=_guarded, act=run)


def _guarded(options: argparse.Namespace) -> int:
    try:
        accounts = open_directory(None, options.data)
    except (OSError, sqlite3.Error) as error:
        return _fail(f"{options.data}: {error}")
    try:
        options.act(accounts, options)
    except (UnknownAccount, ValueError) as error:
        return _fail(str(error))
    except sqlite3.Error as error:
        return _fail(f"{accounts.where_text}: {error}")
    finally:
        accounts.close()
    return 0


def _fail(reason: str) -> int:
    print(f"kkp2p account: {reason}", file=sys.stderr)
    return 1


def _add(accounts: Directory, options: argparse.Namespace) -> None:
    accounts.check_new(options.peer)
    secret, is_new = _secret(options)
    accounts.add(options.peer, secret)
    print(f"{options.peer} may log in")
    _show(secret, is_new)


def _passwd(accounts: Directory, options: argparse.Namespace) -> None:
    accounts.check_known(options.peer)
    secret, is_new = _secret(options)
    accounts.change_secret(options.peer, secret)
    print(f"{options.peer} has another secret")
    _show(secret, is_new)


def _remove(accounts: Directory, options: argparse.Namespace) -> None:
    accounts.remove(options.peer)
    print(f"{options.peer} may not log in any more")


def _list(accounts: Directory, options: argparse.Namespace) -> None:
    for account in accounts.list_accounts():
        changed = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(account.changed))
        print(f"{account.peer_id:32}  {changed}")


def _show(secret: str, is_new: bool) -> None:
    if is_new:
        print(f"The secret, which is shown only now: {secret}")


def _secret(options: argparse.Namespace) -> tuple[str, bool]:
    """The secret that the options give, or a random one; and whether it is random."""
    if options.secret is not None:
        return str(options.secret), False
    if options.secret_stdin:
        return sys.stdin.readline().rstrip("\r\n"), False
    if options.ask:
        return _ask(options.peer), False
    return secrets.token_hex(SECRET_BYTES), True


def _ask(peer_id: str) -> str:
    """Twice, at the terminal."""
    try:
        secret = getpass.getpass(f"Secret of {peer_id}: ")
        if getpass.getpass("Again: ") != secret:
            raise ValueError("the two are not the same")
    except EOFError as error:
        raise ValueError("no secret given") from error
    return secret
