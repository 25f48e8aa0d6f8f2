"""Low-rank adapters on a frozen model (LoRA, Hu et al. 2021), by peft."""

import warnings
from typing import Any

import torch


def with_adapters(model: Any, rank: int, seed: int) -> Any:
    """The model frozen, with trainable adapters of this rank on all linear layers but the output.

    Their product begins as zero, so the new model begins as the old one. No dropout.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks by a name that transformers gives up
        torch.manual_seed(seed)
        return get_peft_model(model, config)
