"""Prompts from files, hub data sets or the pocket world. How a conversation becomes a prompt: `conversations`.

A row has one of the fields `prompt` (text, transcript or messages), `messages`, `chosen` (a transcript or messages, as
in comparison data), looked for in this order. In CSV, `messages` is JSON text.
"""

import json
from typing import Any, Literal

from rlaif_assets.ingest.conversations import conversation, fit, is_transcript, normalise, split_response, user_message
from rlaif_assets.ingest.errors import RowError
from rlaif_assets.ingest.files import check_limit, read_rows, rejection, require_usable, source_name
from rlaif_assets.records import Message, Prompt, Rejection, Split
from rlaif_assets.settings import RedTeamPromptsSettings
from rlaif_assets.store.fingerprint import draw_unit, row_id

FIELDS = ("prompt", "messages", "chosen")


def read_prompts(
    settings: RedTeamPromptsSettings, kind: Literal["red_team", "helpful"]
) -> tuple[list[Prompt], list[Rejection]]:
    """Kept prompts in the order of the source, and refused rows: rows read = kept + rejected.

    Of the pocket world `kind` names the part, and `limit` takes the prompts with the smallest ids (so all kinds and
    splits are there). Raises IngestError, also where no prompt is kept or none is in train.
    """
    if settings.path == "pocket":
        return _pocket_prompts(kind, settings.limit), []
    kept, rejected = prompts_of_rows(settings)
    require_usable(settings.path, [prompt.split for prompt in kept], rejected)
    return kept, rejected


def prompts_of_rows(settings: RedTeamPromptsSettings) -> tuple[list[Prompt], list[Rejection]]:
    """The prompts of a file or hub data set, of the kind 'unknown', and the refused rows: also a prompt's second
    occurrence. Raises IngestError.
    """
    kept: dict[str, Prompt] = {}
    first_seen: dict[str, str] = {}
    rejected: list[Rejection] = []
    for row in read_rows(settings.path, settings.limit):
        try:
            if row.problem:
                raise RowError(row.problem)
            messages = normalise(context_of(row.fields))
            cut = fit(messages, settings.max_characters)
            prompt_id = row_id("prompt", cut)
            if prompt_id in kept:
                raise RowError(f"duplicate of {first_seen[prompt_id]}")
        except RowError as problem:
            rejected.append(rejection(row, problem, *FIELDS))
            continue
        split = split_of(messages, settings.heldout_share, settings.seed)
        kept[prompt_id] = Prompt(prompt_id, cut, split, "unknown", source_name(settings.path))
        first_seen[prompt_id] = row.where
    return list(kept.values()), rejected


def split_of(messages: list[Message], heldout_share: float, seed: int) -> Split:
    """Drawn by the hash of the opening user turn, so that conversations with one opening stay on one side.

    `messages`: normalised and not cut. `heldout_share`, at most 0.5, goes to dev, and again to test. Equal in every
    source under one share and seed.
    """
    opening = next(message["content"] for message in messages if message["role"] == "user")
    draw = draw_unit(row_id("opening", opening), seed, "split")
    if draw < heldout_share:
        return "dev"
    return "test" if draw < 2 * heldout_share else "train"


def context_of(fields: dict[str, Any]) -> list[Message]:
    """The conversation before the response, as the row has it. Raises RowError."""
    present = [name for name in FIELDS if fields.get(name) is not None]
    if not present:
        raise RowError(f"none of the fields {', '.join(FIELDS)}")
    name = next((name for name in present if fields[name] != ""), present[0])  # an empty CSV cell is a missing field
    value = fields[name]
    if name == "messages" and isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise RowError("the messages are not valid JSON") from error
    if name == "prompt" and isinstance(value, str) and not is_transcript(value):
        if not value.strip():
            raise RowError("the prompt is empty")
        return [user_message(value)]
    return split_response(conversation(value))[0]


def _pocket_prompts(kind: Literal["red_team", "helpful"], limit: int | None) -> list[Prompt]:
    from rlaif_assets.pocket import world

    check_limit(limit)
    prompts = world.red_team_prompts() if kind == "red_team" else world.helpful_prompts()
    if limit is None:
        return prompts
    chosen = set(sorted(prompt.prompt_id for prompt in prompts)[:limit])
    return [prompt for prompt in prompts if prompt.prompt_id in chosen]
