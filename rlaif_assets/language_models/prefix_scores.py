"""Next-token log-probabilities after many rows of token ids, with what rows share read once: the labelling hot path.

Keys and values of shared segments (`prefix_tree`) stay in a pool until all that goes on from them is read, so a row
costs its own tokens alone, whatever the template and its order. What is asked, and which tokens answer, is `local`'s
business.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.cache_utils import Cache

from rlaif_assets.language_models.batching import pad
from rlaif_assets.language_models.pooled_cache import Places, PooledLayer
from rlaif_assets.language_models.prefix_tree import Segment, prefix_tree

# Fewer equal tokens are read again for each row: to read them apart would cost more.
LEAST_SHARED = 16
# In the budget of a forward pass a token of the past weighs so many times less than one that is read.
PAST_PER_TOKEN = 4
GROUPED = "rlaif_grouped"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scores:
    """Log-probabilities (rows, options) of the rows numbered `rows`; `tokens_read` by the model since the last ones."""

    rows: list[int]
    logprobs: np.ndarray
    tokens_read: int


def prefix_scores(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], options: Sequence[Sequence[int]], batch_tokens: int
) -> Iterator[Scores]:
    """Log P that the token after a row is one of an option's, for every row once, a batch at a time as they come.

    Natural logarithms over the full vocabulary, of logits at the last position alone; a row's do not depend on the
    others beyond rounding. A forward pass reads at most `batch_tokens` padded tokens (one row at least), and keys and
    values of at most `batch_tokens` tokens are kept. A model that cannot go on from a shared prefix reads whole rows.
    """
    segments = prefix_tree(rows, LEAST_SHARED, batch_tokens)
    if any(segment.children for segment in segments) and not can_share(model, max(map(len, rows))):
        segments = prefix_tree(rows, LEAST_SHARED, 0)
    tokens_read = 0
    for batch, logits in _read(model, segments, batch_tokens):
        tokens_read += sum(len(segment.ids) for segment in batch)
        ending = [i for i, segment in enumerate(batch) if segment.rows]
        if not ending:
            continue
        full = logits[ending].double().log_softmax(-1)
        logprobs = torch.stack([full[:, list(ids)].logsumexp(-1) for ids in options], dim=1).cpu().numpy()
        repeats = [len(batch[i].rows) for i in ending]
        yield Scores([row for i in ending for row in batch[i].rows], logprobs.repeat(repeats, axis=0), tokens_read)
        tokens_read = 0


def can_share(model: PreTrainedModel, longest: int) -> bool:
    """Whether rows of up to `longest` tokens that are read from a shared prefix come out as rows that are read whole.

    Found out with a few short rows, except what those cannot show: a sliding window, and rotations that change with the
    length.
    """
    config: Any = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    ropes = [rope, *(part for part in rope.values() if isinstance(part, dict))]
    layers = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None)
    if (
        not layers <= {"full_attention", "sliding_attention"}
        or (window is not None and longest > window)
        or any(part.get("rope_type") in ("dynamic", "longrope") for part in ropes)
    ):
        reason = "its attention reaches or turns by length"
    else:
        reason = _probe(model)
    if reason:
        logger.warning("%s reads every question whole, which takes longer: %s", type(model).__name__, reason)
    return not reason


def _probe(model: PreTrainedModel) -> str:
    """Why rows read from prefixes of different lengths differ from whole ones; empty where they do not."""
    rows = [[1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 8], [9, 8, 7, 6], [9, 8, 5], [9, 8]]
    found: list[dict[tuple[int, ...], torch.Tensor]] = []
    for most in (0, 8):
        segments = prefix_tree(rows, 2, most)
        ends = {id(segment): tuple(rows[segment.rows[0]]) for segment in segments if segment.rows}
        try:
            read = [(batch, logits.float().log_softmax(-1)) for batch, logits in _read(model, segments, 1024)]
        except Exception as error:  # whatever an architecture raises here: the plain way needs none of it
            if most == 0:
                raise
            return f"{type(error).__name__}: {error}"
        found.append({ends[id(s)]: logits[i] for batch, logits in read for i, s in enumerate(batch) if s.rows})
    gap = max(float((found[0][row] - found[1][row]).abs().max()) for row in found[0])
    limit = 1e-4 if model.dtype == torch.float32 else 0.1
    return "" if gap <= limit else f"log-probabilities differ by {gap:.2g}"


# Reading segments


def _read(
    model: PreTrainedModel, segments: Sequence[Segment], batch_tokens: int
) -> Iterator[tuple[list[Segment], torch.Tensor]]:
    """Every segment once, in batches, with the logits (segments, vocabulary) after its last token."""
    reader = _Reader(model, min(batch_tokens, sum(len(segment.ids) for segment in segments if segment.children)))
    for chunk in _chunks(segments, batch_tokens):
        for batch in _batches(chunk, batch_tokens):
            yield batch, reader.read(batch)


def _chunks(segments: Sequence[Segment], capacity: int) -> Iterator[list[Segment]]:
    """Segments in runs whose shared ones, with those that are still needed from earlier runs, fit into `capacity`."""
    chunk: list[Segment] = []
    held = 0
    for segment in segments:
        size = len(segment.ids) if segment.children else 0
        if size and held + size > capacity:
            yield chunk
            chunk, held = [], segment.start
        chunk.append(segment)
        held += size
    if chunk:
        yield chunk


def _batches(chunk: Sequence[Segment], budget: int) -> Iterator[list[Segment]]:
    """Shared segments level by level, then leaves without and with a past; of each the longest first."""
    leaves = 1 + max(segment.level for segment in chunk)

    def turn(segment: Segment) -> int:
        return segment.level if segment.children else leaves + (segment.start > 0)

    for now in sorted({turn(segment) for segment in chunk}):
        batch: list[Segment] = []
        past = 0
        for segment in sorted((s for s in chunk if turn(s) == now), key=lambda s: (-len(s.ids), s.start)):
            past = max(past, segment.start)
            width = len(batch[0].ids) if batch else 0
            if batch and (len(batch) + 1) * max(width, (past + width) / PAST_PER_TOKEN) > budget:
                yield batch
                batch, past = [], segment.start
            batch.append(segment)
        yield batch


class _Reader:
    """Runs segments through the model and keeps the keys and values of shared ones until all beneath them are read."""

    def __init__(self, model: PreTrainedModel, capacity: int) -> None:
        self.model = model
        self.layers = [PooledLayer(capacity) for _ in range(model.config.get_text_config().num_hidden_layers)]
        self.cache = Cache(layers=[*self.layers])
        self.free = list(range(capacity))
        self.slots: dict[Segment, np.ndarray] = {}
        self.unread: dict[Segment, int] = {}

    @torch.inference_mode()
    def read(self, batch: Sequence[Segment]) -> torch.Tensor:
        """Logits (segments, vocabulary) after the last token of each. What follows a token does not touch it."""
        device = self.model.device
        width, past = max(len(segment.ids) for segment in batch), max(segment.start for segment in batch)
        ids = pad([segment.ids for segment in batch], width, left=False).to(device)
        last = torch.tensor([[len(segment.ids) - 1] for segment in batch], device=device)
        if past == 0 and not any(segment.children for segment in batch):
            return self.model(input_ids=ids, use_cache=False, logits_to_keep=last).logits[:, 0]
        starts = torch.tensor([[segment.start] for segment in batch], device=device)
        places = self._places(batch, past)
        for layer in self.layers:
            layer.places = places
        config: Any = self.model.config.get_text_config()
        attention = config._attn_implementation
        if past and attention == "sdpa" and device.type == "cpu":
            config._attn_implementation = GROUPED
        try:
            logits = self.model(
                input_ids=ids,
                attention_mask=self._mask(starts, past, width) if past else None,
                position_ids=starts + torch.arange(width, device=device).minimum(last),
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=last,
            ).logits[:, 0]
        finally:
            config._attn_implementation = attention
        for segment in batch:
            if not segment.children:
                self._done_beneath(segment.parent)
        return logits

    def _places(self, batch: Sequence[Segment], past: int) -> Places:
        before = np.zeros((past, len(batch)), dtype=np.int64)
        rows, steps, slots = [], [], []
        for i, segment in enumerate(batch):
            above = segment.parent
            while above is not None:
                before[above.start : above.end, i] = self.slots[above]
                above = above.parent
            before[segment.start :, i] = before[0, i] if segment.start else 0  # masked, but it must be written
            if segment.children:
                count = len(segment.ids)
                self.unread[segment] = segment.children
                self.slots[segment] = np.array(self.free[-count:])
                del self.free[-count:]
                rows += [i] * count
                steps += range(count)
                slots += self.slots[segment].tolist()
        device = self.model.device
        return Places(
            torch.from_numpy(before).to(device), *(torch.tensor(part, device=device) for part in (rows, steps, slots))
        )

    def _mask(self, starts: torch.Tensor, past: int, width: int) -> torch.Tensor:
        """(segments or 1, 1, width, past + width), added to scores: a token sees its row's past and its own segment up
        to itself."""
        if bool((starts == past).all()):
            starts = starts[:1]
        steps = torch.arange(past + width, device=starts.device)
        own = (steps >= past) & (steps <= past + steps[:width, None])
        seen = own | (steps < starts)[:, None, None, :]
        mask = torch.zeros(seen.shape, dtype=self.model.dtype, device=seen.device)
        return mask.masked_fill_(~seen, torch.finfo(mask.dtype).min)

    def _done_beneath(self, segment: Segment | None) -> None:
        while segment is not None:
            self.unread[segment] -= 1
            if self.unread[segment]:
                return
            del self.unread[segment]
            self.free += self.slots.pop(segment).tolist()
            segment = segment.parent


def grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """`sdpa` of transformers without its copy of all keys and values for every query head, which on a CPU costs as much
    as the attention itself when the past is long. (On a GPU the copy is the faster way.)"""
    output = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, scale=scaling, enable_gqa=True
    )
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register(GROUPED, grouped_attention)
