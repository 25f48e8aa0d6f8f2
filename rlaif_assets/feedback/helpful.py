"""The helpful-only model's own answers to harmless prompts, which step 2 mixes with the revisions."""

import math
from collections.abc import Sequence

from rlaif_assets.feedback.generation import Progress
from rlaif_assets.feedback.pairs import cut_off, sample_answers
from rlaif_assets.language_models.local import LocalModel
from rlaif_assets.records import Answer, Prompt, Rejection
from rlaif_assets.settings import SlCaiCheckpointSettings
from rlaif_assets.store.fingerprint import draw_seed

PURPOSE = "helpful-answer"


def helpful_answers(
    model: LocalModel, prompts: Sequence[Prompt], count: int, settings: SlCaiCheckpointSettings, progress: Progress
) -> tuple[list[Answer], list[Rejection]]:
    """`count` answers, at temperature 1 unless set (Constitutional AI 3.2); requests = answers + rejections.

    A prompt is asked again only after all others were; which ones are asked is drawn from their ids and the seed.
    An answer that did not end within `helpful_max_new_tokens` is rejected. Without prompts there are no answers.
    """
    answers: list[Answer] = []
    rejections: list[Rejection] = []
    for number in range(math.ceil(count / len(prompts)) if prompts else 0):
        order = sorted(prompts, key=lambda prompt: draw_seed(prompt.prompt_id, settings.seed, PURPOSE, number))
        chosen = order[: count - number * len(prompts)]
        kept, refused = sample_answers(
            model,
            chosen,
            PURPOSE,
            settings.helpful_temperature,
            settings.helpful_max_new_tokens,
            settings.seed,
            number,
            progress,
        )
        answers += [answer for answer in kept if answer.finished]
        rejections += refused
        rejections += [
            cut_off(answer.prompt_id, answer.text, settings.helpful_max_new_tokens)
            for answer in kept
            if not answer.finished
        ]
    return answers, rejections
