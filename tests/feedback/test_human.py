"""People's verdicts override a judge's labels."""

import dataclasses

import pytest

from rlaif_assets.feedback.human import Overridden, override
from rlaif_assets.feedback.labels import make_labels
from rlaif_assets.records import HumanVerdict
from tests.feedback.fakes import PROMPTS, make_judgements, make_pair

BY_ID = {prompt.prompt_id: prompt for prompt in PROMPTS}
PAIRS = [
    dataclasses.replace(make_pair(prompt, f"one {i} ", f"other {i}"), pair_id=f"pair-{i}")
    for i, prompt in enumerate(PROMPTS[:3])
]
LABELS = make_labels(make_judgements([(0.9, 0.6), (0.2, 0.3)]))  # none about pair-2


def verdict(pair_id: str, p_a: float, annotator: str = "ann", time: str = "2026-01-01T00:00:00+00:00") -> HumanVerdict:
    return HumanVerdict(f"{pair_id}-{annotator}-{time}-{p_a}", pair_id, None, None, None, p_a, annotator, time)


def about(number: int, a: str, b: str, p_a: float) -> HumanVerdict:
    messages = PROMPTS[number].messages
    return HumanVerdict(f"{number}-{a}", None, messages, a, b, p_a, "ann", "2026-01-01T00:00:00+00:00")


def overridden(*verdicts: HumanVerdict) -> Overridden:
    return override(LABELS, verdicts, PAIRS, BY_ID)


def test_without_verdicts_nothing_changes() -> None:
    assert overridden() == (LABELS, 0, 0)


def test_a_verdict_takes_the_labels_place_and_keeps_what_the_judge_said() -> None:
    labels, human, unmatched = overridden(verdict("pair-0", 0.25))
    assert (human, unmatched, labels[1]) == (1, 0, LABELS[1])
    mine = labels[0]
    assert (mine.p_a, mine.source, mine.annotator, mine.flipped) == (0.25, "human", "ann", None)
    assert mine.verdict_ids == ("pair-0-ann-2026-01-01T00:00:00+00:00-0.25",)
    assert (mine.judgement_ids, mine.judgements_hash) == (LABELS[0].judgement_ids, LABELS[0].judgements_hash)
    assert mine.label_id != LABELS[0].label_id


def test_a_pair_that_the_judge_could_not_read_gets_a_label() -> None:
    labels, _, _ = overridden(verdict("pair-2", 1.0))
    assert [label.pair_id for label in labels] == ["pair-0", "pair-1", "pair-2"]
    assert (labels[2].judgement_ids, labels[2].principle_id) == ((), None)


def test_the_last_verdict_of_each_annotator_counts_and_annotators_are_averaged() -> None:
    later = "2026-02-01T00:00:00+00:00"
    labels, human, _ = overridden(
        verdict("pair-0", 0.0, "ann", later), verdict("pair-0", 1.0, "ann"), verdict("pair-0", 0.5, "bob")
    )
    assert (labels[0].p_a, labels[0].annotator, human) == (0.25, "ann, bob", 1)
    for last in (0.0, 1.0):  # of the same time, the later in the file
        again, _, _ = overridden(verdict("pair-0", 1 - last), verdict("pair-0", last))
        assert again[0].p_a == last
    assert len(labels[0].verdict_ids) == 2


def test_texts_name_the_pair_in_either_order() -> None:
    labels, human, unmatched = overridden(about(0, "one 0", "other 0", 0.9), about(1, "other 1", "one 1", 0.9))
    assert (human, unmatched) == (2, 0)
    assert [label.p_a for label in labels] == [0.9, pytest.approx(0.1)]


def test_verdicts_about_no_pair_here_are_counted() -> None:
    found = overridden(verdict("elsewhere", 1.0), about(0, "one 0", "unheard of", 0.9), about(1, "one 0", "other 0", 1))
    assert found == (LABELS, 0, 3)
