"""Real files where they are there (../shared/data beside the repository), and small files written for one test."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture
def shared_file() -> Callable[[str], str]:
    """The path of a real file; skips the test, saying so, where it is missing."""

    def find(name: str) -> str:
        path = SHARED / name
        if not path.is_file():
            pytest.skip(f"needs ../shared/data/{name}, which is not here")
        return str(path)

    return find


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., str]:
    """Writes values as a JSONL file and gives its path."""

    def write(*rows: Any) -> str:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write
