"""Relabelling through the asset graph with a tiny judge: what is asked, what is reused, and what is told about it."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rlaif_assets.assets import mlflow_run
from rlaif_assets.assets.recording import FORCE_TAG
from rlaif_assets.cli import app
from rlaif_assets.feedback import forecast as forecasting
from rlaif_assets.feedback import probes
from rlaif_assets.feedback.judge import JudgeStoppedError, LocalJudge, Outcomes
from rlaif_assets.language_models.local import Conversation
from rlaif_assets.relabel import forecast
from rlaif_assets.settings import apply_overrides
from rlaif_assets.store.errors import StoreError
from rlaif_assets.store.lineage import verify
from tests.homes import Home, failure, metadata
from tests.preference_homes import (
    LABELS,
    STEP_3,
    label,
    labels_of,
    make_preference_home,
    principle_counts,
    put_pairs,
    snapshot,
    sound_probes,
    write_constitution,
    write_verdicts,
)
from tests.tiny_models import tiny_model

READ = LocalJudge.read


@pytest.fixture(autouse=True)
def without_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_run.MlflowRun, "start", lambda self: None)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Conversation]:
    """The questions that the judge was asked so far."""
    questions: list[Conversation] = []

    def read(self: LocalJudge, given: Sequence[Conversation]) -> Iterator[Outcomes]:
        questions.extend(given)
        return READ(self, given)

    monkeypatch.setattr(LocalJudge, "read", read)
    monkeypatch.setattr(probes, "probe_judge", sound_probes)
    monkeypatch.setattr(forecasting, "plan_probes", lambda *_: [])
    return questions


@pytest.fixture
def mine(tmp_path: Path, model: Path, asked: list[Conversation]) -> Home:
    """A home that was labelled once; `asked` is empty again."""
    home = make_preference_home(tmp_path / "home", model)
    label(home)
    assert len(asked) == 48
    asked.clear()
    return home


def judging(home: Home) -> dict:
    return snapshot(home).metrics["judging"]


def test_changing_nothing_computes_nothing(mine: Home, asked: list[Conversation]) -> None:
    assert judging(mine)["by_reason"] == {"new_pairs": 48}
    before = mine.ids()
    found = metadata(label(mine))
    assert all(found[name]["reused"] for name in STEP_3)
    forced = metadata(label(mine, tags={FORCE_TAG: LABELS}))
    assert not forced[LABELS]["reused"]
    assert asked == [] and mine.ids() == before


def test_editing_a_principle_asks_what_used_it_and_old_labels_stay(mine: Home, asked: list[Conversation]) -> None:
    first, before = snapshot(mine), labels_of(mine)
    principles = mine.warehouse.rows("judging_principles", first.inputs["judging_constitution"])
    rows = {row["name"]: row["principle_id"] for row in principles}
    counts = principle_counts(mine, before)
    number = next(i for i in range(16) if rows[f"rule-{i}"] in counts)
    write_constitution(mine, {number: "Choose the one that says less."})
    label(mine)
    used = counts[rows[f"rule-{number}"]]
    assert len(asked) == used < 48
    assert all("says less" in question[-1]["content"] for question in asked)
    assert judging(mine)["by_reason"] == {f"principle:rule-{number}": used}
    assert (judging(mine)["reused"], judging(mine)["computed"]) == (48 - used, used)
    assert snapshot(mine).snapshot_id != first.snapshot_id and labels_of(mine, first.snapshot_id) == before
    kept = [one for one in labels_of(mine) if one.principle_id in rows.values()]
    assert len(kept) == 24 - used / 2 and set(kept) < set(before)
    for record in (first, snapshot(mine)):
        assert verify(mine.warehouse, record.snapshot_id) == []
    found = mine.warehouse.rows("label_changes", snapshot(mine, "label_changes").snapshot_id)
    changes = {row["name"]: row for row in found if row["scope"] == "principle"}
    assert changes[f"rule-{number}"]["mean_change"] > 0
    assert {row["mean_change"] for name, row in changes.items() if name != f"rule-{number}"} == {0.0}
    asked.clear()
    write_constitution(mine)
    label(mine)
    assert asked == [] and snapshot(mine).snapshot_id == first.snapshot_id


@pytest.mark.parametrize("override", [LABELS + ".few_shot=1", LABELS + ".principle_position=after"])
def test_another_template_asks_all_again(mine: Home, asked: list[Conversation], override: str) -> None:
    label(mine, override)
    assert len(asked) == 48 and judging(mine)["by_reason"] == {"template": 48}


def test_another_judge_asks_all_again(mine: Home, asked: list[Conversation], tmp_path: Path) -> None:
    label(mine, f"feedback_model.source={tiny_model('llama', tmp_path / 'other', seed=3)}")
    assert len(asked) == 48 and judging(mine)["by_reason"] == {"judge": 48}
    asked.clear()
    label(mine)
    assert asked == []


def test_other_ways_to_average_ask_nothing_and_are_other_labels(mine: Home, asked: list[Conversation]) -> None:
    before = {one.pair_id: one.p_a for one in labels_of(mine)}
    label(mine, f"{LABELS}.average=log_odds")
    after = {one.pair_id: one.p_a for one in labels_of(mine)}
    assert asked == [] and after != before and after == pytest.approx(before, abs=0.2)
    audits = {row["audit"]: row["passed"] for row in mine.warehouse.rows("verdicts", snapshot(mine).snapshot_id)}
    assert audits["verdict_reaches_label"] and audits["both_orders"]


def test_single_orders_and_several_principles_are_marked_and_audited(mine: Home, asked: list[Conversation]) -> None:
    label(mine, f"{LABELS}.orders=single", f"{LABELS}.principles_per_pair=3")
    labels = labels_of(mine)
    assert {one.orders for one in labels} == {"single"} and {one.flipped for one in labels} == {None}
    assert {len(one.judgement_ids) for one in labels} == {3} and {one.principle_id for one in labels} == {None}
    assert len(asked) == 24 * 2  # of the first principle one order was there
    audits = {row["audit"]: row["passed"] for row in mine.warehouse.rows("verdicts", snapshot(mine).snapshot_id)}
    assert audits["verdict_reaches_label"] and audits["both_orders"]


def test_a_persons_verdict_overrides_and_stays(mine: Home, asked: list[Conversation]) -> None:
    was = labels_of(mine)[5]
    verdict = {"pair_id": was.pair_id, "p_a": 0.0 if was.p_a > 0.5 else 1.0, "annotator": "ann", "time": "2026-01-01"}
    path = write_verdicts(mine, verdict, {**verdict, "pair_id": "elsewhere"}, {**verdict, "p_a": 3})
    label(mine, path)
    now = labels_of(mine)[5]
    assert (now.source, now.p_a, now.annotator) == ("human", verdict["p_a"], "ann")
    assert asked == [] and snapshot(mine).metrics["human"] == {"labels": 1, "unmatched_verdicts": 1}
    assert [one for one in labels_of(mine) if one.source == "ai"] == [one for one in labels_of(mine) if one != now]
    flips = mine.warehouse.rows("label_flips", snapshot(mine, "label_changes").snapshot_id)
    assert [(flip["pair_id"], flip["new_source"]) for flip in flips] == [(was.pair_id, "human")]
    label(mine, path, f"{LABELS}.drift_sample=1", f"{LABELS}.as_of=2026-01-01")
    assert labels_of(mine)[5].p_a == verdict["p_a"] and labels_of(mine)[5].source == "human"


def test_a_judge_that_people_contradict_is_stopped(mine: Home) -> None:
    """On the home's own pairs; a person's label takes the judge's place, and what the judge said is held against it."""
    against = [
        {"pair_id": one.pair_id, "p_a": 0.0 if one.p_a > 0.5 else 1.0, "annotator": "ann", "time": "2026-01-01"}
        for one in labels_of(mine)[:20]
    ]
    label(mine, write_verdicts(mine, *against), "audits.min_reference=20")
    rows = {row["audit"]: row for row in mine.warehouse.rows("verdicts", snapshot(mine).snapshot_id)}
    found = rows["agreement_verdicts"]
    assert (found["count"], found["passed"], found["blocks"]) == (20, False, True) and found["value"] < 0
    assert rows["agreement"]["count"] is None and rows["calibration_verdicts"]["count"] == 20
    assert snapshot(mine).metrics["passport"]["verdicts"]["agreement"] == 0.0
    probes_made = mine.warehouse.rows("audit_probes", snapshot(mine).snapshot_id)
    assert sum(row["audit"] == "agreement_verdicts" for row in probes_made) == 20


@pytest.mark.parametrize("case", ["first", "several principles", "principle"])
def test_the_forecast_knows_what_the_audits_will_ask(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    asked: list[Conversation] = []

    def read(self: LocalJudge, given: Sequence[Conversation]) -> Iterator[Outcomes]:
        asked.extend(given)
        return READ(self, given)

    monkeypatch.setattr(LocalJudge, "read", read)
    several = case == "several principles"
    options = [f"{LABELS}.principles_per_pair={3 if several else 1}"]
    home = make_preference_home(tmp_path / "home", model, 24, f"audits.probe_pairs={24 if several else 6}", *options)
    if case == "principle":
        label(home)
        asked.clear()
        write_constitution(home, {i: f"Choose otherwise, {i}." for i in range(5)})
    else:
        assert home.run(["human_verdicts"]).success
    told = forecast(home.folder, home.profile)
    label(home)
    made = snapshot(home).metrics["audit_judging"]
    assert told["computed"] + told["audits"]["computed"] == pytest.approx(len(asked), abs=8)
    assert made["computed"] + judging(home)["computed"] == len(asked)
    assert told["audits"]["computed"] == pytest.approx(made["computed"], abs=0 if several else 8)
    assert told["audits"]["computed"] > 0
    assert snapshot(home).tokens == made["tokens"] + judging(home)["tokens"]


def test_age_and_drift_ask_again_from_a_recorded_date(mine: Home, asked: list[Conversation]) -> None:
    first = snapshot(mine)
    before = labels_of(mine)
    old = (f"{LABELS}.max_age_days=30", f"{LABELS}.as_of=2099-01-01")
    label(mine, *old)
    assert len(asked) == 48 and judging(mine)["by_reason"] == {"age": 48}
    assert snapshot(mine).settings["as_of"] == "2099-01-01"
    assert judging(mine)["drift"] == {"judgements": 48, "mean_difference": 0.0, "max_difference": 0.0}
    assert labels_of(mine, first.snapshot_id) == before and verify(mine.warehouse, first.snapshot_id) == []
    assert metadata(label(mine, *old))[LABELS]["reused"]
    asked.clear()
    label(mine, f"{LABELS}.drift_sample=0.3")
    assert 0 < len(asked) < 48 and judging(mine)["by_reason"] == {"drift": len(asked)}
    assert snapshot(mine).settings["as_of"] is not None
    shown = metadata(label(mine, f"{LABELS}.drift_sample=0.3"))[LABELS]
    assert shown["metrics/judging/drift/judgements"] == len(asked)


def test_a_date_decides_nothing_where_nothing_is_asked_again(mine: Home) -> None:
    before = mine.ids()
    assert metadata(label(mine, f"{LABELS}.as_of=2026-01-01"))[LABELS]["reused"] and mine.ids() == before
    assert snapshot(mine).settings["as_of"] is None


def test_the_first_labels_have_no_changes_and_later_ones_are_shown(mine: Home) -> None:
    assert snapshot(mine, "label_changes").metrics["labels"] == 0
    found = metadata(label(mine, f"{LABELS}.few_shot=2"))["label_changes"]
    metrics = snapshot(mine, "label_changes").metrics
    assert metrics["labels"] == 24 and metrics["mean_change"] > 0
    assert found["metrics/flipped"] == metrics["flipped"]
    flips = mine.warehouse.rows("label_flips", snapshot(mine, "label_changes").snapshot_id)
    assert len(flips) == min(10, metrics["flipped"])
    assert all(f"pair `{flip['pair_id']}`" in found["largest_flips"] for flip in flips)
    again = metadata(label(mine, f"{LABELS}.few_shot=2"))["label_changes"]
    assert again["reused"] and again["largest_flips"] == found["largest_flips"]


def test_changes_are_told_from_the_last_set_that_was_compared(mine: Home) -> None:
    """A set that failed its audits has no table: what it changed is told with the next one."""
    first = snapshot(mine).snapshot_id
    stopped = mine.run(STEP_3, f"{LABELS}.few_shot=1", "audits.enforce=true", "audits.min_pairs=25")
    assert not stopped.success and snapshot(mine).snapshot_id != first
    assert snapshot(mine, "label_changes").inputs[LABELS] == first
    label(mine, f"{LABELS}.few_shot=2")
    told = snapshot(mine, "label_changes")
    assert told.metrics["compared_with"] == first and told.metrics["mean_change"] > 0
    assert metadata(label(mine, f"{LABELS}.few_shot=2"))["label_changes"]["reused"]


def test_a_judge_that_stops_fails_the_asset_and_the_next_run_goes_on(
    mine: Home, asked: list[Conversation], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: LocalJudge, given: Sequence[Conversation]) -> Iterator[Outcomes]:
        yield from READ(self, given[:7])
        raise JudgeStoppedError("the budget of 7 calls is spent: raise it")

    with monkeypatch.context() as patch:
        patch.setattr(LocalJudge, "read", stop)
        stopped = mine.run(STEP_3, f"{LABELS}.few_shot=1")
    assert not stopped.success
    assert "budget of 7 calls is spent" in failure(stopped) and "7 judgements of this run are kept" in failure(stopped)
    label(mine, f"{LABELS}.few_shot=1")
    assert len(asked) == 41 and judging(mine)["reused"] == 7


@pytest.mark.parametrize(
    "case", ["nothing", "principle", "template", "judge", "drift", "pairs", "verdict", "forced back"]
)
def test_the_forecast_is_what_the_run_then_does(
    mine: Home, asked: list[Conversation], tmp_path: Path, case: str
) -> None:
    overrides: list[str] = []
    if case == "principle":
        write_constitution(mine, {i: f"Choose otherwise, {i}." for i in range(5)})
    elif case == "template":
        overrides = [f"{LABELS}.few_shot=1"]
    elif case == "judge":
        overrides = [f"feedback_model.source={tiny_model('llama', tmp_path / 'other', seed=3)}"]
    elif case == "drift":
        overrides = [f"{LABELS}.drift_sample=0.5", f"{LABELS}.as_of=2026-05-01"]
    elif case == "pairs":
        put_pairs(mine.warehouse, 30)
    elif case == "verdict":
        one = {"pair_id": labels_of(mine)[0].pair_id, "p_a": 1, "annotator": "ann", "time": "2026-01-01"}
        overrides = [write_verdicts(mine, one)]
    elif case == "forced back":
        label(mine, f"{LABELS}.few_shot=1")
        asked.clear()
    before = mine.ids()
    told = forecast(mine.folder, apply_overrides(mine.profile, overrides))
    assert mine.ids() == before and asked == []
    label(mine, *overrides)
    assert told["computed"] == len(asked)
    assert told["reused"] == (60 if case == "pairs" else 48) - len(asked)
    if not metadata(label(mine, *overrides))[LABELS]["reused"]:
        raise AssertionError("the second run must find the first one's labels")
    if asked:
        assert {name: judging(mine)[name] for name in ("reused", "computed", "by_reason")} == {
            name: told[name] for name in ("reused", "computed", "by_reason")
        }
        assert told["expected_tokens"] == pytest.approx(judging(mine)["tokens"], rel=0.6)
    else:
        assert (told["by_reason"], told["expected_tokens"], told["expected_seconds"]) == ({}, 0, 0.0)
    assert (told["expected_seconds"] is None) == (case == "judge") == (told["unknown"] is not None)


def test_the_forecast_needs_pairs(tmp_path: Path, model: Path) -> None:
    home = Home(tmp_path / "home", model)
    with pytest.raises(StoreError, match="has no response_pairs to relabel"):
        forecast(home.folder, home.profile)


def test_the_command_tells_what_it_would_do_and_what_it_did(
    mine: Home, asked: list[Conversation], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(mine.folder))
    write_constitution(mine, {i: f"Choose otherwise, {i}." for i in range(5)})
    values = mine.profile.model_dump()
    settings = [f"{stage}.{name}={json.dumps(value)}" for stage in values for name, value in values[stage].items()]
    options = [word for setting in settings for word in ("--set", setting)]
    told = CliRunner().invoke(app, ["relabel", "--dry-run", "--json", *options])
    assert told.exit_code == 0, told.output
    expected = json.loads(told.stdout)
    assert expected["dry_run"] and 0 < expected["computed"] < 48 and asked == []
    text = CliRunner().invoke(app, ["relabel", "--dry-run", *options], env={"COLUMNS": "200"})
    assert f"{expected['computed']} would be computed" in text.output and "for principle:rule-" in text.output
    done = CliRunner().invoke(app, ["relabel", "--json", *options])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert not found["dry_run"] and len(asked) == found["computed"] == expected["computed"]
    assert found["by_reason"] == expected["by_reason"] and found["changes"]["labels"] == 24
    again = json.loads(CliRunner().invoke(app, ["relabel", "--json", *options]).stdout)
    assert (again["reused"], again["computed"], again["by_reason"]) == (48, 0, {})
    enforced = [*options, "--set", "audits.enforce=true"]
    stopped = CliRunner().invoke(app, ["relabel", "--json", *enforced, "--set", "audits.min_pairs=25"])
    assert stopped.exit_code == 1 and "check enough_pairs failed" in stopped.stderr
    refused = json.loads(stopped.stdout)
    assert (refused["reused"], refused["computed"], refused["changes"]) == (48, 0, None)
    assert "enough_pairs" in refused["stopped"] and again["stopped"] is None
    wrong = CliRunner().invoke(app, ["relabel", "--set", "harmlessness_preferences.as_of=soon"])
    assert wrong.exit_code == 2 and "as_of" in wrong.output
