"""A fake model with the methods of `LocalModel` that feedback calls, and small rows to feed it."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np

from rlaif_assets.feedback.judging import ORDERS
from rlaif_assets.language_models.local import Generation, LocalModel
from rlaif_assets.records import (
    CritiqueConstitution,
    CritiqueExample,
    CritiquePrinciple,
    Judgement,
    JudgingConstitution,
    JudgingExample,
    JudgingPrinciple,
    Message,
    Pair,
    Prompt,
)
from rlaif_assets.store.fingerprint import canonical_json, row_id, sha256_text

Answers = Callable[[Sequence[Message], int], str]
Logprobs = Callable[[Sequence[Message]], tuple[float, float]]


def hashed_answer(messages: Sequence[Message], seed: int) -> str:
    """Differs with every message and seed."""
    return f"words {sha256_text(canonical_json([list(messages), seed]))[:10]}"


def hashed_logprobs(messages: Sequence[Message]) -> tuple[float, float]:
    digest = sha256_text(canonical_json(list(messages)))
    share = (int(digest[:8], 16) + 1) / (2**32 + 2)
    return float(np.log(0.9 * share)), float(np.log(0.9 * (1 - share)))


@dataclass
class FakeModel:
    """Texts and log-probabilities are pure functions of what is asked; the context is counted in characters."""

    answer: Answers = hashed_answer
    logprobs: Logprobs = hashed_logprobs
    context: int = 1_000_000
    fingerprint: str = "fake-fingerprint"
    asked: list[list[Message]] = field(default_factory=list)
    ends: Callable[[str], bool] = lambda text: True

    def fits(self, conversation: Sequence[Message], max_new_tokens: int, prefill: str = "") -> bool:
        return sum(len(message["content"]) for message in conversation) + len(prefill) + max_new_tokens <= self.context

    def generate(
        self,
        conversations: Sequence[Sequence[Message]],
        seeds: Sequence[int],
        max_new_tokens: int,
        temperature: float,
        prefill: str = "",
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Generation]:
        self.asked += [list(messages) for messages in conversations]
        texts = [self.answer(messages, seed) for messages, seed in zip(conversations, seeds, strict=True)]
        if progress:
            progress(len(texts), len(texts))
        return [
            Generation(
                text=text, token_ids=list(range(len(text.split()))), tokens_in=len(messages), finished=self.ends(text)
            )
            for text, messages in zip(texts, conversations, strict=True)
        ]

    def option_batches(
        self, questions: Sequence[Sequence[Message]], prefill: str, options: Sequence[str] = ("A", "B")
    ) -> Iterator[tuple[list[int], np.ndarray, list[int]]]:
        self.asked += [list(messages) for messages in questions]
        rows = [self.logprobs(messages) for messages in questions]
        yield list(range(len(rows))), np.array(rows).reshape(-1, 2), [len(messages) for messages in questions]


def local(model: FakeModel) -> LocalModel:
    return cast(LocalModel, model)


def make_prompt(text: str) -> Prompt:
    messages: tuple[Message, ...] = ({"role": "user", "content": text},)
    return Prompt(row_id("prompt", messages), messages, "train", "unknown", "test")


def make_pair(prompt: Prompt, a: str, b: str) -> Pair:
    ids = [row_id("answer", prompt.prompt_id, text) for text in (a, b)]
    return Pair(row_id("pair", prompt.prompt_id, a, b), prompt.prompt_id, ids[0], ids[1], a, b, 1, 2, 8)


def critique_principle(number: int) -> CritiquePrinciple:
    return CritiquePrinciple(f"c{number}", f"critique-{number}", f"Criticise {number}.", f"Rewrite {number}.")


def judging_principle(number: int) -> JudgingPrinciple:
    return JudgingPrinciple(f"j{number}", f"judging-{number}", f"Choose the better answer, rule {number}.")


CRITIQUE = CritiqueConstitution(
    principles=tuple(critique_principle(number) for number in range(16)),
    examples=tuple(CritiqueExample(f"e{i}", f"p{i}", f"r{i}", f"cq{i}", f"c{i}", f"rq{i}", f"v{i}") for i in range(3)),
)
JUDGING = JudgingConstitution(
    principles=tuple(judging_principle(number) for number in range(16)),
    examples=(
        JudgingExample("f0", "p0", "good", "bad", "rule", 0),
        JudgingExample("f1", "p1", "bad", "good", "rule", 1),
        JudgingExample("f2", "p2", "good", "bad", "rule", 0),
    ),
)


PROMPTS = [make_prompt(f"Question {number}?") for number in range(12)]


def make_judgements(values: Sequence[tuple[float, float]], mass: float = 1.0, judge: str = "judge") -> list[Judgement]:
    """Two judgements per (p_a in order ab, p_a in order ba); the pairs are pair-0, pair-1, ..."""
    rows: list[Judgement] = []
    for i, p_as in enumerate(values):
        for order, p_a in zip(ORDERS, p_as, strict=True):
            first, second = (p_a, 1 - p_a) if order == "ab" else (1 - p_a, p_a)
            lp_first, lp_second = (math.log(max(mass * p, 1e-300)) for p in (first, second))
            key = f"pair-{i}-{order}"
            rows.append(Judgement(key, f"pair-{i}", "j0", order, lp_first, lp_second, p_a, judge, "template", 10))
    return rows
