"""Step 2: supervised fine-tuning on revisions (SL-CAI, Constitutional AI 3.1), by TRL's SFTTrainer.

Which rows are trained on is decided by the caller; chat format and tokens come from `language_models.chat`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.nn import functional as F
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import align_special_tokens
from transformers.utils.logging import get_verbosity, set_verbosity, set_verbosity_error
from trl.data_utils import pack_dataset
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling, SFTTrainer

from rlaif_assets.language_models.chat import encode_conversation
from rlaif_assets.language_models.local import length_batches, load_model
from rlaif_assets.records import SftExample
from rlaif_assets.settings import ComputeSettings, SlCaiCheckpointSettings
from rlaif_assets.training.adapters import with_adapters
from rlaif_assets.training.errors import TrainingError

IGNORED = -100
LOG_STEPS = 10

EncodedRow = dict[str, list[int]]  # input_ids and labels, equally long


def train_sft(
    base: Path,
    train: Sequence[SftExample],
    heldout: Sequence[SftExample],
    settings: SlCaiCheckpointSettings,
    output: Path,
    compute: ComputeSettings,
    log: Callable[[dict[str, float], int], None],
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Fine-tunes the causal LM in `base` on the answers of `train`, and saves it in `output` with its tokenizer.

    The loss is on answer tokens only (end of turn included), averaged over the answer tokens of an optimiser step of
    `settings.batch_size` conversations. Constant learning rate (Constitutional AI 3.1), AdamW, gradient clipping at 1,
    float32 weights. Rows are batched by length and padded; `compute.batch_tokens` splits steps into forward passes
    without changing them. With `packing` a step is of `batch_size` packs of conversations, none of which sees another.
    With `lora_rank` adapters are trained, and merged before they are saved.
    With `heldout_steps` the held-out loss is measured after so many steps each; training ends where it was not lower
    `patience` times in a row, and the weights of the lowest are kept.

    A row longer than `settings.max_length` tokens, or than the model's context, is dropped and named in the metrics.
    Returns steps (taken), steps_kept, rows, heldout_rows, tokens, answer_tokens (read in training), train_loss,
    heldout_loss_before, heldout_loss_after (nats per answer token; None without held-out rows), dropped and
    dropped_row_ids.
    `progress` gets ("fine-tuning", optimiser steps done, all of them).
    Raises TrainingError without a usable row, without a held-out one where `heldout_steps` asks for some, or for a loss
    that is not finite (nothing is saved then).
    """
    local = load_model(base, compute)
    if (local.device.index or 0) > 0:
        raise TrainingError(
            f"compute.device={compute.device}: set CUDA_VISIBLE_DEVICES and take cuda:0 for fine-tuning"
        )
    model: Any = local.model
    tokenizer: Any = local.tokenizer
    align_quietly(model, tokenizer)
    limit = min(settings.max_length, local.context or settings.max_length)
    rows, dropped = encode_rows(tokenizer, train, limit)
    heldout_rows, heldout_dropped = encode_rows(tokenizer, heldout, limit)
    if not rows:
        raise TrainingError(
            f"no conversation to fine-tune on: {len(train)} given, {len(dropped)} longer than {limit} tokens; "
            "raise sl_cai_checkpoint.max_length or give more rows"
        )

    if settings.heldout_steps is not None and not heldout_rows:
        raise TrainingError(
            "sl_cai_checkpoint.heldout_steps asks for a held-out loss, and no conversation is held out: "
            "raise heldout_share, or set heldout_steps to null"
        )

    before = answer_loss(model, heldout_rows, compute.batch_tokens)
    dataset = Dataset.from_list(rows)
    if settings.packing:
        dataset = pack_dataset(dataset, limit, "bfd")
    if settings.lora_rank:
        model = with_adapters(model, settings.lora_rank, settings.seed)
    callbacks: list[TrainerCallback] = [_LogCallback(log), *([_ProgressCallback(progress)] if progress else [])]
    best = _BestWeights(settings, lambda: answer_loss(model, heldout_rows, compute.batch_tokens), log)
    trainer = _Trainer(
        model=model,
        args=trainer_arguments(settings, [len(ids) for ids in dataset["input_ids"]], output, compute, local.device),
        train_dataset=dataset,
        # The mask says what is padding, not the id.
        data_collator=DataCollatorForLanguageModeling(pad_token_id=0, padding_free=settings.packing),
        processing_class=tokenizer,
        callbacks=[*callbacks, *([best] if settings.heldout_steps else [])],
    )
    trainer.remove_callback(PrinterCallback)
    result = trainer.train()
    epochs = float(trainer.state.epoch or 0.0)
    best.restore(model)
    if settings.lora_rank:
        model = model.merge_and_unload()
    metrics = {
        "steps": result.global_step,
        "steps_kept": best.step or result.global_step,
        "rows": len(rows),
        "heldout_rows": len(heldout_rows),
        "tokens": round(epochs * sum(len(row["input_ids"]) for row in rows)),
        "answer_tokens": round(epochs * sum(label != IGNORED for row in rows for label in row["labels"])),
        "train_loss": result.training_loss,
        "heldout_loss_before": before,
        "heldout_loss_after": answer_loss(model, heldout_rows, compute.batch_tokens),
        "dropped": len(dropped) + len(heldout_dropped),
        "dropped_row_ids": dropped + heldout_dropped,
    }
    output.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(output)  # not the trainer's save: that one adds a pickle of its arguments
    tokenizer.save_pretrained(output)
    return metrics


def align_quietly(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Gives the model's configs the tokenizer's special tokens, as the trainer would with a warning."""
    level = get_verbosity()
    set_verbosity_error()
    align_special_tokens(model, tokenizer)
    set_verbosity(level)


def encode_rows(
    tokenizer: PreTrainedTokenizerFast, examples: Sequence[SftExample], limit: int
) -> tuple[list[EncodedRow], list[str]]:
    """Rows in order, labels IGNORED outside the answer, and the row ids of those longer than `limit` tokens."""
    rows, dropped = [], []
    for example in examples:
        ids, answer_mask = encode_conversation(tokenizer, list(example.messages), example.response)
        if len(ids) > limit:
            dropped.append(example.row_id)
            continue
        labels = [token if answer else IGNORED for token, answer in zip(ids, answer_mask, strict=True)]
        rows.append({"input_ids": list(ids), "labels": labels})
    return rows, dropped


def trainer_arguments(
    settings: SlCaiCheckpointSettings,
    lengths: Sequence[int],
    output: Path,
    compute: ComputeSettings,
    device: torch.device,
) -> SFTConfig:
    """TRL's configuration: no reports, no checkpoints, no progress bar, no preparation of the (encoded) rows.

    `lengths`: of rows or packs, in tokens."""
    fitting = max(1, compute.batch_tokens // max(lengths))
    micro = max(
        size for size in range(1, settings.batch_size + 1) if settings.batch_size % size == 0 and size <= fitting
    )
    config = SFTConfig(
        output_dir=str(output),
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant",
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=settings.batch_size // micro,
        train_sampling_strategy="group_by_length",
        max_length=None,
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        seed=settings.seed,
        bf16=compute.dtype == "bfloat16",
        activation_checkpointing=compute.gradient_checkpointing,
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=device.type != "cpu",
        logging_steps=LOG_STEPS,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    config._n_gpu = min(config.n_gpu, 1)  # with more the trainer would take a multiple of the batch
    return config


def answer_loss(model: PreTrainedModel, rows: Sequence[EncodedRow], batch_tokens: int) -> float | None:
    """Mean negative log-likelihood per answer token, in nats; None without rows."""
    if not rows:
        return None
    collate = DataCollatorForLanguageModeling(pad_token_id=0)
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    with torch.inference_mode():
        for indices in length_batches([len(row["input_ids"]) for row in rows], batch_tokens):
            batch = {name: value.to(model.device) for name, value in collate([rows[i] for i in indices]).items()}
            labels = batch.pop("labels")[:, 1:]
            logits = model(**batch, use_cache=False).logits[:, :-1].float()
            total += float(
                F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum", ignore_index=IGNORED)
            )
            count += int((labels != IGNORED).sum())
    model.train(was_training)
    return total / count


class _Trainer(SFTTrainer):
    """SFTTrainer that stops at the first loss that is not finite, and sends no usage data."""

    def _send_telemetry(self) -> None:
        pass

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            raise TrainingError(
                f"fine-tuning: loss {float(loss)} at step {self.state.global_step + 1}; "
                "lower sl_cai_checkpoint.learning_rate, and check the base model's weights"
            )
        return loss


class _BestWeights(TrainerCallback):
    """Measures the held-out loss every `heldout_steps`, and at the end; keeps the trained weights of the lowest, and
    ends the training after `patience` measurements that were not lower."""

    def __init__(
        self,
        settings: SlCaiCheckpointSettings,
        measure: Callable[[], float | None],
        log: Callable[[dict[str, float], int], None],
    ) -> None:
        self.settings, self.measure, self.log = settings, measure, log
        self.lowest, self.step, self.higher = float("inf"), 0, 0
        self.weights: dict[str, torch.Tensor] = {}

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | None = None,
        **kwargs: Any,
    ) -> None:
        last = state.global_step == state.max_steps
        if model is None or (state.global_step % (self.settings.heldout_steps or 1) and not last):
            return
        loss = self.measure()
        if loss is None:
            return
        self.log({"heldout_loss": loss}, state.global_step)
        if loss < self.lowest:
            self.lowest, self.step, self.higher = loss, state.global_step, 0
            self.weights = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
        else:
            self.higher += 1
        control.should_training_stop = control.should_training_stop or self.higher == self.settings.patience

    def restore(self, model: Any) -> None:
        """Puts the best weights back; nothing where none were kept."""
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in self.weights:
                    parameter.copy_(self.weights[name])


class _LogCallback(TrainerCallback):
    """Hands the trainer's metrics to `log`."""

    def __init__(self, log: Callable[[dict[str, float], int], None]) -> None:
        self.log = log

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs and "loss" in logs:  # the trainer's closing summary has none
            names = ("loss", "learning_rate", "grad_norm", "mean_token_accuracy")
            self.log({name: float(logs[name]) for name in names if name in logs}, state.global_step)


class _ProgressCallback(TrainerCallback):
    """Tells `progress` every optimiser step."""

    def __init__(self, progress: Callable[[str, int, int], None]) -> None:
        self.progress = progress

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.progress("fine-tuning", 0, state.max_steps)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.progress("fine-tuning", state.global_step, state.max_steps)
