"""``kkp2p``: the daily tools, one command a module.

A command module has ``add_parser(subparsers)``, which adds its parser and sets ``run``, a function
that takes the parsed arguments and returns the exit status: 0 done, 1 failed, 2 used wrongly.

account.py         ``kkp2p account``
capi.py            ``kkp2p capi``
invite.py          ``kkp2p invite``
join.py            ``kkp2p join``
cloud.py           ``kkp2p cloud``
demo.py            ``kkp2p demo``
identity.py        ``kkp2p identity``
netcheck.py        ``kkp2p netcheck``
proxy.py           ``kkp2p proxy``
publish.py         ``kkp2p publish``
explain.py         ``--explain``: what was done to reach a peer
_accounts.py       where a cloud keeps its accounts
_arguments.py      parsers of arguments
_cloud_options.py  the options of ``kkp2p cloud``
_engines.py        the options of the commands that make an engine
_fold.py           text in lines of so many columns
_forward.py        what ``proxy`` and ``publish`` share: what they tell, and until when
_help.py           help texts in the user's language
_json_log.py       a log for programs
_layers.py         options from files and the environment
_output.py         output that neither blocks nor ends a program
_peer_test.py      ``netcheck --peer``
_probes.py         how far away a server is
_programs.py       runs other programs
_reload.py         what a running cloud takes over from its files
_show.py           the sections of ``netcheck`` as text
_signals.py        signals for programs of greenlets
_stdio.py          standard input and output as one connection
_toml.py           TOML files
_workers.py        several processes of a cloud, and their parent
_verdict.py        what a NAT means for its owner
_words.py          English, or Chinese by the locale
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from collections.abc import Sequence

from .._version import __version__
from ._help import Parser
from ._words import speak_as_the_locale_says, speak_english

__all__ = ["COMMANDS", "main", "make_parser"]

COMMANDS = (
    "cloud",
    "account",
    "capi",
    "invite",
    "join",
    "demo",
    "identity",
    "netcheck",
    "proxy",
    "publish",
)


def make_parser(commands: Sequence[str]) -> argparse.ArgumentParser:
    parser = Parser(
        prog="kkp2p", description="Peer-to-peer connections by peer id, and a cloud of your own."
    )
    parser.add_argument("--version", action="version", version=f"kkp2p_compat {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in commands:
        importlib.import_module(f"{__name__}.{name}").add_parser(subparsers)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    _open_what_is_closed()
    arguments = sys.argv[1:] if arguments is None else arguments
    speak_as_the_locale_says()
    # Only the named command is imported: a cloud needs nothing of the demonstration.
    known = [name for name in COMMANDS if arguments[:1] == [name]]
    options = make_parser(known or COMMANDS).parse_args(arguments)
    options.arguments = arguments[1:]
    if getattr(options, "json", False):
        speak_english()
    try:
        status = int(options.run(options))
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return 130  # 128 + SIGINT, as shells have it
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output is gone: there is nobody left to tell
        return 1
    except OSError as error:  # of our output: what else fails, the commands tell
        print(f"kkp2p: {error}", file=sys.stderr)
        return 1


def _open_what_is_closed() -> None:
    """Let /dev/null be what a shell has closed of the standard streams, as by ``>&-``.

    Else the next descriptors that we open would get those numbers, and what is for a stream.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            binary = io.FileIO(number, mode, closefd=False)
            setattr(sys, name, io.TextIOWrapper(binary, errors="backslashreplace"))
