"""The state of the work tree that a snapshot records. Ancestry and verification: see test_warehouse."""

import subprocess
from pathlib import Path

from rlaif_assets.store.lineage import git_state


def test_git_state_names_commit_and_changes(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        done = subprocess.run(
            ["git", "-C", str(tmp_path), *identity, *words], check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    assert git_state(tmp_path) == (None, None)
    git("init", "-q")
    (tmp_path / "code.py").write_text("1")
    assert git_state(tmp_path) == (None, None)
    git("add", "code.py")
    git("commit", "-q", "-m", "one")
    commit = git("rev-parse", "HEAD")
    assert git_state(tmp_path) == (commit, False)
    (tmp_path / "code.py").write_text("2")
    assert git_state(tmp_path) == (commit, True)
    untracked = tmp_path / ".venv"
    untracked.mkdir()
    assert git_state(untracked) == (None, None)
