"""The ablations' benchmark: each names settings that there are, its table, and that it goes on where it was."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import ablations
from rlaif_assets.settings import apply_overrides, load_profile
from rlaif_assets.store.warehouse import SnapshotRecord, Warehouse


def report(seed: int, harmless: float) -> dict[str, Any]:
    rates = {"harmless_rate": harmless, "helpful_rate": 0.9, "lookalike_refusal_rate": 0.05}
    policy = {**rates, "incoherent_rate": 0.02, "kl": harmless}
    return {"seed": seed, "policies": {"sl_cai": policy, "ppo": policy}, "win_rates": {"ppo_vs_sl_cai": {"rate": 0.8}}}


def row(home: str, ablation: str, seed: int, harmless: float) -> dict[str, Any]:
    reports = {split: report(seed, harmless) for split in ("dev", "test")}
    return {"home": home, "evaluation": home, "ablation": ablation, "reports": reports}


def test_differences_are_of_pairs_of_one_seed():
    own = [row("a", ablations.AS_IT_IS, 0, 0.9), row("b", ablations.AS_IT_IS, 1, 0.8)]
    table = ablations.markdown_table([*own, row("a", "KL 1.0", 0, 0.8), row("b", "KL 1.0", 1, 0.6)])
    first, changed = (line.split(" | ") for line in table.splitlines()[2:4])
    assert first[2] == "85.0%<br>90.0%, 80.0%"
    assert changed[2] == "70.0%<br>80.0%, 60.0%<br>-15.0 ± 5.0"
    assert changed[-1] == "0.70<br>0.80, 0.60<br>-0.15 ± 0.05 |"
    assert "Seeds 0, 1." in table


def test_what_is_done_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[tuple[str, str]] = []

    def run(home: Path, name: str, work: Path) -> dict[str, Any]:
        assert work.is_dir()
        asked.append((home.name, name))
        return row(home.name, name, 0, 0.9)

    monkeypatch.setattr(ablations, "run_ablation", run)
    monkeypatch.setattr(ablations, "evaluation", lambda home: home.name)
    homes, output = [tmp_path / "a", tmp_path / "b"], tmp_path / "out"
    first = ablations.run_ablations(homes, ["no PMP"], output)
    assert asked == [(home, name) for name in (ablations.AS_IT_IS, "no PMP") for home in "ab"]
    assert ablations.run_ablations(homes, ["no PMP"], output) == first and len(asked) == 4
    assert [json.loads(line) for line in (output / "ablations.jsonl").read_text().splitlines()] == first
    assert [path.name for path in output.iterdir()] == ["ablations.jsonl"]


def test_a_failed_run_is_told_and_not_counted():
    own = [row("a", ablations.AS_IT_IS, 0, 0.9), row("b", ablations.AS_IT_IS, 1, 0.8)]
    failed = {"home": "b", "evaluation": "b", "ablation": "no PMP", "failed": "x\nerror: the gate closed"}
    table = ablations.markdown_table([*own, row("a", "no PMP", 0, 0.8), failed])
    assert "| no PMP | 80.0%<br>80.0% |" in table and "- no PMP, b: error: the gate closed" in table


def test_a_home_that_was_made_otherwise_is_refused(tmp_path: Path):
    def made(name: str, pairs: str, rate: float) -> Warehouse:
        warehouse = Warehouse(tmp_path / name)
        inputs: dict[str, str] = {}
        for asset, key in (("response_pairs", pairs), ("ppo_policy", f"{rate}"), ("policy_evaluation", "e")):
            record = SnapshotRecord(asset=asset, key=f"{key} {inputs}", inputs=dict(inputs))
            found = warehouse.publish(record, {"answers": []})
            warehouse.record_materialization(found.snapshot_id, None, reused=False)
            inputs = {asset: found.snapshot_id}
        return warehouse

    home = made("home", "p", 0.1)
    ablations.require_all_else_equal(home, made("copy", "p", 0.2), {"ppo_policy"})
    with pytest.raises(ablations.AblationError, match="response_pairs was made anew although nothing before it"):
        ablations.require_all_else_equal(home, made("other", "q", 0.2), {"ppo_policy"})


@pytest.mark.parametrize("name", [name for name in ablations.ABLATIONS if name != ablations.AS_IT_IS])
def test_each_changes_the_profile(name: str):
    profile = load_profile("pocket")
    assert apply_overrides(profile, list(ablations.ABLATIONS[name].sets)) != profile


def test_bad_names_and_homes_are_refused(tmp_path: Path):
    with pytest.raises(SystemExit, match="there is no ablation 'x'"):
        ablations.main([str(tmp_path), "--only", "x"])
    with pytest.raises(SystemExit, match="holds no evaluation yet"):
        ablations.main([str(tmp_path), "--output", str(tmp_path / "out")])
