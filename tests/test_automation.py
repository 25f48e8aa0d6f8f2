"""The schedule and the sensors, tick by tick; two relabels of one home; and once under the real daemon."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from rlaif_assets import automation, pipeline, ui
from rlaif_assets.assets.configuration import run_config
from rlaif_assets.assets.recording import SKIPPED_TAG
from rlaif_assets.definitions import defs
from rlaif_assets.feedback import limits
from rlaif_assets.feedback.limits import RULES, RULES_SINCE, make_verdict
from rlaif_assets.instance import QUIET, process_tags
from rlaif_assets.records import Label
from rlaif_assets.relabel_lock import relabel_lock
from rlaif_assets.resources import Storage
from rlaif_assets.settings import AuditsSettings, Profile, apply_overrides, load_profile
from rlaif_assets.store.warehouse import SnapshotRecord, Warehouse
from tests.homes import Home, failure, metadata
from tests.test_relabel_lock import end, hold
from tests.test_ui import free_port

ROOT = Path(__file__).parent.parent
DEFAULT = (resources.files("rlaif_assets") / "constitutions" / "default.yaml").read_text("utf-8")
DAEMON_SECONDS = 150.0
STATUSES = """
from rlaif_assets.definitions import defs
schedule = defs.resolve_schedule_def("weekly_relabel")
print(schedule.cron_schedule, "|", schedule.execution_timezone, "|", schedule.default_status.value, "|",
      *(sensor.default_status.value for sensor in defs.sensors))
"""


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """One on disk: the contexts of schedules and sensors open it anew."""
    (tmp_path / "dagster").mkdir()
    with dg.instance_for_test(temp_dir=str(tmp_path / "dagster")) as found:
        yield found


@pytest.fixture
def held(tmp_path: Path) -> "Iterator[subprocess.Popen[str]]":
    """Another process that relabels the home `tmp_path`, as run 0123456789abcdef."""
    process = hold(tmp_path)
    yield process
    end(process)


def use(monkeypatch: pytest.MonkeyPatch, *overrides: str) -> Profile:
    profile = apply_overrides(load_profile("pocket"), list(overrides))
    monkeypatch.setattr(automation, "PROFILE", profile)
    return profile


def run_of(instance: dg.DagsterInstance, status: dg.DagsterRunStatus, **tags: str) -> str:
    job = defs.resolve_job_def("relabel")
    return instance.create_run_for_job(job, tags={**process_tags(), **tags}, status=status).run_id


# What is promised


def test_nothing_runs_by_itself_until_it_is_switched_on(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("relabel: {cron: '30 4 * * 5', time_zone: Europe/Berlin}\n")

    def loaded(**environment: str) -> str:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RLAIF_")}
        command = [sys.executable, "-c", STATUSES]
        return subprocess.run(
            command, cwd=ROOT, env=clean | environment, capture_output=True, text=True, check=True
        ).stdout.strip()

    assert loaded() == "0 3 * * 1 | UTC | STOPPED | STOPPED STOPPED"
    on = loaded(RLAIF_RELABEL_ENABLED="1", RLAIF_PROFILE=str(file))
    assert on == "30 4 * * 5 | Europe/Berlin | RUNNING | RUNNING STOPPED"


def test_jobs_hold_what_they_are_for_and_its_checks() -> None:
    relabel, retrain = (defs.resolve_job_def(name) for name in ("relabel", "retrain"))
    assert {node.name for node in relabel.nodes} == {
        *automation.RELABELLED,
        "harmlessness_preferences_audits",
    }
    assert {node.name for node in retrain.nodes} == {
        "reward_model",
        "reward_model_half_a",
        "reward_model_half_b",
        "reward_model_agrees_with_labels",
        "ppo_policy",
        "policy_evaluation",
        "champion_policy",
        "champion_policy_promoted",
    }
    assert "rlaif/force" not in relabel.tags
    assert "rlaif/exclusive" in retrain.tags and "rlaif/exclusive" not in relabel.tags


# The schedule


def tick(home: Path, instance: dg.DagsterInstance) -> Any:
    with dg.build_schedule_context(instance=instance) as context:
        return automation.weekly_relabel(context, storage=Storage(home=str(home)))


def test_the_schedule_asks_for_a_run_each_time(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    for _ in range(2):
        request = tick(tmp_path, instance)
        assert isinstance(request, dg.RunRequest) and request.run_key is None
    with dg.build_schedule_context(instance=instance, resources={"storage": Storage(home=str(tmp_path))}) as context:
        found = defs.resolve_schedule_def("weekly_relabel").evaluate_tick(context)
    assert len(found.run_requests or ()) == 1


@pytest.mark.usefixtures("held")
def test_the_schedule_skips_while_a_run_relabels_and_names_it(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    skipped = tick(tmp_path, instance)
    assert isinstance(skipped, dg.SkipReason) and "run 01234567 in process" in str(skipped.skip_message)


def test_the_schedule_skips_while_a_relabel_is_about_to(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    run_of(instance, dg.DagsterRunStatus.SUCCESS)
    run_of(instance, dg.DagsterRunStatus.STARTED, **{"rlaif/pid": str(2**22 + 1)})  # a dead one
    assert isinstance(tick(tmp_path, instance), dg.RunRequest)
    alive = run_of(instance, dg.DagsterRunStatus.STARTED)
    skipped = tick(tmp_path, instance)
    assert isinstance(skipped, dg.SkipReason)
    assert f"run {alive[:8]} (relabel) is alive in process {os.getpid()}" in str(skipped.skip_message)


# The constitution's sensor


class Watched:
    """A constitution file, and the sensor's ticks on it with the cursor carried on as Dagster does."""

    def __init__(self, file: Path, home: Path, instance: dg.DagsterInstance) -> None:
        self.file, self.home, self.instance = file, home, instance
        self.cursor: str | None = None

    def write(self, principle: str) -> None:
        self.file.write_text(DEFAULT.replace("less harmful", principle), encoding="utf-8")

    def look(self) -> str | dict[str, str]:
        """Why nothing was asked for, or the tags of the run that was."""
        context = dg.build_sensor_context(
            instance=self.instance, cursor=self.cursor, resources={"storage": Storage(home=str(self.home))}
        )
        with context:
            found = automation.constitution_changed.evaluate_tick(context)
        self.cursor = found.cursor
        requests = found.run_requests or []
        assert len(requests) <= 1 and all(request.run_key is None for request in requests)
        return dict(requests[0].tags) if requests else str(found.skip_message)


@pytest.fixture
def watched(tmp_path: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> Watched:
    file = tmp_path / "constitution.yaml"
    use(monkeypatch, f"constitution.path={file}")
    found = Watched(file, tmp_path, instance)
    found.write("less harmful")
    return found


def fired(look: str | dict[str, str]) -> bool:
    return isinstance(look, dict)


def test_the_default_constitution_holds_the_words_that_these_tests_change() -> None:
    assert "less harmful" in DEFAULT


def test_the_first_look_only_remembers_and_a_change_fires_once(watched: Watched) -> None:
    assert "first look" in watched.look()
    assert "has not changed" in watched.look()
    watched.write("kinder")
    assert fired(watched.look())
    assert "has not changed" in watched.look()


def test_there_and_back_again_fires_twice(watched: Watched) -> None:
    watched.look()
    for principle in ("kinder", "less harmful", "kinder"):
        watched.write(principle)
        assert fired(watched.look())
        assert not fired(watched.look())


def test_a_missing_file_says_so_and_a_change_made_meanwhile_fires(watched: Watched) -> None:
    watched.file.unlink()
    assert "no such file" in watched.look()  # on the first look as well
    watched.write("less harmful")
    assert "first look" in watched.look()
    watched.file.unlink()
    assert "no such file" in watched.look()
    watched.write("less harmful")
    assert "has not changed" in watched.look()
    watched.file.unlink()
    watched.look()
    watched.write("kinder")
    assert fired(watched.look())


def test_what_is_half_written_waits_until_it_is_whole(watched: Watched) -> None:
    watched.look()
    whole = watched.file.read_text().replace("less harmful", "kinder")
    watched.file.write_text(whole[: len(whole) // 2])
    assert "cannot be used" in watched.look() and "constitution.yaml" in watched.look()
    watched.file.write_bytes(b"\xff\xfe")
    assert "cannot be used" in watched.look()
    watched.file.write_text(whole)
    assert fired(watched.look())


def test_a_change_waits_for_the_relabel_that_is_on(watched: Watched) -> None:
    watched.look()
    watched.write("kinder")
    with relabel_lock(watched.home, "fedcba9876543210", print):
        assert "run fedcba98 in process" in watched.look()
    assert fired(watched.look())


def test_a_change_that_is_taken_back_while_a_relabel_is_on_fires_once(watched: Watched) -> None:
    """The relabel that is on may have read the file as it was in between."""
    watched.look()
    watched.write("kinder")
    with relabel_lock(watched.home, "fedcba9876543210", print):
        assert "run fedcba98 in process" in watched.look()
        watched.write("less harmful")
        assert "run fedcba98 in process" in watched.look()
    assert fired(watched.look())
    assert "has not changed" in watched.look()


def test_a_run_that_ended_as_skipped_is_asked_for_again(watched: Watched, instance: dg.DagsterInstance) -> None:
    """The relabel that it met may have begun before the change."""
    watched.look()
    watched.write("kinder")
    tags = watched.look()
    assert isinstance(tags, dict)
    run_of(instance, dg.DagsterRunStatus.SUCCESS, **tags, **{SKIPPED_TAG: "another one"})
    assert fired(watched.look())
    run_of(instance, dg.DagsterRunStatus.SUCCESS, **tags)
    assert "has not changed" in watched.look()


# The sensor that asks for training


class Relabelled:
    """A home with preference sets and what changed in them, and the ticks of the sensor that reads it."""

    def __init__(self, home: Path) -> None:
        self.home, self.warehouse = home, Warehouse(home)
        self.cursor: str | None = None

    def publish(self, asset: str, key: str, **parts: Any) -> str:
        tables = parts.pop("tables", {})
        parts.setdefault("code_version", RULES_SINCE)
        record = self.warehouse.publish(SnapshotRecord(asset=asset, key=key, **parts), tables)
        self.warehouse.record_materialization(record.snapshot_id, None, reused=False)
        return record.snapshot_id

    def labels(self, key: str, p_as: Sequence[float], mass: float | None = 0.9) -> str:
        """A set whose audits all pass, but that of the letters' mass where it is too small; None: never audited."""
        sound: dict[str, tuple[float | None, int | None]] = dict.fromkeys(RULES, (None, None))
        verdicts = [
            make_verdict(name, *(sound | {"letter_mass": (mass, 100)})[name], "", AuditsSettings()) for name in RULES
        ]
        labels = [
            asdict(Label(f"{key}-{i}", f"pair-{i}", None, p_a, (), None, "ai", "judge")) for i, p_a in enumerate(p_as)
        ]
        tables = {"labels": labels, "verdicts": verdicts if mass is not None else []}
        return self.publish("harmlessness_preferences", key, tables=tables)

    def train(self, labels: str) -> None:
        self.publish("reward_model", f"on {labels}", inputs={"harmlessness_preferences": labels})

    def look(self) -> str | dict[str, str]:
        context = dg.build_sensor_context(cursor=self.cursor, resources={"storage": Storage(home=str(self.home))})
        with context:
            found = automation.labels_flipped.evaluate_tick(context)
        self.cursor = found.cursor
        requests = found.run_requests or []
        return dict(requests[0].tags) if requests else str(found.skip_message)


@pytest.fixture
def relabelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Relabelled:
    use(monkeypatch, "relabel.retrain_flipped_share=0.05", "audits.min_mass=0.5")
    return Relabelled(tmp_path)


def flipped(count: int, labels: int = 200) -> list[float]:
    """p_a of so many labels, of which `count` are on the other side than those of `flipped(0)`."""
    return [0.1] * count + [0.9] * (labels - count)


def test_training_is_asked_for_once_for_each_set_above_the_limit(relabelled: Relabelled) -> None:
    assert "no reward model was trained yet" in relabelled.look()
    first = relabelled.labels("one", flipped(0))
    assert "no reward model was trained yet" in relabelled.look()
    relabelled.train(first)
    assert "0 of 200 labels flipped since" in relabelled.look()
    relabelled.labels("two", flipped(10))
    assert "10 of 200 labels flipped since the reward model was trained (5.0%, limit 5.0%)" in relabelled.look()
    assert "nothing was relabelled since" in relabelled.look()
    relabelled.labels("three", flipped(11))
    tags = relabelled.look()
    assert isinstance(tags, dict) and "11 of 200 labels flipped since" in tags["rlaif/why"]
    assert "nothing was relabelled since" in relabelled.look()


def test_small_changes_add_up_until_a_model_is_trained(relabelled: Relabelled) -> None:
    relabelled.train(relabelled.labels("0", flipped(0)))
    for count in (4, 8):
        relabelled.labels(str(count), flipped(count))
        assert not fired(relabelled.look())
    last = relabelled.labels("12", flipped(12))  # four more than the set before
    assert fired(relabelled.look())
    relabelled.train(last)
    relabelled.labels("16", flipped(16))
    assert "4 of 200 labels flipped since" in relabelled.look()


def test_other_pairs_are_no_reason_to_train(relabelled: Relabelled) -> None:
    relabelled.train(relabelled.labels("none", []))
    relabelled.labels("one", flipped(0))
    assert "trained on other pairs" in relabelled.look()
    assert "nothing was relabelled since" in relabelled.look()


def test_training_is_never_asked_for_after_a_failed_gate(
    relabelled: Relabelled, monkeypatch: pytest.MonkeyPatch
) -> None:
    relabelled.train(relabelled.labels("one", flipped(0)))
    relabelled.labels("two", flipped(100), mass=0.2)
    assert "letter_mass (0.2, limit 0.5 by audits.min_mass)" in relabelled.look()
    monkeypatch.setattr(automation, "PROFILE", apply_overrides(automation.PROFILE, ["audits.enforce=false"]))
    assert "failed audits: letter_mass" in relabelled.look()  # whoever overrides the gate starts the training as well
    monkeypatch.setattr(automation, "PROFILE", apply_overrides(automation.PROFILE, ["audits.min_mass=0.1"]))
    assert fired(relabelled.look())


def test_a_set_that_was_never_audited_is_no_reason_to_train(relabelled: Relabelled) -> None:
    relabelled.train(relabelled.labels("one", flipped(0)))
    relabelled.labels("two", flipped(100), mass=None)
    assert "never audited" in relabelled.look()


def test_a_set_that_older_rules_audited_is_no_reason_to_train(
    relabelled: Relabelled, monkeypatch: pytest.MonkeyPatch
) -> None:
    relabelled.train(relabelled.labels("one", flipped(0)))
    relabelled.labels("two", flipped(100))
    with monkeypatch.context() as patch:
        patch.setattr(limits, "RULES_SINCE", RULES_SINCE + 1)
        assert "it was audited by older rules: materialize it anew" in relabelled.look()
    assert fired(relabelled.look())


# Two relabels


OTHER_LABELS = "harmlessness_preferences.seed=77"


def relabel(home: Home, *overrides: str) -> dg.ExecuteInProcessResult:
    config = run_config(apply_overrides(home.profile, list(overrides)), automation.RELABELLED)
    config["resources"]["storage"] = {"config": {"home": str(home.folder)}}
    job = defs.resolve_job_def("relabel")
    return job.execute_in_process(run_config=config, instance=home.instance, raise_on_error=False)


def skipped_steps(result: dg.ExecuteInProcessResult) -> set[str | None]:
    return {event.step_key for event in result.all_events if event.event_type_value == "STEP_SKIPPED"}


@pytest.fixture
def held_home(home: Home) -> "Iterator[subprocess.Popen[str]]":
    process = hold(home.folder)
    yield process
    end(process)


def test_the_second_relabel_ends_as_skipped_and_names_the_holder(
    home: Home, held_home: "subprocess.Popen[str]"
) -> None:
    before = home.ids()
    result = relabel(home, OTHER_LABELS)
    assert result.success
    assert metadata(result).keys() == {"feedback_model"}
    assert skipped_steps(result) >= {"harmlessness_preferences", "harmlessness_preferences_audits"}
    run = home.instance.get_run_by_id(result.run_id)
    assert run is not None
    assert f"judging_constitution: run 01234567 in process {held_home.pid}" in run.tags[SKIPPED_TAG]
    assert home.ids() == before
    end(held_home)  # killed: the next one takes over
    again = relabel(home)
    assert again.success, failure(again)
    assert "harmlessness_preferences" in metadata(again)
    run = home.instance.get_run_by_id(again.run_id)
    assert run is not None and SKIPPED_TAG not in run.tags


def test_any_run_that_would_judge_leaves_out_the_labels_and_what_is_made_of_them(
    home: Home, held_home: "subprocess.Popen[str]"
) -> None:
    before, runs = home.ids(), len(list_mlflow(home))
    result = home.run(["judging_constitution", "harmlessness_preferences", "reward_model"], OTHER_LABELS)
    assert result.success
    assert metadata(result).keys() == {"judging_constitution"}
    assert skipped_steps(result) >= {"reward_model", "harmlessness_preferences_audits"}
    run = home.instance.get_run_by_id(result.run_id)
    assert run is not None
    assert f"harmlessness_preferences: run 01234567 in process {held_home.pid}" in run.tags[SKIPPED_TAG]
    assert home.ids() == before
    assert len(list_mlflow(home)) == runs  # nothing was begun


@pytest.mark.usefixtures("held_home")
def test_what_is_there_already_needs_no_lock(home: Home) -> None:
    result = home.run(["harmlessness_preferences"])
    assert metadata(result)["harmlessness_preferences"]["reused"] is True


def list_mlflow(home: Home) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{home.folder / 'mlflow.db'}")
    return list(client.search_runs([one.experiment_id for one in client.search_experiments()]))


def test_the_command_says_that_it_skipped_before_it_begins(
    home: Home, held_home: "subprocess.Popen[str]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(home.folder))
    with pytest.raises(pipeline.RunSkippedError, match=f"run 01234567 in process {held_home.pid}"):
        pipeline.run_pipeline(home.instance, home.profile, "harmlessness_preferences")


# The real daemon


def wait_for(what: str, seen: Callable[[], Any], process: "subprocess.Popen[bytes]", log: Path) -> Any:
    """What `seen` returns once that is true. Fails at the deadline, or when Dagster ends, with Dagster's last lines."""
    deadline = time.monotonic() + DAEMON_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        found = seen()
        if found:
            return found
        time.sleep(0.5)
    raise AssertionError(f"no {what}; dagster dev said:\n" + log.read_text(errors="replace")[-4000:])


def test_the_daemon_relabels_on_time_and_when_the_constitution_changes(home: Home, tmp_path: Path) -> None:
    """`dagster dev` over a home with pairs: cron every minute, and a principle that is edited meanwhile."""
    folder, file, log = tmp_path / "home", tmp_path / "constitution.yaml", tmp_path / "dagster.log"
    shutil.copytree(home.pristine, folder)
    shutil.copyfile(ROOT / "rlaif_assets" / "dagster.yaml", folder / "dagster.yaml")
    file.write_text(DEFAULT.replace("less harmful", "kinder"))
    profile = apply_overrides(home.profile, ["relabel.cron='* * * * *'", f"constitution.path={file}"])
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(profile.model_dump()))
    environment = {
        **os.environ,
        **QUIET,
        "DAGSTER_HOME": str(folder),
        "RLAIF_PROFILE": str(tmp_path / "mine.yaml"),
        "RLAIF_RELABEL_ENABLED": "1",
    }
    warehouse = Warehouse(folder)

    def ended(instance: dg.DagsterInstance, tag: str, name: str) -> list[dg.DagsterRun]:
        statuses = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE]
        filters = dg.RunsFilter(job_name="relabel", statuses=statuses, tags={tag: name})
        return [run for run in instance.get_runs(filters) if SKIPPED_TAG not in run.tags]

    def remembers(instance: dg.DagsterInstance) -> bool:
        return any(getattr(state.instigator_data, "cursor", None) for state in instance.all_instigator_state())

    with log.open("wb") as output, dg.DagsterInstance.from_config(str(folder)) as instance:
        process = subprocess.Popen(
            ui.dagster_command(free_port()),
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            [scheduled, *_] = wait_for(
                "run of the schedule", lambda: ended(instance, "dagster/schedule_name", "weekly_relabel"), process, log
            )
            assert scheduled.status == dg.DagsterRunStatus.SUCCESS
            labels = warehouse.current("harmlessness_preferences")
            assert labels is not None and labels.snapshot_id != home.first["harmlessness_preferences"]
            assert labels.inputs["response_pairs"] == home.first["response_pairs"]

            wait_for("first look of the sensor", lambda: remembers(instance), process, log)
            file.write_text(DEFAULT.replace("less harmful", "more polite"))
            [changed, *_] = wait_for(
                "run of the sensor",
                lambda: ended(instance, "dagster/sensor_name", "constitution_changed"),
                process,
                log,
            )
            assert changed.status == dg.DagsterRunStatus.SUCCESS
            later = warehouse.current("harmlessness_preferences")
            assert later is not None and later.snapshot_id != labels.snapshot_id
        finally:
            ui.stop([process])
