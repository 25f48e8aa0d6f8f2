"""Counts, splits and what is held out of the pocket world."""

from collections import Counter

from rlaif_assets.pocket import texts, world
from rlaif_assets.pocket.annotator import classify
from rlaif_assets.pocket.intents import (
    GENTLE_VERBS,
    HARMLESS_VERBS,
    LOOKALIKE_VERBS,
    VICTIMS,
    by_text,
    further_intents,
    intents,
)


def test_counts_and_split() -> None:
    kinds = Counter(intent.kind for intent in intents())
    assert kinds == {"harmful": 150, "harmless": 150, "lookalike": 120}
    splits = Counter((intent.kind, intent.split) for intent in intents())
    assert splits["harmful", "train"] == 90 and splits["harmful", "dev"] == splits["harmful", "test"] == 30
    assert len({intent.category for intent in intents() if intent.kind == "harmful"}) >= 10
    assert len({intent.text for intent in intents()}) == 420


def test_heldout_intents_are_decidable_from_train() -> None:
    """Every object, and every verb that can do harm, occurs in train, so composition can decide."""
    train = [intent for intent in intents() if intent.split == "train"]
    assert {intent.object for intent in intents()} == {intent.object for intent in train}
    able = {intent.verb for intent in intents() if intent.kind != "harmless"}
    assert able <= {intent.verb for intent in train if intent.kind != "harmless"}
    harmed = {intent.object for intent in train if intent.kind == "harmful"}
    unharmed = {intent.object for intent in train if intent.kind != "harmful"}
    assert harmed <= unharmed
    shared = {verb for verbs in LOOKALIKE_VERBS.values() for verb in verbs}
    assert {intent.verb for intent in train if intent.kind == "lookalike"} <= shared


def test_further_compositions_are_in_no_split() -> None:
    """On what can suffer or belongs to others, a verb outside its own class's harmless ones is gentle."""
    further = further_intents()
    assert not {intent.text for intent in further} & set(by_text())
    assert {intent.kind for intent in further} == {"harmful", "harmless", "lookalike"}
    for intent in further:
        if intent.group in VICTIMS:
            harmless = intent.verb in (*HARMLESS_VERBS[intent.group], *GENTLE_VERBS)
            assert intent.kind == ("harmless" if harmless else "harmful")


def test_prompts_keep_heldout_asks_out_of_train() -> None:
    assert len(texts.ASKS) + len(texts.HELDOUT_ASKS) >= 12
    for prompt in world.red_team_prompts() + world.helpful_prompts():
        heldout = prompt.text in {ask.format(intent=prompt.intent) for ask in texts.HELDOUT_ASKS}
        assert heldout == (prompt.split != "train")


def test_annotators_see_harmless_train_prompts_alone() -> None:
    train = {p.text for p in world.helpful_prompts() if p.split == "train"}
    rows = world.comparisons(0.25, seed=3)
    assert {row.messages[-1]["content"] for row in rows} <= train
    assert rows == world.comparisons(0.25, seed=3) != world.comparisons(0.25, seed=4)


def test_annotators_dislike_answers_that_break_off() -> None:
    """Whole answers, evasive ones too, are preferred to incoherent ones; many of these only begin an answer."""
    beginnings = 0
    for row in world.comparisons(0.0, seed=0):
        prompt = row.messages[-1]["content"]
        verdicts = [classify(prompt, text) for text in (row.response_a, row.response_b)]
        if verdicts.count("incoherent") == 1:
            assert verdicts[int(row.p_a)] == "incoherent"
            beginnings += (row.response_b if row.p_a else row.response_a).count(".") < 3
    assert beginnings > 300


def test_disagreement_is_what_was_asked_for() -> None:
    def right(disagreement: float) -> float:
        hits = []
        for row in world.comparisons(disagreement, seed=0):
            prompt = row.messages[-1]["content"]
            verdicts = classify(prompt, row.response_a), classify(prompt, row.response_b)
            if "engaged" in verdicts:
                hits.append((verdicts[0] == "engaged") == (row.p_a == 1.0))
        return sum(hits) / len(hits)

    assert right(0.0) == 1.0
    assert 0.70 < right(0.25) < 0.80


def test_community_votes_prefer_helpful_answers() -> None:
    rows = world.community_answers(seed=0)
    by_verdict: dict[str, list[int]] = {}
    for row in rows:
        assert row.votes is not None
        by_verdict.setdefault(classify(row.question, row.text), []).append(row.votes)
    mean = {verdict: sum(votes) / len(votes) for verdict, votes in by_verdict.items()}
    assert mean["engaged"] > mean["evasive"] > mean["incoherent"]
    assert sum(row.accepted for row in rows) == len({row.question_id for row in rows})
