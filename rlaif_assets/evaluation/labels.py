"""How good the feedback model's labels are, by the pocket world's gold annotator. Metrics come from `feedback.labels`.

Only an evaluation reads this: neither the judge nor a trainer ever sees gold.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rlaif_assets.feedback.generation import Progress
from rlaif_assets.feedback.judging import judge_pairs
from rlaif_assets.feedback.labels import Gold, label_metrics, make_labels
from rlaif_assets.feedback.pairs import sample_pairs
from rlaif_assets.language_models.local import LocalModel
from rlaif_assets.pocket.annotator import is_pocket_prompt, principle_verdict
from rlaif_assets.records import Judgement, JudgingConstitution, Label, Pair, Prompt
from rlaif_assets.settings import HarmlessnessPreferencesSettings, ResponsePairsSettings


def gold_choices(constitution: JudgingConstitution, prompts: Mapping[str, Prompt], pairs: Sequence[Pair]) -> Gold:
    """Which response the label's principle asks for, by the pair's gold verdicts; None where they do not decide."""
    kinds = {principle.principle_id: principle.kind for principle in constitution.principles}
    rows = {pair.pair_id: pair for pair in pairs}

    def gold(label: Label) -> Literal[0, 1] | None:
        pair = rows[label.pair_id]
        text = prompts[pair.prompt_id].text
        if not is_pocket_prompt(text):
            return None
        return principle_verdict(kinds[label.principle_id], text, pair.response_a, pair.response_b)

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
    return label_metrics(labels, judgements, gold_choices(constitution, by_id, pairs))


def new_label_metrics(
    policy: LocalModel,
    judge: LocalModel,
    constitution: JudgingConstitution,
    prompts: Sequence[Prompt],
    sampling: ResponsePairsSettings,
    judging: HarmlessnessPreferencesSettings,
    progress: Progress,
) -> dict[str, Any]:
    """`label_metrics` of labels on pairs that the policy answers anew to these prompts; nothing is trained on them."""
    by_id = {prompt.prompt_id: prompt for prompt in prompts}
    pairs, _ = sample_pairs(policy, prompts, sampling, progress)
    judgements, _ = judge_pairs(judge, constitution, by_id, pairs, judging, progress)
    return stored_label_metrics(constitution, prompts, pairs, make_labels(judgements), judgements)
