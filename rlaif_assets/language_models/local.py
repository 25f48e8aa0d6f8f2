"""Local transformers models: loading, generation, and log-probabilities of options and answers.

Everything is batched by length under a budget of padded tokens, and up to rounding a row's result does not depend on
the batch it came in. Conversations become ids in `chat`; their wording comes from `prompts`; training is elsewhere.
"""

import gc
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from rlaif_assets.language_models.batching import in_halves, length_batches, pad
from rlaif_assets.language_models.chat import (
    control_ids,
    decode_text,
    encode_prompt,
    encode_text,
    end_of_turn_ids,
)
from rlaif_assets.language_models.errors import ModelError
from rlaif_assets.language_models.growing_cache import growing_cache
from rlaif_assets.language_models.prefix_scores import prefix_scores
from rlaif_assets.records import Message
from rlaif_assets.settings import ComputeSettings
from rlaif_assets.store.fingerprint import folder_fingerprint

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
COMMIT = re.compile(r"[0-9a-f]{40}")
# Rows that have ended are dropped from the cache when so many of its rows have: dropping copies the rest.
DROP_SHARE = 0.25
# A token that is decoded keeps its keys and values alone, where a training keeps every layer's activations. A GPU waits
# for its next step whatever the number of rows; on the CPU larger batches only pad more.
GPU_DECODE_ROOM = 4
# Logits of so many vocabulary entries weigh as much as one token in the budget of `answer_logprobs`.
LOGITS_PER_TOKEN = 16_384

Conversation = Sequence[Message]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Generation:
    """A sampled answer.

    `token_ids` are the tokens that were drawn, with the one that ended the turn if there was one (`finished`); `text`
    is without it, without other control tokens and without the prefill, stripped. `tokens_in`: prompt and prefill.
    """

    text: str
    token_ids: list[int]
    tokens_in: int
    finished: bool


@dataclass
class LocalModel:
    """A causal language model in memory. `fingerprint` is that of the folder it came from."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    fingerprint: str
    device: torch.device
    batch_tokens: int

    @property
    def context(self) -> int | None:
        """Tokens that the model can hold, prompt and answer together; None where its config names no limit."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    @property
    def stop_ids(self) -> frozenset[int]:
        return end_of_turn_ids(self.tokenizer, self.model.generation_config)

    def fits(self, conversation: Conversation, max_new_tokens: int, prefill: str = "") -> bool:
        """Whether the conversation, the prefill and `max_new_tokens` (0 for `option_logprobs`) fit into the context."""
        length = len(encode_prompt(self.tokenizer, conversation)) + len(encode_text(self.tokenizer, prefill))
        return self.context is None or length + max_new_tokens <= self.context

    def generate(
        self,
        conversations: Sequence[Conversation],
        seeds: Sequence[int],
        max_new_tokens: int,
        temperature: float,
        prefill: str = "",
        progress: Progress | None = None,
    ) -> list[Generation]:
        """One answer per conversation, in their order; `prefill` is text that every answer begins with.

        Step t of a row takes the t-th uniform number of the stream of its seed and inverts the cumulative distribution
        of softmax(logits / temperature), so a row draws the same in any batch. Temperature 0 takes the likeliest token.
        Of the checkpoint's generation config nothing counts but its EOS ids. `progress` gets (done, total).
        Raises ModelError with the row's position where a conversation does not fit: see `fits`.
        """
        if max_new_tokens < 1 or temperature < 0:
            raise ModelError(f"max_new_tokens={max_new_tokens}, temperature={temperature}: at least 1 and 0 are needed")
        opening = encode_text(self.tokenizer, prefill)
        prompts = [encode_prompt(self.tokenizer, messages) + opening for messages in conversations]
        self._check_context(prompts, max_new_tokens)
        streams = [uniforms(seed, max_new_tokens) for seed in seeds]
        generations: dict[int, Generation] = {}
        costs = [len(prompt) + max_new_tokens for prompt in prompts]

        def decode(rows: Sequence[int], batch_tokens: int) -> list[tuple[int, tuple[list[int], bool]]]:
            found: list[tuple[int, tuple[list[int], bool]]] = []
            for part in length_batches([costs[i] for i in rows], batch_tokens):
                some = [rows[i] for i in part]
                draws = torch.from_numpy(np.stack([streams[i] for i in some])).to(self.device)
                found += zip(some, self._decode([prompts[i] for i in some], draws, temperature), strict=True)
            return found

        room = GPU_DECODE_ROOM if self.device.type == "cuda" else 1
        for rows in length_batches(costs, room * self.batch_tokens):
            answers, held = in_halves(partial(decode, rows), room * self.batch_tokens)
            self.batch_tokens = held // room
            for i, (token_ids, finished) in answers:
                text = decode_text(self.tokenizer, token_ids[:-1] if finished else token_ids)
                generations[i] = Generation(text, token_ids, len(prompts[i]), finished)
            if progress is not None:
                progress(len(generations), len(prompts))
        return [generations[i] for i in range(len(prompts))]

    def option_logprobs(
        self,
        questions: Sequence[Conversation],
        prefill: str,
        options: Sequence[str] = ("A", "B"),
        progress: Progress | None = None,
    ) -> tuple[np.ndarray, list[int]]:
        """Log P of each option as the continuation of `prefill`, (questions, options); tokens read per question.

        Natural logarithms over the full vocabulary, so a row's probabilities sum to less than 1 (Constitutional AI,
        4.1). An option's probability is the sum over the tokens that begin it: see `option_tokens`.
        Raises ModelError with the row's position where a question does not fit: see `fits`.
        """
        logprobs, tokens = np.zeros((len(questions), len(options))), [0] * len(questions)
        done = 0
        for rows, found, lengths in self.option_batches(questions, prefill, options):
            logprobs[rows] = found
            for row, length in zip(rows, lengths, strict=True):
                tokens[row] = length
            done += len(rows)
            if progress is not None:
                progress(done, len(questions))
        return logprobs, tokens

    def option_batches(
        self, questions: Sequence[Conversation], prefill: str, options: Sequence[str] = ("A", "B")
    ) -> Iterator[tuple[list[int], np.ndarray, list[int]]]:
        """`option_logprobs` a batch at a time, as it comes: row numbers, their log-probabilities, tokens read.

        A question's tokens are all counted as read, those too that it shares with others and that were computed once.
        """
        opening, variants = option_tokens(self.tokenizer, prefill, tuple(options))
        prompts = [encode_prompt(self.tokenizer, question) + list(opening) for question in questions]
        self._check_context(prompts, 0)
        for scores in prefix_scores(self.model, prompts, variants, self.batch_tokens):
            yield scores.rows, scores.logprobs, [len(prompts[i]) for i in scores.rows]

    def answer_logprobs(
        self, conversations: Sequence[Conversation], token_ids: Sequence[Sequence[int]], temperature: float = 1.0
    ) -> list[np.ndarray]:
        """Log P of each token of each answer by softmax(logits / temperature), given conversation and earlier tokens.

        `token_ids` as `Generation.token_ids` of a model with the same tokenizer and no prefill. Natural logarithms.
        """
        prompts = [encode_prompt(self.tokenizer, messages) for messages in conversations]
        whole = [prompt + list(answer) for prompt, answer in zip(prompts, token_ids, strict=True)]
        self._check_context(whole, 0)
        logprobs = [np.zeros(0)] * len(whole)
        logit_cost = self.model.config.get_text_config().vocab_size / LOGITS_PER_TOKEN
        costs = [max(len(ids), int(len(answer) * logit_cost)) for ids, answer in zip(whole, token_ids, strict=True)]
        for rows in length_batches(costs, self.batch_tokens):
            longest = max(1, *(len(token_ids[i]) for i in rows))
            steps = torch.arange(longest, device=self.device)
            starts = torch.tensor([[len(prompts[i]) - 1] for i in rows], device=self.device)
            ends = torch.tensor([[len(whole[i]) - 1] for i in rows], device=self.device)
            targets = pad([list(token_ids[i]) for i in rows], longest, left=False).to(self.device)
            with torch.inference_mode():
                logits = self._right_padded_logits([whole[i] for i in rows], (starts + steps).minimum(ends))
                logits = logits / temperature
                chosen = logits.gather(-1, targets[..., None])[..., 0] - logits.logsumexp(-1)
            for i, values in zip(rows, chosen.double().cpu().numpy(), strict=True):
                logprobs[i] = values[: len(token_ids[i])]
        return logprobs

    def _check_context(self, rows: Sequence[Sequence[int]], max_new_tokens: int) -> None:
        for i, ids in enumerate(rows):
            if self.context is not None and len(ids) + max_new_tokens > self.context:
                raise ModelError(
                    f"row {i}: {len(ids)} tokens and {max_new_tokens} new ones exceed the model's context of "
                    f"{self.context}: reject the row or shorten it"
                )

    def _right_padded_logits(self, rows: Sequence[Sequence[int]], positions: torch.Tensor) -> torch.Tensor:
        """Logits (rows, positions per row, vocabulary). No mask: what follows a token does not touch it."""
        ids = pad(rows, max(map(len, rows)), left=False).to(self.device)
        return self.model(input_ids=ids, use_cache=False, logits_to_keep=positions).logits

    @torch.inference_mode()
    def _decode(
        self, prompts: Sequence[Sequence[int]], draws: torch.Tensor, temperature: float
    ) -> list[tuple[list[int], bool]]:
        """Tokens of each answer and whether it ended itself. `draws`: (rows, steps)."""
        count, steps = draws.shape
        width = max(map(len, prompts))
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        columns = torch.arange(width + steps, device=self.device)
        mask = (columns >= width - lengths[:, None]).long()
        padded = bool((lengths < width).any())
        ids = pad(prompts, width, left=True).to(self.device)
        positions = (mask[:, :width].cumsum(1) - 1).clamp_min(0)
        stop = torch.tensor(sorted(self.stop_ids), device=self.device)

        cache = growing_cache()
        rows = torch.arange(count, device=self.device)
        alive = torch.ones(count, dtype=torch.bool, device=self.device)
        tokens = torch.zeros(count, steps, dtype=torch.long, device=self.device)
        drawn = torch.full((count,), steps, device=self.device)
        finished = torch.zeros(count, dtype=torch.bool, device=self.device)
        for step in range(steps):
            output = self.model(
                input_ids=ids,
                attention_mask=mask[:, : width + step] if padded else None,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            chosen = draw_tokens(output.logits[:, -1], temperature, draws[rows, step])
            tokens[rows, step] = chosen
            ended = rows[torch.isin(chosen, stop) & alive]
            finished[ended] = True
            drawn[ended] = step + 1
            alive = ~finished[rows]
            left = int(alive.sum())
            if left == 0:
                break
            if left <= (1 - DROP_SHARE) * len(rows):
                kept = alive.nonzero()[:, 0]
                cache.batch_select_indices(kept)
                rows, mask, chosen, alive = rows[kept], mask[kept], chosen[kept], alive[kept]
            ids, positions = chosen[:, None], lengths[rows, None] + step
        return [
            (row[:length], ended)
            for row, length, ended in zip(tokens.tolist(), drawn.tolist(), finished.tolist(), strict=True)
        ]


def load_model(folder_or_hub: str | Path, compute: ComputeSettings, revision: str | None = None) -> LocalModel:
    """Loads a folder, or a hub id at a commit, in float32 from safetensors, without running code of the checkpoint.

    Raises ModelError: no such folder, pickled weights only, weights missing, no chat template, no tokenizer.json, no
    commit for a hub id, a device that is not there.
    """
    if compute.threads > 0:
        torch.set_num_threads(compute.threads)
    device = choose_device(compute)
    folder = local_folder(folder_or_hub, revision)
    _check_weights(folder)
    disable_progress_bar()
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{folder_or_hub} cannot be loaded as a causal language model: {error}") from error
    model, info = loaded
    if not tokenizer.is_fast:
        raise ModelError(f"{folder_or_hub} has no tokenizer.json: save its tokenizer in that form")
    if info["missing_keys"]:
        raise ModelError(
            f"{folder_or_hub} lacks {len(info['missing_keys'])} weights of its architecture, such as "
            f"{min(info['missing_keys'])}: it is incomplete, or not a causal language model"
        )
    local = LocalModel(model.to(device).eval(), tokenizer, folder_fingerprint(folder), device, compute.batch_tokens)
    end_of_turn_ids(tokenizer)  # refuses a model without a chat template now, not at the first row
    return local


def free(local: LocalModel) -> None:
    """Gives the memory of the weights back, whoever still holds `local`. The model cannot be used afterwards."""
    model: Any = local.model
    model.to("meta")
    gc.collect()
    if local.device.type == "cuda":
        torch.cuda.empty_cache()


def choose_device(compute: ComputeSettings) -> torch.device:
    """`auto` is the first visible GPU where there is one, else the CPU. `compute.memory_share` limits what this process
    may take of a GPU's memory. Raises ModelError for a device that is not there."""
    name = compute.device
    if name == "auto":
        name = "cuda:0" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        if (device.index or 0) >= torch.cuda.device_count():
            raise ModelError(f"compute.device={name}: {torch.cuda.device_count()} GPUs were found; take auto or cpu")
        torch.cuda.set_per_process_memory_fraction(compute.memory_share, device)
        torch.backends.cuda.enable_cudnn_sdp(False)  # it plans 45 ms for every new shape, and ours are always new
    return device


def uniforms(seed: int, count: int) -> np.ndarray:
    """The first `count` uniform numbers in [0, 1) of a seed's own stream. (torch's generator keeps 32 bits of it.)"""
    return np.random.Generator(np.random.Philox(key=seed)).random(count)


def draw_tokens(logits: torch.Tensor, temperature: float, draws: torch.Tensor) -> torch.Tensor:
    """One token per row, (rows,), by inverting the cumulative distribution of (rows, vocabulary) at `draws` (rows,)."""
    if bool(logits.isnan().any()):
        raise ModelError("the model's logits are not numbers: its weights are damaged or training diverged")
    if temperature == 0:
        return logits.argmax(-1)
    cumulative = (logits / temperature).softmax(-1).cumsum(-1, dtype=torch.float64)
    heights = draws[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, heights, right=True)[:, 0].clamp_max(logits.shape[-1] - 1)


@lru_cache(maxsize=64)
def option_tokens(
    tokenizer: PreTrainedTokenizerFast, prefill: str, options: tuple[str, ...]
) -> tuple[tuple[int, ...], list[list[int]]]:
    """The ids to read after the prompt, and for each option the ids of the next token that begin it.

    "The answer is: (" and "A" may meet in one token, so prefill, option and ")" are tokenised together and what all
    options share is read; the next token tells them apart. Tokens that spell the same option otherwise (" A", "A)")
    count as well. Raises ModelError where one token cannot tell the options apart.
    """
    spelled = [encode_text(tokenizer, f"{prefill}{option})") for option in options]
    shared = 0
    while all(len(ids) > shared for ids in spelled) and len({ids[shared] for ids in spelled}) == 1:
        shared += 1
    if any(len(ids) == shared for ids in spelled):
        raise ModelError(f"the options {', '.join(options)} are not different")
    opening = spelled[0][:shared]
    begun = str(tokenizer.decode(opening, clean_up_tokenization_spaces=False))
    rest = prefill[len(begun) :].lstrip() if prefill.startswith(begun) else None
    variants = [{ids[shared]} for ids in spelled]
    if rest is not None:
        controls = control_ids(tokenizer)
        for i, token in enumerate(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))):
            text = (token or "").replace("Ġ", " ").replace("▁", " ").lstrip(" ")
            for option, ids in zip(options, variants, strict=True):
                tail = text.removeprefix(rest + option)
                if i not in controls and tail != text and not any(character.isalnum() for character in tail):
                    ids.add(i)
    if len(set[int]().union(*variants)) < sum(map(len, variants)):
        raise ModelError(f"one token after {prefill!r} cannot tell the options {', '.join(options)} apart")
    return tuple(opening), [sorted(ids) for ids in variants]


def local_folder(folder_or_hub: str | Path, revision: str | None) -> Path:
    """The folder itself, or the one that a hub id at a commit was fetched to. Raises ModelError: see `load_model`."""
    folder = Path(folder_or_hub).expanduser()
    if folder.is_dir():
        return folder
    name = str(folder_or_hub)
    if isinstance(folder_or_hub, Path) or not HUB_ID.fullmatch(name) or name.startswith("."):
        raise ModelError(f"the model folder {name} does not exist")
    if revision is None or not COMMIT.fullmatch(revision):
        raise ModelError(
            f"{name} is not a folder; a hub id needs `revision`, the 40 hex digits of a commit (found {revision!r})"
        )
    wanted = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted, ignore_patterns=["*/*"]))
    except (HfHubHTTPError, OSError) as error:
        raise ModelError(f"{name} at {revision} cannot be fetched: {error}") from error


def _check_weights(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} has no config.json: it is not a model folder")
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(pattern))
    if pickles:
        raise ModelError(
            f"{folder} has pickled weights only ({pickles[0]}), which can run code when they are read. Convert them: "
            "AutoModelForCausalLM.from_pretrained(FOLDER, use_safetensors=False).save_pretrained(NEW_FOLDER)"
        )
    raise ModelError(f"{folder} has no weights: no *.safetensors file")
