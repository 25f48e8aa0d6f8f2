"""One text per row from a model, and why some rows have none. What is asked is the caller's business."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rlaif_assets.language_models.local import Generation, LocalModel
from rlaif_assets.records import Message, Rejection

Progress = Callable[[str, int, int], None]
"""Called with a phase, how much of it is done, and how much there is."""


def silent(phase: str, done: int, total: int) -> None:
    """A `Progress` that shows nothing."""


@dataclass(frozen=True)
class Request:
    """One text to generate. `where` names the row in a rejection."""

    where: str
    messages: Sequence[Message]
    seed: int


def generate_texts(
    model: LocalModel,
    requests: Sequence[Request],
    max_new_tokens: int,
    temperature: float,
    phase: str,
    progress: Progress,
) -> list[Generation | Rejection]:
    """One outcome per request, in their order: a generation whose text is not empty, or why there is none.

    A request is rejected when its messages and `max_new_tokens` exceed the model's context, or when the text that came
    back is blank. The draw of a request depends on its seed and messages alone, not on the others.
    """
    outcomes: list[Generation | Rejection] = [
        Rejection(request.where, f"{phase}: the messages and {max_new_tokens} new tokens exceed the model's context")
        for request in requests
    ]
    fitting = [i for i, request in enumerate(requests) if model.fits(request.messages, max_new_tokens)]
    progress(phase, 0, len(fitting))
    generations = model.generate(
        [requests[i].messages for i in fitting],
        [requests[i].seed for i in fitting],
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        progress=lambda done, total: progress(phase, done, total),
    )
    for i, generation in zip(fitting, generations, strict=True):
        empty = not generation.text.strip()
        outcomes[i] = Rejection(requests[i].where, f"{phase}: the model gave an empty text") if empty else generation
    return outcomes
