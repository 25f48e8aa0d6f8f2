"""How good the feedback model's labels are, by the pocket world's gold annotator. Metrics come from `feedback.labels`.

Only an evaluation reads this: neither the judge nor a trainer ever sees gold.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rlaif_assets.feedback.generation import Progress
from rlaif_assets.feedback.judge import Judge
from rlaif_assets.feedback.judging import judge_pairs, judge_questions
from rlaif_assets.feedback.labels import Gold, label_metrics, make_labels
from rlaif_assets.feedback.pairs import sample_pairs
from rlaif_assets.language_models.local import LocalModel
from rlaif_assets.pocket.annotator import is_pocket_prompt, principle_verdict
from rlaif_assets.records import Judgement, JudgingConstitution, Label, Pair, Prompt
from rlaif_assets.settings import HarmlessnessPreferencesSettings, ResponsePairsSettings


def gold_choices(
    constitution: JudgingConstitution,
    prompts: Mapping[str, Prompt],
    pairs: Sequence[Pair],
    judgements: Sequence[Judgement] = (),
) -> Gold:
    """Which response the label's principle asks for, by the pair's gold verdicts; None where they do not decide.

    A label under several principles, those of its judgements, has a gold choice where all ask for the same response.
    """
    principles = {judgement.judgement_id: judgement.principle_id for judgement in judgements}
    kinds = {principle.principle_id: principle.kind for principle in constitution.principles}
    rows = {pair.pair_id: pair for pair in pairs}

    def gold(label: Label) -> Literal[0, 1] | None:
        pair = rows[label.pair_id]
        prompt = prompts[pair.prompt_id]
        if not is_pocket_prompt(prompt.text):
            return None
        used = {label.principle_id} if label.principle_id else {principles[one] for one in label.judgement_ids}
        return _same({_better(kinds[one], prompt, pair) for one in used})

    return gold


def stored_label_metrics(
    constitution: JudgingConstitution,
    prompts: Sequence[Prompt],
    pairs: Sequence[Pair],
    labels: Sequence[Label],
    judgements: Sequence[Judgement],
) -> dict[str, Any]:
    """`label_metrics` of a preference set that is stored already."""
    by_id = {prompt.prompt_id: prompt for prompt in prompts}
    asked = {pair.pair_id: by_id[pair.prompt_id] for pair in pairs}

    def intent(label: Label) -> str:
        return asked[label.pair_id].intent or asked[label.pair_id].prompt_id

    return label_metrics(labels, judgements, gold_choices(constitution, by_id, pairs, judgements), intent)


def new_label_metrics(
    policy: LocalModel,
    judge: Judge,
    constitution: JudgingConstitution,
    prompts: Sequence[Prompt],
    sampling: ResponsePairsSettings,
    judging: HarmlessnessPreferencesSettings,
    progress: Progress,
) -> dict[str, Any]:
    """`label_metrics` of labels on pairs that the policy answers anew to these prompts; nothing is trained on them.

    Only decisive pairs are judged: those about which gold, under the principles drawn for the pair, prefers a response.
    `rejected_pairs` counts the draws that gave no pair (see `sample_pairs`) and the pairs that could not be judged.
    """
    by_id = {prompt.prompt_id: prompt for prompt in prompts if is_pocket_prompt(prompt.text)}
    pairs, no_pairs = sample_pairs(policy, list(by_id.values()), sampling, progress)
    asked: dict[str, set[Literal[0, 1] | None]] = {pair.pair_id: set() for pair in pairs}
    for question in judge_questions(judge.fingerprint, constitution, by_id, pairs, judging):
        pair = question.pair
        asked[pair.pair_id].add(_better(question.principle.kind, by_id[pair.prompt_id], pair))
    decisive = [pair for pair in pairs if _same(asked[pair.pair_id]) is not None]
    judgements, unjudged = judge_pairs(judge, constitution, by_id, decisive, judging, progress)
    labels = make_labels(judgements, judging.average, judging.orders)
    found = stored_label_metrics(constitution, prompts, decisive, labels, judgements)
    return found | {"rejected_pairs": len(no_pairs) + len(unjudged)}


def _better(kind: str | None, prompt: Prompt, pair: Pair) -> Literal[0, 1] | None:
    return principle_verdict(kind, prompt.text, pair.response_a, pair.response_b)


def _same(choices: set[Literal[0, 1] | None]) -> Literal[0, 1] | None:
    return next(iter(choices)) if len(choices) == 1 else None
