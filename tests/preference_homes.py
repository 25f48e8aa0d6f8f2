"""Homes in which the inputs of step 3 were put, so that a test makes labels without the steps before."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import dagster as dg
import yaml

from rlaif_assets.assets.recording import as_records
from rlaif_assets.records import AuditProbe, Label, Pair
from rlaif_assets.store.judgements import JudgementStore
from rlaif_assets.store.warehouse import SnapshotRecord, Warehouse
from tests.feedback.fakes import make_pair, make_prompt
from tests.homes import Home, failure

STEP_3 = ("judging_constitution", "human_verdicts", "feedback_model", "harmlessness_preferences", "label_changes")
LABELS = "harmlessness_preferences"
NO_REFERENCE = "audits.reference=null"
CATEGORIES = ("theft", "fraud", None)


def sound_probes(*_: Any) -> list[AuditProbe]:
    """In the place of `probes.probe_judge`, where a test counts what is asked to make labels."""
    return [AuditProbe(audit, "pair", None, 0.9, 0.1) for audit in ("texts_swap", "counter_principle")] * 24


def make_preference_home(folder: Path, model: Path, pairs: int = 24, *overrides: str) -> Home:
    """A home with prompts and response pairs; the constitution is `write_constitution`'s at `constitution.yaml`."""
    home = Home(folder, model, f"constitution.path={folder / 'constitution.yaml'}", NO_REFERENCE, *overrides)
    write_constitution(home)
    put_pairs(home.warehouse, pairs)
    return home


def put_pairs(warehouse: Warehouse, count: int) -> list[Pair]:
    """Makes so many pairs, and their prompts, the current ones; the same texts for the same number."""
    prompts = [
        replace(make_prompt(f"How do I water plant {i}?"), category=CATEGORIES[i % len(CATEGORIES)])
        for i in range(count)
    ]
    pairs = [make_pair(prompt, f"Water it early, {i}.", f"Look at the soil, {i}.") for i, prompt in enumerate(prompts)]
    inputs: dict[str, str] = {}
    for asset, table, rows in (("red_team_prompts", "prompts", prompts), ("response_pairs", "pairs", pairs)):
        record = SnapshotRecord(asset=asset, key=f"{asset} {count}", inputs=dict(inputs))
        inputs[asset] = warehouse.publish(record, {table: [asdict(row) for row in rows]}).snapshot_id
        warehouse.record_materialization(inputs[asset], None, reused=False)
    return pairs


def write_constitution(home: Home, changed: Mapping[int, str] | None = None) -> None:
    """16 judging principles, rule-0 to rule-15, some with another wording."""
    judging = [
        {"name": f"rule-{i}", "text": (changed or {}).get(i, f"Choose the better response, rule {i}.")}
        for i in range(16)
    ]
    critique = [{"name": "c", "critique_request": "Criticise.", "revision_request": "Rewrite."}]
    shots = ({"prompt": "p0", "better": "first"}, {"prompt": "p1", "better": "second"})
    examples = [{**shot, "first": "good", "second": "bad", "principle": "Choose."} for shot in shots]
    content = {"critique": critique, "judging": judging, "judging_examples": examples}
    (home.folder / "constitution.yaml").write_text(yaml.safe_dump(content))


def write_verdicts(home: Home, *rows: Mapping[str, Any]) -> str:
    """The override that gives the home these verdicts."""
    path = home.folder / "verdicts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"human_verdicts.path={path}"


def label(home: Home, *overrides: str, tags: dict[str, str] | None = None) -> dg.ExecuteInProcessResult:
    """Step 3 from its sources to the label changes; it must succeed."""
    result = home.run(STEP_3, *overrides, tags=tags)
    assert result.success, failure(result)
    return result


def snapshot(home: Home, asset: str = LABELS) -> SnapshotRecord:
    record = home.warehouse.current(asset)
    assert record is not None
    return record


def labels_of(home: Home, snapshot_id: str | None = None) -> list[Label]:
    rows = home.warehouse.rows("labels", snapshot_id or snapshot(home).snapshot_id)
    return as_records(Label, rows)


def principle_counts(home: Home, labels: Sequence[Label]) -> dict[str, int]:
    """Judgements by the principle's id."""
    found = JudgementStore(home.warehouse).fetch([one for label in labels for one in label.judgement_ids])
    counts: dict[str, int] = {}
    for row in found.values():
        counts[row.principle_id] = counts.get(row.principle_id, 0) + 1
    return counts
