"""``kkp2p account``: who may log in to a cloud.  A running cloud notices changes in seconds."""

from __future__ import annotations

import argparse
import contextlib
import getpass
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, BinaryIO, TextIO

from .._kept_files import new_whole
from ..cloud.account_file import line_of, parse_line
from ..cloud.directory import Account, AccountLimits, Directory, UnknownAccount, callers_of
from ..cloud.usage import tag_of
from ._accounts import Failed, accounts_of, add_place_options, secret_to_show
from ._words import _

__all__ = ["ACTIONS", "add_parser"]


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "account",
        help="add, limit and remove the peers that may log in",
        description="The accounts of a cloud: its data folder holds them in accounts.db, or the "
        "directory that its nodes share, as SCRAM verifiers, from which nobody can get the "
        "secrets back.  Unless a secret is given, a random one is generated and shown once.",
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    for name, help_text, run, add_arguments in ACTIONS:
        action = actions.add_parser(name, help=help_text, description=help_text)
        add_arguments(action)
        add_place_options(action)
        action.set_defaults(run=_guarded, act=run)


def _guarded(options: argparse.Namespace) -> int:
    try:
        with accounts_of(options) as accounts:
            options.act(accounts, options)
    except Failed as error:
        return _fail(str(error))
    return 0


def _fail(reason: str) -> int:
    print(f"kkp2p account: {reason}", file=sys.stderr)
    return 1


# Arguments.


def _no_arguments(action: argparse.ArgumentParser) -> None:
    pass


def _peer_argument(action: argparse.ArgumentParser) -> None:
    action.add_argument("peer", metavar="PEER", help="peer id, 1 to 32 characters")


def _secret_arguments(action: argparse.ArgumentParser) -> None:
    _peer_argument(action)
    secret = action.add_mutually_exclusive_group()
    secret.add_argument(
        "--secret",
        metavar="S",
        help="the secret; other users of this host can see it while the command runs",
    )
    secret.add_argument(
        "--secret-stdin", action="store_true", help="read the secret from standard input"
    )
    secret.add_argument("--ask", action="store_true", help="ask for the secret at the terminal")


def _allow_arguments(action: argparse.ArgumentParser) -> None:
    _peer_argument(action)
    action.add_argument(
        "--from",
        dest="callers",
        metavar="WHO",
        nargs="+",
        required=True,
        help="peer ids, or one of the words anybody, accounts (whoever has logged in), nobody.  "
        "What the peer itself says when it logs in (callers) holds besides",
    )


def _limit_arguments(action: argparse.ArgumentParser) -> None:
    _peer_argument(action)
    for flag, kind, help_text in (
        ("--calls-per-s", float, "calls a second that it may make, at each node"),
        ("--relay-bytes-per-day", int, "bytes that relays carry for it in a day (UTC)"),
        (
            "--channels",
            int,
            "calls that it may have at once, at each node: those that are not "
            "answered, or whose two sides need the cloud yet",
        ),
    ):
        action.add_argument(
            flag,
            metavar="N",
            type=_number_or_none(kind),
            default=argparse.SUPPRESS,
            help=f"{help_text}; none: no limit",
        )


def _number_or_none(kind: type) -> Callable[[str], object]:
    def parse(text: str) -> object:
        return None if text == "none" else kind(text)

    parse.__name__ = _("number, or the word none")  # for argparse's error
    return parse


def _export_arguments(action: argparse.ArgumentParser) -> None:
    action.add_argument(
        "file", metavar="FILE", nargs="?", default="-", help="a new file (-: standard output)"
    )


def _import_arguments(action: argparse.ArgumentParser) -> None:
    action.add_argument(
        "file", metavar="FILE", nargs="?", default="-", help="what export wrote (-: standard input)"
    )
    action.add_argument(
        "--replace",
        action="store_true",
        help="accounts that are there already become what they are in the file, instead of "
        "staying as they are",
    )


def _log_arguments(action: argparse.ArgumentParser) -> None:
    action.add_argument(
        "--count", metavar="N", type=int, default=100, help="how many (default: %(default)s)"
    )


# Actions.


def _add(accounts: Directory, options: argparse.Namespace) -> None:
    accounts.check_new(options.peer)
    secret, is_new = _secret(options)
    accounts.add(options.peer, secret)
    print(_("{peer} may log in").format(peer=options.peer))
    _show_secret(secret, is_new)


def _passwd(accounts: Directory, options: argparse.Namespace) -> None:
    accounts.check_known(options.peer)
    secret, is_new = _secret(options)
    accounts.change_secret(options.peer, secret)
    print(_("{peer} has another secret").format(peer=options.peer))
    _show_secret(secret, is_new)


def _remove(accounts: Directory, options: argparse.Namespace) -> None:
    accounts.remove(options.peer)
    print(_("{peer} may not log in any more").format(peer=options.peer))


def _disable(accounts: Directory, options: argparse.Namespace) -> None:
    accounts.update(options.peer, disabled=True)
    print(_("{peer} may not log in until it is enabled").format(peer=options.peer))


def _enable(accounts: Directory, options: argparse.Namespace) -> None:
    accounts.update(options.peer, disabled=False)
    print(_("{peer} may log in").format(peer=options.peer))


def _allow(accounts: Directory, options: argparse.Namespace) -> None:
    allow = ",".join(options.callers)
    words = {"anybody", "accounts", "nobody"} & set(options.callers)
    if words and len(options.callers) > 1:
        text = _("{word} stands alone, and not with others")
        raise ValueError(text.format(word=sorted(words)[0]))
    callers_of(allow)
    accounts.update(options.peer, allow=allow)
    text = _("{peer} may be called by {callers}")
    print(text.format(peer=options.peer, callers=_callers(allow)))


def _limit(accounts: Directory, options: argparse.Namespace) -> None:
    account = _account(accounts, options.peer)
    given = {name: getattr(options, name) for name in asdict(account.limits) if name in options}
    if not given:
        raise ValueError(_("no limit given: --calls-per-s, --relay-bytes-per-day, --channels"))
    limits = replace(account.limits, **given)
    limits.check()
    accounts.update(options.peer, limits=limits)
    print(f"{options.peer}: {_limits(limits)}")


def _list(accounts: Directory, options: argparse.Namespace) -> None:
    for account in accounts.list_accounts():
        notes = [_("disabled")] if account.disabled else []
        if account.allow != "anybody":
            notes.append(_("from {callers}").format(callers=_callers(account.allow)))
        if account.limits != AccountLimits():
            notes.append(_limits(account.limits))
        print(f"{account.peer_id:32}  {_time(account.changed)}  {'; '.join(notes)}".rstrip())


def _show(accounts: Directory, options: argparse.Namespace) -> None:
    account = _account(accounts, options.peer)
    print(f"{account.peer_id}: {_('disabled') if account.disabled else _('may log in')}")
    print(_("  changed: {time}").format(time=_time(account.changed)))
    print(_("  may be called by: {callers}").format(callers=_callers(account.allow)))
    print(_("  limits: {limits}").format(limits=_limits(account.limits)))
    used = {**accounts.usage(account.peer_id), **accounts.usage(tag_of(account.peer_id))}
    for what, count in sorted(used.items()):
        text = _("  today (UTC), {what}: {count}")
        print(text.format(what=what.replace("_", " "), count=count))
    if not accounts.is_local:
        where = accounts.where(account.peer_id)
        text = _("  online: no") if where is None else _("  online: at node {node}")
        print(text.format(node=where and where.node))


def _export(accounts: Directory, options: argparse.Namespace) -> None:
    count = 0
    with contextlib.ExitStack() as stack:
        file: BinaryIO = sys.stdout.buffer
        if options.file != "-":  # they are for nobody else to read
            file = stack.enter_context(new_whole(options.file, replace=False))
        for account in accounts.list_accounts():
            file.write(f"{line_of(account)}\n".encode("ascii"))
            count += 1
    print(_("{count} accounts exported").format(count=count), file=sys.stderr)


def _import(accounts: Directory, options: argparse.Namespace) -> None:
    """All of them, or none if a line is bad."""
    found = []
    with contextlib.ExitStack() as stack:
        file: TextIO = sys.stdin
        if options.file != "-":
            file = stack.enter_context(open(options.file, encoding="utf-8"))
        for number, line in enumerate(file, 1):
            try:
                found.append(parse_line(line))
            except ValueError as error:
                text = _("line {number}, so nothing was imported: {problem}")
                raise ValueError(text.format(number=number, problem=error)) from error
    imported = accounts.put_all(found, options.replace)
    text = _(
        "{now.added} accounts added, {now.replaced} replaced, {now.kept} were there and stay as "
        "they were"
    )
    print(text.format(now=imported))


def _log(accounts: Directory, options: argparse.Namespace) -> None:
    for record in accounts.changes(options.count):
        print(record)


ACTIONS = (
    ("add", "let a peer log in", _add, _secret_arguments),
    ("passwd", "give a peer another secret, which ends its login", _passwd, _secret_arguments),
    ("remove", "remove a peer, which ends its login", _remove, _peer_argument),
    ("disable", "end a peer's login, and let it log in no more", _disable, _peer_argument),
    ("enable", "let it log in again", _enable, _peer_argument),
    ("allow", "say who may call a peer", _allow, _allow_arguments),
    ("limit", "say what a peer may use", _limit, _limit_arguments),
    ("list", "show the peers that may log in", _list, _no_arguments),
    ("show", "show one account, and what it has used today", _show, _peer_argument),
    (
        "export",
        "write all accounts to a file, with what proves secrets",
        _export,
        _export_arguments,
    ),
    ("import", "add the accounts of such a file", _import, _import_arguments),
    ("log", "show what was done to accounts last, as lines of JSON", _log, _log_arguments),
)


def _account(accounts: Directory, peer_id: str) -> Account:
    account = accounts.account(peer_id)
    if account is None:
        raise UnknownAccount(_("there is no account {peer}").format(peer=peer_id))
    return account


def _time(unix_s: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix_s))


def _callers(allow: str) -> str:
    words = {"accounts": _("whoever has logged in"), "anybody": _("anybody"), "nobody": _("nobody")}
    return words.get(allow, allow.replace(",", ", "))


def _limits(limits: AccountLimits) -> str:
    texts = (
        (limits.calls_per_s, _("{:g} calls a second")),
        (limits.relay_bytes_per_day, _("{} bytes a day over relays")),
        (limits.channels, _("{} calls at once")),
    )
    return ", ".join(text.format(value) for value, text in texts if value is not None) or _("none")


def _show_secret(secret: str, is_new: bool) -> None:
    if is_new:
        print(_("The secret, which is shown only now: {secret}").format(secret=secret))


def _secret(options: argparse.Namespace) -> tuple[str, bool]:
    """The secret that the options give, or a random one; and whether it is random."""
    if options.secret is not None:
        return str(options.secret), False
    if options.secret_stdin:
        return sys.stdin.readline().rstrip("\r\n"), False
    if options.ask:
        return _ask(options.peer), False
    return secret_to_show(), True


def _ask(peer_id: str) -> str:
    """Twice, at the terminal."""
    try:
        secret = getpass.getpass(_("Secret of {peer}: ").format(peer=peer_id))
        if getpass.getpass(_("Again: ")) != secret:
            raise ValueError(_("the two are not the same"))
    except EOFError as error:
        raise ValueError(_("no secret given")) from error
    return secret
