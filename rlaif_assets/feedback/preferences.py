"""The preference set of step 3: judge what was never judged, make labels, let people's verdicts override them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlaif_assets.feedback.generation import Progress
from rlaif_assets.feedback.human import override
from rlaif_assets.feedback.judge import Judge
from rlaif_assets.feedback.judging import judge_questions, whole_pairs
from rlaif_assets.feedback.labels import make_labels
from rlaif_assets.feedback.relabelling import answer_missing
from rlaif_assets.records import HumanVerdict, Judgement, JudgingConstitution, Label, Pair, Prompt, Rejection
from rlaif_assets.settings import HarmlessnessPreferencesSettings
from rlaif_assets.store.judgements import JudgementStore


@dataclass(frozen=True)
class PreferenceSet:
    """pairs = labels + rejections. `by_judge`: what the judge said, also where a person's verdict took its place.

    `metrics`: `judging` (see `relabelling.Answered`) and `human`.
    """

    labels: list[Label]
    by_judge: list[Label]
    judgements: list[Judgement]
    rejections: list[Rejection]
    metrics: dict[str, Any]


def label_pairs(
    judge: Judge,
    constitution: JudgingConstitution,
    prompts: Mapping[str, Prompt],
    pairs: Sequence[Pair],
    verdicts: Sequence[HumanVerdict],
    settings: HarmlessnessPreferencesSettings,
    store: JudgementStore,
    dagster_run_id: str | None,
    progress: Progress,
) -> PreferenceSet:
    """Pairs with a person's verdict are judged too, so that the judge can be compared with people.

    Raises JudgeStoppedError, with what was judged kept.
    """
    questions = judge_questions(judge.fingerprint, constitution, prompts, pairs, settings)
    answered = answer_missing(judge, questions, store, settings, dagster_run_id, progress)
    judgements, refused = whole_pairs(questions, answered.found)
    by_judge = make_labels(judgements, settings.average, settings.orders)
    labels, human, unmatched = override(by_judge, verdicts, pairs, prompts)
    labelled = {label.pair_id for label in labels}
    rejections = [rejection for rejection in refused if rejection.where not in labelled]
    metrics = {"judging": answered.metrics, "human": {"labels": human, "unmatched_verdicts": unmatched}}
    return PreferenceSet(labels, by_judge, judgements, rejections, metrics)
