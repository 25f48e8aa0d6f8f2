"""Sampled answers to prompts, and the response pairs of step 3 made of two of them. Judging belongs to `judging`."""

from collections.abc import Sequence

from rlaif_assets.feedback.generation import Progress, Request, generate_texts, silent
from rlaif_assets.language_models.local import LocalModel
from rlaif_assets.language_models.prompts import response_messages
from rlaif_assets.records import Answer, Pair, Prompt, Rejection
from rlaif_assets.settings import ResponsePairsSettings
from rlaif_assets.store.fingerprint import draw_seed, row_id


def sample_answers(
    model: LocalModel,
    prompts: Sequence[Prompt],
    purpose: str,
    temperature: float,
    max_new_tokens: int,
    seed: int,
    round: int = 0,
    progress: Progress = silent,
) -> tuple[list[Answer], list[Rejection]]:
    """One answer per prompt, in the order given; prompts = answers + rejections.

    A prompt is rejected when it does not fit the context or its answer is empty. `purpose` and `round` tell the draws
    of one prompt apart.
    """
    outcomes = _sample(
        model, [(prompt, purpose, round) for prompt in prompts], temperature, max_new_tokens, seed, progress
    )
    answers = [outcome for outcome in outcomes if isinstance(outcome, Answer)]
    return answers, [outcome for outcome in outcomes if isinstance(outcome, Rejection)]


def sample_pairs(
    model: LocalModel, prompts: Sequence[Prompt], settings: ResponsePairsSettings, progress: Progress
) -> tuple[list[Pair], list[Rejection]]:
    """Two samples per prompt and draw (Constitutional AI 4.1); prompts x pairs_per_prompt = pairs + rejections.

    Rejected: a prompt that does not fit the context, an empty answer, one that did not end within `max_new_tokens`, two
    equal answers, and two answers that an earlier draw of the same prompt gave already (in either order).
    """
    draws = [(prompt, index) for prompt in prompts for index in range(settings.pairs_per_prompt)]
    requests = [(prompt, purpose, index) for prompt, index in draws for purpose in ("pair-a", "pair-b")]
    outcomes = _sample(model, requests, settings.temperature, settings.max_new_tokens, settings.seed, progress)
    pairs: list[Pair] = []
    rejections: list[Rejection] = []
    seen: set[frozenset[str]] = set()
    for (prompt, _), a, b in zip(draws, outcomes[::2], outcomes[1::2], strict=True):
        if isinstance(a, Rejection):
            rejections.append(a)
        elif isinstance(b, Rejection):
            rejections.append(b)
        elif not (a.finished and b.finished):
            rejections.append(cut_off(prompt.prompt_id, (b if a.finished else a).text, settings.max_new_tokens))
        elif a.text == b.text:
            rejections.append(Rejection(prompt.prompt_id, "the two answers are identical", a.text))
        elif frozenset((a.answer_id, b.answer_id)) in seen:
            rejections.append(
                Rejection(prompt.prompt_id, "an earlier pair of this prompt has the same answers", a.text)
            )
        else:
            seen.add(frozenset((a.answer_id, b.answer_id)))
            pairs.append(_pair(a, b))
    return pairs, rejections


def cut_off(where: str, text: str, max_new_tokens: int) -> Rejection:
    """The rejection of a text that would teach a model to stop in mid-sentence."""
    return Rejection(where, f"not finished within max_new_tokens={max_new_tokens}", text)


def _sample(
    model: LocalModel,
    draws: Sequence[tuple[Prompt, str, int]],
    temperature: float,
    max_new_tokens: int,
    seed: int,
    progress: Progress,
) -> list[Answer | Rejection]:
    """One outcome per (prompt, purpose, round)."""
    requests = [
        Request(prompt.prompt_id, response_messages(prompt), draw_seed(prompt.prompt_id, seed, purpose, round))
        for prompt, purpose, round in draws
    ]
    outcomes = generate_texts(model, requests, max_new_tokens, temperature, "answers", progress)
    return [
        outcome
        if isinstance(outcome, Rejection)
        else Answer(
            answer_id=row_id("answer", request.where, outcome.text),
            prompt_id=request.where,
            text=outcome.text,
            seed=request.seed,
            tokens_in=outcome.tokens_in,
            tokens_out=len(outcome.token_ids),
            finished=outcome.finished,
        )
        for request, outcome in zip(requests, outcomes, strict=True)
    ]


def _pair(a: Answer, b: Answer) -> Pair:
    return Pair(
        pair_id=row_id("pair", a.prompt_id, a.text, b.text),
        prompt_id=a.prompt_id,
        response_a_id=a.answer_id,
        response_b_id=b.answer_id,
        response_a=a.text,
        response_b=b.text,
        seed_a=a.seed,
        seed_b=b.seed,
        tokens_out=a.tokens_out + b.tokens_out,
    )
