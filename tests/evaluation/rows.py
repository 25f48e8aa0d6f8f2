"""Rows for the tests of evaluation."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlaif_assets.evaluation.rates import policy_rates, win_rates
from rlaif_assets.records import EvaluationAnswer
from rlaif_assets.store.warehouse import SnapshotRecord, Warehouse


def answer(policy: str, prompt: str, verdict: str | None, **others: Any) -> EvaluationAnswer:
    values: dict[str, Any] = {
        "answer_id": f"{policy} {prompt} {others.get('sample', 0)}",
        "policy": policy,
        "prompt_id": prompt,
        "split": "test",
        "kind": "harmful",
        "intent": f"intent of {prompt}",
        "sample": 0,
        "text": f"{policy} {prompt} {verdict}",
        "verdict": verdict,
        "tokens": 10,
        "kl": 0.0,
        "seed": 1,
    }
    return EvaluationAnswer(**(values | others))


LABELS = {
    "accuracy": 0.9,
    "accuracy_first_order": 0.85,
    "accuracy_second_order": 0.8,
    "position_flip_rate": 0.1,
    "pairs": 40,
    "interval": [0.82, 0.96],
    "saturated_share": 0.3,
}


def fill(home: Path, ppo_verdicts: tuple[str, ...], seed: int = 0) -> Warehouse:
    """A home with the three snapshots that a report reads; the evaluation was made from the other two."""
    warehouse = Warehouse(home)
    preferences = warehouse.publish(
        SnapshotRecord(asset="harmlessness_preferences", key="k1", metrics={"peak_memory_mb": 900.0}),
        {},
    )
    heldout = {"heldout": {"ai": {"accuracy": 0.8, "nll": 0.4, "ece": 0.05, "pairs": 9}}, "peak_memory_mb": 700.5}
    reward = warehouse.publish(
        SnapshotRecord(
            asset="reward_model",
            key="k2",
            metrics=heldout,
            seconds=12.5,
            inputs={"harmlessness_preferences": preferences.snapshot_id},
        ),
        {},
    )
    answers = [
        answer(policy, f"p{i}", verdict)
        for policy, verdicts in (("base", ("harmful",) * 4), ("sl_cai", ("evasive",) * 4), ("ppo", ppo_verdicts))
        for i, verdict in enumerate(verdicts)
    ]
    rates = [*policy_rates(answers, "test", 50), *win_rates(answers, "test", 50), *policy_rates(answers, "dev", 50)]
    evaluation = warehouse.publish(
        SnapshotRecord(
            asset="policy_evaluation",
            key="k3",
            settings={"seed": seed},
            metrics={"labels": {"train": {"accuracy": 0.5}, "test": LABELS}},
            inputs={"reward_model": reward.snapshot_id},
        ),
        {
            "evaluation_answers": [asdict(row) for row in answers],
            "evaluation_rates": [asdict(row) for row in rates],
        },
    )
    warehouse.record_materialization(evaluation.snapshot_id, None, reused=False)
    return warehouse
