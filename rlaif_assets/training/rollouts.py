"""Answers that a policy samples, and the batches in which they are read: prompts in order, length buckets, packing.

Used by `ppo.py`. Padding is on the right and masks are carried along: no token is told from padding by its id.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from rlaif_assets.language_models.chat import encode_prompt
from rlaif_assets.language_models.local import LocalModel
from rlaif_assets.records import Prompt
from rlaif_assets.settings import PpoPolicySettings
from rlaif_assets.store.fingerprint import draw_seed
from rlaif_assets.training.world import World

PADDING = 0.2  # of a row, at most, in a batch that is large enough


@dataclass
class Rollouts:
    """N answers of one update, padded to the longest of T tokens; `mask` is True on an answer's tokens."""

    prompt_ids: list[list[int]]
    tokens: Tensor  # (N, T) int64
    mask: Tensor  # (N, T) bool
    finished: Tensor  # (N,) bool: ended by itself
    device: torch.device  # of the models; the tensors here stay on the CPU
    logprobs: Tensor = field(init=False)  # (N, T) of the policy that sampled, at the sampling temperature
    reference_logprobs: Tensor = field(init=False)  # (N, T) of the frozen start, at the same temperature
    values: Tensor = field(init=False)  # (N, T) before each token
    advantages: Tensor = field(init=False)  # (N, T) whitened
    returns: Tensor = field(init=False)  # (N, T)

    def lengths(self) -> list[int]:
        """Tokens of prompt and answer that a forward pass reads (the last answer token is never read)."""
        return [len(ids) + int(n) - 1 for ids, n in zip(self.prompt_ids, self.mask.sum(dim=1).tolist(), strict=True)]

    def flat(self, values: Tensor, rows: Sequence[int]) -> Tensor:
        """The (N, T) tensor's entries on the answer tokens of `rows`, row by row, on the models' device."""
        rows = list(rows)
        return values[rows][self.mask[rows]].to(self.device)

    def complete(self, world: World) -> None:
        """Log-probabilities and values of all rows, of which each process has filled in its share and left zeros."""
        for name in ("logprobs", "reference_logprobs", "values"):
            setattr(self, name, world.sum(getattr(self, name)))

    def put(self, values: Tensor, rows: Sequence[int], flat: Tensor) -> None:
        """The inverse of `flat`: writes into the (N, T) tensor."""
        rows = list(rows)
        part = torch.zeros(len(rows), values.shape[1])
        part[self.mask[rows]] = flat.to(part)
        values[rows] = part


def drawn_prompts(prompts: Sequence[Prompt], seed: int, purpose: str, update: int, count: int) -> list[Prompt]:
    """The `count` prompts of this update: every prompt once per epoch, in an order drawn from ids, seed and epoch."""
    found: list[Prompt] = []
    while len(found) < count:
        epoch, at = divmod(update * count + len(found), len(prompts))
        order = sorted(prompts, key=lambda prompt: draw_seed(prompt.prompt_id, seed, purpose, epoch))
        found += order[at : at + count - len(found)]
    return found


def prompts_that_fit(prompts: Sequence[Prompt], settings: PpoPolicySettings, local: LocalModel) -> dict[str, list[int]]:
    """Token ids by prompt id of the prompts of at most `max_prompt_tokens` that leave room for a whole answer."""
    limit = min(settings.max_prompt_tokens, (local.context or math.inf) - settings.max_new_tokens)
    encoded = {prompt.prompt_id: encode_prompt(local.tokenizer, prompt.messages) for prompt in prompts}
    return {prompt_id: ids for prompt_id, ids in encoded.items() if len(ids) <= limit}


def micro_batches(rollouts: Rollouts, rows: Sequence[int], batch_tokens: int, answer_tokens: int) -> list[list[int]]:
    """Rows grouped by length, at most `batch_tokens` padded tokens and `answer_tokens` answer tokens in a group.

    A group that has an eighth of its tokens takes no row that would be padded by more than PADDING.
    """
    lengths, answers = rollouts.lengths(), rollouts.mask.sum(dim=1).tolist()
    groups: list[list[int]] = []
    longest = held = 0
    for row in sorted(rows, key=lambda row: (-lengths[row], row)):
        count = len(groups[-1]) if groups else 0
        full = longest * (count + 1) > batch_tokens or held + answers[row] > answer_tokens
        padded = lengths[row] < (1 - PADDING) * longest and 8 * longest * count >= batch_tokens
        if not groups or full or padded:
            groups.append([])
            longest, held = lengths[row], 0
        groups[-1].append(row)
        held += answers[row]
    return groups


def pack(rollouts: Rollouts, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(B, S) ids, padded on the right, and the (B, S) mask of positions that precede an answer token.

    No attention mask is needed: attention is causal, so no real token sees the padding behind it.
    `predicts` read row by row is in the order of `Rollouts.flat`.
    """
    lengths = rollouts.lengths()
    width = max(lengths[row] for row in rows)
    input_ids = torch.zeros(len(rows), width, dtype=torch.int64)
    predicts = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        prompt = rollouts.prompt_ids[row]
        input_ids[i, : len(prompt)] = torch.tensor(prompt)
        input_ids[i, len(prompt) : lengths[row]] = rollouts.tokens[row, : lengths[row] - len(prompt)]
        predicts[i, len(prompt) - 1 : lengths[row]] = True
    return input_ids.to(rollouts.device), predicts.to(rollouts.device)


def answer_logits(model: Any, input_ids: Tensor, predicts: Tensor, temperature: float) -> Tensor:
    """Flat (n, V) float32 logits at the positions of `predicts` alone, divided by the temperature.

    The hook narrows the input of the output layer, so the prompt never gets logits, in any architecture.
    """
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _module, inputs: (inputs[0][predicts],))
    try:
        logits = model(input_ids=input_ids, use_cache=False).logits.float()
        return logits if temperature == 1.0 else logits / temperature  # a copy of them less
    finally:
        hook.remove()


def token_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """Flat (n,) log-probabilities of `tokens` (n,) under `logits` (n, V)."""
    return -functional.cross_entropy(logits, tokens, reduction="none")


def sample_rollouts(
    local: LocalModel,
    prompts: Sequence[Prompt],
    encoded: dict[str, list[int]],
    seeds: Sequence[int],
    settings: PpoPolicySettings,
    world: World,
) -> tuple[Rollouts, list[str]]:
    """One answer per prompt, and their texts. Each process samples its share."""
    conversations = [prompt.messages for prompt in world.share(prompts)]
    sampled = local.generate(conversations, world.share(seeds), settings.max_new_tokens, settings.temperature)
    answers = world.gather(sampled, len(prompts))
    tokens = torch.zeros(len(answers), max(len(answer.token_ids) for answer in answers), dtype=torch.int64)
    mask = torch.zeros(tokens.shape, dtype=torch.bool)
    for i, answer in enumerate(answers):
        tokens[i, : len(answer.token_ids)] = torch.tensor(answer.token_ids)
        mask[i, : len(answer.token_ids)] = True
    finished = torch.tensor([answer.finished for answer in answers])
    prompt_ids = [encoded[prompt.prompt_id] for prompt in prompts]
    return Rollouts(prompt_ids, tokens, mask, finished, torch.device(local.device)), [answer.text for answer in answers]
