"""The tracker against a real MLflow on SQLite in a temporary home."""

import json
import os
import shutil
import signal
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

from rlaif_assets.store.moved_home import ARTIFACTS, follow_home
from rlaif_assets.store.tracking import PRUNED_TAG, Tracker, TrackingError

SNAPSHOT = "0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    home = tmp_path_factory.mktemp("home with a space")
    return Tracker(None, home, "rlaif", "http://127.0.0.1:5000/")


def test_a_run_keeps_what_it_was_told(tracker: Tracker) -> None:
    run_id = tracker.start_run("ppo_policy", {"dagster.run_id": "r1", "long": "x" * 9000})
    tracker.log_params(run_id, {f"p{i}": i for i in range(150)} | {"text": "a", "none": None, "long": "y" * 7000})
    tracker.log_metrics(run_id, {"kl": 0.5, "loss": float("nan")}, step=3)
    tracker.log_metrics(run_id, {"kl": 0.25}, step=4)
    tracker.log_dataset_input(run_id, "prompts", SNAPSHOT, 12)
    tracker.log_figure(run_id, "curve", b"\x89PNG...")
    tracker.log_page(run_id, "report", "<p>schön</p>")
    tracker.end_run(run_id, "FAILED")
    run = tracker.client.get_run(run_id)
    assert run.info.status == "FAILED"
    assert run.data.tags["dagster.run_id"] == "r1"
    assert (run.data.params["p149"], run.data.params["text"], run.data.params["none"]) == ("149", "a", "null")
    assert len(run.data.params["long"]) == 6000
    assert [(m.step, m.value) for m in tracker.client.get_metric_history(run_id, "kl")] == [(3, 0.5), (4, 0.25)]
    assert run.inputs is not None
    (given,) = run.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("prompts", SNAPSHOT)
    assert len(given.dataset.digest) <= 36
    assert [file.path for file in tracker.client.list_artifacts(run_id, "figures")] == ["figures/curve.png"]
    assert Path(tracker.client.download_artifacts(run_id, "report.html")).read_text("utf-8") == "<p>schön</p>"
    experiment = tracker.client.get_run(run_id).info.experiment_id
    assert tracker.url(run_id) == f"http://127.0.0.1:5000/#/experiments/{experiment}/runs/{run_id}"


def test_models_are_edges_between_runs_and_their_weights_stay_where_they_are(tracker: Tracker) -> None:
    first = tracker.start_run("sl_cai_checkpoint")
    sl_cai = tracker.log_model(first, "sl_cai_checkpoint", "checkpoints/sl_cai_checkpoint/ab", {"snapshot": SNAPSHOT})
    second = tracker.start_run("ppo_policy")
    tracker.log_model_input(second, sl_cai)
    policy = tracker.log_model(second, "ppo_policy", "checkpoints/ppo_policy/cd")
    run = tracker.client.get_run(second)
    assert run.inputs is not None
    assert run.outputs is not None
    assert [model.model_id for model in run.inputs.model_inputs] == [sl_cai]
    assert [model.model_id for model in run.outputs.model_outputs] == [policy]
    model = tracker.client.get_logged_model(sl_cai)
    assert (str(model.status), model.source_run_id, model.tags["snapshot"]) == ("READY", first, SNAPSHOT)
    files = [path for path in (tracker.home / "mlflow_artifacts" / "models" / sl_cai).rglob("*") if path.is_file()]
    pointers = [path for path in files if path.name == "rlaif_pointer.json"]
    assert len(pointers) == 1
    assert "checkpoints/sl_cai_checkpoint/ab" in pointers[0].read_text()
    assert sum(path.stat().st_size for path in files) < 10_000


def test_a_snapshot_is_registered_once(tracker: Tracker) -> None:
    run_id = tracker.start_run("ppo_policy")
    model = tracker.log_model(run_id, "ppo_policy", "checkpoints/ppo_policy/ef")
    first = tracker.register(model, "rlaif-policy", SNAPSHOT)
    assert tracker.register(model, "rlaif-policy", SNAPSHOT) == first
    told = json.loads(tracker.client.get_logged_model(model).tags["mlflow.modelVersions"])
    assert told == [{"name": "rlaif-policy", "version": first}]
    other = tracker.register(tracker.log_model(run_id, "ppo_policy"), "rlaif-policy", "f" * 32)
    assert other != first
    by_alias = tracker.client.get_model_version_by_alias("rlaif-policy", "candidate")
    assert (str(by_alias.version), by_alias.tags["rlaif.snapshot_id"]) == (other, "f" * 32)
    assert tracker.register(model, "rlaif-policy", SNAPSHOT) == first
    assert str(tracker.client.get_model_version_by_alias("rlaif-policy", "candidate").version) == first
    assert len(tracker.client.search_model_versions("name = 'rlaif-policy'")) == 2


def test_an_alias_names_a_version_of_its_snapshot_or_none(tracker: Tracker) -> None:
    run_id = tracker.start_run("ppo_policy")
    for number in range(2):
        tracker.register(tracker.log_model(run_id, "ppo_policy"), "pointed", f"{number}" * 32)
    assert tracker.point("pointed", "champion", "1" * 32) is True
    assert tracker.aliased("pointed") == {"candidate": "1" * 32, "champion": "1" * 32}
    assert tracker.point("pointed", "champion", "0" * 32) is True
    assert tracker.aliased("pointed")["champion"] == "0" * 32
    for _ in range(2):
        assert tracker.point("pointed", "champion", "f" * 32) is False
        assert tracker.aliased("pointed") == {"candidate": "1" * 32}
    assert tracker.point("unknown", "champion", "f" * 32) is False


def test_nothing_leaves_the_home_and_nothing_is_global(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    run_id = tracker.start_run("here")
    tracker.log_figure(run_id, "curve", b"\x89PNG...")
    assert list(tmp_path.iterdir()) == []
    import mlflow

    assert mlflow.active_run() is None
    assert (os.environ["MLFLOW_DISABLE_TELEMETRY"], os.environ["DO_NOT_TRACK"]) == ("true", "true")


def test_a_copied_home_writes_to_itself(tracker: Tracker, tmp_path: Path) -> None:
    earlier = tracker.start_run("before")
    tracker.log_page(earlier, "page", "read me")
    model_id = tracker.log_model(earlier, "policy", "checkpoints/p")
    tracker.register(model_id, "rlaif-policy", SNAPSHOT)
    shutil.copytree(tracker.home, tmp_path / "copy")
    before = sorted(tracker.home.rglob("*"))
    copy = Tracker(None, tmp_path / "copy", "rlaif", "http://127.0.0.1:5000")
    run_id = copy.start_run("after")
    copy.log_figure(run_id, "moved", b"\x89PNG...")
    assert len(list((tmp_path / "copy").rglob("moved.png"))) == 1
    assert sorted(tracker.home.rglob("*")) == before
    assert copy.experiment_id == tracker.experiment_id == Tracker(None, tmp_path / "copy", "rlaif", "").experiment_id

    # What it shows of before the copy is its own as well: the original may be gone.
    assert (
        tracker.client.get_run(earlier).info.artifact_uri
        == f"{(tracker.home / ARTIFACTS).as_uri()}/{earlier}/artifacts"
    )
    away = tracker.home.rename(tmp_path / "away")
    assert [one.path for one in copy.client.list_artifacts(earlier)] == ["page.html"]
    version = copy.client.get_model_version("rlaif-policy", "1")
    assert Path(copy.client.download_artifacts(earlier, "page.html", str(tmp_path))).read_text() == "read me"
    assert version.source is not None and version.source.startswith((tmp_path / "copy").as_uri())
    assert not follow_home(tmp_path / "copy")  # it is there
    away.rename(tracker.home)


def test_failures_are_tracking_errors(tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TrackingError, match=r"log_metrics: .*[Rr]un"):
        tracker.log_metrics("0" * 32, {"a": 1.0})
    with pytest.raises(TrackingError, match="36 characters"):
        tracker.log_dataset_input("0" * 32, "prompts", "a" * 64, 1)
    with pytest.raises(TrackingError, match="no name for MLflow"):
        tracker.log_model("0" * 32, "../up")
    with pytest.raises(TrackingError, match="no name for MLflow"):
        tracker.register("m", "x' OR name != '", SNAPSHOT)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = Tracker("http://user:secret@127.0.0.1:9", tmp_path, "rlaif", "http://127.0.0.1:9")
    with pytest.raises(TrackingError, match=r"MLflow at http://\*\*\*@127\.0\.0\.1:9, start_run") as caught:
        away.start_run("x")
    assert "secret" not in "".join(traceback.format_exception(caught.value))


MAKE = "import sys, pathlib; from rlaif_assets.store.tracking import Tracker;"
MAKE += "print(Tracker(None, pathlib.Path(sys.argv[1]), 'rlaif', '').start_run('one'))"


def making(home: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", MAKE, str(home)], stdout=subprocess.PIPE, text=True)


def test_processes_that_begin_at_once_share_one_database(tmp_path: Path) -> None:
    processes = [making(tmp_path) for _ in range(3)]
    ids = [process.communicate()[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    client = Tracker(None, tmp_path, "rlaif", "").client
    assert [client.get_run(run_id).info.run_name for run_id in ids] == ["one"] * 3


def test_a_process_that_dies_while_it_makes_the_database_harms_no_other(tmp_path: Path) -> None:
    process = making(tmp_path)
    while process.poll() is None and not list(tmp_path.glob("mlflow.db.*.new")):
        pass
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL and not (tmp_path / "mlflow.db").exists()
    tracker = Tracker(None, tmp_path, "rlaif", "")
    assert tracker.client.get_run(tracker.start_run("one")).info.run_name == "one"
    assert not list(tmp_path.glob("*.new"))


def test_who_is_named_by_an_alias_is_told_and_artifacts_that_are_gone_are_marked(tracker: Tracker) -> None:
    run_id = tracker.start_run("ppo_policy")
    model = tracker.log_model(run_id, "ppo_policy", "checkpoints/ppo_policy/ab")
    version = tracker.register(model, "named", SNAPSHOT)
    tracker.client.set_registered_model_alias("named", "by-hand", version)
    assert tracker.aliased("named") == {"candidate": SNAPSHOT, "by-hand": SNAPSHOT}
    assert tracker.aliased("unknown") == {}
    tracker.log_figure(run_id, "curve", b"png")
    shutil.rmtree(tracker.home / ARTIFACTS / run_id)
    assert tracker.client.list_artifacts(run_id) == []  # which is what MLflow's page asks
    tracker.mark_pruned(run_id, model, "why")
    assert (tracker.run_tags(run_id) or {})[PRUNED_TAG] == "why"
    assert tracker.client.get_logged_model(model).tags[PRUNED_TAG] == "why"
    tracker.client.delete_run(run_id)
    tracker.mark_pruned(run_id, model, "again")  # a person deleted it: nothing to tell
    assert tracker.client.get_logged_model(model).tags[PRUNED_TAG] == "why"
    with pytest.raises(TrackingError, match="is no name for MLflow"):
        tracker.aliased("a b")
