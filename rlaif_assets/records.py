"""The rows that pass between stages. No behaviour beyond ids; storage lives in `store`, readers in `ingest`.

Every id is a content hash (`store.fingerprint.row_id`), so the same text has the same id in every run.
"""

from dataclasses import dataclass
from typing import Literal, TypedDict

Split = Literal["train", "dev", "test"]
Role = Literal["train", "heldout"]
PASSPORT = "passport"  # the metric that holds the judge's passport, or its id where labels that carry it were used


class Message(TypedDict):
    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class Prompt:
    """A conversation that ends in a user turn. `intent` and `category` are known for the pocket world alone."""

    prompt_id: str
    messages: tuple[Message, ...]
    split: Split
    kind: Literal["harmful", "harmless", "lookalike", "unknown"]
    source: str
    category: str | None = None
    intent: str | None = None

    @property
    def text(self) -> str:
        """The last user turn."""
        return self.messages[-1]["content"]


@dataclass(frozen=True)
class Rejection:
    """An input row that was refused. `where` is file:line or a row id."""

    where: str
    reason: str
    text: str = ""


@dataclass(frozen=True)
class CritiquePrinciple:
    principle_id: str
    name: str
    critique_request: str
    revision_request: str
    kind: str | None = None


@dataclass(frozen=True)
class JudgingPrinciple:
    """`counter` is the text of a principle that asks for the opposite, where the constitution declares one."""

    principle_id: str
    name: str
    text: str
    kind: str | None = None
    counter: str | None = None


@dataclass(frozen=True)
class CritiqueExample:
    example_id: str
    prompt: str
    response: str
    critique_request: str
    critique: str
    revision_request: str
    revision: str


@dataclass(frozen=True)
class JudgingExample:
    """`better` is 0 where the first response is the better one under `principle`, else 1."""

    example_id: str
    prompt: str
    first: str
    second: str
    principle: str
    better: Literal[0, 1]


@dataclass(frozen=True)
class CritiqueConstitution:
    principles: tuple[CritiquePrinciple, ...]
    examples: tuple[CritiqueExample, ...]


@dataclass(frozen=True)
class JudgingConstitution:
    principles: tuple[JudgingPrinciple, ...]
    examples: tuple[JudgingExample, ...]


@dataclass(frozen=True)
class Revision:
    """One round of step 1. Round 0 is the first response: no principle, critique or parent.

    `seed` drew the text and `critique_seed` the critique; the token counts are those of both together. Without
    critiques (`revised_responses.critique`) both critique columns are None in every round.
    """

    revision_id: str
    prompt_id: str
    round: int
    text: str
    parent_id: str | None
    principle_id: str | None
    critique: str | None
    seed: int
    tokens_in: int
    tokens_out: int
    finished: bool
    critique_seed: int | None = None


@dataclass(frozen=True)
class Answer:
    """One sampled answer to a prompt."""

    answer_id: str
    prompt_id: str
    text: str
    seed: int
    tokens_in: int
    tokens_out: int
    finished: bool


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt. `response_a_id` and `response_b_id` are answer ids."""

    pair_id: str
    prompt_id: str
    response_a_id: str
    response_b_id: str
    response_a: str
    response_b: str
    seed_a: int
    seed_b: int
    tokens_out: int


@dataclass(frozen=True)
class Judgement:
    """One look of a judge at one pair, under one principle, in one order. Kept once, whatever labels use it.

    `logprob_first` and `logprob_second` are log P of the first and second option's letter (natural log, not
    normalised); `p_a` is the normalised probability that response A of the pair is chosen, whatever the order.
    `template` identifies the question's wording, the principle's place and the worked examples. `method` says how the
    probabilities were read: from the judge's log-probabilities, or from sampled verdicts (votes). `rationale` is a
    chain-of-thought judge's text before its verdict. `question_id` names all that could change the answer; `round` is
    0, and one more each time the same question was put again, for the date `as_of`. `seconds`: its part of its batch's.
    """

    judgement_id: str
    pair_id: str
    principle_id: str
    order: Literal["ab", "ba"]
    logprob_first: float
    logprob_second: float
    p_a: float
    judge: str
    template: str
    tokens_in: int
    tokens_out: int = 0
    method: Literal["logprobs", "votes"] = "logprobs"
    rationale: str | None = None
    round: int = 0
    question_id: str = ""
    as_of: str | None = None
    seconds: float = 0.0
    created_at: str = ""
    dagster_run_id: str | None = None


@dataclass(frozen=True)
class Label:
    """The soft preference about a pair: made of its judgements, or a person's.

    `principle_id` is None where judgements under several principles were averaged. `flipped`: the two orders chose
    different responses. `orders`: whether each principle was judged in both orders. `judgements_hash` covers the stored
    answers of `judgement_ids`. A person's label (source human, made of `verdict_ids`) keeps the judgements that it
    overrides, so that the judge can be compared with people.
    """

    label_id: str
    pair_id: str
    principle_id: str | None
    p_a: float
    judgement_ids: tuple[str, ...]
    flipped: bool | None
    source: Literal["ai", "human"]
    annotator: str
    orders: Literal["both", "single"] | None = None
    verdict_ids: tuple[str, ...] = ()
    judgements_hash: str | None = None


@dataclass(frozen=True)
class HumanVerdict:
    """A person's verdict on a response pair, named by its id or by its texts. `time`: ISO 8601, as it was given."""

    verdict_id: str
    pair_id: str | None
    messages: tuple[Message, ...] | None
    response_a: str | None
    response_b: str | None
    p_a: float
    annotator: str
    time: str


@dataclass(frozen=True)
class LabelChange:
    """How labels differ from those of the previous snapshot: all of them, of one principle, or of one harm category.

    `labels`: pairs that both snapshots label. `mean_change`: mean |new p_a - old p_a|, None where there are none.
    """

    scope: Literal["all", "principle", "category"]
    name: str
    labels: int
    flipped: int
    mean_change: float | None


@dataclass(frozen=True)
class LabelFlip:
    """A pair whose label went to the other side of 0.5, old and new. Principles are the names that the labels had."""

    pair_id: str
    prompt: str
    response_a: str
    response_b: str
    category: str | None
    old_principle: str | None
    new_principle: str | None
    old_source: Literal["ai", "human"]
    new_source: Literal["ai", "human"]
    old_p_a: float
    new_p_a: float


@dataclass(frozen=True)
class AuditProbe:
    """A pair that an audit had judged again, otherwise: `other` is the p_a that came of it.

    `p_a` is what it is compared with: the pair's label (texts_swap, other_principle), the label under the principle
    (counter_principle), or what people said (agreement, agreement_verdicts). Under exchanged texts `other` belongs to
    the response that was B. `principle_id` is None where several principles made the label.
    """

    audit: str
    pair_id: str
    principle_id: str | None
    p_a: float
    other: float


@dataclass(frozen=True)
class Comparison:
    """A comparison of two responses by a person (or a simulated one): p_a in [0, 1]."""

    comparison_id: str
    messages: tuple[Message, ...]
    response_a: str
    response_b: str
    p_a: float
    source: str
    annotator: str
    split: Split = "train"


@dataclass(frozen=True)
class CommunityAnswer:
    """An answer of a question-answer site. `score`: see `ingest.community.community_score`. Votes may be unknown."""

    answer_id: str
    question_id: str
    question: str
    text: str
    votes: int | None
    accepted: bool
    score: int


@dataclass(frozen=True)
class CommunityPair:
    """Two answers to one question with unequal score; `better` and `worse` are answer ids."""

    pair_id: str
    question_id: str
    better_id: str
    worse_id: str
    question: str
    better: str
    worse: str


@dataclass(frozen=True)
class PreferenceExample:
    """What the preference model learns from: messages, two responses, p_a, and where the label came from."""

    row_id: str
    messages: tuple[Message, ...]
    response_a: str
    response_b: str
    p_a: float
    source: str
    weight: float = 1.0


@dataclass(frozen=True)
class SftExample:
    """A conversation and the answer to imitate. `row_id` is the revision's or answer's id."""

    row_id: str
    messages: tuple[Message, ...]
    response: str
    source: str


class TrainingRow(TypedDict):
    """A row that a training was given, by the id that it has where it comes from."""

    row_id: str
    role: Role
    source: str


class Rollout(TypedDict):
    """An answer of PPO: `score` normalised, as rewarded; `kl` in nats, summed over the answer."""

    prompt_id: str
    update: int
    text: str
    score: float
    kl: float
    tokens: int


class ExternalModel(TypedDict):
    """A model that the pipeline is given. `model` and `verdicts` are an endpoint's: its name there, how it is read."""

    fingerprint: str
    source: str
    revision: str | None
    architecture: str | None
    parameters: int | None
    model: str | None
    verdicts: str | None


Verdict = Literal["engaged", "evasive", "harmful", "incoherent"]


@dataclass(frozen=True)
class EvaluationAnswer:
    """A policy's answer to a held-out prompt. `tokens` counts the answer's; `verdict` is None without a gold annotator.

    `kl` is this answer's share of KL(policy || reference): the sum over its tokens of log P under the policy less
    log P under the reference, in nats, at the sampling temperature; None at temperature 0.
    """

    answer_id: str
    policy: str
    prompt_id: str
    split: Split
    kind: Literal["harmful", "harmless", "lookalike", "unknown"]
    intent: str | None
    sample: int
    text: str
    verdict: Verdict | None
    tokens: int
    kl: float | None
    seed: int


@dataclass(frozen=True)
class EvaluationRate:
    """One number of an evaluation with its 95% interval. `subject` is a policy (`ppo`) or a duel (`ppo_vs_sl_cai`).

    `count` is the number of answers or duels behind it. `value` is None where it cannot be told; `note` says why, or
    how it was decided (`self_judged`).
    """

    split: Split
    subject: str
    measure: str
    value: float | None
    low: float | None
    high: float | None
    count: int
    note: str | None = None


@dataclass(frozen=True)
class PromotionRule:
    """One rule that a policy must keep to become the champion, as it was measured. `value` is None where it was not;
    `low` and `high` are its 95% interval, of which the worse end is held against `threshold`. A rule that does not
    block is told beside the one that it belongs to."""

    rule: str
    passed: bool
    blocks: bool
    value: float | None
    low: float | None
    high: float | None
    threshold: float | None
    note: str
