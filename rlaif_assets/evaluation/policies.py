"""Sampled answers of policies to held-out prompts, with verdicts and KL. Counting them belongs to `rates`."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from rlaif_assets.language_models.chat import control_ids
from rlaif_assets.language_models.local import Generation, LocalModel
from rlaif_assets.records import EvaluationAnswer, Prompt, Rejection, Verdict
from rlaif_assets.settings import PolicyEvaluationSettings
from rlaif_assets.store.fingerprint import draw_seed, row_id

Classify = Callable[[str, str], Verdict]
Progress = Callable[[str, int, int], None]
SPLITS = ("dev", "test")


def evaluate(
    policies: Mapping[str, LocalModel],
    prompts: Sequence[Prompt],
    settings: PolicyEvaluationSettings,
    classify: Classify | None,
    progress: Progress,
    reference: str = "sl_cai",
) -> tuple[list[EvaluationAnswer], list[Rejection]]:
    """`settings.samples` answers per policy and prompt of dev and test; KL is against the policy named `reference`.

    `classify` is the gold annotator, asked about prompts of known kind alone; None where there is none. An answer that
    did not end within `max_new_tokens`, or that holds a control token before its end, is incoherent. KL is that at the
    sampling temperature; at temperature 0, where one answer has all the probability, it is None. A prompt is
    rejected for all policies when it leaves one of them no room for `max_new_tokens`. A row's draw depends on the
    prompt, the policy's name and the sample's number alone. Policies must share the reference's tokenizer.
    """
    chosen = select_prompts(prompts, settings.max_prompts)
    fitting = [p for p in chosen if all(m.fits(p.messages, settings.max_new_tokens) for m in policies.values())]
    kept = {prompt.prompt_id for prompt in fitting}
    rejections = [
        Rejection(p.prompt_id, f"prompt and {settings.max_new_tokens} new tokens exceed a policy's context", p.text)
        for p in chosen
        if p.prompt_id not in kept
    ]
    answers: list[EvaluationAnswer] = []
    for name, model in policies.items():
        answers += _answers(name, model, policies[reference], fitting, settings, classify, progress)
    return answers, rejections


def select_prompts(prompts: Sequence[Prompt], limit: int | None) -> list[Prompt]:
    """The prompts of dev and test; at most `limit` per split and kind, those with the smallest ids (ids are hashes)."""
    taken: Counter[tuple[str, str]] = Counter()
    chosen: list[Prompt] = []
    for prompt in sorted(prompts, key=lambda prompt: prompt.prompt_id):
        taken[prompt.split, prompt.kind] += 1
        if prompt.split in SPLITS and (limit is None or taken[prompt.split, prompt.kind] <= limit):
            chosen.append(prompt)
    return chosen


def _answers(
    name: str,
    model: LocalModel,
    reference: LocalModel,
    prompts: Sequence[Prompt],
    settings: PolicyEvaluationSettings,
    classify: Classify | None,
    progress: Progress,
) -> list[EvaluationAnswer]:
    rows = [(prompt, sample) for prompt in prompts for sample in range(settings.samples)]
    seeds = [draw_seed(prompt.prompt_id, settings.seed, f"evaluation {name}", sample) for prompt, sample in rows]
    conversations = [prompt.messages for prompt, _ in rows]
    generations = model.generate(
        conversations,
        seeds,
        settings.max_new_tokens,
        settings.temperature,
        progress=lambda done, total: progress(f"{name} answers", done, total),
    )
    divergences = _kl(model, reference, conversations, generations, settings.temperature)
    return [
        EvaluationAnswer(
            answer_id=row_id("evaluation_answer", name, prompt.prompt_id, sample, seed, generation.text),
            policy=name,
            prompt_id=prompt.prompt_id,
            split=prompt.split,
            kind=prompt.kind,
            intent=prompt.intent,
            sample=sample,
            text=generation.text,
            verdict=_verdict(model, prompt, generation, classify),
            tokens=len(generation.token_ids),
            kl=kl,
            seed=seed,
        )
        for (prompt, sample), seed, generation, kl in zip(rows, seeds, generations, divergences, strict=True)
    ]


def _verdict(model: LocalModel, prompt: Prompt, generation: Generation, classify: Classify | None) -> Verdict | None:
    """`Generation.text` has lost what a reader of the tokens would see: that it was cut off, and control tokens."""
    if classify is None or prompt.kind == "unknown":
        return None
    if not generation.finished or not control_ids(model.tokenizer).isdisjoint(generation.token_ids[:-1]):
        return "incoherent"
    return classify(prompt.text, generation.text)


def _kl(
    model: LocalModel,
    reference: LocalModel,
    conversations: Sequence[Sequence],
    generations: Sequence[Generation],
    temperature: float,
) -> Sequence[float | None]:
    """One value in nats per answer: log P(answer) under the policy less that under the reference, both tempered."""
    if temperature == 0:
        return [None] * len(generations)
    if model is reference:
        return [0.0] * len(generations)
    tokens = [generation.token_ids for generation in generations]
    own = model.answer_logprobs(conversations, tokens, temperature)
    other = reference.answer_logprobs(conversations, tokens, temperature)
    return [float(mine.sum() - its.sum()) for mine, its in zip(own, other, strict=True)]
