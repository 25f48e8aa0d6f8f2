"""The judge is asked again, about what, and faults on the way from verdict to label show."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rlaif_assets.feedback.generation import silent
from rlaif_assets.feedback.judge import LocalJudge, Outcomes
from rlaif_assets.feedback.judging import judge_pairs
from rlaif_assets.feedback.labels import make_labels
from rlaif_assets.feedback.probes import (
    Labeller,
    as_pairs,
    counter_probes,
    labeller,
    probe_judge,
    reference_probes,
    swap_probes,
)
from rlaif_assets.language_models.local import Conversation
from rlaif_assets.records import (
    AuditProbe,
    Comparison,
    JudgingConstitution,
    JudgingPrinciple,
    Label,
    Message,
    Pair,
    Prompt,
)
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


def label_with(model: FakeModel) -> Labeller:
    """Without a store: every question is asked."""

    def label(constitution: JudgingConstitution, prompts: Mapping[str, Prompt], pairs: Sequence[Pair]) -> list[Label]:
        return make_labels(judge_pairs(LocalJudge(local(model)), constitution, prompts, pairs, SETTINGS, silent)[0])

    return label


def stored(model: FakeModel, constitution: JudgingConstitution = JUDGING) -> list[Label]:
    return label_with(model)(constitution, BY_ID, PAIRS)


def test_swapped_pairs_are_really_asked_and_turn():
    model = FakeModel(logprobs=follows)
    labels, asked = stored(model), len(model.asked)
    probes = swap_probes(label_with(model), JUDGING, BY_ID, PAIRS, labels)
    assert len(model.asked) - asked == 2 * len(PAIRS)
    assert [(round(probe.p_a, 6), round(probe.other, 6)) for probe in probes] == [(0.8, 0.2)] * 12
    assert [probe.principle_id for probe in probes] == [label.principle_id for label in labels]


def test_an_order_that_is_not_undone_shows():
    def wrong(constitution: JudgingConstitution, prompts: Mapping[str, Prompt], pairs: Sequence[Pair]) -> list[Label]:
        judge = LocalJudge(local(FakeModel(logprobs=lambda messages: (math.log(0.9), math.log(0.1)))))
        rows = judge_pairs(judge, constitution, prompts, pairs, SETTINGS, silent)[0]
        return make_labels([row if row.order == "ab" else replace(row, p_a=1 - row.p_a) for row in rows])

    probes = swap_probes(wrong, JUDGING, BY_ID, PAIRS, wrong(JUDGING, BY_ID, PAIRS))
    assert {(round(probe.p_a, 6), round(probe.other, 6)) for probe in probes} == {(0.9, 0.9)}


def test_a_declared_opposite_is_asked_beside_its_principle():
    probes = counter_probes(label_with(FakeModel(logprobs=follows)), DECLARED, BY_ID, PAIRS)
    assert [(round(probe.p_a, 6), round(probe.other, 6)) for probe in probes] == [(0.8, 0.2)] * 12
    assert {(probe.audit, probe.principle_id) for probe in probes} == {("counter_principle", "k")}
    two = JudgingConstitution((KIND, replace(KIND, principle_id="k2", name="second"), *JUDGING.principles), ())
    drawn = {p.principle_id for p in counter_probes(label_with(FakeModel(logprobs=follows)), two, BY_ID, PAIRS)}
    assert drawn == {"k", "k2"}  # those without an opposite are not asked


def test_without_one_another_principle_is_asked():
    model = FakeModel()
    labels = stored(model)
    probes = probe_judge(label_with(model), JUDGING, BY_ID, PAIRS, labels, 5)
    other = [probe for probe in probes if probe.audit == "other_principle"]
    used = {label.pair_id: label for label in labels}
    assert len(other) == 5 and {probe.audit for probe in probes} == {"texts_swap", "other_principle"}
    for probe in other:
        assert probe.p_a == used[probe.pair_id].p_a and probe.p_a != probe.other  # another question, another hash
    alone = JudgingConstitution(JUDGING.principles[:1], ())
    again = probe_judge(label_with(model), alone, BY_ID, PAIRS, stored(model, alone), 5)
    assert {probe.audit for probe in again} == {"texts_swap"}


def test_pairs_are_drawn_by_hash_whatever_their_order():
    model = FakeModel()
    some = probe_judge(label_with(model), DECLARED, BY_ID, PAIRS, stored(model, DECLARED), 4)
    turned = probe_judge(label_with(model), DECLARED, BY_ID, PAIRS[::-1], stored(model, DECLARED), 4)
    assert sorted(map(str, some)) == sorted(map(str, turned)) and len(some) == 8
    assert probe_judge(label_with(model), DECLARED, BY_ID, PAIRS, [], 4) == []
    assert probe_judge(label_with(model), DECLARED, BY_ID, PAIRS, stored(model, DECLARED), 0) == []


def test_the_opposite_is_asked_about_the_surest_labels():
    model = FakeModel()
    labels = stored(model, DECLARED)
    surest = sorted(labels, key=lambda label: abs(label.p_a - 0.5))[-4:]
    probes = probe_judge(label_with(model), DECLARED, BY_ID, PAIRS, labels, 4)
    assert {p.pair_id for p in probes if p.audit == "counter_principle"} == {label.pair_id for label in surest}


def test_with_a_store_nothing_is_asked_twice(tmp_path: Path):
    asked: list[int] = []

    class Counting(LocalJudge):
        def read(self, questions: Sequence[Conversation]) -> Iterator[Outcomes]:
            asked.append(len(questions))
            return super().read(questions)

    judge = Counting(local(FakeModel()))
    stored_labels = stored(FakeModel(), DECLARED)

    def probes() -> list[AuditProbe]:
        label = labeller(judge, SETTINGS, silent, JudgementStore(Warehouse(tmp_path)), "run")
        return probe_judge(label, DECLARED, BY_ID, PAIRS, stored_labels, 4)

    first, count = probes(), sum(asked)
    assert count >= 16 and probes() == first == probe_judge(
        label_with(FakeModel()), DECLARED, BY_ID, PAIRS, stored_labels, 4
    )
    assert sum(asked) == count


def test_a_pair_whose_swap_was_probed_keeps_the_hash_of_what_is_stored(tmp_path: Path):
    """Its texts were judged as another pair's: the answers are those, under that pair's id."""
    store = JudgementStore(Warehouse(tmp_path))
    label = labeller(LocalJudge(local(FakeModel())), SETTINGS, silent, store, "run")
    one = JudgingConstitution((KIND,), ())
    swap_probes(label, one, BY_ID, PAIRS, label(one, BY_ID, PAIRS))
    own = [
        replace(pair, pair_id=f"own-{i}", response_a=pair.response_b, response_b=pair.response_a)
        for i, pair in enumerate(PAIRS)
    ]
    for found in label(one, BY_ID, own):
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
    probes, pairs = reference_probes(label_with(FakeModel(logprobs=follows)), DECLARED, comparisons()[:12], 5)
    assert len(probes) == len(pairs) == 5
    assert {(probe.audit, probe.p_a, round(probe.other, 6)) for probe in probes} == {("agreement", 0.0, 0.2)}


def test_comparisons_become_pairs_once_each():
    prompts, pairs, people = as_pairs(comparisons())
    assert len(prompts) == len(pairs) == len(people) == 12
    assert set(people.values()) == {0.0}  # of two that contradict each other the first counts
    assert all(pair.prompt_id in prompts for pair in pairs)
