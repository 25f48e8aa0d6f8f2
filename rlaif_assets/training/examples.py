"""Rows of the store as examples to train on: what is imitated, what is compared, what is held out. No torch here.

Pre-training pairs of community votes become examples in `pmp`; tokens and losses belong to the trainers.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar

from rlaif_assets.records import (
    Answer,
    Comparison,
    Label,
    Message,
    Pair,
    PreferenceExample,
    Prompt,
    Rejection,
    Revision,
    SftExample,
)
from rlaif_assets.settings import PmpCheckpointSettings, RewardModelSettings
from rlaif_assets.store.fingerprint import draw_unit, row_id

Row = TypeVar("Row")


def split_heldout(
    rows: Iterable[Row], unit: Callable[[Row], str], share: float, seed: int
) -> tuple[list[Row], list[Row]]:
    """(train, held out). Rows of one unit (a prompt, a question) are on one side, drawn from the unit's id and seed."""
    train: list[Row] = []
    heldout: list[Row] = []
    for row in rows:
        (heldout if draw_unit(unit(row), seed, "heldout") < share else train).append(row)
    return train, heldout


def prompts_by_id(*groups: Iterable[Prompt]) -> dict[str, Prompt]:
    return {prompt.prompt_id: prompt for prompts in groups for prompt in prompts}


def training_options(settings: PmpCheckpointSettings | RewardModelSettings) -> dict[str, Any]:
    """What both trainings of the preference model take from their stage's settings."""
    names = ("epochs", "learning_rate", "batch_size", "max_length", "seed")
    return {name: getattr(settings, name) for name in names}


def conversation_id(example: SftExample | PreferenceExample) -> str:
    """The unit that examples of steps 2 and 4 are held out by: everything about one prompt goes together."""
    return row_id("conversation", example.messages)


def revisions_to_imitate(
    revisions: Sequence[Revision], which: Literal["final", "all"], rounds: int | None = None
) -> list[Revision]:
    """The last round's or every round's revisions of the first `rounds` (SL-CAI-n, Constitutional AI 3), all unless
    given; never a first response."""
    last = max((revision.round for revision in revisions), default=0)
    last = last if rounds is None else min(last, rounds)
    first = 1 if which == "all" else last
    return [revision for revision in revisions if max(first, 1) <= revision.round <= last]


def finished_revisions(revisions: Sequence[Revision], max_new_tokens: int) -> tuple[list[Revision], list[Rejection]]:
    """Revisions that ended by themselves, and the others, whose imitation would teach to stop in mid-sentence."""
    reason = f"not imitated: not finished within revised_responses.max_new_tokens={max_new_tokens}"
    return [revision for revision in revisions if revision.finished], [
        Rejection(revision.revision_id, reason, revision.text) for revision in revisions if not revision.finished
    ]


def sft_examples(
    prompts: Mapping[str, Prompt], revisions: Sequence[Revision], helpful: Sequence[Answer]
) -> list[SftExample]:
    """Revisions of harmful prompts' responses and the helpful-only model's answers, with their prompts' messages."""
    return [
        SftExample(revision.revision_id, prompts[revision.prompt_id].messages, revision.text, "revision")
        for revision in revisions
    ] + [SftExample(answer.answer_id, prompts[answer.prompt_id].messages, answer.text, "helpful") for answer in helpful]


def hard_labels(rows: Sequence[PreferenceExample]) -> list[PreferenceExample]:
    """AI labels rounded to the response that they choose; 0.5 chooses none and stays. People's are left as they are."""
    return [replace(row, p_a=float(row.p_a > 0.5)) if row.source == "ai" and row.p_a != 0.5 else row for row in rows]


def label_examples(
    labels: Sequence[Label], pairs: Sequence[Pair], prompts: Mapping[str, Prompt], weights: Mapping[str, float]
) -> list[PreferenceExample]:
    """Soft harmlessness labels as comparisons; `row_id` is the label's id, `source` the label's, with its weight."""
    by_id = {pair.pair_id: pair for pair in pairs}
    return [
        PreferenceExample(
            label.label_id,
            prompts[by_id[label.pair_id].prompt_id].messages,
            by_id[label.pair_id].response_a,
            by_id[label.pair_id].response_b,
            label.p_a,
            label.source,
            weights[label.source],
        )
        for label in labels
    ]


def comparison_examples(comparisons: Sequence[Comparison], weight: float) -> list[PreferenceExample]:
    """Helpfulness comparisons of the train split; `row_id` is the comparison's id and `source` is `human`."""
    return [
        PreferenceExample(row.comparison_id, row.messages, row.response_a, row.response_b, row.p_a, "human", weight)
        for row in comparisons
        if row.split == "train"
    ]


def training_rows(
    train: Sequence[Any], heldout: Sequence[Any], dropped_row_ids: Collection[str]
) -> list[dict[str, str]]:
    """One row {row_id, role, source} per example that the trainer did not drop: what the weights were made of."""
    dropped = set(dropped_row_ids)
    return [
        {"row_id": example.row_id, "role": role, "source": example.source}
        for role, examples in (("train", train), ("heldout", heldout))
        for example in examples
        if example.row_id not in dropped
    ]


def dropped_rows(metrics: Mapping[str, Any], max_length: int) -> list[Rejection]:
    """The rows that a trainer's metrics name as dropped."""
    reason = f"neither trained on nor held out: longer than {max_length} tokens or than the model's context"
    return [Rejection(dropped, reason) for dropped in metrics["dropped_row_ids"]]


def pair_texts(pairs: Sequence[Pair], prompts: Mapping[str, Prompt]) -> tuple[list[Sequence[Message]], list[str]]:
    """(conversations, answers), both responses of every pair: the samples that scores are normalised on."""
    conversations = [prompts[pair.prompt_id].messages for pair in pairs for _ in range(2)]
    return list(conversations), [text for pair in pairs for text in (pair.response_a, pair.response_b)]
