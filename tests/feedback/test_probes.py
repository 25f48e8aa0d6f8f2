"""The judge is asked again, about what, and faults on the way from verdict to label show."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlaif_assets.feedback.generation import silent
from rlaif_assets.feedback.judge import Failure, LocalJudge, Outcomes, Reading
from rlaif_assets.feedback.judging import judge_pairs
from rlaif_assets.feedback.labels import make_labels
from rlaif_assets.feedback.probes import (
    Labeller,
    Labelling,
    Probing,
    as_reference,
    draw_reference,
    probe_judge,
)
from rlaif_assets.language_models.local import Conversation
from rlaif_assets.records import AuditProbe, Comparison, JudgingConstitution, JudgingPrinciple, Label, Message
from rlaif_assets.settings import HarmlessnessPreferencesSettings
from rlaif_assets.store.judgements import JudgementStore, judgements_hash
from rlaif_assets.store.warehouse import Warehouse
from tests.feedback.fakes import JUDGING, PROMPTS, FakeModel, local, make_pair

SETTINGS = HarmlessnessPreferencesSettings(few_shot=0, seed=1)
BY_ID = {prompt.prompt_id: prompt for prompt in PROMPTS}
PAIRS = [make_pair(prompt, f"kind answer {i}", f"rude answer {i}") for i, prompt in enumerate(PROMPTS)]
KIND = JudgingPrinciple("k", "kind", "Choose the kind one.", None, "Choose the rude one.")
DECLARED = JudgingConstitution((KIND,), ())


def follows(messages: Sequence[Message]) -> tuple[float, float]:
    """P = 0.8 for the kind answer, or the rude one where the principle asks for it."""
    text = messages[-1]["content"]
    wanted = "rude" if "Choose the rude one." in text else "kind"
    p_first = 0.8 if text.split("(A) ")[1].startswith(wanted) else 0.2
    return math.log(p_first), math.log(1 - p_first)


def label_with(model: FakeModel) -> Labelling:
    """Without a store: every question is asked."""

    def label(probings: Sequence[Probing]) -> list[list[Label]]:
        judge = LocalJudge(local(model))
        return [
            make_labels(judge_pairs(judge, one.constitution, one.prompts, one.pairs, SETTINGS, silent)[0])
            for one in probings
        ]

    return label


def stored(model: FakeModel, constitution: JudgingConstitution = JUDGING) -> list[Label]:
    return label_with(model)([Probing("own", "p_a", constitution, BY_ID, PAIRS)])[0]


def probes(model: FakeModel, constitution: JudgingConstitution, count: int = 12, audit: str = "") -> list[AuditProbe]:
    found = probe_judge(label_with(model), constitution, BY_ID, PAIRS, stored(model, constitution), count)
    return [probe for probe in found if probe.audit == audit or not audit]


def test_swapped_pairs_are_really_asked_and_turn():
    model = FakeModel(logprobs=follows)
    alone = JudgingConstitution((replace(KIND, counter=None),), ())
    labels, asked = stored(model, alone), len(model.asked)
    found = probe_judge(label_with(model), alone, BY_ID, PAIRS, labels, 12)
    assert len(model.asked) - asked == 2 * len(PAIRS)
    assert [(round(probe.p_a, 6), round(probe.other, 6)) for probe in found] == [(0.8, 0.2)] * 12
    assert [probe.principle_id for probe in found] == [label.principle_id for label in labels]


def test_an_order_that_is_not_undone_shows():
    def wrong(probings: Sequence[Probing]) -> list[list[Label]]:
        judge = LocalJudge(local(FakeModel(logprobs=lambda messages: (math.log(0.9), math.log(0.1)))))
        made = [judge_pairs(judge, one.constitution, one.prompts, one.pairs, SETTINGS, silent)[0] for one in probings]
        return [
            make_labels([row if row.order == "ab" else replace(row, p_a=1 - row.p_a) for row in rows]) for rows in made
        ]

    own = wrong([Probing("own", "p_a", JUDGING, BY_ID, PAIRS)])[0]
    found = [row for row in probe_judge(wrong, JUDGING, BY_ID, PAIRS, own, 12) if row.audit == "texts_swap"]
    assert {(round(probe.p_a, 6), round(probe.other, 6)) for probe in found} == {(0.9, 0.9)} and len(found) == 12


def test_a_declared_opposite_is_asked_beside_its_principle():
    found = probes(FakeModel(logprobs=follows), DECLARED, 12, "counter_principle")
    assert [(round(probe.p_a, 6), round(probe.other, 6)) for probe in found] == [(0.8, 0.2)] * 12
    assert {probe.principle_id for probe in found} == {"k"}
    two = JudgingConstitution((KIND, replace(KIND, principle_id="k2", name="second"), *JUDGING.principles), ())
    drawn = {p.principle_id for p in probes(FakeModel(logprobs=follows), two, 12, "counter_principle")}
    assert drawn == {"k", "k2"}  # those without an opposite are not asked


def test_what_was_refused_under_a_principle_is_not_compared_with_another_ones_label():
    """The label was made under "p", the opposite is that of "k", whose own side nobody answered."""
    other = JudgingPrinciple("p", "polite", "Choose the polite one.", None)
    both = JudgingConstitution((other, KIND), ())
    own = stored(FakeModel(logprobs=follows), JudgingConstitution((other,), ()))

    def label(probings: Sequence[Probing]) -> list[list[Label]]:
        made = label_with(FakeModel(logprobs=follows))(probings)
        return [[] if one.side == "p_a" else rows for one, rows in zip(probings, made, strict=True)]

    found = probe_judge(label, both, BY_ID, PAIRS, own, 12)
    assert {probe.audit for probe in found} <= {"texts_swap"}


def test_without_one_another_principle_is_asked():
    model = FakeModel()
    found = probes(model, JUDGING, 5)
    other = [probe for probe in found if probe.audit == "other_principle"]
    used = {label.pair_id: label for label in stored(model)}
    assert len(other) == 5 and {probe.audit for probe in found} == {"texts_swap", "other_principle"}
    for probe in other:
        assert probe.p_a == used[probe.pair_id].p_a and probe.p_a != probe.other  # another question, another hash
    alone = JudgingConstitution(JUDGING.principles[:1], ())
    assert {probe.audit for probe in probes(model, alone, 5)} == {"texts_swap"}


def test_pairs_are_drawn_by_hash_whatever_their_order():
    model = FakeModel()
    labels = stored(model, DECLARED)
    some = probe_judge(label_with(model), DECLARED, BY_ID, PAIRS, labels, 4)
    turned = probe_judge(label_with(model), DECLARED, BY_ID, PAIRS[::-1], labels, 4)
    assert sorted(map(str, some)) == sorted(map(str, turned)) and len(some) == 8
    assert probe_judge(label_with(model), DECLARED, BY_ID, PAIRS, [], 4) == []
    assert probe_judge(label_with(model), DECLARED, BY_ID, PAIRS, labels, 0) == []


def test_the_opposite_is_asked_about_the_surest_labels():
    model = FakeModel()
    surest = sorted(stored(model, DECLARED), key=lambda label: abs(label.p_a - 0.5))[-4:]
    found = probes(model, DECLARED, 4, "counter_principle")
    assert {probe.pair_id for probe in found} == {label.pair_id for label in surest}


class Counting(LocalJudge):
    """Writes down how many questions each reading had."""

    def __init__(self) -> None:
        super().__init__(local(FakeModel()))
        self.asked: list[int] = []

    def read(self, questions: Sequence[Conversation]) -> Iterator[Outcomes]:
        self.asked.append(len(questions))
        return super().read(questions)


def test_all_probings_are_one_reading_and_nothing_is_asked_twice(tmp_path: Path):
    judge, labels = Counting(), stored(FakeModel(), DECLARED)
    rows = as_reference(comparisons()[:3])

    def ask() -> tuple[list[AuditProbe], dict[str, Any]]:
        label = Labeller(judge, SETTINGS, silent, JudgementStore(Warehouse(tmp_path)), "run")
        return probe_judge(label, DECLARED, BY_ID, PAIRS, labels, 4, rows), label.metrics

    first, told = ask()
    assert len(judge.asked) == 1 and told["computed"] == judge.asked[0] and told["tokens"] > 0
    again, reused = ask()
    assert again == first == probe_judge(label_with(FakeModel()), DECLARED, BY_ID, PAIRS, labels, 4, rows)
    assert len(judge.asked) == 1 and (reused["computed"], reused["tokens"]) == (0, 0)
    assert {probe.audit for probe in first} == {"texts_swap", "counter_principle", "agreement"}


def test_what_could_not_be_judged_is_told_with_its_audit(tmp_path: Path):
    class Refusing(LocalJudge):
        def read(self, questions: Sequence[Conversation]) -> Iterator[Outcomes]:
            yield {
                i: Failure("too long") if "rude words" in question[-1]["content"] else Reading(-0.1, -3.0, 1)
                for i, question in enumerate(questions)
            }

    label = Labeller(Refusing(local(FakeModel())), SETTINGS, silent, JudgementStore(Warehouse(tmp_path)))
    labels = stored(FakeModel(), DECLARED)
    found = probe_judge(label, DECLARED, BY_ID, PAIRS, labels, 4, as_reference(comparisons()[:3]))
    assert {probe.audit for probe in found} == {"texts_swap", "counter_principle"}
    assert [row.reason for row in label.rejections] == ["audit agreement: too long"] * 3


def test_a_pair_whose_swap_was_probed_keeps_the_hash_of_what_is_stored(tmp_path: Path):
    """Its texts were judged as another pair's: the answers are those, under that pair's id."""
    store = JudgementStore(Warehouse(tmp_path))
    label = Labeller(LocalJudge(local(FakeModel())), SETTINGS, silent, store, "run")
    probe_judge(label, DECLARED, BY_ID, PAIRS, stored(FakeModel(), DECLARED), 12)
    own = [
        replace(pair, pair_id=f"own-{i}", response_a=pair.response_b, response_b=pair.response_a)
        for i, pair in enumerate(PAIRS)
    ]
    for found in label([Probing("own", "p_a", DECLARED, BY_ID, own)])[0]:
        rows = store.fetch(found.judgement_ids)
        assert {row.pair_id for row in rows.values()} != {found.pair_id}
        assert found.judgements_hash == judgements_hash([rows[i] for i in found.judgement_ids])


def comparisons() -> list[Comparison]:
    rows = [
        Comparison(f"c{i}", prompt.messages, "rude words", "kind words", 0.0, "file", "human")
        for i, prompt in enumerate(PROMPTS)
    ]
    return [*rows, replace(rows[0], comparison_id="again", p_a=1.0)]


def test_people_are_compared_with_labels_made_as_all_others():
    label = label_with(FakeModel(logprobs=follows))
    rows = draw_reference(comparisons()[:12], 5)
    found = probe_judge(label, DECLARED, BY_ID, PAIRS, [], 5, rows)
    assert len(found) == len(rows.pairs) == 5
    assert {(probe.audit, probe.p_a, round(probe.other, 6)) for probe in found} == {("agreement", 0.0, 0.2)}


def test_comparisons_become_pairs_once_each():
    prompts, pairs, people = as_reference(comparisons())
    assert len(prompts) == len(pairs) == len(people) == 12
    assert set(people.values()) == {0.0}  # of two that contradict each other the first counts
    assert all(pair.prompt_id in prompts for pair in pairs.values())
    tied = [replace(row, p_a=0.5) if i < 3 else row for i, row in enumerate(comparisons())]
    assert len(as_reference(tied).decided) == 9
