"""How the library is built, and what of it is in the package."""

from __future__ import annotations

import configparser
import fcntl
import fnmatch
import os
import subprocess
import sys
from pathlib import Path

import gevent
import pytest

from helpers.c_programs import STRICT, Compiler, StartC
from helpers.document import need_program
from helpers.support import PATIENCE_S, ROOT
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


COUNTING_COMPILER = """\
#!/bin/sh
case " $* " in *" -shared "*) echo linked >> {links} ;; esac
exec {cc} "$@"
"""


def _who_wait_for_locks() -> set[int]:
    lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return {int(words[5]) for words in lines if words[1] == "->"}


def test_two_at_once(start_c: StartC, tmp_path: Path) -> None:
    """As ``make -j`` starts them on a machine that has no library yet: one compiles."""
    cc, links, folder = tmp_path / "cc", tmp_path / "links", tmp_path / "lib"
    cc.write_text(COUNTING_COMPILER.format(cc=need_program("gcc"), links=links))
    cc.chmod(0o755)
    (folder / f"{build.UNFINISHED}killed").mkdir(parents=True)
    command = ["-m", "kkp2p_compat", "capi", "--folder", str(folder), "--libs"]
    with (folder / build.LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        both = [start_c(Path(sys.executable), *command, CC=str(cc)) for _ in range(2)]
        with gevent.Timeout(PATIENCE_S):
            while not {program.process.pid for program in both} <= _who_wait_for_locks():
                gevent.sleep(0.01)  # nothing tells of it
    for program in both:
        assert program.end() == (0, f"-L{folder} -Wl,-rpath,{folder} -lkkp2p\n")
    assert links.read_text() == "linked\n"
    names = {path.name for path in folder.iterdir()}
    assert names == {"include", "pkgconfig", "libkkp2p.so", "libkkp2p.a", "command", build.LOCK}


def test_killed_while_it_replaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library of other options is not taken for the one whose command is there."""
    cc = need_program("gcc")
    build.library(tmp_path, cc, ["-O0"])
    replace = os.replace

    def replace_one(source: str, target: Path) -> None:
        replace(source, target)
        if target.name == "libkkp2p.so":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace_one)
        with pytest.raises(KeyboardInterrupt):
            build.library(tmp_path, cc, ["-O1"])
    wrong = (tmp_path / "libkkp2p.so").read_bytes()
    build.library(tmp_path, cc, ["-O0"])
    assert (tmp_path / "libkkp2p.so").read_bytes() != wrong


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
