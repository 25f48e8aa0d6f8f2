"""An endpoint as the feedback model of the graph: what is recorded, reused and refused; and that the key is nowhere."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import duckdb
import pytest

from rlaif_assets.records import Judgement
from rlaif_assets.relabel import forecast
from rlaif_assets.settings import apply_overrides
from rlaif_assets.store.columns import schema
from rlaif_assets.store.judgements import JudgementStore
from tests.chat_server import MODEL, Answer, ChatServer, Plan, completion, letters, text_of
from tests.homes import Home, failure, metadata

KEY = "sk-sentinel-90aa1b7cd2"
STEPS = ["feedback_model", "harmlessness_preferences"]
Serve = Callable[[Plan], ChatServer]


@pytest.fixture
def home(home: Home, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    """The shared home, whose first snapshots are current again afterwards."""
    monkeypatch.setenv("MY_KEY", KEY)
    yield home
    assert home.run(STEPS).success
    assert {name: home.ids()[name] for name in STEPS} == {name: home.first[name] for name in STEPS}


def settings(server: ChatServer, *more: str) -> tuple[str, ...]:
    return (
        f"feedback_model.source={server.url}",
        f"feedback_model.model={MODEL}",
        "compute.endpoint_key_variable=MY_KEY",
        "compute.endpoint_retries=0",
        *more,
    )


def plan(n: int, body: Mapping[str, Any]) -> Answer:
    if "Do not choose yet" in text_of(body):
        return Answer(completion(f"Both are short, and my key is {KEY}.", model=f"{MODEL}-2026-11-01"))
    answer = letters(0.7)
    return Answer({**answer.body, "model": f"{MODEL}-2026-11-01"})


def rows(home: Home) -> list[dict[str, Any]]:
    labels = home.warehouse.rows("labels", home.ids()["harmlessness_preferences"])
    wanted = [judgement for label in labels for judgement in label["judgement_ids"]]
    return [asdict(row) for row in JudgementStore(home.warehouse).fetch(wanted).values()]


def test_what_is_recorded_of_an_endpoint_and_what_is_reused(
    home: Home, serve: Serve, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    server = serve(plan)
    result = home.run(STEPS, *settings(server))
    assert result.success, failure(result)
    (row,) = home.warehouse.rows("external_models", home.ids()["feedback_model"])
    assert (row["source"], row["model"], row["verdicts"]) == (server.url, MODEL, "logprobs")
    assert (row["revision"], row["parameters"]) == (f"{MODEL}-2026-11-01", None)
    found = rows(home)
    assert found and {entry["method"] for entry in found} == {"logprobs"}
    assert [math.exp(entry["logprob_first"]) for entry in found] == pytest.approx([0.63] * len(found))
    told = metadata(result)["harmlessness_preferences"]
    calls = told["metrics/endpoint/calls"]  # the audits ask too; the first request was the test of feedback_model
    assert calls == len(server.requests) - 1 > len(found) and told["metrics/endpoint/bounded"] == 0
    assert told["tokens"] == told["metrics/endpoint/tokens"] == 12 * calls
    assert told["metrics/judging/tokens"] == 12 * len(found)

    asked = len(server.requests)
    faster = ("compute.endpoint_concurrency=2", "compute.endpoint_timeout=5", "compute.endpoint_max_calls=100000")
    again = metadata(home.run(STEPS, *settings(server, *faster)))
    assert all(again[step]["reused"] for step in STEPS) and len(server.requests) == asked

    changed = home.run(STEPS, *settings(server, "harmlessness_preferences.chain_of_thought=true"))
    assert changed.success, failure(changed)
    assert metadata(changed)["feedback_model"]["reused"]
    reasoned = rows(home)
    assert {entry["rationale"] for entry in reasoned} == {"Both are short, and my key is [key]."}
    assert [entry["p_a"] for entry in reasoned if entry["order"] == "ab"] == pytest.approx([0.6] * (len(found) // 2))
    assert not {entry["judge"] for entry in reasoned} & {entry["judge"] for entry in found}

    voted = home.run(STEPS, *settings(server, "feedback_model.verdicts=votes", "feedback_model.votes=2"))
    assert voted.success, failure(voted)
    assert {entry["method"] for entry in rows(home)} == {"votes"}

    assert set(server.keys) == {f"Bearer {KEY}"}
    events = [str(entry) for run in (result, changed, voted) for entry in home.instance.all_logs(run.run_id)]
    runs = [str(record.dagster_run.run_config) for record in home.instance.get_run_records()]
    assert events and KEY not in "\n".join([*events, *runs, caplog.text, *capfd.readouterr()])
    files = [path for path in home.folder.rglob("*") if path.is_file()]
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    with duckdb.connect(str(home.warehouse.path), read_only=True) as connection:
        tables = {table: str(connection.execute(f'SELECT * FROM "{table}"').fetchall()) for table in schema()}
    assert f"{MODEL}-2026-11-01" in tables["external_models"] and KEY not in "".join(tables.values())


@pytest.mark.parametrize("form", ["a plain reply", "reasons first"])
def test_the_forecast_knows_what_an_endpoint_has_judged(home: Home, serve: Serve, form: str) -> None:
    reasoned = f"harmlessness_preferences.chain_of_thought={str(form == 'reasons first').lower()}"
    overrides = settings(serve(plan), reasoned)
    assert home.run(STEPS, *overrides).success
    once = forecast(home.folder, apply_overrides(home.profile, list(overrides)))
    assert once["computed"] == 0 and once["reused"] == len(rows(home)) > 0
    # Another average is another set of labels of the same judgements: the plan has to find them by the judge.
    averaged = apply_overrides(home.profile, [*overrides, "harmlessness_preferences.average=log_odds"])
    assert forecast(home.folder, averaged)["by_reason"] == {}


def test_a_spent_budget_ends_the_asset_and_says_how_much_was_judged(home: Home, serve: Serve) -> None:
    server = serve(plan)
    result = home.run(STEPS, *settings(server, "compute.endpoint_max_calls=5"))
    assert not result.success
    told = failure(result)
    assert "5 of " in told and "questions have an outcome: 5 of the budget of 5 calls are spent" in told
    assert "compute.endpoint_max_calls" in told and home.ids()["harmlessness_preferences"] == home.first[STEPS[1]]
    assert len(server.requests) == 6  # the first was the test of feedback_model


def test_a_server_that_changes_its_model_is_stopped(home: Home, serve: Serve) -> None:
    server = serve(lambda n, body: plan(n, body) if n == 0 else letters(0.7))
    result = home.run(STEPS, *settings(server, "compute.endpoint_failures=3", "compute.endpoint_concurrency=1"))
    told = failure(result)
    assert not result.success and "3 failures in a row" in told
    assert f"'{MODEL}' answered in place of '{MODEL}-2026-11-01'" in told and len(server.requests) == 4


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("feedback_model.model=null", "an endpoint needs feedback_model.model"),
        (f"feedback_model.revision={'a' * 40}", "and no revision"),
        ("feedback_model.source=http://me:hush@127.0.0.1:1/v1", "no user, password or query"),
        ("feedback_model.source=http://127.0.0.1:1/v1", "no connection, or it broke: ConnectError"),
    ],
)
def test_an_endpoint_that_cannot_be_used_is_told(home: Home, serve: Serve, change: str, told: str) -> None:
    server = serve(plan)
    result = home.run(STEPS[:1], *settings(server, change))
    assert not result.success and told in failure(result) and not server.requests


def test_a_key_that_is_written_where_its_variables_name_belongs_is_not_repeated(home: Home, serve: Serve) -> None:
    from rlaif_assets.settings import SettingsError

    with pytest.raises(SettingsError, match=r"compute\.endpoint_key_variable: ") as caught:
        home.run(STEPS, f"compute.endpoint_key_variable={KEY}")
    assert KEY not in str(caught.value) and caught.value.__cause__ is None


def test_the_columns_of_a_judgement_are_those_of_its_record(home: Home) -> None:
    assert {"method", "rationale", "round"} <= set(Judgement.__dataclass_fields__) & set(schema()["judgements"])
