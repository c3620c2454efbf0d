"""The source distribution has all that the tree has: its tests and pages need their files."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[1]
BUILD = "from setuptools import build_meta; build_meta.build_sdist('dist')"


def names_in_git() -> set[str]:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a clone, or no git to list its files")
    command = ["git", "-C", str(ROOT), "ls-files", "-z"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip(f"git does not list the files: {listed.stderr.strip()}")
    return {name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()}


def test_it_has_every_file_and_nothing_that_a_run_leaves(tmp_path: Path) -> None:
    names = names_in_git()
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("there is no setuptools in this environment")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    for left in ("samples/kkp2p_engine.log", "samples/__pycache__/chat.cpython-310.pyc"):
        (tmp_path / left).parent.mkdir(exist_ok=True)
        (tmp_path / left).touch()
    command = [sys.executable, "-c", BUILD]
    built = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    [archive] = (tmp_path / "dist").iterdir()
    with tarfile.open(archive) as tar:
        packed = {
            str(PurePosixPath(*PurePosixPath(member.name).parts[1:]))
            for member in tar
            if member.isfile()
        }
    assert names - packed == {".gitignore"}
    made = {name for name in packed - names if not name.startswith("kkp2p_compat.egg-info/")}
    assert made == {"PKG-INFO"}
