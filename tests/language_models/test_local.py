"""Loading, generation and log-probabilities of local models, on tiny random models of three architectures."""

import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from rlaif_assets.language_models.chat import encode_prompt, encode_text
from rlaif_assets.language_models.local import (
    LocalModel,
    ModelError,
    choose_device,
    draw_tokens,
    free,
    load_model,
    option_tokens,
    uniforms,
)
from rlaif_assets.language_models.prompts import JUDGE_OPTIONS, JUDGE_PREFILL, RATING_PREFILL, RATING_SCALE
from rlaif_assets.records import Message
from rlaif_assets.settings import ComputeSettings
from rlaif_assets.store.fingerprint import folder_fingerprint
from tests.tiny_models import CONTEXT, KINDS, SENTENCES, Kind, tiny_model, tiny_tokenizer

CPU = ComputeSettings(device="cpu")
QUESTIONS: list[list[Message]] = [
    [{"role": "user", "content": " ".join(SENTENCES[: 1 + i % 3]) + "?" * i}] for i in range(12)
]


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Kind], LocalModel]:
    models = {kind: load_model(tiny_model(kind, tmp_path_factory.mktemp(kind)), CPU) for kind in KINDS}
    return lambda kind: models[kind]


def batched(model: LocalModel, batch_tokens: int) -> LocalModel:
    return LocalModel(model.model, model.tokenizer, model.fingerprint, model.device, batch_tokens)


def next_logprobs(model: LocalModel, ids: list[int]) -> torch.Tensor:
    """The plain way: one row, no padding, no cache, all logits. (vocabulary,) after the last of `ids`."""
    with torch.inference_mode():
        return model.model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)


class TestLoading:
    def test_float32_whatever_is_stored(self, tmp_path: Path, local: Callable[[Kind], LocalModel]) -> None:
        half = tmp_path / "half"
        local("llama").tokenizer.save_pretrained(half)
        folder = tiny_model("llama", tmp_path / "whole")
        load_model(folder, CPU).model.half().save_pretrained(half)
        assert "float16" in (half / "config.json").read_text()
        model = load_model(half, CPU)
        assert {parameter.dtype for parameter in model.model.parameters()} == {torch.float32}
        assert model.fingerprint == folder_fingerprint(half) != folder_fingerprint(folder)
        assert not model.model.training

    def test_pickled_weights_only(self, tmp_path: Path) -> None:
        folder = tiny_model("llama", tmp_path / "m")
        (folder / "model.safetensors").unlink()
        with pytest.raises(ModelError, match="no weights"):
            load_model(folder, CPU)
        torch.save({}, folder / "pytorch_model.bin")
        with pytest.raises(ModelError, match=r"pickled weights only \(pytorch_model.bin\).*save_pretrained"):
            load_model(folder, CPU)

    def test_missing_folder_and_hub_id_without_commit(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="does not exist"):
            load_model(tmp_path / "nowhere", CPU)
        with pytest.raises(ModelError, match="does not exist"):
            load_model("./nowhere", CPU)
        for revision in (None, "main", "a" * 39, "A" * 40):
            with pytest.raises(ModelError, match="40 hex digits"):
                load_model("some-owner/some-model", CPU, revision)

    def test_missing_template_config_or_weights(self, tmp_path: Path) -> None:
        folder = tiny_model("qwen2", tmp_path / "m")
        (folder / "chat_template.jinja").unlink()
        with pytest.raises(ModelError, match="no chat template"):
            load_model(folder, CPU)
        (folder / "config.json").unlink()
        with pytest.raises(ModelError, match=r"no config\.json"):
            load_model(folder, CPU)

    def test_a_preference_model_is_not_a_language_model(self, tmp_path: Path) -> None:
        folder = tiny_model("gpt_neox", tmp_path / "m")
        AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1).save_pretrained(folder)
        with pytest.raises(ModelError, match=r"lacks 1 weights .*head"):
            load_model(folder, CPU)

    def test_code_in_the_checkpoint_is_not_run(self, tmp_path: Path) -> None:
        folder = tiny_model("llama", tmp_path / "m")
        config = json.loads((folder / "config.json").read_text())
        config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "own.py").write_text("raise SystemExit('ran')")
        with pytest.raises(ModelError, match="cannot be loaded"):
            load_model(folder, CPU)

    def test_damaged_weights(self, tmp_path: Path) -> None:
        folder = tiny_model("llama", tmp_path / "m")
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        with pytest.raises(ModelError, match="cannot be loaded"):
            load_model(folder, CPU)

    def test_a_copied_folder_has_the_same_fingerprint(self, tmp_path: Path) -> None:
        folder = tiny_model("llama", tmp_path / "m")
        copy = shutil.copytree(folder, tmp_path / "copy")
        assert load_model(copy, CPU).fingerprint == load_model(folder, CPU).fingerprint

    def test_devices_and_threads(self, tmp_path: Path) -> None:
        auto = choose_device(ComputeSettings(device="auto"))
        assert auto.type == ("cuda" if torch.cuda.is_available() else "cpu")
        with pytest.raises(ModelError, match="GPUs were found"):
            choose_device(ComputeSettings(device="cuda:99"))
        before = torch.get_num_threads()
        try:
            load_model(tiny_model("llama", tmp_path / "m"), ComputeSettings(device="cpu", threads=before + 1))
            assert torch.get_num_threads() == before + 1
        finally:
            torch.set_num_threads(before)

    def test_free_gives_the_weights_back(self, tmp_path: Path) -> None:
        model = load_model(tiny_model("llama", tmp_path / "m"), CPU)
        free(model)
        assert {parameter.device.type for parameter in model.model.parameters()} == {"meta"}


@pytest.mark.parametrize("kind", KINDS)
class TestGeneration:
    def test_a_row_draws_the_same_in_any_batch_and_order(
        self, kind: Kind, local: Callable[[Kind], LocalModel], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model, seeds = local(kind), [1000 + 7 * i for i in range(len(QUESTIONS))]
        # Ends are frequent here, so that rows leave the batch on the way.
        monkeypatch.setattr(model.model.generation_config, "eos_token_id", list(range(5, 15)))
        expected = batched(model, 1).generate(QUESTIONS, seeds, 40, 1.0)
        for budget in (200, 500, 100_000):
            order = random.Random(budget).sample(range(len(QUESTIONS)), len(QUESTIONS))
            answers = batched(model, budget).generate([QUESTIONS[i] for i in order], [seeds[i] for i in order], 40, 1.0)
            assert answers == [expected[i] for i in order]
        assert len({len(answer.token_ids) for answer in expected}) > 3
        assert {answer.finished for answer in expected} == {True, False}

    def test_a_shorter_limit_cuts_the_same_answer(self, kind: Kind, local: Callable[[Kind], LocalModel]) -> None:
        long = local(kind).generate(QUESTIONS, range(len(QUESTIONS)), 30, 0.7)
        short = local(kind).generate(QUESTIONS, range(len(QUESTIONS)), 5, 0.7)
        assert [answer.token_ids for answer in short] == [answer.token_ids[:5] for answer in long]

    def test_seeds_and_temperature_matter(self, kind: Kind, local: Callable[[Kind], LocalModel]) -> None:
        same = [QUESTIONS[0]] * 8
        hot = local(kind).generate(same, range(8), 10, 1.0)
        assert len({answer.text for answer in hot}) == 8
        cold = local(kind).generate(same, range(8), 10, 0.0)
        assert len({answer.text for answer in cold}) == 1
        # More than 32 bits of a seed count.
        low, high = local(kind).generate(same[:2], [5, 5 + 2**32], 10, 1.0)
        assert low.text != high.text

    @pytest.mark.parametrize("prefill", ["", "The answer is: ("])
    def test_temperature_zero_is_transformers_greedy_search(
        self, kind: Kind, prefill: str, local: Callable[[Kind], LocalModel]
    ) -> None:
        model = local(kind)
        answers = batched(model, 600).generate(QUESTIONS, [0] * len(QUESTIONS), 30, 0.0, prefill=prefill)
        for question, answer in zip(QUESTIONS, answers, strict=True):
            ids = encode_prompt(model.tokenizer, question) + encode_text(model.tokenizer, prefill)
            # transformers' stub of `generate` lacks the tensor overload.
            output: torch.Tensor = model.model.generate(  # type: ignore[assignment]
                torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=30, do_sample=False
            )
            assert answer.token_ids == output[0, len(ids) :].tolist()
            assert answer.tokens_in == len(ids)

    def test_an_answer_ends_at_the_end_of_turn(self, kind: Kind, local: Callable[[Kind], LocalModel]) -> None:
        model = local(kind)
        answers = model.generate(QUESTIONS * 4, range(48), 120, 1.0)
        stop = model.stop_ids
        for answer in answers:
            assert answer.finished == (answer.token_ids[-1] in stop)
            assert stop.isdisjoint(answer.token_ids[:-1])
            assert answer.finished or len(answer.token_ids) == 120
            assert "<|" not in answer.text and answer.text == answer.text.strip()
        assert sum(answer.finished for answer in answers) >= 5

    def test_generation_config_of_the_checkpoint_does_not_matter(
        self, kind: Kind, local: Callable[[Kind], LocalModel]
    ) -> None:
        model = local(kind)
        expected = model.generate(QUESTIONS[:4], range(4), 20, 1.0)
        config = model.model.generation_config
        assert config is not None
        config.repetition_penalty, config.top_k, config.temperature = 1.5, 3, 0.1
        try:
            assert model.generate(QUESTIONS[:4], range(4), 20, 1.0) == expected
        finally:
            config.repetition_penalty = config.top_k = config.temperature = None

    def test_context(self, kind: Kind, local: Callable[[Kind], LocalModel]) -> None:
        model = local(kind)
        question = QUESTIONS[0]
        room = CONTEXT - len(encode_prompt(model.tokenizer, question))
        assert model.context == CONTEXT
        assert model.fits(question, room) and not model.fits(question, room + 1)
        assert not model.fits(question, room, prefill="A")
        short: list[Message] = [{"role": "user", "content": "x"}]
        with pytest.raises(ModelError, match=rf"row 1: \d+ tokens and {room + 1} new ones"):
            model.generate([short, question], [0, 0], room + 1, 1.0)
        with pytest.raises(ModelError, match="row 0"):
            model.option_logprobs([[{"role": "user", "content": "x" * 600}]], JUDGE_PREFILL)

    def test_progress_and_no_rows(self, kind: Kind, local: Callable[[Kind], LocalModel]) -> None:
        seen: list[tuple[int, int]] = []
        batched(local(kind), 300).generate(
            QUESTIONS, range(12), 3, 1.0, progress=lambda done, total: seen.append((done, total))
        )
        assert len(seen) > 1 and seen[-1] == (12, 12) and sorted(seen) == seen
        assert local(kind).generate([], [], 3, 1.0) == []


@pytest.mark.parametrize("kind", KINDS)
class TestLogprobs:
    def test_options_equal_a_plain_forward(self, kind: Kind, local: Callable[[Kind], LocalModel]) -> None:
        model = local(kind)
        opening, variants = option_tokens(model.tokenizer, JUDGE_PREFILL, JUDGE_OPTIONS)
        expected, lengths = [], []
        for question in QUESTIONS:
            ids = encode_prompt(model.tokenizer, question) + list(opening)
            full = next_logprobs(model, ids)
            expected.append([full[tokens].logsumexp(0).item() for tokens in variants])
            lengths.append(len(ids))
        for budget in (1, 300, 100_000):
            logprobs, tokens_in = batched(model, budget).option_logprobs(QUESTIONS, JUDGE_PREFILL, JUDGE_OPTIONS)
            np.testing.assert_allclose(logprobs, expected, atol=1e-4)
            assert tokens_in == lengths
        assert (np.exp(logprobs).sum(1) < 1).all() and logprobs.shape == (12, 2)

    def test_option_letters(self, kind: Kind, local: Callable[[Kind], LocalModel]) -> None:
        tokenizer = local(kind).tokenizer
        opening, variants = option_tokens(tokenizer, JUDGE_PREFILL, JUDGE_OPTIONS)
        assert list(opening) == encode_text(tokenizer, JUDGE_PREFILL)
        for letter, ids in zip(JUDGE_OPTIONS, variants, strict=True):
            assert tokenizer.convert_tokens_to_ids(letter) in ids
            assert {str(tokenizer.decode([i])).strip(" )") for i in ids} == {letter}

    def test_rating_digits(self, kind: Kind, local: Callable[[Kind], LocalModel]) -> None:
        tokenizer = local(kind).tokenizer
        # " 1" is one token for two of the tokenizers, so that a blank at the end is not read before it.
        for prefill, read in ((RATING_PREFILL, RATING_PREFILL), ("The rating is: ", "The rating is:")):
            opening, variants = option_tokens(tokenizer, prefill, RATING_SCALE)
            assert str(tokenizer.decode(list(opening))).rstrip() == read
            for digit, ids in zip(RATING_SCALE, variants, strict=True):
                assert encode_text(tokenizer, f"{prefill}{digit}")[len(opening)] in ids
        assert local(kind).option_logprobs(QUESTIONS[:2], RATING_PREFILL, RATING_SCALE)[0].shape == (2, 9)

    def test_answers_equal_a_plain_forward(self, kind: Kind, local: Callable[[Kind], LocalModel]) -> None:
        model = local(kind)
        answers = [answer.token_ids for answer in model.generate(QUESTIONS, range(12), 25, 1.0)]
        for budget in (1, 300, 100_000):
            logprobs = batched(model, budget).answer_logprobs(QUESTIONS, answers)
            for question, answer, values in zip(QUESTIONS, answers, logprobs, strict=True):
                ids = encode_prompt(model.tokenizer, question)
                with torch.inference_mode():
                    full = model.model(torch.tensor([ids + answer])).logits[0, len(ids) - 1 : -1].log_softmax(-1)
                np.testing.assert_allclose(values, full[range(len(answer)), answer].numpy(), atol=1e-4)
        assert [len(values) for values in model.answer_logprobs(QUESTIONS[:2], [[], [3]])] == [0, 1]


@pytest.mark.parametrize("split_words", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("prefill", "options"), [(JUDGE_PREFILL, JUDGE_OPTIONS), (RATING_PREFILL, RATING_SCALE)])
def test_options_of_every_tokenizer(prefill: str, options: tuple[str, ...], kind: Kind, split_words: bool) -> None:
    tokenizer = tiny_tokenizer(kind, (*SENTENCES, *(f"{prefill}{option})" for option in options)) * 3, split_words)
    opening, variants = option_tokens(tokenizer, prefill, options)
    for option, ids in zip(options, variants, strict=True):
        spelled = encode_text(tokenizer, f"{prefill}{option})")
        assert spelled[: len(opening)] == list(opening) and spelled[len(opening)] in ids
        for token in ids:
            text = str(tokenizer.decode([*opening, token], clean_up_tokenization_spaces=False))
            assert text.replace(" ", "").startswith(f"{prefill}{option}".replace(" ", ""))
    assert len(set[int]().union(*variants)) == sum(map(len, variants))


def test_options_that_merge_with_the_prefill() -> None:
    tokenizer = tiny_tokenizer("llama", ("The answer is: (A)", "The answer is: (B)", "(A) (B)") * 3, split_words=False)
    # The bracket is not a token of its own here: it is part of a longer one, which depends on the letter.
    with_a, with_b = (encode_text(tokenizer, f"The answer is: ({letter})") for letter in "AB")
    alone = encode_text(tokenizer, "The answer is: (")
    opening, variants = option_tokens(tokenizer, "The answer is: (", ("A", "B"))
    assert len(opening) < len(alone) or list(opening) != alone
    assert list(opening) == with_a[: len(opening)] == with_b[: len(opening)]
    assert with_a[len(opening)] in variants[0] and with_b[len(opening)] in variants[1]
    assert set(variants[0]).isdisjoint(variants[1])
    for letter, ids in zip("AB", variants, strict=True):
        assert all(letter in tokenizer.decode([i]) for i in ids)


def test_options_that_no_token_tells_apart() -> None:
    with pytest.raises(ModelError, match="not different"):
        option_tokens(tiny_tokenizer("llama"), "It is ", ("A", "A"))


def test_draws_follow_the_distribution() -> None:
    probabilities = torch.tensor([0.1, 0.0, 0.6, 0.3])
    draws = torch.tensor([0.0, 0.05, 0.0999, 0.1001, 0.5, 0.6999, 0.7001, 0.999999999], dtype=torch.float64)
    logits = probabilities.log().expand(len(draws), 4)
    assert draw_tokens(logits, 1.0, draws).tolist() == [0, 0, 0, 2, 2, 2, 3, 3]
    # At temperature 1/2 probabilities are squared: 0.01, 0.36, 0.09 of 0.46.
    assert draw_tokens(logits, 0.5, torch.full_like(draws, 0.78)).tolist() == [2] * 8
    assert draw_tokens(logits, 0.5, torch.full_like(draws, 0.82)).tolist() == [3] * 8
    assert draw_tokens(logits, 0.0, draws).tolist() == [2] * 8
    with pytest.raises(ModelError, match="not numbers"):
        draw_tokens(torch.full((1, 4), math.nan), 1.0, draws[:1])


def test_uniforms_are_a_stream_of_the_seed() -> None:
    seed = 2**62 + 12345
    assert uniforms(seed, 100)[:7].tolist() == uniforms(seed, 7).tolist()
    # Pinned: texts of earlier runs depend on it.
    np.testing.assert_array_equal(uniforms(seed, 2), [0.08963503510866577, 0.1434208285074079])
    many = uniforms(1, 10_000)
    assert many.min() >= 0 and many.max() < 1 and abs(many.mean() - 0.5) < 0.02


def test_answers_are_sampled_in_smaller_batches_where_memory_does_not_suffice(
    local: Callable[[Kind], LocalModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    conversations = [[Message(role="user", content=text)] for text in SENTENCES[:6]]
    whole = local("llama").generate(conversations, range(6), 8, 1.0)
    plain, sizes = LocalModel._decode, []

    def limited(self: LocalModel, prompts: Any, draws: torch.Tensor, temperature: float) -> Any:
        sizes.append(len(prompts))
        if len(prompts) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(self, prompts, draws, temperature)

    monkeypatch.setattr(LocalModel, "_decode", limited)
    model = batched(local("llama"), 1024)
    assert model.generate(conversations, range(6), 8, 1.0) == whole
    assert sizes[0] == 6 and model.batch_tokens < 1024
    failed = len([size for size in sizes if size > 2])
    model.generate(conversations, range(6), 8, 1.0)
    assert len([size for size in sizes if size > 2]) == failed  # what suffices is kept
