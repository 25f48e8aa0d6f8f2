import json
import os
import sqlite3
import subprocess
import sys
import warnings
from contextlib import closing
from pathlib import Path

import dagster as dg
import pytest
from typer.testing import CliRunner, Result

from rlaif_assets.cli import app
from rlaif_assets.instance import BOOT_TAG, HOST_TAG, PID_TAG, prepare_home
from rlaif_assets.pipeline import FORCE_TAG, REPOSITORY, REPOSITORY_TAG, rlaif_all, selected_assets
from rlaif_assets.relabel_lock import relabel_lock
from rlaif_assets.settings import SettingsError
from tests.evaluation.rows import fill
from tests.homes import start_command
from tests.test_doctor import holder, wait_for

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    monkeypatch.setenv("DAGSTER_HOME", str(folder))
    return folder


def rlaif(*words: str) -> Result:
    return CliRunner().invoke(app, list(words), env={"COLUMNS": "200"})


def test_help_names_every_verb_without_loading_anything_heavy():
    result = rlaif("--help")
    assert result.exit_code == 0
    assert all(verb in result.output for verb in ("run", "relabel", "audit", "report", "ui", "doctor"))
    heavy = "{'dagster', 'duckdb', 'torch', 'mlflow', 'pyarrow', 'numpy'}"
    code = f"import rlaif_assets.cli, sys; print(sorted({heavy} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT).stdout == "[]\n"


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        (["--set", "ppo_polcy.updates=3"], "ppo_policy"),
        (["--set", "ppo_policy.update=3"], "updates"),
        (["--set", "ppo_policy.updates"], "STAGE.FIELD=VALUE"),
        (["--set", "ppo_policy.updates=many"], "ppo_policy.updates"),
        (["--select", "base_modle"], "base_model"),
        (["--force", "base_modle"], "base_model"),
        (["--profile", "poket"], "pocket"),
        (["--select", ","], "selects no asset"),
        (["--select", ""], "selects no asset"),
        (["--force", ""], "selects no asset"),
        (["--select", "++reward_model"], "write +reward_model for all above it"),
        (["--set", "zzz.updates=3"], "unknown stage 'zzz': there are audits, base_model"),
        (["--seed", "-1"], "Invalid value for '--seed'"),
        (["--home", ""], "Invalid value for '--home'"),
        (["--profile", ""], "Invalid value for '--profile'"),
        (
            ["--select", "base_model", "--force", "base_model,ppo_policy"],
            "would make ppo_policy again",
        ),
    ],
)
def test_a_wrong_name_is_refused_with_the_nearest(words: list[str], nearest: str, home: Path):
    result = rlaif("run", *words)
    assert result.exit_code == 2
    assert nearest in result.output
    assert "Traceback" not in result.output
    assert not (home / "warehouse.duckdb").exists()


@pytest.mark.parametrize("selection", ['group:"step_0_sources"', 'kind:"yaml"', "roots(*)"])
def test_no_selection_warns_of_dagsters_stages(selection: str):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert selected_assets(rlaif_all(), selection)
    assert [str(one.message) for one in told if issubclass(one.category, dg.BetaWarning)] == []


def test_runs_that_begin_at_once_in_a_new_home_leave_it_usable(tmp_path: Path):
    words = ("run", "--select", "critique_constitution", "--home", str(tmp_path / "new"))
    processes = [start_command(*words) for _ in range(3)]
    told = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], told
    assert rlaif("doctor", "--home", str(tmp_path / "new")).exit_code == 0
    with closing(sqlite3.connect(tmp_path / "new" / "schedules" / "schedules.db")) as database:
        assert database.execute("SELECT count(*) FROM alembic_version").fetchone() == (1,)


def test_a_wrong_selection_makes_no_home(tmp_path: Path):
    result = rlaif("run", "--select", "base_modle", "--home", str(tmp_path / "new"))
    assert result.exit_code == 2
    assert not (tmp_path / "new").exists()


def test_a_run_is_reused_recorded_under_the_job_and_says_who_works(home: Path):
    first = rlaif("run", "--select", "critique_constitution,judging_constitution")
    assert first.exit_code == 0, first.output
    assert "critique_constitution      made in" in first.output
    again = rlaif("run", "--select", "critique_constitution,", "--force", "critique_constitution")
    assert "critique_constitution      reused in" in again.output  # a source is always read: the same content
    assert "judging_constitution " not in again.output
    with dg.DagsterInstance.from_config(str(home)) as instance:
        runs = instance.get_runs()
        assert [run.job_name for run in runs] == ["rlaif_all"] * 2
        assert all(run.status == dg.DagsterRunStatus.SUCCESS for run in runs)
        for run in runs:
            assert {HOST_TAG, BOOT_TAG} <= run.tags.keys()
            assert run.tags[PID_TAG] == str(os.getpid())
            assert run.tags[REPOSITORY_TAG] == REPOSITORY
        assert [FORCE_TAG in run.tags for run in runs] == [True, False]  # newest first
    assert (home / "dagster.yaml").read_bytes() == (ROOT / "dagster_home" / "dagster.yaml").read_bytes()


def test_settings_reach_the_asset_and_its_error_the_user_without_a_traceback():
    result = rlaif("run", "--select", "red_team_prompts", "--set", "red_team_prompts.path=nowhere.jsonl")
    assert result.exit_code == 1
    assert "red_team_prompts" in result.output
    assert "nowhere.jsonl" in result.output
    assert "Traceback" not in result.output
    assert "not foreseen" not in result.output


@pytest.mark.parametrize(
    ("called", "found", "shown"),
    [
        (".venv/bin/rlaif", None, ".venv/bin/rlaif"),
        (".venv/bin/rlaif", "/usr/bin/rlaif", ".venv/bin/rlaif"),
        (str(ROOT / ".venv/bin/rlaif"), None, ".venv/bin/rlaif"),
        ("/opt/venv/bin/rlaif", "/opt/venv/bin/rlaif", "rlaif"),
        ("/opt/venv/bin/rlaif", None, "/opt/venv/bin/rlaif"),
    ],
)
def test_what_comes_next_is_printed_as_the_command_was_called(
    called: str, found: str | None, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [called])
    monkeypatch.setattr("shutil.which", lambda name: found)
    result = rlaif("run", "--select", "critique_constitution", "--home", str(tmp_path / "h"))
    assert f"Next: {shown} report --home {tmp_path / 'h'} for the numbers, {shown} ui" in result.output


def test_a_run_that_waits_for_a_pool_says_which_run_holds_it(home: Path, tmp_path: Path):
    prepare_home(home)
    holding = holder(tmp_path / "marker", 600)
    assert wait_for(tmp_path / "marker")
    held = (tmp_path / "marker").read_text()
    waiting = start_command("run", "--select", "revised_responses")
    try:
        assert waiting.stdout is not None
        line = next(line for line in waiting.stdout if "waits for pool" in line)
        assert line.startswith("revised_responses waits for pool gpu: ")
        assert f"run {held[:8]}" in line and f"is alive in process {holding.pid}" in line
    finally:
        for process in (waiting, holding):
            process.kill()
            process.communicate()


def test_a_relabel_beside_another_one_is_skipped_and_names_it(home: Path):
    with relabel_lock(home, "0123456789abcdef", print):
        result = rlaif("run", "--select", "feedback_model,harmlessness_preferences")
    assert result.exit_code == 3
    assert f"skipped: run 01234567 in process {os.getpid()} on " in result.output
    with dg.DagsterInstance.from_config(str(home)) as instance:
        assert instance.get_runs() == []
    assert not (home / "warehouse.duckdb").exists()


def test_debug_shows_the_traceback():
    result = rlaif("run", "--select", "red_team_prompts", "--set", "red_team_prompts.path=nowhere.jsonl", "--debug")
    assert result.exit_code == 1
    assert result.exc_info is not None
    assert result.exc_info[0].__name__ == "RunError"


def test_a_selection_may_use_dagsters_language(home: Path):
    result = rlaif("run", "--select", 'key:"*_constitution"')
    assert result.exit_code == 0, result.output
    assert {"critique_constitution", "judging_constitution"} == {
        line.split()[0] for line in result.output.splitlines() if " made in " in line
    }


def test_the_definitions_are_those_of_the_profile_that_is_named(home: Path, tmp_path: Path):
    (tmp_path / "mine.yaml").write_text("relabel: {cron: '1 2 * * 3'}\n")
    code = (
        "import sys; from typer.testing import CliRunner; from rlaif_assets.cli import app;"
        "result = CliRunner().invoke(app, sys.argv[1:]); print(result.output);"
        "from rlaif_assets.resources import PROFILE; print(PROFILE.relabel.cron)"
    )
    words = ["run", "--profile", str(tmp_path / "mine.yaml"), "--select", "critique_constitution"]
    environment = {**os.environ, "DAGSTER_HOME": str(home), "RLAIF_PROFILE": "nowhere.yaml"}
    ran = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, env=environment)
    assert "critique_constitution      made in" in ran.stdout and ran.stdout.endswith("1 2 * * 3\n"), ran


def test_a_plus_means_all_that_an_asset_is_made_of():
    job = rlaif_all()
    made_of = selected_assets(job, "+sl_cai_checkpoint")
    assert {"critique_constitution", "red_team_prompts", "base_model", "revised_responses"} < set(made_of)
    assert selected_assets(job, '+key:"sl_cai_checkpoint"') == selected_assets(job, "*sl_cai_checkpoint") == made_of
    assert "critique_constitution" not in selected_assets(job, "1+sl_cai_checkpoint")
    assert {"ppo_policy", "policy_evaluation"} < set(selected_assets(job, "sl_cai_checkpoint+"))
    with pytest.raises(SettingsError, match="unknown asset 'sl_cai'"):
        selected_assets(job, "+sl_cai")


def test_the_report_of_one_home_and_of_several(tmp_path: Path):
    homes = [tmp_path / name for name in ("a", "b")]
    for seed, folder in enumerate(homes):
        fill(folder, ("engaged", "engaged", "harmful", "harmful") if seed else ("engaged",) * 4, seed)
    one = rlaif("report", "--json", str(homes[0]))
    assert one.exit_code == 0, one.output
    assert json.loads(one.stdout)["policies"]["ppo"]["harmless_rate"] == 1.0
    both = json.loads(rlaif("report", "--json", *map(str, homes)).stdout)
    assert both["mean"]["policies"]["ppo"]["harmless_rate"] == 0.75
    assert list(both["homes"]) == [str(folder) for folder in homes]
    table = rlaif("report", *map(str, homes))
    assert "75.0% ± 35.4%" in table.output
    assert rlaif("report", "--home", str(homes[0])).exit_code == 0
    twice = json.loads(rlaif("report", "--json", str(homes[0]), str(homes[0])).stdout)
    assert "mean" not in twice and twice["policies"]["ppo"]["harmless_rate"] == 1.0


def test_a_home_without_results_says_what_to_do(home: Path):
    result = rlaif("report")
    assert result.exit_code == 1
    assert "rlaif run" in result.output
    assert not home.exists()


def test_a_home_that_cannot_be_made_is_a_clear_error(tmp_path: Path):
    (tmp_path / "file").write_text("")
    result = rlaif("run", "--select", "critique_constitution", "--home", str(tmp_path / "file" / "home"))
    assert result.exit_code == 1
    assert "--home" in result.output


@pytest.mark.parametrize("name", ["a?b", "a[b]", "a\\b", "*"])
def test_a_path_that_no_database_opens_is_a_clear_error(name: str, tmp_path: Path):
    result = rlaif("run", "--select", "critique_constitution", "--home", str(tmp_path / name))
    assert result.exit_code == 1 and "cannot be used: no database opens a path with" in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [("doctor",), ("relabel",), ("relabel", "--dry-run")])
def test_a_mistyped_home_is_not_made(words: tuple[str, ...], tmp_path: Path):
    result = rlaif(*words, "--home", str(tmp_path / "typo"))
    assert result.exit_code == 1 and "typo is no home" in result.output.replace("\n", "")
    assert not (tmp_path / "typo").exists()


def test_a_folder_that_is_no_home_stays_as_it_is(tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("")
    assert rlaif("doctor", "--home", str(tmp_path / "mine")).exit_code == 1
    audited = rlaif("audit", "--pairs", "pocket", "--home", str(tmp_path / "mine"))
    assert audited.exit_code == 1 and "mine is no home" in audited.output.replace("\n", "")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["file"]


def test_doctor_says_where_the_warehouse_cannot_be_read(home: Path):
    prepare_home(home)
    (home / "warehouse.duckdb").write_bytes(b"no database" * 400)
    result = rlaif("doctor")
    assert result.exit_code == 1 and "warehouse.duckdb" in result.output and "nothing to repair" not in result.output


def test_a_run_that_is_terminated_says_so(home: Path):
    process = start_command("run", "--select", "base_model,critique_constitution,red_team_prompts,revised_responses")
    assert process.stdout is not None

    def answering() -> bool:
        with dg.DagsterInstance.from_config(str(home)) as instance:
            steps = [step for run in instance.get_runs() for step in instance.get_run_step_stats(run.run_id)]
        return any(step.step_key == "revised_responses" and step.start_time for step in steps)

    try:
        next(line for line in process.stdout if "red_team_prompts" in line)
        while process.poll() is None and not answering():
            pass
        process.terminate()
        told = process.stdout.read()
        assert process.wait(60) == 1
    finally:
        process.kill()
        process.wait()
    assert "revised_responses: stopped by a signal (SIGTERM)" in told and "Interrupted" not in told


def test_relabelling_a_home_without_pairs_begins_no_run(home: Path):
    prepare_home(home)
    result = rlaif("relabel")
    assert result.exit_code == 1 and "no response_pairs to relabel" in result.output
    with dg.DagsterInstance.from_config(str(home)) as instance:
        assert instance.get_runs() == []


def test_a_policy_cannot_start_from_an_endpoint():
    result = rlaif("run", "--select", "base_model", "--set", "base_model.source=http://127.0.0.1:9/v1")
    assert result.exit_code == 1
    assert "is an endpoint, and a policy starts from weights" in result.output


def test_an_executor_that_is_not_there_is_named(home: Path):
    environment = {**os.environ, "RLAIF_EXECUTOR": "threads"}
    command = [sys.executable, "-m", "rlaif_assets.cli", "run", "--select", "critique_constitution"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert done.stderr.strip() == "error: RLAIF_EXECUTOR=threads: write in_process or multiprocess"


def test_a_home_keeps_its_own_dagster_yaml(home: Path):
    home.mkdir()
    own = "telemetry: {enabled: false}\n"
    (home / "dagster.yaml").write_text(own)
    assert rlaif("doctor").exit_code == 0
    assert (home / "dagster.yaml").read_text() == own


def test_reusing_from_a_cold_start_is_quick(home: Path):
    """In the processor's seconds, which do not depend on what else the machine does."""
    command = [sys.executable, "-m", "rlaif_assets.cli", "run", "--select", "critique_constitution,helpful_prompts"]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    before = os.times()
    done = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True)
    after = os.times()
    assert after.children_user + after.children_system - before.children_user - before.children_system < 10
    assert " made in " not in done.stdout
