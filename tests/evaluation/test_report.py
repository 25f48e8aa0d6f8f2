import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from rlaif_assets.assets.configuration import CONFIGS
from rlaif_assets.evaluation.report import ReportError, build_report, combine_reports, report_table
from rlaif_assets.store.warehouse import SnapshotRecord, Warehouse
from tests.evaluation.rows import LABELS, fill
from tests.homes import Home

POLICY_KEYS = {
    "harmless_rate", "evasive_rate", "helpful_rate", "lookalike_refusal_rate", "incoherent_rate", "distinct_share",
    "commonest_share", "mean_length", "kl",
}  # fmt: skip
LABEL_KEYS = {
    "accuracy", "accuracy_first_order", "accuracy_second_order", "position_flip_rate", "pairs", "interval",
}  # fmt: skip


def test_the_report_has_the_promised_keys(tmp_path: Path):
    warehouse = fill(tmp_path, ("engaged", "engaged", "evasive", "harmful"), seed=7)
    report = json.loads(json.dumps(build_report(warehouse, "test")))
    assert (report["split"], report["seed"]) == ("test", 7)
    assert set(report["policies"]) == {"base", "sl_cai", "ppo"}
    assert set(report["policies"]["ppo"]) == POLICY_KEYS | {"intervals", "reasons"}
    assert report["policies"]["ppo"]["harmless_rate"] == 0.75
    assert report["policies"]["ppo"]["helpful_rate"] is None
    assert report["policies"]["ppo"]["reasons"]["helpful_rate"]
    assert set(report["win_rates"]) == {"ppo_vs_sl_cai", "ppo_vs_base", "sl_cai_vs_base"}
    assert {"rate", "low", "high", "ties"} <= set(report["win_rates"]["ppo_vs_base"])
    assert report["win_rates"]["ppo_vs_sl_cai"]["rate"] == pytest.approx(2 / 3)
    assert set(report["labels"]) == LABEL_KEYS
    assert report["labels"].items() <= LABELS.items()
    assert report["reward_model"] == {"ai": {"accuracy": 0.8, "nll": 0.4, "ece": 0.05}}
    assert set(report["snapshots"]) == {"harmlessness_preferences", "reward_model", "policy_evaluation"}
    assert report["seconds"]["reward_model"] == 12.5
    assert report["peak_memory_mb"] == 900.0


def test_versions_that_do_not_belong_together_are_named(tmp_path: Path):
    warehouse = fill(tmp_path, ("engaged",) * 4, seed=7)
    old = build_report(warehouse, "test")["snapshots"]["harmlessness_preferences"]
    anew = SnapshotRecord(asset="harmlessness_preferences", key="anew", settings={"seed": 8})
    labels = warehouse.publish(anew, {}).snapshot_id
    made = warehouse.get(build_report(warehouse, "test")["snapshots"]["policy_evaluation"])
    inputs = {**made.inputs, "harmlessness_preferences": labels}
    later = SnapshotRecord(asset="policy_evaluation", key="later", settings={"seed": 7}, inputs=inputs)
    warehouse.record_materialization(warehouse.publish(later, {}).snapshot_id, None, reused=False)
    report = build_report(warehouse, "test")
    assert report["mixed"] == {"harmlessness_preferences": [old, labels]}
    assert report["snapshots"]["harmlessness_preferences"] == labels and report["seed"] is None
    shown = StringIO()
    Console(file=shown, width=120).print(report_table(report))
    assert "several versions of harmlessness_preferences are in this" in shown.getvalue()


AFTERWARDS = {"label_changes", "champion_policy"}  # which an evaluation is not made from


def test_the_report_of_a_run_covers_all_of_its_assets(home: Home):
    report = json.loads(json.dumps(build_report(home.warehouse, "test")))
    assert set(report) == {
        "split", "seed", "policies", "win_rates", "labels", "reward_model", "snapshots", "mixed", "seconds",
        "peak_memory_mb",
    }  # fmt: skip
    assert report["mixed"] == {}
    made_from = {asset: snapshot for asset, snapshot in home.first.items() if asset not in AFTERWARDS}
    assert report["snapshots"] == made_from and home.first.keys() == CONFIGS.keys()
    assert report["seconds"].keys() == made_from.keys()
    assert all(seconds > 0 for seconds in report["seconds"].values())
    assert report["peak_memory_mb"] > 0
    for policy in ("base", "sl_cai", "ppo"):
        assert report["policies"][policy].keys() == POLICY_KEYS | {"intervals", "reasons"}
    for duel in ("ppo_vs_sl_cai", "ppo_vs_base", "sl_cai_vs_base"):
        assert report["win_rates"][duel].keys() >= {"rate", "low", "high", "ties"}
    assert report["reward_model"] and all(
        found.keys() == {"accuracy", "nll", "ece"} for found in report["reward_model"].values()
    )


def test_several_homes_give_mean_and_spread(tmp_path: Path):
    verdicts = [("engaged",) * 4, ("engaged", "engaged", "harmful", "harmful")]
    reports = [build_report(fill(tmp_path / str(i), v, seed=i), "test") for i, v in enumerate(verdicts)]
    combined = combine_reports(reports, ["a", "b"])
    assert combined["mean"]["policies"]["ppo"]["harmless_rate"] == 0.75
    assert combined["spread"]["policies"]["ppo"]["harmless_rate"] == pytest.approx(0.125**0.5)
    assert combined["mean"]["policies"]["ppo"].get("helpful_rate") is None and combined["left_out"] == []
    assert "low" not in combined["mean"]["win_rates"]["ppo_vs_sl_cai"]  # an interval has no mean
    assert set(combined["homes"]) == {"a", "b"}


def shown(table: RenderableType) -> str:
    console = Console(width=160, record=True, file=StringIO())
    console.print(table)
    return console.export_text()


def test_what_a_home_lacks_is_told_and_shown_as_missing(tmp_path: Path):
    reports = [build_report(fill(tmp_path / str(i), ("engaged",) * 4, seed=i), "test") for i in range(2)]
    reports[1]["policies"]["ppo"]["harmless_rate"] = None
    del reports[1]["policies"]["sl_cai"]
    reports[1]["win_rates"]["ppo_vs_sl_cai"]["note"] = "self_judged"
    reports[1]["mixed"] = {"harmlessness_preferences": ["one", "two"]}
    combined = combine_reports(reports, ["a", "b"])
    (line,) = combined["left_out"]
    assert line.startswith("left out of the means, b has none of: ")
    assert "policies.ppo.harmless_rate" in line and "policies.sl_cai.harmless_rate" in line
    text = shown(report_table({"split": "test", **combined["mean"], "mixed": combined["mixed"]}, combined["spread"]))
    row = next(line for line in text.splitlines() if "harmless rate" in line)
    assert [cell.strip() for cell in row.split("│")[2:5]] == ["0.0% ± 0.0%", "-", "-"]
    assert "self-judged (1 of 2 homes)" in text
    assert "several versions of harmlessness_preferences are in this" in text
    reports[0]["win_rates"]["ppo_vs_sl_cai"]["note"] = "self_judged"
    both = combine_reports(reports, ["a", "b"])
    assert both["mean"]["win_rates"]["ppo_vs_sl_cai"]["note"] == "self_judged"


def test_the_tables_show_policies_side_by_side(tmp_path: Path):
    report = build_report(fill(tmp_path, ("engaged",) * 4), "test")
    console = Console(width=120, record=True, file=StringIO())
    console.print(report_table(report))
    text = console.export_text()
    assert "SL-CAI" in text and "PPO" in text
    line = next(line for line in text.splitlines() if "harmless rate" in line)
    assert line.split("│")[2:5] == ["   0.0% ", " 100.0% ", " 100.0% "]
    assert "win rate PPO over SL-CAI" in text


def test_an_empty_home_is_a_clear_error(tmp_path: Path):
    with pytest.raises(ReportError, match="rlaif run"):
        build_report(Warehouse(tmp_path), "test")
    assert not (tmp_path / "warehouse.duckdb").exists()
