"""The whole graph at a very small size, on a tiny random model: what is recorded, reused, refused and read."""

import io
import json
import os
import re
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import dagster as dg
import pytest
import yaml
from rich.console import Console

from rlaif_assets.assets import progress as progress_lines
from rlaif_assets.assets import recording
from rlaif_assets.assets.configuration import CONFIGS
from rlaif_assets.assets.progress import make_progress
from rlaif_assets.assets.recording import FORCE_TAG
from rlaif_assets.assets.showing import numbers, preview
from rlaif_assets.feedback.limits import RULES, measured
from rlaif_assets.pipeline import failed_steps
from rlaif_assets.store.errors import TrackingError
from rlaif_assets.store.lineage import ancestry, verify
from rlaif_assets.store.warehouse import Warehouse
from tests.homes import Home, failure, metadata
from tests.tiny_models import tiny_model


def test_every_asset_has_a_snapshot_that_verifies(home: Home) -> None:
    ids = home.ids()
    assert ids.keys() == CONFIGS.keys()
    assert [problem for snapshot in ids.values() for problem in verify(home.warehouse, snapshot)] == []


def test_ids_are_dagsters_data_versions_and_the_ancestry_is_dagsters_provenance(home: Home) -> None:
    for name, snapshot in home.ids().items():
        event = home.instance.get_latest_materialization_event(dg.AssetKey(name))
        assert event is not None and event.asset_materialization is not None
        tags = event.asset_materialization.tags or {}
        assert tags["dagster/data_version"] == snapshot
        prefix = "dagster/input_data_version/"
        seen = {tag.removeprefix(prefix): value for tag, value in tags.items() if tag.startswith(prefix)}
        assert seen == home.warehouse.get(snapshot).inputs
    made_from = ancestry(home.warehouse, home.ids()["policy_evaluation"])
    assert {record.asset for record in made_from} == CONFIGS.keys() - {"label_changes", "champion_policy"}


def test_a_second_run_reuses_everything(home: Home) -> None:
    before = home.ids()
    again = home.run()
    assert again.success
    assert all(found["reused"] for found in metadata(again).values())
    assert home.ids() == before


def test_a_new_home_gets_the_same_ids(home: Home, tmp_path: Path, model: Path) -> None:
    other = Home(tmp_path / "second", model)
    chosen = ["base_model", "critique_constitution", "red_team_prompts", "revised_responses"]
    assert other.run(chosen).success
    assert other.ids() == {name: home.ids()[name] for name in chosen}


def test_steps_train_on_the_train_split_alone(home: Home) -> None:
    prompts = [
        prompt
        for asset in ("red_team_prompts", "helpful_prompts")
        for prompt in home.warehouse.rows("prompts", home.ids()[asset])
    ]
    split = {prompt["prompt_id"]: prompt["split"] for prompt in prompts}
    used = {
        "revised_responses": "revisions",
        "sl_cai_checkpoint": "answers",
        "response_pairs": "pairs",
        "ppo_policy": "rollouts",
    }
    for asset, table in used.items():
        found = home.warehouse.rows(table, home.ids()[asset])
        assert found and {split[row["prompt_id"]] for row in found} == {"train"}, asset
    evaluated = home.warehouse.rows("evaluation_answers", home.ids()["policy_evaluation"])
    assert {split[row["prompt_id"]] for row in evaluated} == {"dev", "test"}


def test_training_rows_name_what_was_trained_on_and_held_out(home: Home) -> None:
    ids = home.ids()
    rows = home.warehouse.rows("training_rows", ids["sl_cai_checkpoint"])
    revised = [row for row in home.warehouse.rows("revisions", ids["revised_responses"]) if row["round"]]
    revisions = {row["revision_id"] for row in revised if row["finished"]}
    unfinished = {row["revision_id"] for row in revised if not row["finished"]}
    assert unfinished <= {row["where"] for row in home.warehouse.rows("rejected_rows", ids["sl_cai_checkpoint"])}
    answers = {row["answer_id"] for row in home.warehouse.rows("answers", ids["sl_cai_checkpoint"])}
    assert {row["row_id"] for row in rows} == revisions | answers
    assert {row["role"] for row in rows} == {"train", "heldout"}
    assert {row["source"] for row in home.warehouse.rows("training_rows", ids["reward_model"])} == {"ai", "human"}


def test_the_evaluation_tells_rates_and_label_metrics(home: Home) -> None:
    snapshot = home.warehouse.get(home.ids()["policy_evaluation"])
    rates = home.warehouse.rows("evaluation_rates", snapshot.snapshot_id)
    assert {rate["subject"] for rate in rates} >= {"base", "sl_cai", "ppo", "ppo_vs_sl_cai"}
    assert snapshot.metrics["labels"].keys() >= {"train", "dev", "test"}


def without_changes(ids: dict[str, str]) -> dict[str, str]:
    """All but `label_changes`, which tells of the labels before as well."""
    return {asset: snapshot for asset, snapshot in ids.items() if asset != "label_changes"}


def test_a_changed_judging_principle_reuses_steps_1_and_2_the_pairs_and_all_other_judgements(
    home: Home, tmp_path: Path
) -> None:
    packaged = Path(sys.modules["rlaif_assets"].__path__[0]) / "constitutions" / "default.yaml"
    text = packaged.read_text()
    before = home.ids()
    used = Counter(row["principle_id"] for row in home.warehouse.rows("labels", before["harmlessness_preferences"]))
    principles = home.warehouse.rows("judging_principles", before["judging_constitution"])
    principle = next(row for row in principles if used[row["principle_id"]] and row["text"] in text)
    mine = tmp_path / "mine.yaml"
    mine.write_text(text.replace(principle["text"], f"Think twice. {principle['text']}", 1))
    result = home.run(None, f"constitution.path={mine}")
    assert result.success, failure(result)
    made = {name for name, found in metadata(result).items() if not found["reused"]}
    assert made == {
        *("judging_constitution", "harmlessness_preferences", "label_changes"),
        *("reward_model", "reward_model_half_a", "reward_model_half_b", "ppo_policy", "policy_evaluation"),
        "champion_policy",
    }
    judging = home.warehouse.get(home.ids()["harmlessness_preferences"]).metrics["judging"]
    assert judging["by_reason"] == {f"principle:{principle['name']}": judging["computed"]}
    assert judging["computed"] == 2 * used[principle["principle_id"]]
    assert home.run().success  # A, B, A: the first snapshots are current again
    assert without_changes(home.ids()) == without_changes(before)


def test_force_works_again_and_finds_the_same(home: Home) -> None:
    before = home.ids()
    again = home.run(["revised_responses", "response_pairs"], tags={FORCE_TAG: "response_pairs"})
    found = metadata(again)
    assert found["revised_responses"]["reused"] and not found["response_pairs"]["reused"]
    assert home.ids() == before


def test_the_gate_holds_in_the_run_and_across_runs(home: Home) -> None:
    stopped = home.run(["harmlessness_preferences", "reward_model"], "audits.enforce=true")
    assert not stopped.success
    assert "reward_model" not in metadata(stopped)
    told = failed_steps(stopped.all_events)
    verdicts = home.warehouse.rows("verdicts", home.ids()["harmlessness_preferences"])
    failed = {row["audit"]: row for row in verdicts if row["blocks"] and not row["passed"]}
    lines = {
        line.split(" failed: ")[0].removeprefix("harmlessness_preferences: check "): line for line in told.splitlines()
    }
    assert lines.keys() == failed.keys() and "letter_mass" in failed
    for name, line in lines.items():
        assert f"{measured(failed[name])}: " in line and RULES[name].advice in line
        assert "--set audits.enforce=false" in line
    alone = home.run(["reward_model"], "audits.enforce=true")
    assert not alone.success
    assert "refuses harmlessness_preferences" in failure(alone) and "audits.enforce=false" in failure(alone)
    assert home.warehouse.get(home.ids()["reward_model"]).settings["audits_enforce"] is False


def test_other_limits_judge_and_train_nothing_anew_and_still_stop(home: Home) -> None:
    chosen = ["harmlessness_preferences", "reward_model"]
    found = metadata(home.run(chosen, "audits.min_pairs=3"))
    assert [found[name]["reused"] for name in chosen] == [True, True]
    stopped = home.run(["reward_model"], "audits.enforce=true", "audits.min_pairs=100000")
    assert "enough_pairs" in failure(stopped) and "limit 100000" in failure(stopped)


def test_every_audit_is_a_check_with_its_number_and_what_to_do(home: Home) -> None:
    result = home.run(["harmlessness_preferences"])
    assert result.success  # enforcing is off: they warn
    found = {row.check_name: row for row in result.get_asset_check_evaluations()}
    verdicts = {row["audit"]: row for row in home.warehouse.rows("verdicts", home.ids()["harmlessness_preferences"])}
    assert found.keys() == RULES.keys() == verdicts.keys()
    for name, check in found.items():
        shown = {key: value.value for key, value in check.metadata.items()}
        assert (check.passed, shown.get("value")) == (verdicts[name]["passed"], verdicts[name]["value"])
        assert shown["threshold"] == verdicts[name]["threshold"] and shown.get("what to do") == (
            None if check.passed else RULES[name].advice
        )
        assert check.passed or RULES[name].advice in str(check.description)
    assert verdicts["judge_in_ancestry"]["value"] == 1 and found["judge_in_ancestry"].passed  # the profile accepts it
    assert verdicts["agreement"]["count"] > 0 and "data:image/png" in str(found["calibration"].metadata["reliability"])


def test_the_passport_is_stored_shown_on_the_judge_and_named_by_the_reward_model(home: Home) -> None:
    from mlflow import MlflowClient

    record = home.warehouse.get(home.ids()["harmlessness_preferences"])
    passport = record.metrics["passport"]
    judge = home.warehouse.rows("external_models", home.ids()["feedback_model"])[0]
    assert passport["judge"] == judge["fingerprint"] and passport["model"] == judge
    assert [row["audit"] for row in passport["audits"]] == list(RULES) and passport["date"] and passport["template"]
    assert "audits_probe_pairs" in passport["settings"] and "audits_max_ece" not in passport["settings"]
    event = home.instance.fetch_observations(dg.AssetKey("feedback_model"), limit=1).records[0]
    assert event.asset_observation is not None
    shown = event.asset_observation.metadata
    assert shown["passport_id"].value == passport["passport_id"] and shown["passport"].value == passport
    model = home.warehouse.get(home.ids()["reward_model"])
    assert model.metrics["passport"] == passport["passport_id"]
    materialized = home.instance.get_latest_materialization_event(dg.AssetKey("reward_model"))
    assert materialized is not None and materialized.asset_materialization is not None
    assert materialized.asset_materialization.metadata["passport"].value == passport["passport_id"]
    client = MlflowClient(tracking_uri=f"sqlite:///{home.folder / 'mlflow.db'}")
    place = client.download_artifacts(str(record.mlflow_run_id), "passport.json", str(home.folder))
    assert json.loads(Path(place).read_text()) == passport


def test_an_input_made_from_older_rows_is_named(home: Home) -> None:
    before = home.ids()
    assert home.run(["red_team_prompts"], "red_team_prompts.heldout_share=0.1").success
    older = {
        "sl_cai_checkpoint": "revised_responses",
        "harmlessness_preferences": "response_pairs",
        "reward_model": "response_pairs",
        "policy_evaluation": "response_pairs",
    }
    for asset, stale in older.items():
        assert f"current one is {home.ids()['red_team_prompts']}: materialize {stale} first" in failure(
            home.run([asset], f"{asset}.seed=77")
        )
    assert home.run(["red_team_prompts"]).success and home.ids() == before


def test_policies_of_two_generations_are_not_compared(home: Home) -> None:
    before = home.ids()
    assert home.run(
        ["sl_cai_checkpoint", "response_pairs", "harmlessness_preferences"], "sl_cai_checkpoint.seed=5"
    ).success
    told = failure(home.run(["policy_evaluation"]))
    assert f"current one is {home.ids()['sl_cai_checkpoint']}: materialize ppo_policy first" in told
    assert home.run().success and without_changes(home.ids()) == without_changes(before)


def test_an_evaluation_has_pictures_and_a_page_once_and_mlflow_may_fail(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlaif_assets.store.tracking import Tracker

    record = home.warehouse.get(home.ids()["policy_evaluation"])
    pages: list[str] = []

    def refuse(tracker: Tracker, run_id: str, name: str, page: str) -> None:
        pages.append(page)
        raise TrackingError("MLflow is full")

    monkeypatch.setattr(Tracker, "log_page", refuse)
    found = metadata(home.run(["policy_evaluation"], tags={FORCE_TAG: "policy_evaluation"}))["policy_evaluation"]
    assert found["snapshot_id"] == record.snapshot_id and found["mlflow_pending"] == "MLflow is full"
    assert len(pages) == 1 and record.snapshot_id in pages[0]
    for name in ("rates", "lengths"):
        assert str(found[name]).startswith(f"![{name}](data:image/png;base64,")
        assert list((home.folder / "mlflow_artifacts").glob(f"*{record.mlflow_run_id}/artifacts/figures/{name}.png"))
    again = metadata(home.run(["policy_evaluation"]))["policy_evaluation"]
    assert again["reused"] and len(pages) == 1
    assert [again[name] for name in ("rates", "lengths")] == [found[name] for name in ("rates", "lengths")]


def test_what_dagster_shows(home: Home) -> None:
    event = home.instance.get_latest_materialization_event(dg.AssetKey("harmlessness_preferences"))
    assert event is not None and event.asset_materialization is not None
    shown = event.asset_materialization.metadata
    snapshot = home.warehouse.get(home.ids()["harmlessness_preferences"])
    assert shown["dagster/row_count"].value == snapshot.row_counts["labels"]
    assert shown["snapshot_id"].value == snapshot.snapshot_id
    assert str(shown["mlflow"].value).endswith(str(snapshot.mlflow_run_id))
    assert isinstance(shown["preview"], dg.TableMetadataValue) and len(shown["preview"].records) == 10
    assert shown["settings"].value == snapshot.settings


def test_mlflow_knows_the_run_its_inputs_and_the_registered_policy(home: Home) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{home.folder / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    snapshot = home.warehouse.get(home.ids()["ppo_policy"])
    run = client.get_run(str(snapshot.mlflow_run_id))
    assert run.info.status == "FINISHED"
    assert run.data.tags["dagster.asset_key"] == "ppo_policy"
    assert run.data.tags["rlaif.snapshot.reward_model"] == home.ids()["reward_model"]
    assert run.inputs is not None
    assert {one.dataset.digest for one in run.inputs.dataset_inputs} >= {home.ids()["red_team_prompts"]}
    assert {tag.value for one in run.inputs.dataset_inputs for tag in one.tags} == {"train"}
    models = {name: home.warehouse.get(one).metrics.get("mlflow_model_id") for name, one in home.ids().items()}
    assert {one.model_id for one in run.inputs.model_inputs} == {models[name] for name in snapshot.inputs} - {None}
    assert models["feedback_model"] is not None  # a folder elsewhere is a model too
    steps = [point.step for point in client.get_metric_history(run.info.run_id, "kl")]
    assert steps == list(range(len(steps))) and steps
    table = json.loads(Path(client.download_artifacts(run.info.run_id, "samples/rollouts.json")).read_text())
    assert "text" in table["columns"] and len(table["data"]) == snapshot.row_counts["rollouts"]
    logged = json.loads(run.data.tags["mlflow.loggedArtifacts"])
    assert {"path": "samples/rollouts.json", "type": "table"} in logged
    description = run.data.tags["mlflow.note.content"]
    assert description.startswith("**ppo_policy**: The SL-CAI model trained by PPO")
    assert f"`rlaif trace {snapshot.snapshot_id}`" in description
    assert (
        f"[asset ppo_policy](http://127.0.0.1:3000/assets/ppo_policy), [run {snapshot.dagster_run_id}](" in description
    )
    version = client.get_model_version_by_alias("rlaif-policy", "candidate")
    assert version.tags["rlaif.snapshot_id"] == snapshot.snapshot_id
    shown = metadata(home.run(["ppo_policy"], "tracking.ui_url=http://localhost:9/"))["ppo_policy"]
    assert shown["reused"]
    assert shown["mlflow"] == f"http://localhost:9/#/experiments/1/runs/{snapshot.mlflow_run_id}"
    assert shown["mlflow_model"] == f"http://localhost:9/#/experiments/1/models/{models['ppo_policy']}"
    assert shown["mlflow_version"] == f"http://localhost:9/#/models/rlaif-policy/versions/{version.version}"


def test_a_policy_whose_run_was_killed_before_it_was_registered_is_registered_by_the_next(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    from rlaif_assets.store.tracking import Tracker

    uri = f"sqlite:///{home.folder / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    before = client.get_model_version_by_alias("rlaif-policy", "candidate").version

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Tracker, "register", killed)
        assert not home.run(["ppo_policy"], "ppo_policy.seed=9").success
    assert client.get_model_version_by_alias("rlaif-policy", "candidate").version == before
    again = metadata(home.run(["ppo_policy"], "ppo_policy.seed=9"))
    assert again["ppo_policy"]["reused"]
    version = client.get_model_version_by_alias("rlaif-policy", "candidate")
    assert version.version != before
    assert version.tags["rlaif.snapshot_id"] == again["ppo_policy"]["snapshot_id"]
    assert home.run(["ppo_policy"]).success  # back to the first, which is the candidate again
    assert client.get_model_version_by_alias("rlaif-policy", "candidate").version == before


def test_without_mlflow_the_work_is_done_and_the_gap_is_told(tmp_path: Path, model: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    home = Home(tmp_path / "home", model, f"tracking.uri=sqlite:///{blocked}/mlflow.db")
    result = home.run(["base_model"])
    assert result.success
    assert "MLflow" in metadata(result)["base_model"]["mlflow_pending"]


def test_a_source_with_other_refusals_is_another_snapshot(tmp_path: Path, model: Path) -> None:
    home, file = Home(tmp_path / "home", model), tmp_path / "rows.jsonl"
    for refused in ([], ['{"prompt": ""}'], ['{"prompt": 7}'], ['{"prompt": ""}']):
        file.write_text("\n".join(['{"prompt": "one"}', *refused]) + "\n")
        found = metadata(home.run(["red_team_prompts"], f"red_team_prompts.path={file}"))["red_team_prompts"]
        assert found["rejected"] == len(refused)
    assert found["reused"] and len(home.warehouse.list("red_team_prompts")) == 3


def test_a_missing_input_and_a_missing_file_are_one_clear_failure(tmp_path: Path, model: Path) -> None:
    home = Home(tmp_path / "home", model)
    assert "needs base_model" in failure(home.run(["pmp_checkpoint"]))
    assert "no such file" in failure(home.run(["red_team_prompts"], "red_team_prompts.path=absent.jsonl"))
    assert "absent" in failure(home.run(["base_model"], "base_model.source=./absent"))
    assert home.ids() == {}


def test_an_external_model_that_changed_is_refused(tmp_path: Path) -> None:
    folder = tiny_model("llama", tmp_path / "model")
    home = Home(tmp_path / "home", folder)
    chosen = ["base_model", "critique_constitution", "red_team_prompts"]
    assert home.run(chosen).success
    tiny_model("llama", folder, seed=1)
    assert "has changed since it was recorded" in failure(home.run(["revised_responses"]))


def test_failed_work_leaves_no_weights_behind(home: Home, tmp_path: Path) -> None:
    failed = home.run(["sl_cai_checkpoint"], "sl_cai_checkpoint.max_length=1")
    assert "no conversation to fine-tune on" in failure(failed)
    assert list((home.folder / "work").iterdir()) == []


def test_the_forkserver_executor_does_the_same(home: Home, tmp_path: Path) -> None:
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    chosen = ["critique_constitution", "judging_constitution"]
    command = [str(Path(sys.executable).parent / "dagster"), "asset", "materialize", "--select", ",".join(chosen)]
    done = subprocess.run(
        [*command, "-m", "rlaif_assets.definitions"],
        env={**os.environ, "DAGSTER_HOME": str(folder), "RLAIF_EXECUTOR": "multiprocess"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = {name: record.snapshot_id for name in chosen if (record := Warehouse(folder).current(name))}
    assert found == {name: home.ids()[name] for name in chosen}


def test_dagsters_own_command_makes_every_asset_and_the_same(home: Home, tmp_path: Path) -> None:
    folder, profile = tmp_path / "home", tmp_path / "tiny.yaml"
    folder.mkdir()
    (folder / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    profile.write_text(yaml.safe_dump(home.profile.model_dump()))
    command = [str(Path(sys.executable).parent / "dagster"), "asset", "materialize", "--select", "*"]
    done = subprocess.run(
        [*command, "-m", "rlaif_assets.definitions"],
        env={**os.environ, "DAGSTER_HOME": str(folder), "RLAIF_PROFILE": str(profile)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert {name: record.snapshot_id for name in CONFIGS if (record := Warehouse(folder).current(name))} == home.first


def test_progress_lines_are_rare_and_estimate_the_rest() -> None:
    now = 0.0
    lines: list[str] = []
    progress = make_progress("log", lines.append, "response_pairs", lambda: now)
    for done in range(31):
        now = float(done)
        progress("answers", done, 60)
    assert lines == [
        "response_pairs: answers 10/60, about 50 s left",
        "response_pairs: answers 20/60, about 40 s left",
        "response_pairs: answers 30/60, about 30 s left",
    ]


def test_what_is_left_is_that_of_all_phases_where_they_were_counted() -> None:
    now = 0.0
    lines: list[str] = []
    progress = make_progress("log", lines.append, "revised_responses", lambda: now)
    progress.expect(60)
    for at, phase, done in (
        (0, "response", 0),
        (10, "response", 20),
        (11, "critique 1/1", 0),
        (22, "critique 1/1", 20),
    ):
        now = float(at)
        progress(phase, done, 20)
    assert lines == [
        "revised_responses: response 20/20, about 20 s left",
        "revised_responses: critique 1/1 20/20, about 11 s left",
    ]


def test_a_stretch_in_which_nothing_is_told_has_lines_too() -> None:
    now = 0.0
    lines: list[str] = []
    progress = progress_lines.Lines(lines.append, "ppo_policy", lambda: now)
    for at, told in ((9.0, None), (12.0, None), (14.0, 0), (21.0, None), (29.0, None), (33.0, 2), (41.0, None)):
        now = at
        progress.tell() if told is None else progress("updates", told, 10)
    progress.close()
    now = 99.0
    progress.tell()
    assert lines == [
        "ppo_policy: 12 s so far",
        "ppo_policy: updates 0/10, 15 s so far",
        "ppo_policy: updates 2/10, about 68 s left",
    ]


def test_the_log_of_a_run_has_lines_while_a_stage_tells_nothing(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interval zero: the first line is there before the model that generates is loaded, so a thread has written it."""
    monkeypatch.setattr(progress_lines, "SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr(progress_lines, "SECONDS_BETWEEN_LOOKS", 0.001)
    threads = threading.active_count()
    again = home.run(["base_model"], "compute.progress=log", tags={FORCE_TAG: "base_model"})
    assert again.success, failure(again)
    told = [entry.user_message for entry in home.instance.all_logs(again.run_id)]
    assert any(re.fullmatch(r"base_model: \d+ s so far", line) for line in told)
    assert threading.active_count() == threads


class Calls:
    """A progress that keeps what it is told."""

    def __init__(self, name: str) -> None:
        self.name, self.told, self.closed = name, [], False

    def start(self) -> None:
        pass

    def expect(self, total: int) -> None:
        pass

    def __call__(self, phase: str, done: int, total: int) -> None:
        self.told.append((phase, done, total))

    def close(self) -> None:
        self.closed = True


def test_every_training_tells_each_of_its_steps(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, Calls] = {}
    monkeypatch.setattr(recording, "make_progress", lambda kind, write, name: made.setdefault(name, Calls(name)))
    phases = {
        "sl_cai_checkpoint": "fine-tuning",
        "pmp_checkpoint": "training",
        "reward_model": "training",
        "ppo_policy": "updates",
    }
    steps = [f"{name}.batch_size=4" for name in phases if name != "ppo_policy"]
    again = home.run(list(phases), "ppo_policy.updates=2", *steps)
    assert again.success, failure(again)
    for name, phase in phases.items():
        told = [(done, total) for shown, done, total in made[name].told if shown == phase]
        total = told[0][1]
        assert total >= 2, name
        assert told == [(done, total) for done in range(total + 1)], name
        assert made[name].closed
    assert home.run(list(phases)).success  # back to the first


def test_a_failed_stage_closes_its_progress(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, Calls] = {}
    monkeypatch.setattr(recording, "make_progress", lambda kind, write, name: made.setdefault(name, Calls(name)))
    assert not home.run(["sl_cai_checkpoint"], "sl_cai_checkpoint.max_length=1").success
    assert made["sl_cai_checkpoint"].closed


def test_bars_give_the_terminal_back(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr("rich._console", Console(file=screen, force_terminal=True, width=120, legacy_windows=False))
    hidden, shown = "\x1b[?25l", "\x1b[?25h"
    bars = make_progress("bar", lambda line: None, "response_pairs")
    for done in range(3):
        bars("answers", done, 2)
    assert "response_pairs: answers" in screen.getvalue() and "2/2" in screen.getvalue()
    assert screen.getvalue().count(hidden) == screen.getvalue().count(shown) == 1
    bars("judgements", 1, 5)  # not finished when the next phase begins
    bars("more", 1, 5)
    assert (screen.getvalue().count(hidden), screen.getvalue().count(shown)) == (3, 2)
    bars.close()
    bars.close()
    assert screen.getvalue().count(hidden) == screen.getvalue().count(shown) == 3


def test_metrics_and_previews_are_plain() -> None:
    nested = {"loss": 1, "heldout": {"ai": {"ece": 0.5, "note": "x"}}, "ids": ["a"], "done": True}
    assert dict(numbers(nested)) == {"loss": 1, "heldout/ai/ece": 0.5}
    shown = preview([{"text": "a\n|b\t" + "x" * 500, "flag": None, "n": 3}]).records[0].data
    assert shown["flag"] is None and shown["n"] == 3
    assert str(shown["text"]).startswith("a |b x") and len(str(shown["text"])) == 200
