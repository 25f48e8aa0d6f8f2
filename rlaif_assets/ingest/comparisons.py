"""Comparisons of two responses by people, from files, hub data sets or the pocket world's simulated annotators.

A row has `chosen` and `rejected`: two transcripts or message lists with one context, or, beside a `prompt` (text,
transcript or messages), two responses (texts, or lists with the assistant message alone). Contexts that differ at the
last assistant turn, an empty response, identical responses: refused. History is cut by the rule of `conversations`
until the context and the longer response fit `max_characters`. The split is that of `prompts`: a conversation whose
opening is a dev or test prompt's is held out here too.
"""

from typing import Any

from rlaif_assets.ingest.conversations import (
    checked,
    conversation,
    fit,
    is_transcript,
    normalise,
    split_response,
    user_message,
)
from rlaif_assets.ingest.errors import RowError
from rlaif_assets.ingest.files import check_limit, read_rows, rejection, require_usable, source_name
from rlaif_assets.ingest.prompts import split_of
from rlaif_assets.records import Comparison, Message, Rejection
from rlaif_assets.settings import HelpfulnessPreferencesSettings
from rlaif_assets.store.fingerprint import draw_unit, row_id

ANNOTATOR = "human"


def read_comparisons(settings: HelpfulnessPreferencesSettings) -> tuple[list[Comparison], list[Rejection]]:
    """Kept comparisons in the order of the source, and refused rows: rows read = kept + rejected.

    Raises IngestError, also where no comparison is kept or none is in train.
    """
    if settings.path == "pocket":
        return _pocket_comparisons(settings), []
    kept, rejected = comparisons_of_rows(settings)
    require_usable(settings.path, [comparison.split for comparison in kept], rejected)
    return kept, rejected


def comparisons_of_rows(settings: HelpfulnessPreferencesSettings) -> tuple[list[Comparison], list[Rejection]]:
    """The comparisons of a file or hub data set, and refused rows, a comparison's second occurrence among them.

    A hash of the row decides whether the chosen response becomes A (p_a = 1) or B (p_a = 0). Raises IngestError.
    """
    kept: dict[str, Comparison] = {}
    first_seen: dict[str, str] = {}
    rejected: list[Rejection] = []
    for row in read_rows(settings.path, settings.limit):
        try:
            if row.problem:
                raise RowError(row.problem)
            comparison = comparison_of(row.fields, settings)
            if comparison.comparison_id in kept:
                raise RowError(f"duplicate of {first_seen[comparison.comparison_id]}")
        except RowError as problem:
            rejected.append(rejection(row, problem, "chosen", "prompt"))
            continue
        kept[comparison.comparison_id] = comparison
        first_seen[comparison.comparison_id] = row.where
    return list(kept.values()), rejected


def comparison_of(fields: dict[str, Any], settings: HelpfulnessPreferencesSettings) -> Comparison:
    """One row's comparison; a hash decides whether the chosen response becomes A. Raises RowError."""
    context, chosen = _side(fields, "chosen")
    other_context, rejected = _side(fields, "rejected")
    if context != other_context:
        raise RowError("chosen and rejected have different contexts before the last assistant turn")
    if chosen == rejected:
        raise RowError("chosen and rejected are identical")
    longest = max(len(chosen), len(rejected))
    if longest >= settings.max_characters:
        raise RowError(f"too long: a response has {longest} characters, the limit is {settings.max_characters}")
    whole = normalise(context)
    messages = fit(whole, settings.max_characters - longest)
    comparison_id = row_id("comparison", messages, chosen, rejected)
    chosen_is_a = draw_unit(comparison_id, settings.seed, "order") < 0.5
    return Comparison(
        comparison_id=comparison_id,
        messages=messages,
        response_a=chosen if chosen_is_a else rejected,
        response_b=rejected if chosen_is_a else chosen,
        p_a=1.0 if chosen_is_a else 0.0,
        source=source_name(settings.path),
        annotator=ANNOTATOR,
        split=split_of(whole, settings.heldout_share, settings.seed),
    )


def _side(fields: dict[str, Any], name: str) -> tuple[list[Message], str]:
    """(context with its texts stripped, response) of the `chosen` or the `rejected` field."""
    value = fields.get(name)
    if value is None:
        raise RowError(f"the field {name} is missing")
    prompt = fields.get("prompt")
    if isinstance(value, str) and prompt is not None and not is_transcript(value):
        context, response = _prompt(prompt), value.strip()
    else:
        context, response = split_response(conversation(value))
        if not context and prompt is not None:
            context = _prompt(prompt)
    if response is None:
        raise RowError(f"{name} does not end in an assistant turn")
    if not response:
        raise RowError(f"{name} has an empty response")
    stripped: list[Message] = [{"role": turn["role"], "content": turn["content"].strip()} for turn in context]
    return stripped, checked(response)


def _prompt(value: Any) -> list[Message]:
    if isinstance(value, str) and not is_transcript(value):
        return [user_message(value)]
    return split_response(conversation(value))[0]


def _pocket_comparisons(settings: HelpfulnessPreferencesSettings) -> list[Comparison]:
    from rlaif_assets.pocket import world

    check_limit(settings.limit)
    return world.comparisons(settings.disagreement, settings.seed)[: settings.limit]
