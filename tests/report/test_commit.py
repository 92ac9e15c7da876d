import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import jaxmem
from jaxmem.report import commit

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
WHO = ["-c", "user.name=a", "-c", "user.email=a@b"]


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", str(folder), *WHO, *arguments], check=True, capture_output=True)


def asked_in(folder: Path) -> str:
    """What a copy of the file in `folder` says of itself."""
    shutil.copy(commit.__file__, folder / "commit.py")
    code = "import commit; print(commit.commit())"
    run = [sys.executable, "-W", "ignore", "-c", code]
    root = str(Path(jaxmem.__file__).parents[1])
    return subprocess.run(
        run, cwd=folder, check=True, capture_output=True, text=True, env={"PYTHONPATH": root}
    ).stdout.strip()


def test_installed_in_a_repository_of_somebody_else(tmp_path):
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "theirs")
    assert asked_in(tmp_path) == f"version {jaxmem.__version__}"


def test_of_its_own_repository(tmp_path):
    git(tmp_path, "init", "-q")
    shutil.copy(commit.__file__, tmp_path / "commit.py")
    (tmp_path / "other.py").touch()
    git(tmp_path, "add", "commit.py", "other.py")
    git(tmp_path, "commit", "-q", "-m", "ours")
    clean = asked_in(tmp_path)
    assert len(clean) >= 7 and not clean.endswith("+")
    (tmp_path / "other.py").write_text("# changed\n")
    assert asked_in(tmp_path) == clean + "+"
