"""Compiles the C library: for ``kkp2p capi``, and for the tests."""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from .._version import __version__

__all__ = ["BuildError", "Built", "library"]

SOURCES = Path(__file__).parent
OPTIONS = ("-std=c99", "-O2", "-g", "-fPIC", "-fvisibility=hidden", "-pthread")
HEADER = "kkp2p_sdk.h"
LOCK = "lock"  # of the folder: whoever compiles has it
UNFINISHED = "unfinished-"


class BuildError(Exception):
    """The text is for the user."""


class Built(NamedTuple):
    """Folders: of the header, and of libkkp2p.so and libkkp2p.a."""

    include: Path
    lib: Path


def default_folder() -> Path:
    """Of this user, this version, and this Python, which is compiled in (XDG base directories)."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    name = sys.prefix.strip("/").replace("/", "-")
    return Path(base) / "kkp2p" / f"capi-{__version__}-{name}"


def library(
    folder: Path | None = None, cc: str | None = None, options: Sequence[str] = ()
) -> Built:
    """Compile what is missing in ``folder``, or out of date.  Raises BuildError.

    ``cc``: the compiler; None: $CC, else cc.  ``options``: more for it, such as -fsanitize=thread.
    """
    folder = default_folder() if folder is None else folder
    compiler = shlex.split(cc or os.environ.get("CC") or "cc")
    command = [
        *compiler,
        *OPTIONS,
        *options,
        f'-DKKP2P_PYTHON="{sys.executable}"',
        f'-DKKP2P_VERSION="{__version__}"',
    ]
    if not _is_up_to_date(folder, command):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is_up_to_date(folder, command):  # by another, meanwhile
                _compile(folder, command)
    return Built(folder / "include", folder)


def _is_up_to_date(folder: Path, command: list[str]) -> bool:
    try:
        if (folder / "command").read_text() != "\n".join(command):
            return False
        oldest = min((folder / name).stat().st_mtime for name in ("libkkp2p.so", "libkkp2p.a"))
    except FileNotFoundError:
        return False
    return all(path.stat().st_mtime <= oldest for path in _files("*.[ch]"))


def _files(pattern: str) -> list[Path]:
    return sorted(SOURCES.glob(pattern))


def _compile(folder: Path, command: list[str]) -> None:
    """With the folder's lock held."""
    for left in folder.glob(f"{UNFINISHED}*"):  # by a run that was killed
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=folder) as made:
        shutil.copy(SOURCES / HEADER, made)
        objects = []
        for source in _files("*.c"):
            objects.append(f"{made}/{source.stem}.o")
            _run([*command, "-c", str(source), "-o", objects[-1]])
        _run([*command, "-shared", *objects, "-o", f"{made}/libkkp2p.so"])
        _run([os.environ.get("AR") or "ar", "rcs", f"{made}/libkkp2p.a", *objects])
        Path(made, "command").write_text("\n".join(command))
        # From here to the end nothing is up to date, also if this is killed.
        (folder / "command").unlink(missing_ok=True)
        (folder / "include").mkdir(exist_ok=True)
        os.replace(f"{made}/{HEADER}", folder / "include" / HEADER)
        for name in ("libkkp2p.so", "libkkp2p.a", "command"):  # the last one says that all is there
            os.replace(f"{made}/{name}", folder / name)


def _run(command: list[str]) -> None:
    try:
        ended = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise BuildError(f"{command[0]}: {error.strerror}") from error
    if ended.returncode:
        raise BuildError(f"{shlex.join(command)}:\n{ended.stderr}{ended.stdout}")
