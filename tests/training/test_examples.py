"""What is imitated: which revisions, and none that was cut off."""

from rlaif_assets.records import PreferenceExample, Rejection, Revision
from rlaif_assets.training.examples import finished_revisions, hard_labels, revisions_to_imitate


def revision(prompt: str, round: int, finished: bool = True) -> Revision:
    text = f"{prompt} {round}"
    return Revision(f"id {text}", prompt, round, text, None, None, None, 1, 1, 1, finished)


def test_the_last_or_every_revision_and_never_a_first_response():
    rows = [revision(prompt, round) for prompt in "ab" for round in range(3)]
    assert [row.text for row in revisions_to_imitate(rows, "final")] == ["a 2", "b 2"]
    assert [row.text for row in revisions_to_imitate(rows, "all")] == ["a 1", "a 2", "b 1", "b 2"]


def test_a_revision_that_did_not_end_is_not_imitated():
    rows = [revision("a", 2), revision("b", 2, finished=False)]
    kept, rejected = finished_revisions(rows, 64)
    assert kept == rows[:1]
    reason = "not imitated: not finished within revised_responses.max_new_tokens=64"
    assert rejected == [Rejection("id b 2", reason, "b 2")]


def test_of_the_first_rounds_only_those_are_imitated():
    """SL-CAI-n (Constitutional AI 3)."""
    rows = [revision(prompt, round) for prompt in "ab" for round in range(4)]
    found = {
        (which, rounds): sorted({row.round for row in revisions_to_imitate(rows, which, rounds)})
        for which in ("final", "all")
        for rounds in (1, 2, 9, None)
    }
    assert found == {
        ("final", 1): [1], ("final", 2): [2], ("final", 9): [3], ("final", None): [3],
        ("all", 1): [1], ("all", 2): [1, 2], ("all", 9): [1, 2, 3], ("all", None): [1, 2, 3],
    }  # fmt: skip


def test_hard_labels_are_the_choices_of_the_judge_alone():
    sources = {0.51: "ai", 0.2: "ai", 0.5: "ai", 0.7: "human"}
    rows = [PreferenceExample(f"l{p_a}", (), "a", "b", p_a, source) for p_a, source in sources.items()]
    assert [row.p_a for row in hard_labels(rows)] == [1.0, 0.0, 0.5, 0.7]
