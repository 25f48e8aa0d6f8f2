from pathlib import Path

import pytest

from rlaif_assets.store.pictures import keep_pictures, kept_pictures

ID = "0123456789abcdef0123456789abcdef"


def test_pictures_are_kept_by_snapshot_and_a_forced_run_replaces_them(tmp_path: Path):
    keep_pictures(tmp_path, ID, {})
    assert kept_pictures(tmp_path, ID) == {} and not list(tmp_path.iterdir())
    keep_pictures(tmp_path, ID, {"rates": b"one", "lengths": b"two"})
    assert kept_pictures(tmp_path, ID) == {"lengths": b"two", "rates": b"one"}
    assert kept_pictures(tmp_path, "f" * 32) == {}
    keep_pictures(tmp_path, ID, {"rates": b"three"})
    assert kept_pictures(tmp_path, ID) == {"rates": b"three"}
    assert not list((tmp_path / "work").iterdir())


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    keep_pictures(tmp_path, ID, {"rates": b"one", "lengths": b"two"})

    def full(path: Path, data: bytes) -> int:
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        keep_pictures(tmp_path, ID, {"rates": b"three"})
    assert kept_pictures(tmp_path, ID) == {"lengths": b"two", "rates": b"one"}
