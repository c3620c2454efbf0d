"""``kkp2p capi``: the C library, for the command line of a C compiler."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from .._kept_files import write_whole
from .._version import __version__
from ..capi.build import BuildError, Built, library
from ._words import _

__all__ = ["add_parser"]

PACKAGE = """\
prefix={folder}
Name: kkp2p
Description: Peer-to-peer connections by peer id
Version: {version}
Cflags: -I${{prefix}}/include
Libs: -L${{prefix}} -Wl,-rpath,${{prefix}} -lkkp2p
Libs.private: -pthread
"""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "capi",
        help="compile the C library, and print what a C program needs to be compiled with it",
        description="Compiles libkkp2p for this Python where it is missing or out of date, with "
        "$CC, else cc, and prints the options that a C program is compiled with.  Without an "
        "option it says where everything is.",
    )
    parser.add_argument("--cflags", action="store_true", help="print the options to compile with")
    parser.add_argument("--libs", action="store_true", help="print the options to link with")
    parser.add_argument(
        "--static", action="store_true", help="with --libs: make the library a part of the program"
    )
    parser.add_argument(
        "--folder", type=Path, help="where the library is to be (default: in the user's cache)"
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    try:
        built = library(options.folder and options.folder.absolute())
        package = _write_package(built)
    except (BuildError, OSError) as error:
        print(f"kkp2p capi: {error}", file=sys.stderr)
        if isinstance(error, BuildError):
            print("kkp2p capi:", _("a C compiler is needed: $CC, else cc"), file=sys.stderr)
        return 1
    flags = _flags(built, options)
    if flags:
        print(shlex.join(flags))
    else:
        print(f"header: {built.include / 'kkp2p_sdk.h'}")
        print(f"libraries: {built.lib / 'libkkp2p.so'}, {built.lib / 'libkkp2p.a'}")
        print(f"for pkg-config: PKG_CONFIG_PATH={shlex.quote(str(package.parent))}")
    return 0


def _flags(built: Built, options: argparse.Namespace) -> list[str]:
    flags = [f"-I{built.include}"] if options.cflags else []
    if options.libs and options.static:
        flags += [str(built.lib / "libkkp2p.a"), "-pthread"]
    elif options.libs:
        flags += [f"-L{built.lib}", f"-Wl,-rpath,{built.lib}", "-lkkp2p"]
    return flags


def _write_package(built: Built) -> Path:
    package = built.lib / "pkgconfig" / "kkp2p.pc"
    package.parent.mkdir(exist_ok=True)
    text = PACKAGE.format(folder=built.lib, version=__version__)
    write_whole(str(package), text.encode(), 0o644)  # another process may be reading the old one
    return package
