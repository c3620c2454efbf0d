"""How the library is built, and what of it is in the package."""

from __future__ import annotations

import configparser
import fnmatch
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.c_programs import STRICT, Compiler, StartC
from helpers.document import need_program
from helpers.support import ROOT
from kkp2p_compat import _codes
from kkp2p_compat.capi import build

SOURCES = ROOT / "kkp2p_compat" / "capi"


def test_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until a source, the compiler or the Python is another."""
    cc = need_program("gcc")
    first = build.library(tmp_path / "lib", cc, ["-O0"])
    assert first == (tmp_path / "lib" / "include", tmp_path / "lib")
    assert (first.include / "kkp2p_sdk.h").read_bytes() == (SOURCES / "kkp2p_sdk.h").read_bytes()
    built_at = (first.lib / "libkkp2p.so").stat().st_mtime_ns
    assert build.library(tmp_path / "lib", cc, ["-O0"]) == first
    assert (first.lib / "libkkp2p.so").stat().st_mtime_ns == built_at
    assert build.library(tmp_path / "lib", cc, ["-O0", "-g0"]) == first
    assert (first.lib / "libkkp2p.so").stat().st_mtime_ns > built_at


# Whoever links first waits until another is about to, and that one until the first is done.
MEETING_COMPILER = """\
#!/bin/sh
cd {folder} || exit
case " $* " in *" -shared "*)
    if mkdir first 2>/dev/null; then
        until [ -d second ]; do sleep 0.01; done
    else
        mkdir second
        until [ -e lib/command ]; do sleep 0.01; done
    fi ;;
esac
exec {cc} "$@"
"""


def test_two_at_once(start_c: StartC, tmp_path: Path) -> None:
    """As ``make -j`` starts them on a machine that has no library yet."""
    cc = tmp_path / "cc"
    cc.write_text(MEETING_COMPILER.format(cc=need_program("gcc"), folder=tmp_path))
    cc.chmod(0o755)
    command = ["-m", "kkp2p_compat", "capi", "--folder", str(tmp_path / "lib"), "--libs"]
    both = [start_c(Path(sys.executable), *command, CC=str(cc)) for _ in range(2)]
    folder = tmp_path / "lib"
    for process in both:
        assert process.end() == (0, f"-L{folder} -Wl,-rpath,{folder} -lkkp2p\n")
    names = {path.name for path in folder.iterdir()}
    assert names == {"include", "pkgconfig", "libkkp2p.so", "libkkp2p.a", "command"}


def test_no_compiler(tmp_path: Path) -> None:
    with pytest.raises(build.BuildError, match=r"^no-such-cc: No such file or directory$"):
        build.library(tmp_path, "no-such-cc")


def test_a_compiler_that_fails(tmp_path: Path) -> None:
    with pytest.raises(build.BuildError, match=r"(?s)-no-such-option.*error"):
        build.library(tmp_path, need_program("gcc"), ["-no-such-option"])
    assert not list(tmp_path.glob("lib*"))


def test_a_libc_from_before_close_range(tmp_path: Path) -> None:
    """As glibc 2.31 has the header; the companion closes what the library could not."""
    (tmp_path / "sys").mkdir()
    (tmp_path / "sys" / "syscall.h").write_text(
        "#include_next <sys/syscall.h>\n#undef SYS_close_range\n"
    )
    build.library(tmp_path / "lib", need_program("gcc"), [*STRICT, "-isystem", str(tmp_path)])


def test_only_the_interface_is_exported(compiler: Compiler) -> None:
    library = compiler.library().lib / "libkkp2p.so"
    command = [need_program("nm"), "-D", "--defined-only", "--format=posix", str(library)]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    names = {line.split()[0] for line in listed.splitlines()}
    header = (SOURCES / "kkp2p_sdk.h").read_text()
    assert names == {name for name in names if f"{name}(" in header and name.startswith("kkp2p_")}
    assert len(names) == header.count("KKP2P_API ") - 1  # of its definition


def test_the_header_has_the_constants() -> None:
    defined = {
        words[1]: int(words[2].strip("()"))
        for line in (SOURCES / "kkp2p_sdk.h").read_text().splitlines()
        if (words := line.split())[:1] == ["#define"]
        and len(words) > 2
        and words[2][-1] != '"'
        and words[1].startswith("KKP2P_")
        and words[1] != "KKP2P_API"
    }
    assert defined == {
        name: value for name, value in vars(_codes).items() if name.startswith("KKP2P_")
    }


def test_the_header_is_of_both_languages(compiler: Compiler) -> None:
    """C++ (where there is a compiler of it), and both kinds of C."""
    include = compiler.library().include
    text = '#include "kkp2p_sdk.h"\nint main(void) { return kkp2p_join_lan(NULL, "peer"); }\n'
    languages = [("gcc", "c", "c99"), ("gcc", "c", "gnu17")]
    if any(os.access(Path(folder) / "g++", os.X_OK) for folder in os.get_exec_path()):
        languages += [("g++", "c++", "c++98"), ("g++", "c++", "c++17")]
    for cc, language, standard in languages:
        command = [cc, *STRICT, f"-std={standard}", "-x", language, f"-I{include}"]
        if standard == "c++98":  # had no long long, which the system's stdlib.h has
            command.append("-Wno-long-long")
        ended = subprocess.run(
            [*command, "-fsyntax-only", "-"], input=text, capture_output=True, text=True
        )
        assert (ended.returncode, ended.stderr) == (0, "")


def test_the_package_has_the_sources() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    patterns = config["options.package_data"]["kkp2p_compat.capi"].split()
    for path in SOURCES.iterdir():
        if path.suffix != ".py" and path.is_file():
            assert any(fnmatch.fnmatch(path.name, pattern) for pattern in patterns), path
