"""Step 4, from rows of the store to a reward model that PPO can read: examples, training, normalisation of scores.

Shared by the asset and by the negative controls, which give it other labels. The training loop is `preference_model`'s.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from rlaif_assets.records import Comparison, Label, Pair, Prompt
from rlaif_assets.settings import ComputeSettings, RewardModelSettings
from rlaif_assets.store.fingerprint import draw_unit
from rlaif_assets.training import examples
from rlaif_assets.training.preference_model import PreferenceScorer, train_preference_model, write_normalisation

Half = Literal["a", "b"]


def half_of(conversation_id: str, seed: int) -> Half:
    return "a" if draw_unit(conversation_id, seed, "half") < 0.5 else "b"


def train_reward_model(
    start: Path,
    labels: Sequence[Label],
    pairs: Sequence[Pair],
    prompts: Sequence[Prompt],
    comparisons: Sequence[Comparison],
    settings: RewardModelSettings,
    output: Path,
    compute: ComputeSettings,
    log: Callable[[dict[str, float], int], None],
    progress: Callable[[str, int, int], None] | None = None,
    half: Half | None = None,
) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """Trains from the folder `start` on labels and comparisons together and saves the model in `output`.

    With `half` on that half of both alone: two models that share no conversation (HH, Bai et al. 2022a, section 4.2).

    Returns the metrics of `train_preference_model` with `normalisation` (mean and spread of the scores of all `pairs`),
    and one row {row_id, role, source} per example used. `prompts` are those that `pairs` answer. Raises TrainingError.
    """
    by_id = examples.prompts_by_id(prompts)
    rows = examples.label_examples(labels, pairs, by_id, {"ai": settings.ai_weight, "human": settings.human_weight})
    rows += examples.comparison_examples(comparisons, settings.human_weight)
    if half is not None:
        rows = [row for row in rows if half_of(examples.conversation_id(row), settings.seed) == half]
    train, heldout = examples.split_heldout(rows, examples.conversation_id, settings.heldout_share, settings.seed)
    split = (examples.hard_labels(train) if settings.labels == "hard" else train), heldout
    options = {**examples.training_options(settings), "center_coefficient": settings.center_coefficient}
    metrics = train_preference_model(
        start, *split, **options, output=output, compute=compute, log=log, progress=progress
    )
    scores = PreferenceScorer(output, compute).scores(*examples.pair_texts(pairs, by_id))
    metrics["normalisation"] = write_normalisation(output, scores)
    return metrics, examples.training_rows(*split, metrics["dropped_row_ids"])
