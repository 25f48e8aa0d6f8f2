"""Scores of rows with shared prefixes equal those of each row alone: three architectures, both orders of a question."""

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from rlaif_assets.language_models import prefix_scores as scores_module
from rlaif_assets.language_models.chat import encode_prompt
from rlaif_assets.language_models.local import LocalModel, load_model, option_tokens
from rlaif_assets.language_models.prefix_scores import can_share, prefix_scores
from rlaif_assets.language_models.prompts import JUDGE_OPTIONS, JUDGE_PREFILL, judge_messages
from rlaif_assets.records import JudgingExample, Message
from rlaif_assets.settings import ComputeSettings
from tests.tiny_models import KINDS, SENTENCES, Kind, tiny_model

Ids = list[list[int]]
BUDGETS = (1, 150, 400, 1500, 100_000)
EXAMPLES = tuple(
    JudgingExample(f"e{i}", f"How do I water plant {i}?", "Early.", f"Not now {i}.", "Which is better?", 0)
    for i in range(3)
)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Kind], LocalModel]:
    compute = ComputeSettings(device="cpu")
    models = {kind: load_model(tiny_model(kind, tmp_path_factory.mktemp(kind)), compute) for kind in KINDS}
    return lambda kind: models[kind]


def small(config: PreTrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model.eval()


LLAMA: dict[str, Any] = {"vocab_size": 90, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
LLAMA["initializer_range"] = 0.2
LLAMA |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}


def plain(model: PreTrainedModel, rows: Ids, options: Ids) -> np.ndarray:
    """One row at a time, no padding, no cache, all logits."""
    found = []
    with torch.inference_mode():
        for row in rows:
            full = model(torch.tensor([row]), use_cache=False).logits[0, -1].double().log_softmax(-1)
            found.append([float(full[ids].logsumexp(0)) for ids in options])
    return np.array(found)


def shared(model: PreTrainedModel, rows: Ids, options: Ids, batch_tokens: int) -> tuple[np.ndarray, list[int], int]:
    """Scores in the order of the rows, how many rows came in each batch, and tokens that were read."""
    found, sizes, tokens = np.full((len(rows), len(options)), np.nan), [], 0
    seen: Counter[int] = Counter()
    for scores in prefix_scores(model, rows, options, batch_tokens):
        found[scores.rows] = scores.logprobs
        seen.update(scores.rows)
        sizes.append(len(scores.rows))
        tokens += scores.tokens_read
    assert seen == Counter(range(len(rows)))
    return found, sizes, tokens


def questions(few_shot: int, position: str, pairs: int = 4, principles: int = 5) -> list[list[Message]]:
    """Every pair under every principle in both orders; the lengths of all parts differ."""
    found: list[list[Message]] = []
    for i in range(pairs):
        conversation: list[Message] = [{"role": "user", "content": f"{i} {SENTENCES[i % 3]}" + " soil" * (i % 3)}]
        a, b = f"{SENTENCES[4 + i % 2][:30]} {i}", "No. " * (1 + i % 2)
        for number in range(principles):
            principle = f"Rule {number}: choose the " + "better " * (number % 4) + "answer."
            for first, second in ((a, b), (b, a)):
                found.append(
                    judge_messages(
                        conversation,
                        first,
                        second,
                        principle,
                        EXAMPLES[:few_shot],
                        "before" if position == "before" else "after",
                    )
                )
    return found


@pytest.mark.parametrize("few_shot", [0, 3])
@pytest.mark.parametrize("position", ["before", "after"])
@pytest.mark.parametrize("kind", KINDS)
def test_judge_questions(
    kind: Kind, position: str, few_shot: int, local: Callable[[Kind], LocalModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = local(kind)
    monkeypatch.setattr(model.model.config, "max_position_embeddings", 4096)  # rotary: longer rows do no harm here
    asked = questions(few_shot, position)
    opening, options = option_tokens(model.tokenizer, JUDGE_PREFILL, JUDGE_OPTIONS)
    rows = [encode_prompt(model.tokenizer, question) + list(opening) for question in asked]
    expected = plain(model.model, rows, options)
    assert expected.std(axis=0).min() > 0.01
    read = {}
    for budget in BUDGETS:
        found, sizes, read[budget] = shared(model.model, rows, options, budget)
        np.testing.assert_allclose(found, expected, atol=1e-4)
        assert len(sizes) > 1 or budget > 400
    whole = sum(map(len, rows))
    assert read[1] == whole
    # The more of a question is shared, the less is read.
    share = {("before", 0): 0.7, ("before", 3): 0.4, ("after", 0): 0.5, ("after", 3): 0.3}[position, few_shot]
    assert read[100_000] < share * whole

    through = LocalModel(model.model, model.tokenizer, model.fingerprint, model.device, 1500)
    logprobs, tokens = through.option_logprobs(asked, JUDGE_PREFILL, JUDGE_OPTIONS)
    np.testing.assert_allclose(logprobs, expected, atol=1e-4)
    assert tokens == [len(row) for row in rows]


@pytest.mark.parametrize("kind", KINDS)
def test_any_rows_in_any_company(kind: Kind, local: Callable[[Kind], LocalModel]) -> None:
    """Random trees of rows: duplicates, rows that others begin with, lone rows, deep and wide branches, one token."""
    model, draw = local(kind).model, random.Random(3)

    def tokens(count: int) -> list[int]:
        return [draw.randrange(300) for _ in range(count)]

    rows: Ids = [tokens(1), tokens(2)]
    for _ in range(60):
        start = draw.choice(rows)
        rows.append((start[: draw.randint(0, len(start))] + tokens(draw.choice((1, 3, 20, 60))))[:300])
    rows += [rows[10], rows[10], rows[30], rows[20][:17], rows[40][:-1]]
    draw.shuffle(rows)
    options = [[5, 9], [100]]
    expected = plain(model, rows, options)
    for budget in BUDGETS:
        np.testing.assert_allclose(shared(model, rows, options, budget)[0], expected, atol=1e-4)
    some = draw.sample(range(len(rows)), 20)
    np.testing.assert_allclose(shared(model, [rows[i] for i in some], options, 700)[0], expected[some], atol=1e-4)
    for i in some[:3]:
        np.testing.assert_allclose(shared(model, [rows[i]], options, 700)[0], expected[i : i + 1], atol=1e-4)
    assert list(prefix_scores(model, [], options, 700)) == []


def test_prefixes_and_duplicates_are_read_once() -> None:
    model = small(LlamaConfig(**LLAMA))
    base = [7 * i % 89 for i in range(40)]
    rows = [base, base[:20], [*base, 3], [*base, 4, 5], base, base[:20]]
    found, _, tokens = shared(model, rows, [[1], [2]], 1000)
    assert tokens == 40 + 1 + 2
    np.testing.assert_allclose(found, plain(model, rows, [[1], [2]]), atol=1e-4)


def test_budget_bounds_every_forward_pass_and_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small(LlamaConfig(**LLAMA))
    groups = [[i] * 20 for i in range(1, 9)]
    rows = [[80] * 30 + group + [40 + i] * 10 for group in groups for i in range(4)]
    passes: list[tuple[int, int]] = []
    pools: list[int] = []

    def seen(module: torch.nn.Module, args: object, kwargs: dict[str, torch.Tensor]) -> None:
        passes.append((kwargs["input_ids"].shape[0], kwargs["input_ids"].shape[1]))

    class Layer(scores_module.PooledLayer):
        def __init__(self, capacity: int) -> None:
            pools.append(capacity)
            super().__init__(capacity)

    monkeypatch.setattr(scores_module, "PooledLayer", Layer)
    hook = model.register_forward_pre_hook(seen, with_kwargs=True)
    found, _, tokens = shared(model, rows, [[1], [2]], 100)
    hook.remove()
    # The 30 tokens that all share are read once, though the pool must be emptied of groups again and again.
    assert tokens == 30 + 8 * 20 + 32 * 10
    assert max(batch * width for batch, width in passes) <= 100
    assert max(pools) <= 100
    np.testing.assert_allclose(found, plain(model, rows, [[1], [2]]), atol=1e-4)


def test_nothing_shared_is_the_plain_way() -> None:
    model = small(LlamaConfig(**LLAMA))
    rows = [[i] * (3 + i) for i in range(1, 20)]
    caches: list[object] = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: caches.append(kwargs.get("past_key_values")), with_kwargs=True
    )
    found, sizes, tokens = shared(model, rows, [[1], [2]], 64)
    hook.remove()
    assert caches == [None] * len(sizes) and tokens == sum(map(len, rows))
    np.testing.assert_allclose(found, plain(model, rows, [[1], [2]]), atol=1e-4)


SIZES: dict[str, Any] = {"vocab_size": 90, "n_layer": 2, "n_head": 4}
EAGER: dict[str, Any] = LLAMA | {"attn_implementation": "eager"}
ARCHITECTURES: dict[str, tuple[PreTrainedConfig, bool]] = {
    "absolute positions": (GPT2Config(**SIZES, n_embd=32, n_positions=128, initializer_range=0.2), True),
    "a window that no row reaches": (MistralConfig(**LLAMA, sliding_window=100), True),
    "a window that rows reach": (MistralConfig(**LLAMA, sliding_window=24), False),
    "positions from the mask": (BloomConfig(**SIZES, hidden_size=32, initializer_range=0.2), False),
    "rotation by length": (
        LlamaConfig(**LLAMA, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}),
        False,
    ),
    "attention without sdpa": (LlamaConfig(**EAGER), True),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_other_architectures_share_or_read_whole_rows(name: str, caplog: pytest.LogCaptureFixture) -> None:
    config, shares = ARCHITECTURES[name]
    model = small(config)
    rows = [[i % 80 + 1] * 4 + [50] * 20 + [j] * (3 + 5 * j) for i in range(4) for j in range(5)]
    assert can_share(model, max(map(len, rows))) == shares
    caplog.clear()
    found, _, tokens = shared(model, rows, [[1], [2, 3]], 300)
    np.testing.assert_allclose(found, plain(model, rows, [[1], [2, 3]]), atol=1e-4)
    assert (tokens < sum(map(len, rows))) == shares == (not caplog.records)
    assert model.config._attn_implementation == config._attn_implementation
