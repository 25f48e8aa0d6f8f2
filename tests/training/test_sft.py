"""Supervised fine-tuning: what the loss covers, what a run does and leaves behind, and what it refuses."""

import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import trl.trainer.base_trainer
from safetensors.torch import load_file, save_file
from transformers.models.llama.modeling_llama import LlamaMLP
from trl.trainer.sft_config import SFTConfig

from rlaif_assets.language_models.chat import encode_conversation
from rlaif_assets.language_models.local import load_model
from rlaif_assets.records import Message, SftExample
from rlaif_assets.settings import ComputeSettings, SlCaiCheckpointSettings
from rlaif_assets.training import sft
from rlaif_assets.training.errors import TrainingError
from tests.tiny_models import KINDS, SENTENCES, Kind, tiny_model, tiny_tokenizer

COMPUTE = ComputeSettings(device="cpu", threads=1, batch_tokens=2048, progress="none")
SETTINGS = SlCaiCheckpointSettings(epochs=2, learning_rate=2e-3, batch_size=4, max_length=256, seed=1)


def make_examples(count: int) -> list[SftExample]:
    """Conversations of one or two turns and of different lengths."""
    examples = []
    for i in range(count):
        question: Message = {"role": "user", "content": f"How do I water {i} plants" + " early" * (i * 5 % 11)}
        back: Message = {"role": "assistant", "content": "Which ones?"}
        messages = (question, back, question) if i % 3 == 0 else (question,)
        examples.append(SftExample(f"row{i}", messages, SENTENCES[1 + i % 3], "revision"))
    return examples


def train(base: Path, output: Path, **changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "train": make_examples(14),
        "heldout": make_examples(5),
        "settings": SETTINGS,
        "compute": COMPUTE,
        "log": lambda metrics, step: None,
    } | changes
    return sft.train_sft(base, output=output, **arguments)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def answer_nll(folder: Path, examples: list[SftExample]) -> tuple[float, float]:
    """Mean negative log-likelihood per answer token and the norm of its gradient, row by row, from the answer mask."""
    local = load_model(folder, COMPUTE)
    total, count = torch.zeros(()), 0
    for example in examples:
        ids, mask = encode_conversation(local.tokenizer, example.messages, example.response)
        logprobs = local.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        for position in range(1, len(ids)):
            if mask[position]:
                total = total - logprobs[position - 1, ids[position]]
                count += 1
    (total / count).backward()
    norms = [parameter.grad.norm() for parameter in local.model.parameters() if parameter.grad is not None]
    return total.item() / count, torch.stack(norms).norm().item()


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def trained(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    train(llama, folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_the_answer_and_its_end_of_turn(kind: Kind) -> None:
    tokenizer = tiny_tokenizer(kind)
    rows, dropped = sft.encode_rows(tokenizer, make_examples(6), 256)
    assert dropped == []
    for row, example in zip(rows, make_examples(6), strict=True):
        ids, mask = encode_conversation(tokenizer, example.messages, example.response)
        assert row["input_ids"] == ids
        assert sum(label != sft.IGNORED for label in row["labels"]) == sum(mask)
        learned = [label for label in row["labels"] if label != sft.IGNORED]
        assert tokenizer.decode(learned[:-1]) == example.response
        assert learned[-1] == ids[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_tokens", [4096, 150])
def test_loss_and_gradient_are_those_of_the_mean_over_the_answer_tokens_of_a_step(
    kind: Kind, batch_tokens: int, tmp_path: Path
) -> None:
    """One step over all rows: prompts, padding and the split into forward passes have no part in it."""
    base, examples = tiny_model(kind, tmp_path / "base"), make_examples(8)
    logged: list[dict[str, float]] = []
    train(
        base,
        tmp_path / "out",
        train=examples,
        settings=SETTINGS.model_copy(update={"batch_size": 8, "epochs": 1.0}),
        compute=COMPUTE.model_copy(update={"batch_tokens": batch_tokens}),
        log=lambda metrics, step: logged.append(metrics),
    )
    assert len(logged) == 1
    loss, gradient_norm = answer_nll(base, examples)
    assert logged[0]["loss"] == pytest.approx(loss, abs=1e-5)
    assert logged[0]["grad_norm"] == pytest.approx(gradient_norm, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_training_lowers_the_heldout_loss_and_leaves_a_loadable_folder(
    kind: Kind, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(**usage: Any) -> None:
        raise AssertionError(f"usage data sent: {usage}")

    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(trl.trainer.base_trainer, "send_telemetry", no_network)
    base, output = tiny_model(kind, tmp_path / "base"), tmp_path / "out"
    logged: list[tuple[int, dict[str, float]]] = []
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics = train(base, output, log=lambda values, step: logged.append((step, values)))
    assert capfd.readouterr() == ("", "")

    assert metrics["steps"] == 8  # 14 rows in batches of 4, twice
    assert (metrics["rows"], metrics["heldout_rows"], metrics["dropped"]) == (14, 5, 0)
    assert [step for step, _ in logged] == [1]
    assert logged[0][1]["learning_rate"] == 2e-3
    assert metrics["heldout_loss_before"] == pytest.approx(answer_nll(base, make_examples(5))[0], abs=1e-5)
    assert metrics["heldout_loss_after"] == pytest.approx(answer_nll(output, make_examples(5))[0], abs=1e-5)
    assert metrics["heldout_loss_after"] < metrics["heldout_loss_before"] - 0.5

    files = {path.name for path in output.rglob("*")}
    wanted = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"}
    assert files == wanted | {"tokenizer_config.json"}
    before, after = load_model(base, COMPUTE), load_model(output, COMPUTE)
    assert after.stop_ids == before.stop_ids
    assert (after.tokenizer.pad_token_id, after.tokenizer.eos_token_id) == (
        before.tokenizer.pad_token_id,
        before.tokenizer.eos_token_id,
    )
    assert encode_conversation(after.tokenizer, make_examples(1)[0].messages, "Yes.") == encode_conversation(
        before.tokenizer, make_examples(1)[0].messages, "Yes."
    )


def test_two_runs_give_the_same_weights_and_another_seed_others(llama: Path, trained: Path, tmp_path: Path) -> None:
    torch.manual_seed(99)  # what the process drew before has no part in it
    train(llama, tmp_path / "again")
    train(llama, tmp_path / "other", settings=SETTINGS.model_copy(update={"seed": 2}))
    first, again, other = weights(trained), weights(tmp_path / "again"), weights(tmp_path / "other")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_half_precision_checkpoint_is_trained_and_saved_as_float32(llama: Path, tmp_path: Path) -> None:
    local = load_model(llama, COMPUTE)
    local.model.half().save_pretrained(tmp_path / "half")
    local.tokenizer.save_pretrained(tmp_path / "half")
    train(tmp_path / "half", tmp_path / "out")
    assert {tensor.dtype for tensor in weights(tmp_path / "out").values()} == {torch.float32}


def test_long_rows_are_dropped_by_name(llama: Path, tmp_path: Path) -> None:
    examples, heldout = make_examples(6), make_examples(2)
    examples[2] = replace(examples[2], response="very long " * 200)
    heldout[1] = replace(heldout[1], row_id="long", response="very long " * 200)
    metrics = train(llama, tmp_path, train=examples, heldout=heldout)
    assert metrics["dropped_row_ids"] == ["row2", "long"]
    assert (metrics["dropped"], metrics["rows"], metrics["heldout_rows"]) == (2, 5, 1)


def test_rows_beyond_the_context_are_dropped_whatever_max_length_says(llama: Path, tmp_path: Path) -> None:
    examples = make_examples(3)
    examples[1] = replace(examples[1], response="very long " * 200)
    settings = SETTINGS.model_copy(update={"max_length": 100_000})
    assert train(llama, tmp_path, train=examples, settings=settings)["dropped_row_ids"] == ["row1"]


def test_without_heldout_rows_there_is_no_heldout_loss(llama: Path, tmp_path: Path) -> None:
    metrics = train(llama, tmp_path, heldout=[])
    assert (metrics["heldout_loss_before"], metrics["heldout_loss_after"]) == (None, None)


@pytest.mark.parametrize(
    ("examples", "message"),
    [([], "0 given"), ([replace(e, response="long " * 600) for e in make_examples(2)], "2 longer than 256 tokens")],
)
def test_nothing_to_train_on_is_refused(llama: Path, tmp_path: Path, examples: list[SftExample], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        train(llama, tmp_path / "out", train=examples)
    assert not (tmp_path / "out").exists()


def test_a_loss_that_is_not_finite_stops_the_run_and_saves_nothing(tmp_path: Path) -> None:
    broken = tiny_model("llama", tmp_path / "broken")
    tensors = weights(broken)
    tensors["model.norm.weight"][0] = math.nan
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrainingError, match="loss nan at step 1"):
        train(broken, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize("kind", KINDS)
def test_in_a_pack_no_conversation_sees_another(kind: Kind, tmp_path: Path) -> None:
    """One step over one pack: loss and gradient are those of its rows apart."""
    base, examples = tiny_model(kind, tmp_path / "base"), make_examples(8)
    local = load_model(base, COMPUTE)
    limit = sum(len(row["input_ids"]) for row in sft.encode_rows(local.tokenizer, examples, 10_000)[0])
    local.model.config.max_position_embeddings = limit
    local.model.save_pretrained(base)
    logged: list[dict[str, float]] = []
    metrics = train(
        base,
        tmp_path / "out",
        train=examples,
        settings=SETTINGS.model_copy(update={"batch_size": 1, "epochs": 1.0, "max_length": limit, "packing": True}),
        log=lambda metrics, step: logged.append(metrics),
    )
    assert (metrics["steps"], metrics["rows"]) == (1, 8)
    loss, gradient_norm = answer_nll(base, examples)
    assert logged[0]["loss"] == pytest.approx(loss, abs=1e-5)
    assert logged[0]["grad_norm"] == pytest.approx(gradient_norm, rel=1e-4)


def test_packs_need_fewer_steps_and_train_as_well(llama: Path, trained: Path, tmp_path: Path) -> None:
    packed = train(llama, tmp_path, settings=SETTINGS.model_copy(update={"packing": True, "batch_size": 1}))
    assert packed["steps"] < 2 * 14 and packed["rows"] == 14
    assert packed["heldout_loss_after"] < packed["heldout_loss_before"] - 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_are_trained_on_a_frozen_model_and_merged(kind: Kind, tmp_path: Path) -> None:
    base = tiny_model(kind, tmp_path / "base")
    metrics = train(
        base, tmp_path / "out", settings=SETTINGS.model_copy(update={"lora_rank": 4, "learning_rate": 0.02})
    )
    assert metrics["heldout_loss_after"] < metrics["heldout_loss_before"] - 0.3
    assert metrics["heldout_loss_after"] == pytest.approx(answer_nll(tmp_path / "out", make_examples(5))[0], abs=1e-5)
    before, after = weights(base), weights(tmp_path / "out")
    assert before.keys() == after.keys()  # a model like the base, and no adapter beside it
    changed = {name for name in before if not torch.equal(before[name].float(), after[name])}
    assert changed and not any("embed" in name or "norm" in name for name in changed)
    ranks = [
        int(torch.linalg.matrix_rank(after[n] - before[n].float(), rtol=1e-3)) for n in changed if before[n].ndim > 1
    ]
    assert max(ranks) == 4


def test_training_ends_where_the_heldout_loss_rises_and_keeps_the_best_weights(llama: Path, tmp_path: Path) -> None:
    """Held out are answers that the training moves away from, after what both share has been learned."""
    heldout = [replace(example, response=SENTENCES[0]) for example in make_examples(5)]
    logged: list[tuple[int, float]] = []

    def log(metrics: dict[str, float], step: int) -> None:
        if "heldout_loss" in metrics:
            logged.append((step, metrics["heldout_loss"]))

    options = {"heldout_steps": 2, "patience": 3, "epochs": 40.0, "learning_rate": 5e-3}
    metrics = train(llama, tmp_path, heldout=heldout, settings=SETTINGS.model_copy(update=options), log=log)
    losses = [loss for _, loss in logged]
    best = losses.index(min(losses))
    assert [step for step, _ in logged] == list(range(2, metrics["steps"] + 1, 2))
    assert metrics["steps"] < 160 and best == len(losses) - 4
    assert metrics["steps_kept"] == 2 * (best + 1)
    rows, _ = sft.encode_rows(load_model(llama, COMPUTE).tokenizer, make_examples(14), 256)
    read = metrics["steps"] / 4 * sum(len(row["input_ids"]) for row in rows)  # four steps an epoch
    assert metrics["tokens"] == round(read)
    assert metrics["heldout_loss_after"] == pytest.approx(min(losses), abs=1e-6)
    assert answer_nll(tmp_path, heldout)[0] == pytest.approx(min(losses), abs=1e-5)


def test_a_heldout_loss_that_falls_to_the_end_keeps_the_last_weights(
    llama: Path, trained: Path, tmp_path: Path
) -> None:
    metrics = train(llama, tmp_path, settings=SETTINGS.model_copy(update={"heldout_steps": 3}))
    assert (metrics["steps"], metrics["steps_kept"]) == (8, 8)  # measured at 3, 6 and, the end, 8
    ours, plain = weights(tmp_path), weights(trained)
    assert all(torch.equal(ours[name], plain[name]) for name in plain)


def test_an_early_stop_without_heldout_rows_is_refused(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="heldout_steps asks for a held-out loss, and no conversation is held out"):
        train(llama, tmp_path / "out", heldout=[], settings=SETTINGS.model_copy(update={"heldout_steps": 3}))


def test_bfloat16_passes_leave_float32_weights(llama: Path, tmp_path: Path) -> None:
    metrics = train(llama, tmp_path, compute=COMPUTE.model_copy(update={"dtype": "bfloat16"}))
    assert {tensor.dtype for tensor in weights(tmp_path).values()} == {torch.float32}
    assert metrics["heldout_loss_after"] < metrics["heldout_loss_before"] - 0.5


def test_recomputed_layers_give_the_same_weights(
    llama: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, forward = [0], LlamaMLP.forward

    def counted(self: LlamaMLP, x: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        return forward(self, x)

    monkeypatch.setattr(LlamaMLP, "forward", counted)
    train(llama, tmp_path / "plain", heldout=[])
    plain, calls[0] = calls[0], 0
    compute = COMPUTE.model_copy(update={"gradient_checkpointing": True})
    train(llama, tmp_path / "again", heldout=[], compute=compute)
    assert calls[0] == 2 * plain
    first, again = weights(trained), weights(tmp_path / "again")
    assert all(torch.allclose(first[name], again[name], atol=1e-6) for name in first)


def test_several_visible_gpus_do_not_multiply_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SFTConfig, "n_gpu", property(lambda self: getattr(self, "_n_gpu", 4)))
    config = sft.trainer_arguments(SETTINGS, [40], tmp_path, COMPUTE, torch.device("cpu"))
    assert config.train_batch_size * config.gradient_accumulation_steps == SETTINGS.batch_size
