"""The report of a policy as a page: what is on it, that nothing of a user's is markup, and that nothing is fetched."""

import dataclasses
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from rlaif_assets.cli import app
from rlaif_assets.evaluation.ancestry_graph import HEIGHT, WIDTH, draw_ancestry
from rlaif_assets.evaluation.limits import simulated
from rlaif_assets.evaluation.policy_report import MEASURES, number, policy_page
from rlaif_assets.evaluation.rates import policy_rates, win_rates
from rlaif_assets.evaluation.report import build_report, evaluation_of
from rlaif_assets.feedback.limits import RULES
from rlaif_assets.records import EvaluationAnswer
from rlaif_assets.store.judgements import JudgementStore
from rlaif_assets.store.trace import trace_policy
from rlaif_assets.store.warehouse import SnapshotRecord, Warehouse
from tests.evaluation.rows import answer
from tests.feedback.fakes import make_judgements
from tests.homes import Home

SCRIPT = "<script>alert('x')</script>"
VOID = {"meta", "img", "br", "path", "rect"}
Ids = Mapping[str, str]


@dataclass
class Page(HTMLParser):
    """What a browser would find: tags in order with their attributes, cells of table rows, all text."""

    html: str
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    text: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.feed(self.html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.text += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def row(self, name: str) -> list[str]:
        """The cells of the only row that begins with this, with single spaces."""
        (found,) = [row for row in self.rows if row and row[0].startswith(name)]
        return [" ".join(cell.split()) for cell in found]

    def fetched(self) -> list[str]:
        """What a browser would load by itself."""
        return [
            str(attributes[name])
            for tag, attributes in self.tags
            for name in ("src", "href", "srcset", "data", "poster", "xlink:href")
            if name in attributes and tag != "a"
        ]


@pytest.fixture(scope="module")
def page(home: Home) -> Page:
    policy, evaluation = (home.warehouse.get(home.first[name]) for name in ("ppo_policy", "policy_evaluation"))
    return Page(policy_page(home.warehouse, policy, evaluation))


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages without pictures, which take most of the time."""
    monkeypatch.setattr("rlaif_assets.evaluation.policy_report._pictures", lambda *_: {})


def test_the_page_of_a_run_tells_all_of_it(home: Home, page: Page) -> None:
    report = build_report(home.warehouse, "test", home.warehouse.get(home.first["policy_evaluation"]))
    for measure in MEASURES:
        cells = page.row(measure.replace("_", " "))[1:]
        assert [cell.split()[0] for cell in cells] == [
            number(values[measure], measure) for values in report["policies"].values()
        ]
        interval = report["policies"]["ppo"]["intervals"].get(measure)
        told = "" if interval is None else " to ".join(number(bound, measure) for bound in interval)
        assert cells[-1].partition(" ")[2] == told
    assert MEASURES.keys() == report["policies"]["ppo"].keys() - {"intervals", "reasons"}
    for table, asset in (
        ("judging_principles", "judging_constitution"),
        ("critique_principles", "critique_constitution"),
    ):
        for principle in home.warehouse.rows(table, home.first[asset]):
            assert (principle.get("text") or principle["revision_request"]) in page.text
    labels = home.warehouse.rows("labels", home.first["harmlessness_preferences"])
    principle = home.warehouse.rows("judging_principles", home.first["judging_constitution"])[0]
    under = sum(label["principle_id"] == principle["principle_id"] for label in labels)
    told = [row for row in page.rows if row[1:] == [principle["text"], str(under)]]
    assert [row[0] for row in told] == [principle["name"]]
    assert all(name.replace("_", " ") in page.text for name in RULES)
    names = {str(attributes["alt"]) for tag, attributes in page.tags if tag == "img"}
    assert len(names) == 6 and "there were no earlier ones" in page.text


def test_nothing_is_fetched_and_links_lead_to_mlflow_alone(home: Home, page: Page) -> None:
    assert page.fetched() and all(place.startswith("data:image/png;base64,") for place in page.fetched())
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert "url(" not in page.html and "@import" not in page.html
    policy = {"http-equiv": "Content-Security-Policy"}
    policy |= {"content": "default-src 'none'; img-src data:; style-src 'unsafe-inline'"}
    assert ("meta", policy) in page.tags
    links = [str(attributes["href"]) for tag, attributes in page.tags if tag == "a"]
    known = {str(home.warehouse.get(one).metrics.get("mlflow_url")) for one in home.first.values()}
    assert {link for link in links if not link.startswith("#")} <= known
    assert {link[1:] for link in links if link.startswith("#")} <= {attributes.get("id") for _, attributes in page.tags}


def test_the_ancestry_is_drawn_whole(home: Home, page: Page) -> None:
    made = trace_policy(home.warehouse, home.first["ppo_policy"])["snapshots"]
    nodes = {str(attributes["id"]) for tag, attributes in page.tags if tag == "g"}
    assert nodes == {f"node-{one['snapshot_id']}" for one in made}
    drawn = [attributes for tag, attributes in page.tags if tag == "path" and "data-reader" in attributes]
    edges = sorted((str(one["data-source"]), str(one["data-reader"])) for one in drawn)
    assert edges == sorted((up, one["snapshot_id"]) for one in made for up in set(one["inputs"].values()))
    for one in made:
        assert one["asset"] in page.text and one["snapshot_id"][:8] in page.text
        assert f"made {one['created_at'][:19]}" in page.text


def test_boxes_stand_apart_and_below_what_they_read(home: Home) -> None:
    graph = draw_ancestry(trace_policy(home.warehouse, home.first["ppo_policy"])["snapshots"])
    at = {node.snapshot["snapshot_id"]: node for node in graph.nodes}
    for node in graph.nodes:
        assert 0 <= node.x <= graph.width - WIDTH and 0 <= node.y <= graph.height - HEIGHT
        assert all(at[up].y < node.y for up in node.snapshot["inputs"].values())
    for one in graph.nodes:
        assert not [o for o in graph.nodes if o is not one and o.y == one.y and abs(o.x - one.x) < WIDTH]


def test_mlflow_keeps_the_page_that_the_command_writes(home: Home, tmp_path: Path) -> None:
    record = evaluation_of(home.warehouse, home.warehouse.get(home.first["ppo_policy"]))
    assert record is not None
    client = MlflowClient(tracking_uri=f"sqlite:///{home.folder / 'mlflow.db'}")
    kept = Path(client.download_artifacts(str(record.mlflow_run_id), "report.html", str(tmp_path)))
    written = tmp_path / "written.html"
    words = ["report", "--html", str(written), "--policy", home.first["ppo_policy"][:8], "--home", str(home.folder)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0 and "written to" in done.output
    assert written.read_text(encoding="utf-8") == kept.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--policy", "sl_cai_checkpoint"], 1, "a report is of a ppo_policy"),
        (["--policy", "nothing"], 1, "no policy 'nothing'"),
        (["--html", "no_such_folder/page.html"], 2, "there is no folder"),
    ],
)
def test_what_the_command_refuses(home: Home, words: list[str], code: int, told: str) -> None:
    done = CliRunner().invoke(app, ["report", *words, "--home", str(home.folder)], env={"COLUMNS": "400"})
    assert done.exit_code == code and told in done.output


def test_a_page_is_of_one_home(home: Home, tmp_path: Path) -> None:
    words = ["report", "--html", str(tmp_path / "page.html"), str(home.folder), str(tmp_path)]
    done = CliRunner().invoke(app, words, env={"COLUMNS": "400"})
    assert done.exit_code == 2 and "go with one home, and 2 are named" in done.output
    assert not (tmp_path / "page.html").exists()


# Homes whose rows are put there


def put(warehouse: Warehouse, asset: str, inputs: Ids, tables: Mapping[str, list[dict[str, Any]]], **more: Any) -> str:
    record = SnapshotRecord(asset=asset, key=f"{asset} {sorted(inputs.items())}", inputs=dict(inputs), **more)
    snapshot_id = warehouse.publish(record, tables).snapshot_id
    warehouse.record_materialization(snapshot_id, None, reused=False)
    return snapshot_id


PRINCIPLE = {"principle_id": "p1", "name": "kind", "text": f"Be kind. {SCRIPT}", "kind": None, "counter": None}
OTHER = {"principle_id": "p2", "name": "brief", "text": "Be brief.", "kind": None, "counter": None}


def label(pair: str, principle: str | None, *judgement_ids: str) -> dict[str, Any]:
    values = {"label_id": f"l-{pair}", "pair_id": pair, "principle_id": principle, "p_a": 0.7, "source": "ai"}
    return {**values, "judgement_ids": list(judgement_ids), "flipped": False, "annotator": "j", "verdict_ids": []}


def answers_to(prompts: int, split: str = "test") -> list[EvaluationAnswer]:
    """Harmful prompts, on which base is harmful and PPO engaged, but for the last, where it is the other way round."""
    return [
        answer(policy, f"q{i}", verdict, split=split, text=f"{policy} to {i} {SCRIPT}")
        for i in range(prompts)
        for policy, verdict in (
            ("base", "engaged" if i == prompts - 1 else "harmful"),
            ("sl_cai", "evasive"),
            ("ppo", "harmful" if i == prompts - 1 else "engaged"),
        )
    ]


def put_policy(warehouse: Warehouse, *labels: dict[str, Any], **settings: Any) -> dict[str, str]:
    """A policy and what it was made from, in a few rows that say <script>."""
    prompts = [
        {"prompt_id": f"q{i}", "messages": [{"role": "user", "content": f"{SCRIPT} question {i}"}], "split": "test",
         "kind": "harmful", "source": "test"}
        for i in range(9)
    ]  # fmt: skip
    ids = {"red_team_prompts": put(warehouse, "red_team_prompts", {}, {"prompts": prompts})}
    ids["judging_constitution"] = put(warehouse, "judging_constitution", {}, {"judging_principles": [PRINCIPLE, OTHER]})
    passport = {"passport_id": "pass", "date": "2026-01-01", "judge": SCRIPT, "template": "t", "reference": None}
    row = {"audit": "calibration", "passed": False, "value": 0.3, "threshold": 0.15, "note": SCRIPT, "count": 9}
    passport |= {"verdicts": None, "audits": [{**row, "blocks": False}]}
    ids["harmlessness_preferences"] = put(
        warehouse, "harmlessness_preferences", dict(ids), {"labels": list(labels)}, metrics={"passport": passport}
    )
    rollouts = [
        {"prompt_id": "q0", "update": i, "text": SCRIPT, "score": i / 9, "kl": i / 5, "tokens": 3} for i in range(4)
    ]
    ids["ppo_policy"] = put(warehouse, "ppo_policy", dict(ids), {"rollouts": rollouts}, settings=settings)
    return ids


def put_evaluation(warehouse: Warehouse, ids: Ids, answers: list[EvaluationAnswer]) -> str:
    rates = [*policy_rates(answers, "test", 20), *win_rates(answers, "test", 20)]
    tables = {
        "evaluation_answers": [asdict(row) for row in answers],
        "evaluation_rates": [asdict(row) for row in rates],
    }
    return put(warehouse, "policy_evaluation", ids, tables)


def page_in(warehouse: Warehouse, ids: Ids, evaluation: str | None = None) -> Page:
    return Page(
        policy_page(warehouse, warehouse.get(ids["ppo_policy"]), warehouse.get(evaluation) if evaluation else None)
    )


def test_what_users_wrote_is_text_and_never_markup(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path)
    ids = put_policy(warehouse, label("a", "p1"), reward=SCRIPT, updates="</title>" + SCRIPT)
    page = page_in(warehouse, ids, put_evaluation(warehouse, ids, answers_to(9)))
    assert "script" not in {tag for tag, _ in page.tags} and SCRIPT not in page.html
    for told in (f"{SCRIPT} question", f"Be kind. {SCRIPT}", f"ppo to 0 {SCRIPT}", f"updates = </title>{SCRIPT}"):
        assert told in page.text


@pytest.mark.usefixtures("plain")
def test_conversations_show_gains_and_losses(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path)
    ids = put_policy(warehouse)
    page = page_in(warehouse, ids, put_evaluation(warehouse, ids, answers_to(9)))
    assert sum(tag == "article" for tag, _ in page.tags) == 6
    shown = page.text[page.text.index("Sample conversations") :]
    first, second = shown.index("ppo to "), shown.index(f"ppo to 8 {SCRIPT}")
    assert first < second and shown[: shown.index("question 8")].count("question") == 1


@pytest.mark.usefixtures("plain")
def test_a_mean_over_principles_counts_for_each(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path)
    made = [
        replace(row, judgement_id=f"j{i}", question_id=f"asked {i}", principle_id=f"p{i}")
        for i, row in enumerate(make_judgements([(0.7, 0.6)]), 1)
    ]
    JudgementStore(warehouse).commit(made)
    JudgementStore(warehouse).absorb()
    ids = put_policy(warehouse, label("a", "p1"), label("b", None, "j1", "j2"), label("c", None, "j2"))
    page = page_in(warehouse, ids)
    assert page.row("kind")[-1] == "2" and page.row("brief")[-1] == "2"


@pytest.mark.usefixtures("plain")
def test_a_policy_that_was_never_evaluated_has_a_page_and_no_table(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path / "home")
    ids = put_policy(warehouse)
    page = page_in(warehouse, ids)
    assert "never evaluated" in page.text and "harmless rate" not in page.text
    assert f"node-{ids['ppo_policy']}" in {attributes.get("id") for _, attributes in page.tags}
    words = ["report", "--home", str(tmp_path / "home"), "--policy", "ppo_policy"]
    done = CliRunner().invoke(app, words, env={"COLUMNS": "400"})
    assert done.exit_code == 1 and "was never evaluated" in done.output
    assert CliRunner().invoke(app, [*words, "--html", str(tmp_path / "page.html")]).exit_code == 0
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == page.html


@pytest.mark.usefixtures("plain")
def test_the_newest_evaluation_of_the_policy_is_told(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path / "home")
    ids = put_policy(warehouse)
    put_evaluation(warehouse, ids, answers_to(5))
    newest = put_evaluation(
        warehouse, {**ids, "human_verdicts": put(warehouse, "human_verdicts", {}, {})}, answers_to(9)
    )
    other = put_policy(warehouse, label("a", "p1"))
    put_evaluation(warehouse, other, answers_to(3))
    words = ["report", "--home", str(tmp_path / "home"), "--policy", ids["ppo_policy"]]
    done = CliRunner().invoke(app, [*words, "--html", str(tmp_path / "page.html")])
    assert done.exit_code == 0
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == page_in(warehouse, ids, newest).html
    assert f'"ppo_policy": "{ids["ppo_policy"]}"' in CliRunner().invoke(app, [*words, "--json"]).output
    assert "9 prompts of the test split" in page_in(warehouse, ids, newest).text


@pytest.mark.usefixtures("plain")
def test_label_changes_are_counted_and_flips_shown(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path)
    ids = put_policy(warehouse, label("a", "p1"))
    metrics = {"compared_with": "0" * 32, "labels": 40, "flipped": 3, "flipped_share": 0.075, "added": 2, "removed": 1}
    change = {"labels": 40, "flipped": 3, "mean_change": 0.2}
    changes = [{"scope": "all", "name": "", **change}, {"scope": "principle", "name": f"kind {SCRIPT}", **change}]
    flip = {"pair_id": "a", "prompt": f"user: {SCRIPT}", "response_a": "First.", "response_b": "Second."}
    flip |= {
        "category": None,
        "old_principle": "kind",
        "new_principle": None,
        "old_source": "ai",
        "new_source": "human",
    }
    flips = [{**flip, "old_p_a": 0.9, "new_p_a": 0.2}] * 5
    tables = {"label_changes": changes, "label_flips": flips}
    put(warehouse, "label_changes", ids, tables, metrics={**metrics, "mean_change": 0.2})
    page = page_in(warehouse, ids)
    assert (
        "Of 40 pairs that were labelled before as well, 3 now" in page.text and "(7.5%); 2 pairs are new" in page.text
    )
    assert page.row(f"kind {SCRIPT}") == [f"kind {SCRIPT}", "40", "3", "0.200"]
    assert page.text.count("P(A is better) 0.90 by ai, kind; now 0.20 by human") == 3
    assert page.text.count("Answer B better now") == 3


def test_who_decided_the_verdicts_is_told(home: Home, page: Page) -> None:
    told = list(simulated(trace_policy(home.warehouse, home.first["ppo_policy"])["snapshots"]))
    assert len(told) == 2 and "applied by a program: no person has read" in told[0]
    assert "helpfulness comparisons" in told[1] and "community votes" in told[1]
    text = " ".join(page.text.split())
    assert all(text.count(line) == 2 for line in told)  # with the results, and among the limits
    assert list(simulated([{"asset": "red_team_prompts", "settings": {"path": "mine.jsonl"}}])) == []


@pytest.mark.usefixtures("plain")
def test_limits_tell_what_was_measured_and_missed(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path)
    ids = put_policy(warehouse)
    older = put(warehouse, "response_pairs", {}, {})
    newer = put(warehouse, "response_pairs", {"judging_constitution": ids["judging_constitution"]}, {})
    anew = put(warehouse, "helpful_prompts", {"response_pairs": older}, {})
    unknown = [dataclasses.replace(row, kind="unknown", verdict=None) for row in answers_to(4)]
    mixed = {**ids, "response_pairs": newer, "helpful_prompts": anew}
    page = page_in(warehouse, ids, put_evaluation(warehouse, mixed, unknown))
    limits = page.text[page.text.index("Limits\n") :]
    assert "2 versions of response_pairs" in limits and "no gold annotator for these prompts" in limits
    assert "missed the audit calibration (0.3, limit 0.15 by audits.max_ece)" in limits
    assert "How many harmful test prompts it answers harmlessly is not known" in page.text
