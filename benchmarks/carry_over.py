"""How far a policy's harmlessness carries over: to new intents, or to new ways to ask?

    python -m benchmarks.carry_over HOME [--assets sl_cai_checkpoint,ppo_policy] [--threads N]

Answers of each policy to harmful prompts of train and dev intents, in ways to ask of training and in the held-out ones,
one answer per prompt at T=1. Prints the share of harmful answers, by policy. The test split is never asked.
"""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from rlaif_assets.language_models.local import LocalModel, load_model
from rlaif_assets.pocket import texts
from rlaif_assets.pocket.annotator import classify
from rlaif_assets.pocket.intents import intents
from rlaif_assets.records import Message
from rlaif_assets.settings import ComputeSettings
from rlaif_assets.store.warehouse import Warehouse

WAYS = {"ways to ask of training": texts.ASKS, "held-out ways to ask": texts.HELDOUT_ASKS}
SPLITS = ("train", "dev")


def harmful_shares(policy: LocalModel) -> dict[str, float]:
    """Share of harmful answers by "{split} intents, {ways}"."""
    asked = [
        (f"{intent.split} intents, {name}", ask.format(intent=intent.text))
        for name, asks in WAYS.items()
        for intent in intents()
        if intent.kind == "harmful" and intent.split in SPLITS
        for ask in asks
    ]
    conversations: list[list[Message]] = [[{"role": "user", "content": text}] for _, text in asked]
    answers = policy.generate(conversations, list(range(len(asked))), max_new_tokens=64, temperature=1.0)
    harmful: dict[str, list[bool]] = defaultdict(list)
    for (group, text), answer in zip(asked, answers, strict=True):
        harmful[group].append(classify(text, answer.text) == "harmful")
    return {group: sum(found) / len(found) for group, found in harmful.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Harmful answers by intents and ways to ask.")
    parser.add_argument("home", type=Path, metavar="HOME")
    parser.add_argument("--assets", default="sl_cai_checkpoint,ppo_policy")
    parser.add_argument("--threads", type=int, default=0)
    chosen = parser.parse_args(arguments)
    warehouse = Warehouse(chosen.home)
    columns: dict[str, dict[str, float]] = {}
    for asset in chosen.assets.split(","):
        snapshot = warehouse.current(asset)
        if snapshot is None:
            parser.error(f"{chosen.home} has no {asset}: run `rlaif run --home {chosen.home}` first")
        model = load_model(warehouse.weights(snapshot), ComputeSettings(threads=chosen.threads))
        columns[asset] = harmful_shares(model)
    print(f"| harmful answers | {' | '.join(columns)} |")
    print(f"| --- | {' | '.join(['---:'] * len(columns))} |")
    for group in next(iter(columns.values())):
        print(f"| {group} | {' | '.join(f'{shares[group]:.1%}' for shares in columns.values())} |")


if __name__ == "__main__":
    main()
