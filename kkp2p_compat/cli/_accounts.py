"""Where a cloud keeps its accounts, for the commands that change them."""

from __future__ import annotations

import argparse
import contextlib
import getpass
import os
import socket
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

from ..cloud.accounts import default_data
from ..cloud.directory import Directory, UnknownAccount
from ..cloud.open_directory import open_directory
from ..control.scram import new_secret
from ._words import _

__all__ = ["Failed", "accounts_of", "add_place_options", "place_of", "secret_to_show"]

# Of the cloud, by its own names: where both run in one environment the tool finds it.
_DIRECTORY_VARIABLE, _DATA_VARIABLE = "KKP2P_CLOUD_DIRECTORY", "KKP2P_CLOUD_DATA"


class Failed(Exception):
    """The text is for the user."""


def add_place_options(parser: argparse.ArgumentParser) -> None:
    place = parser.add_mutually_exclusive_group()
    data = place.add_argument(
        "--data",
        metavar="DIR",
        type=Path,
        help=f"the cloud's data folder (default: ${_DATA_VARIABLE}, or %(const)s)",
    )
    data.const = default_data()  # for the help text only, which is translated as it stands
    place.add_argument(
        "--directory",
        metavar="URL",
        help="where the nodes of a cloud have their accounts, as redis://HOST (default: "
        f"${_DIRECTORY_VARIABLE}); of a URL with a password, better by the variable: other "
        "users of this host can see arguments",
    )


def place_of(options: argparse.Namespace) -> tuple[str | None, Path | None]:
    """The directory's URL, or a data folder."""
    url: str | None = options.directory
    if url is None and options.data is None:
        url = os.environ.get(_DIRECTORY_VARIABLE) or None
    data = options.data or Path(os.environ.get(_DATA_VARIABLE) or default_data())
    return url, data if url is None else None


@contextlib.contextmanager
def accounts_of(options: argparse.Namespace) -> Iterator[Directory]:
    """Raises Failed, also for what goes wrong in the body."""
    url, data = place_of(options)
    try:
        accounts = open_directory(url, data)
    except (OSError, sqlite3.Error, ValueError) as error:
        raise Failed(f"{data}: {error}" if url is None else str(error)) from error
    accounts.by = f"{_user()}@{socket.gethostname()}"
    try:
        accounts.start()
        yield accounts
    except (UnknownAccount, ValueError, OSError) as error:
        raise Failed(str(error)) from error
    except sqlite3.Error as error:
        raise Failed(f"{accounts.where_text}: {error}") from error
    finally:
        accounts.close()


def secret_to_show() -> str:
    """A new one, which is shown only once; raises ValueError if it would be shown to nobody."""
    with contextlib.suppress(OSError):  # not a descriptor's: somebody in this program reads it
        if os.fstat(sys.stdout.fileno()).st_rdev == os.stat(os.devnull).st_rdev:
            raise ValueError(_("standard output goes nowhere, and the new secret would be lost"))
    return new_secret()


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # in a container the user may have no name
        return f"uid{os.getuid()}"
