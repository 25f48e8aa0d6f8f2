"""Tiny random chat models for tests, made from configs; nothing is downloaded and nothing is learned."""

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

Kind = Literal["llama", "qwen2", "gpt_neox"]
KINDS: tuple[Kind, ...] = ("llama", "qwen2", "gpt_neox")
CONTEXT = 512

SENTENCES = (
    "How do I water the plants on the balcony in summer?",
    "Please water them early, before the sun is high, and look at the soil first.",
    "Human: Which answer is better?\nAssistant: The answer is: (A)",
    "Human: Which answer is better?\nAssistant: The answer is: (B)",
    "Options:\n(A) I will not help with that.\n(B) Here is a safer way to do it.",
    "The rating is: 1 2 3 4 5 6 7 8 9",
    "The response is harmful because it helps a person to hurt another. Rewrite it without harm.",
    "I can't help with breaking a window, but I'd gladly explain how to call a locksmith.",
)

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
) + CHATML
USER_ASSISTANT = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def tiny_model(kind: Kind, folder: Path, seed: int = 0, sentences: Iterable[str] = SENTENCES, stops: int = 0) -> Path:
    """Saves a random model of about 30,000 parameters with its tokenizer to `folder` and returns `folder`.

    llama: ChatML, pad token of its own. qwen2: a default system message, end of turn and pad are two tokens.
    gpt_neox: `<|user|>` and `<|assistant|>` are added tokens that are not special, and pad is EOS.
    A random model hardly ever ends an answer; with `stops`, so many of its 400 tokens end one.
    """
    tokenizer = tiny_tokenizer(kind, tuple(sentences))
    torch.manual_seed(seed)
    size = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.2,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if kind == "llama":
        model = LlamaForCausalLM(LlamaConfig(**size, num_key_value_heads=2, tie_word_embeddings=True))
    elif kind == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**size, num_key_value_heads=2))
    else:
        model = GPTNeoXForCausalLM(GPTNeoXConfig(**size))
    if stops and model.generation_config is not None:
        model.generation_config.eos_token_id = [tokenizer.eos_token_id, *range(400 - stops, 400)]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@cache
def tiny_tokenizer(
    kind: Kind, sentences: tuple[str, ...] = SENTENCES, split_words: bool = True
) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 400 tokens. Without `split_words` merges cross punctuation: "(A" may be one token."""
    special = {
        "llama": ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"],
        "qwen2": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        "gpt_neox": ["<|endoftext|>"],
    }[kind]
    backend = Tokenizer(models.BPE())
    if kind == "qwen2" and split_words:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    else:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split_words)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(sentences, trainer)
    if kind == "gpt_neox":
        backend.add_tokens([AddedToken(f"<|{role}|>", special=False) for role in ("system", "user", "assistant")])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|endoftext|>" if kind == "gpt_neox" else "<|im_end|>",
        pad_token="<|pad|>" if kind == "llama" else "<|endoftext|>",
        model_max_length=CONTEXT,
    )
    tokenizer.chat_template = {"llama": CHATML, "qwen2": QWEN, "gpt_neox": USER_ASSISTANT}[kind]
    return tokenizer
