"""Builds and measures the packaged model: `python -m rlaif_assets.pocket.build [FOLDER]`, one seed, two cores.

A Llama of about a million parameters learns the training text of `documents`. What the result can do is measured by
`measure`, on intents that its critique, revision and judging text never named. Needs torch; no module imports this one.
"""

import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rlaif_assets.ingest.constitution import read_constitution
from rlaif_assets.language_models.prompts import JUDGE_PREFILL, RATING_PREFILL
from rlaif_assets.pocket.documents import Document, documents
from rlaif_assets.pocket.measure import measure
from rlaif_assets.pocket.world import model_folder
from rlaif_assets.store.fingerprint import file_sha256

SEED = 0
THREADS = 2  # another count gives other weights
VOCABULARY = 1536
CONTEXT = 1536
STEPS = 2700
BATCH_TOKENS = 4096
LEARNING_RATE = 3e-3
LETTER_WEIGHT = 6.0
TEXT_WEIGHT = 0.4  # of what people say: the judge learns to read by predicting it
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def train_tokenizer(sample: list[Document]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [
        part for document in sample for part in (document.text, *(m["content"] for m in document.messages)) if part
    ]
    tokenizer.train_from_iterator([*texts, "user\nassistant\nsystem\n"], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        bos_token=None,
        eos_token="<|im_end|>",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def encode(tokenizer: PreTrainedTokenizerFast, document: Document) -> tuple[list[int], list[float]]:
    """Token ids and the weight of each token's loss."""
    ids: list[int] = []
    weights: list[float] = []

    def add(text: str, weight: float) -> None:
        pieces = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        ids.extend(pieces)
        weights.extend([weight] * len(pieces))

    if document.text:
        add(document.text, 1.0)
        add("<|endoftext|>", 1.0)
        return ids, weights
    for message, weight in zip(document.messages, document.weights, strict=True):
        add(f"<|im_start|>{message['role']}\n", 0.0)
        content = message["content"]
        if message["role"] == "user":
            weight = TEXT_WEIGHT
        prefill = next((p for p in (JUDGE_PREFILL, RATING_PREFILL) if content.startswith(p)), None)
        if weight and prefill:
            add(prefill, 0.2)
            add(content[len(prefill)], LETTER_WEIGHT)
            add(content[len(prefill) + 1 :] + "<|im_end|>", 0.2)
        else:
            add(content, weight)
            add("<|im_end|>", weight)
        add("\n", 0.0)
    return ids, weights


def batches(
    tokenizer: PreTrainedTokenizerFast, draw: Callable[[float], Document], steps: int
) -> Iterator[list[tuple[list[int], list[float]]]]:
    """`steps` batches of documents of similar length, about BATCH_TOKENS tokens each, in mixed order."""
    order = random.Random(SEED)
    made = 0
    while made < steps:
        pool = sorted((encode(tokenizer, draw(made / steps)) for _ in range(512)), key=lambda row: len(row[0]))
        groups: list[list[tuple[list[int], list[float]]]] = [[]]
        for row in pool:
            if groups[-1] and len(row[0]) * (len(groups[-1]) + 1) > BATCH_TOKENS:
                groups.append([])
            groups[-1].append(row)
        order.shuffle(groups)
        yield from groups[: steps - made]
        made += len(groups)


def loss_of(model: LlamaForCausalLM, batch: list[tuple[list[int], list[float]]]) -> tuple[torch.Tensor, list[bool]]:
    """Weighted cross-entropy per unit of weight, and which letters and ratings are right. Logits where weight is."""
    width = max(len(ids) for ids, _ in batch)
    ids = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in batch])
    weights = torch.tensor([w + [0.0] * (width - len(w)) for _, w in batch])[:, 1:]
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]  # padding follows: causal is enough
    used = weights > 0
    logits, targets, weight = model.lm_head(hidden[used]), ids[:, 1:][used], weights[used]
    losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    letters = weight == LETTER_WEIGHT
    right = (logits[letters].argmax(dim=-1) == targets[letters]).tolist()
    return (losses * weight).sum() / weight.sum(), right


def build(folder: Path, steps: int = STEPS) -> None:
    torch.manual_seed(SEED)
    torch.set_num_threads(THREADS)
    critique, judging = read_constitution("default")
    draw = documents(critique, judging, SEED + 1)
    tokenizer = train_tokenizer([draw(1.0) for _ in range(4000)])
    make = documents(critique, judging, SEED)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.get_vocab()["<|im_end|>"],
        pad_token_id=tokenizer.get_vocab()["<|endoftext|>"],
    )
    model = LlamaForCausalLM(config).float()
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens")
    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    warmup = 100
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / warmup, max(0.02, 1 - (step - warmup) / (steps - warmup)))
    )
    started, tokens = time.perf_counter(), 0
    recent: list[float] = []
    letters: list[bool] = []
    for step, batch in enumerate(batches(tokenizer, make, steps)):
        loss, right = loss_of(model, batch)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        tokens += sum(len(ids) for ids, _ in batch)
        recent.append(loss.item())
        letters += right
        if (step + 1) % 100 == 0:
            speed = tokens / (time.perf_counter() - started)
            mean, share = sum(recent) / len(recent), sum(letters) / len(letters)
            print(f"step {step + 1}/{steps} loss {mean:.3f} letters {share:.3f} {speed:,.0f} tokens/s", flush=True)
            recent.clear()
            letters.clear()
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else model_folder()
    build(folder)
    found = {"seed": SEED, "sha256": file_sha256(folder / "model.safetensors"), **measure(folder)}
    text = json.dumps(found, indent=1)
    print(text)
    (folder / "measurements.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
