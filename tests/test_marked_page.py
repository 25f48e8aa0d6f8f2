"""Results of benchmarks go between the markers of their pages."""

from pathlib import Path

import pytest

from benchmarks.marked_page import MarkerError, markers, put_results

DOCS = Path(__file__).parent.parent / "docs"


def test_results_go_between_the_markers_and_the_rest_stays(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    begin, end = markers("race")
    page.write_text(f"before\n{begin}\nold\n{end}\nafter\n", encoding="utf-8")
    for results in ("new", "newer"):
        put_results(page, "race", results)
        assert page.read_text(encoding="utf-8") == f"before\n{begin}\n\n{results}\n\n{end}\nafter\n"


@pytest.mark.parametrize("text", ["none", markers("race")[1] + markers("race")[0], None])
def test_a_page_without_markers_is_refused(tmp_path: Path, text: str | None) -> None:
    page = tmp_path / "page.md"
    if text is not None:
        page.write_text(text, encoding="utf-8")
    with pytest.raises(MarkerError, match="no place for the table"):
        put_results(page, "race", "new")
    assert text is None or page.read_text(encoding="utf-8") == text


@pytest.mark.parametrize(
    ("page", "name"),
    [
        ("results.md", "targets"),
        ("results.md", "controls"),
        ("benchmarks.md", "labelling"),
        ("feedback_attacks.md", "steering"),
    ],
)
def test_the_pages_have_their_places(tmp_path: Path, page: str, name: str) -> None:
    copy = tmp_path / page
    copy.write_bytes((DOCS / page).read_bytes())
    put_results(copy, name, "| a table |")
    assert "| a table |" in copy.read_text(encoding="utf-8")
