"""The message lists that a model reads: response, critique, revision, judge question, rating.

Only wording and order live here; tokens are `chat`'s business and principles come from a constitution. The texts follow
Constitutional AI (2212.08073) 3.1 for critique and revision and 4.1 for the two-option question. What a judge reads
about is data (conversations, responses, worked examples) and goes through `fencing`; principles do not.
"""

from collections.abc import Callable, Sequence
from typing import Literal

from rlaif_assets.language_models.fencing import FENCE_VERSION, fence, without_control
from rlaif_assets.records import CritiqueExample, CritiquePrinciple, JudgingExample, Message, Prompt
from rlaif_assets.store.fingerprint import sha256_text

JUDGE_OPTIONS = ("A", "B")
JUDGE_PREFILL = "The answer is: ("
RATING_PREFILL = "The rating is: ("
RATING_SCALE = tuple(str(score) for score in range(1, 10))

_QUESTION = "Consider the following conversation between a human and an assistant:\n{conversation}"
_OPTIONS = "Options:\n(A) {first}\n(B) {second}"
_RATING = "{question}\nAssistant: {response}\n{principle}\nRate the response from 1 to 9."
RATING_REQUEST = "Reply with the number and nothing else."
_RATIONALE_REQUEST = "Before you choose, think step by step about both responses. Do not choose yet."
_AFTER_RATIONALE = "So what is the answer?"
_SPEAKERS = {"user": "Human", "assistant": "Assistant", "system": "System"}
_FENCE = f"fence {FENCE_VERSION}"
_CONVERSATION = (_QUESTION, *_SPEAKERS.values(), _FENCE)
JUDGE_TEMPLATE = sha256_text("\n".join((*_CONVERSATION, _OPTIONS, JUDGE_PREFILL)))[:32]
COT_TEMPLATE = sha256_text("\n".join((_RATIONALE_REQUEST, _AFTER_RATIONALE, _FENCE)))[:32]
RATING_TEMPLATE = sha256_text("\n".join((*_CONVERSATION, _RATING, RATING_PREFILL)))[:32]

Rewrite = Callable[[str], str]
"""How a text that is data is written into a question."""


def _user(content: str) -> Message:
    return {"role": "user", "content": content}


def _assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def response_messages(prompt: Prompt) -> list[Message]:
    return list(prompt.messages)


def critique_messages(
    prompt_messages: Sequence[Message],
    response: str,
    principle: CritiquePrinciple,
    examples: Sequence[CritiqueExample],
) -> list[Message]:
    """Worked examples, the conversation with its response, then the critique request (3.1)."""
    shots = [message for example in examples for message in _worked_example(example)]
    return [*shots, *prompt_messages, _assistant(response), _user(principle.critique_request)]


def revision_messages(
    prompt_messages: Sequence[Message],
    response: str,
    principle: CritiquePrinciple,
    critique: str | None,
    examples: Sequence[CritiqueExample],
) -> list[Message]:
    """What `critique_messages` gave, its critique, then the revision request (3.1).

    Without a critique the revision is asked for at once, in the worked examples too (3.5).
    """
    if critique is None:
        shots = [message for example in examples for message in _worked_example(example, critique=False)]
        return [*shots, *prompt_messages, _assistant(response), _user(principle.revision_request)]
    asked = critique_messages(prompt_messages, response, principle, examples)
    return [*asked, _assistant(critique), _user(principle.revision_request)]


def _worked_example(example: CritiqueExample, critique: bool = True) -> list[Message]:
    criticised = [_user(example.critique_request), _assistant(example.critique)] if critique else []
    return [
        _user(example.prompt),
        _assistant(example.response),
        *criticised,
        _user(example.revision_request),
        _assistant(example.revision),
    ]


def _transcript(messages: Sequence[Message], rewrite: Rewrite) -> str:
    return "\n".join(f"{_SPEAKERS[message['role']]}: {rewrite(message['content'])}" for message in messages)


def _judge_question(
    messages: Sequence[Message],
    first: str,
    second: str,
    principle_text: str,
    position: Literal["before", "after"],
    rewrite: Rewrite,
) -> str:
    question = _QUESTION.format(conversation=_transcript(messages, rewrite))
    options = _OPTIONS.format(first=rewrite(first), second=rewrite(second))
    middle = (principle_text, options) if position == "before" else (options, principle_text)
    return "\n".join((question, *middle))


def judge_messages(
    prompt_messages: Sequence[Message],
    first: str,
    second: str,
    principle_text: str,
    examples: Sequence[JudgingExample],
    principle_position: Literal["before", "after"],
    rewrite: Rewrite = fence,
) -> list[Message]:
    """The two-option question of 4.1; the answer continues JUDGE_PREFILL with one of JUDGE_OPTIONS.

    `rewrite` is another one only where fences are compared: JUDGE_TEMPLATE stands for `fence`.
    """
    messages: list[Message] = []
    for example in examples:
        asked = [_user(example.prompt)]
        question = _judge_question(asked, example.first, example.second, example.principle, principle_position, rewrite)
        messages += [_user(question), _assistant(f"{JUDGE_PREFILL}{JUDGE_OPTIONS[example.better]})")]
    question = _judge_question(prompt_messages, first, second, principle_text, principle_position, rewrite)
    return [*messages, _user(question)]


def rating_messages(prompt_messages: Sequence[Message], response: str, principle_text: str) -> list[Message]:
    """A single response to be rated 1 to 9 (Lee et al. 2309.00267, direct RLAIF); continues RATING_PREFILL."""
    question = _QUESTION.format(conversation=_transcript(prompt_messages, fence))
    return [_user(_RATING.format(question=question, response=fence(response), principle=principle_text))]


def with_request(messages: Sequence[Message], request: str) -> list[Message]:
    """The conversation with a line added to its last message, or as it is where the line is empty."""
    last = messages[-1]
    return [*messages[:-1], {**last, "content": f"{last['content']}\n{request}"}] if request else list(messages)


def rationale_messages(question: Sequence[Message]) -> list[Message]:
    """A judge's question as one that asks for reasons first (Constitutional AI 4.1, chain of thought)."""
    return with_request(question, _RATIONALE_REQUEST)


def verdict_messages(question: Sequence[Message], rationale: str) -> list[Message]:
    """The choice after the reasons; like the question itself, continues JUDGE_PREFILL.

    The reasons may quote what was judged: what could be a control token in them is escaped.
    """
    return [*rationale_messages(question), _assistant(without_control(rationale)), _user(_AFTER_RATIONALE)]
