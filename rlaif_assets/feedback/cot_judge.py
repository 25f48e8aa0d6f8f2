"""Judges that reason before they choose (Constitutional AI 4.1): a rationale, then the two-option question after it.

Reasoning drives probabilities to 0 and 1, so they are clamped, to 40-60% as in the paper unless told otherwise.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from rlaif_assets.feedback.endpoint_judge import SEEDS, EndpointJudge, conversation_id, outcomes
from rlaif_assets.feedback.judge import Failure, LocalJudge, Outcomes, Reading
from rlaif_assets.language_models.errors import QuestionError
from rlaif_assets.language_models.local import Conversation
from rlaif_assets.language_models.prompts import COT_TEMPLATE, rationale_messages, verdict_messages
from rlaif_assets.settings import HarmlessnessPreferencesSettings
from rlaif_assets.store.fingerprint import canonical_json, draw_seed, sha256_text

CHUNK = 64  # questions that a local judge reasons about before it chooses: what a stop may lose
NO_RATIONALE = "the judge wrote no rationale"


class LocalCotJudge:
    """A local judge in chain-of-thought form. A question draws the same rationale in any batch and any run."""

    def __init__(self, judge: LocalJudge, settings: HarmlessnessPreferencesSettings) -> None:
        self.judge, self.settings = judge, settings

    @property
    def fingerprint(self) -> str:
        return cot_fingerprint(self.judge.fingerprint, self.settings)

    def read(self, questions: Sequence[Conversation]) -> Iterator[Outcomes]:
        for start in range(0, len(questions), CHUNK):
            yield from self._chunk(range(start, min(start + CHUNK, len(questions))), questions)

    def _chunk(self, numbers: Sequence[int], questions: Sequence[Conversation]) -> Iterator[Outcomes]:
        model, limit = self.judge.model, self.settings.cot_max_new_tokens
        asked = {i: rationale_messages(questions[i]) for i in numbers}
        fitting = [i for i in numbers if model.fits(asked[i], limit)]
        if len(fitting) < len(numbers):
            reason = f"the judge's question and {limit} tokens of rationale exceed its context"
            yield {i: Failure(reason) for i in numbers if i not in fitting}
        written = model.generate(
            [asked[i] for i in fitting],
            [rationale_seed(questions[i]) for i in fitting],
            max_new_tokens=limit,
            temperature=self.settings.cot_temperature,
        )
        reasoned = [(i, text) for i, text in zip(fitting, written, strict=True) if text.text.strip()]
        if len(reasoned) < len(fitting):
            yield {i: Failure(NO_RATIONALE) for i in set(fitting).difference(i for i, _ in reasoned)}
        for batch in self.judge.read([verdict_messages(questions[i], text.text) for i, text in reasoned]):
            yield {
                reasoned[row][0]: outcome
                if isinstance(outcome, Failure)
                else with_rationale(
                    outcome,
                    reasoned[row][1].text,
                    reasoned[row][1].tokens_in,
                    len(reasoned[row][1].token_ids),
                    self.settings.cot_clamp,
                )
                for row, outcome in batch.items()
            }


class EndpointCotJudge:
    """An endpoint's judge in chain-of-thought form: one call more per question."""

    def __init__(self, judge: EndpointJudge, settings: HarmlessnessPreferencesSettings) -> None:
        self.judge, self.settings = judge, settings

    @property
    def fingerprint(self) -> str:
        return cot_fingerprint(self.judge.fingerprint, self.settings)

    def read(self, questions: Sequence[Conversation]) -> Iterator[Outcomes]:
        yield from outcomes(self.judge.endpoint, self._answer, questions, self.judge.calls + 1)

    def _answer(self, question: Conversation) -> Reading:
        reply = self.judge.endpoint.chat(
            rationale_messages(question),
            self.settings.cot_max_new_tokens,
            self.settings.cot_temperature,
            seed=rationale_seed(question) % SEEDS,
        )
        rationale = reply.text.strip()
        if not rationale:
            raise QuestionError(NO_RATIONALE)
        reading = self.judge.answer(verdict_messages(question, rationale))
        kept = self.judge.endpoint.without_key(rationale)
        return with_rationale(reading, kept, reply.tokens_in, reply.tokens_out, self.settings.cot_clamp)


def cot_fingerprint(judge: str, settings: HarmlessnessPreferencesSettings) -> str:
    how = [settings.cot_max_new_tokens, settings.cot_temperature, settings.cot_clamp]
    return sha256_text(canonical_json(["chain of thought", judge, COT_TEMPLATE, *how]))


def rationale_seed(question: Conversation) -> int:
    return draw_seed(conversation_id(question), 0, "rationale")


def with_rationale(reading: Reading, rationale: str, tokens_in: int, tokens_out: int, clamp: float) -> Reading:
    """The reading with what was reasoned before it; p clamped to [clamp, 1 - clamp], the mass on both letters kept."""
    first, second = reading.logprob_first, reading.logprob_second
    p = 1 / (1 + math.exp(min(max(second - first, -700.0), 700.0)))
    kept = min(max(p, clamp), 1 - clamp)
    if kept != p:
        mass = math.log(math.exp(first - max(first, second)) + math.exp(second - max(first, second)))
        mass += max(first, second)
        first, second = mass + math.log(kept), mass + math.log1p(-kept)
    return replace(
        reading,
        logprob_first=first,
        logprob_second=second,
        tokens_in=reading.tokens_in + tokens_in,
        tokens_out=reading.tokens_out + tokens_out,
        rationale=rationale,
    )
