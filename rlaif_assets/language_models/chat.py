"""Conversations as token ids, by the chat template of the model itself. What is said in them is `prompts`' business.

Text that comes from data never yields a control token. The template is rendered with numbered marks in the place of the
contents, so that data never reaches it; then the contents take the places of the marks. A conversation whose tokens
would hold other control tokens than the template wrote, or at other places, is tokenised piece by piece, the contents
as plain text. Every other one has exactly the ids that `tokenizer.apply_chat_template` gives it (contents stripped).
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import GenerationConfig, PreTrainedTokenizerFast

from rlaif_assets.language_models.errors import ModelError
from rlaif_assets.records import Message

# Private-use characters round the number of a message: no template looks at them.
_MARK = re.compile("\ue000(\\d+)\ue001")


def encode_prompt(tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message]) -> list[int]:
    """The ids of `messages`, their contents stripped, and of the template's generation prompt.

    Raises ModelError where there is no template, or where it refuses the order of roles.
    """
    if not messages:
        raise ModelError("a conversation needs at least one message")
    pieces = _template_pieces(tokenizer, _chat_template(tokenizer), _shape(messages), add_generation_prompt=True)
    contents = [messages[int(piece)]["content"].strip() if i % 2 else piece for i, piece in enumerate(pieces)]
    together, controls = _encode_with_controls("".join(contents), tokenizer)
    if controls == _template_controls(tokenizer, contents):
        return together
    ids: list[int] = []
    for i, content in enumerate(contents):
        ids += encode_text(tokenizer, content) if i % 2 else _encode(content, tokenizer)
    return ids


def encode_conversation(
    tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message], response: str
) -> tuple[list[int], list[int]]:
    """Ids of `encode_prompt(messages)`, the response and the end of its turn, and a mask of the same length.

    The mask is 1 on the response and on the end-of-turn token, which is the last. The response is tokenised on its own,
    as a model that answers the prompt would write it.
    """
    prompt = encode_prompt(tokenizer, messages)
    answer = [*encode_text(tokenizer, response.strip()), *_closing_ids(tokenizer, _chat_template(tokenizer))]
    return prompt + answer, [0] * len(prompt) + [1] * len(answer)


def encode_text(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """The ids of plain text: no BOS, and no control token even where `text` spells one."""
    ids = _encode(text, tokenizer)
    if control_ids(tokenizer).isdisjoint(ids):
        return ids
    # The tokenizer's own steps without its added tokens (`split_special_tokens` spares those that are not special).
    backend = tokenizer.backend_tokenizer
    if backend.normalizer is not None:
        text = backend.normalizer.normalize_str(text)
    words = [text]
    if backend.pre_tokenizer is not None:
        words = [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
    return [i for word in words for i in _spell(tokenizer, word)]


def _spell(tokenizer: PreTrainedTokenizerFast, word: str) -> list[int]:
    """A pre-tokenised word. One that the vocabulary knows as a control token is spelled by its two halves."""
    tokens = tokenizer.backend_tokenizer.model.tokenize(word)
    controls = control_ids(tokenizer)
    if controls.isdisjoint(token.id for token in tokens):
        return [token.id for token in tokens]
    if len(word) == 1:
        raise ModelError(f"the tokenizer has no plain token for {word!r}, only a control token: reject the row")
    half = len(word) // 2
    return _spell(tokenizer, word[:half]) + _spell(tokenizer, word[half:])


def decode_text(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> str:
    """The text of `ids`, stripped, without control tokens."""
    controls = control_ids(tokenizer)
    kept = [i for i in ids if i not in controls]
    return str(tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)).strip()


def end_of_turn_ids(
    tokenizer: PreTrainedTokenizerFast, generation_config: GenerationConfig | None = None
) -> frozenset[int]:
    """Ids that end an answer: the template's end of turn, the tokenizer's EOS and the checkpoint's own EOS ids."""
    ids: list[Any] = [_closing_ids(tokenizer, _chat_template(tokenizer))[-1], tokenizer.eos_token_id]
    own = generation_config.eos_token_id if generation_config is not None else None
    ids += own if isinstance(own, list) else [own]
    return frozenset(int(i) for i in ids if i is not None)


def control_ids(tokenizer: PreTrainedTokenizerFast) -> frozenset[int]:
    """Ids of the added tokens, special or not, except blanks (which are text) and the unknown token."""
    return _control_ids(tokenizer, len(tokenizer))


@lru_cache(maxsize=16)
def _control_ids(tokenizer: PreTrainedTokenizerFast, size: int) -> frozenset[int]:
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.content.strip()}
    structural = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    return frozenset(i for i in added if i != tokenizer.unk_token_id or i in structural)


def _encode(text: str, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    return _tokenised(text, tokenizer)["input_ids"]


def _tokenised(text: str, tokenizer: PreTrainedTokenizerFast) -> Any:
    try:
        return tokenizer(text, add_special_tokens=False, verbose=False)
    except TypeError as error:  # what the tokenizer raises for half of a surrogate pair, which JSON may hold
        raise ModelError(f"{text[:60]!r} is not valid Unicode: reject the row") from error


def _encode_with_controls(text: str, tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[tuple[int, int]]]:
    """The ids of `text`, and its control tokens, each with the place where it begins: one of data's cannot stand for
    one of the template's."""
    controls = control_ids(tokenizer)
    encoding = _tokenised(text, tokenizer).encodings[0]
    ids, offsets = encoding.ids, encoding.offsets
    return ids, [(token, start) for token, (start, _) in zip(ids, offsets, strict=True) if token in controls]


def _chat_template(tokenizer: PreTrainedTokenizerFast) -> str:
    try:
        return tokenizer.get_chat_template()
    except ValueError as error:
        name = tokenizer.name_or_path or "the model"
        raise ModelError(
            f"the tokenizer of {name} has no chat template: put chat_template.jinja in its folder, or take a chat model"
        ) from error


def _shape(messages: Sequence[Message]) -> tuple[str, ...]:
    return tuple(message["role"] for message in messages)


@lru_cache(maxsize=256)
def _template_pieces(
    tokenizer: PreTrainedTokenizerFast, template: str, roles: tuple[str, ...], *, add_generation_prompt: bool
) -> list[str]:
    """Template text and message numbers in turn: text, number, text, ..., text."""
    marked = [{"role": role, "content": f"\ue000{i}\ue001"} for i, role in enumerate(roles)]
    try:
        text = tokenizer.apply_chat_template(
            marked, chat_template=template, tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except TemplateError as error:
        raise ModelError(
            f"the chat template refuses a conversation of the roles {', '.join(roles)}: {error}"
        ) from error
    pieces = _MARK.split(str(text))
    if pieces[1::2] != [str(i) for i in range(len(roles))]:
        raise ModelError(
            f"the chat template does not write each message once and in order (roles {', '.join(roles)}): "
            "take a model whose template does"
        )
    return pieces


def _template_controls(tokenizer: PreTrainedTokenizerFast, contents: Sequence[str]) -> list[tuple[int, int]]:
    """The control tokens of the template's own pieces (those at even numbers): id and place in the whole text."""
    found: list[tuple[int, int]] = []
    start = 0
    for i, piece in enumerate(contents):
        found += [] if i % 2 else [(token, start + place) for token, place in _controls_of(tokenizer, piece)]
        start += len(piece)
    return found


@lru_cache(maxsize=1024)
def _controls_of(tokenizer: PreTrainedTokenizerFast, piece: str) -> list[tuple[int, int]]:
    return _encode_with_controls(piece, tokenizer)[1]


@lru_cache(maxsize=16)
def _closing_ids(tokenizer: PreTrainedTokenizerFast, template: str) -> list[int]:
    """What follows an assistant's content, up to its first control token; EOS where the template writes none."""
    pieces = _template_pieces(tokenizer, template, ("user", "assistant"), add_generation_prompt=False)
    ids, controls = _encode(pieces[-1], tokenizer), control_ids(tokenizer)
    for i, token in enumerate(ids):
        if token in controls:
            return ids[: i + 1]
    eos: Any = tokenizer.eos_token_id
    if eos is None:
        raise ModelError("neither the chat template nor the tokenizer names a token that ends an answer: set eos_token")
    return [eos]
