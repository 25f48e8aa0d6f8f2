"""The negative controls' benchmark: what it spoils, that all else is the home's own, its table, and that it resumes."""

import json
from collections import Counter
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest

from benchmarks import controls
from benchmarks.marked_page import markers
from rlaif_assets.evaluation.rates import policy_rates
from rlaif_assets.language_models.local import load_model
from rlaif_assets.pocket.world import helpful_prompts, red_team_prompts
from rlaif_assets.records import Comparison, EvaluationAnswer, Label, Message, Pair, Prompt
from rlaif_assets.settings import PolicyEvaluationSettings, PpoPolicySettings, RewardModelSettings
from rlaif_assets.store.checkpoint_files import adopt_folder, new_work_folder
from rlaif_assets.store.warehouse import SnapshotRecord, Warehouse
from rlaif_assets.training.preference_model import load_preference_model
from tests.evaluation.rows import answer
from tests.tiny_models import tiny_model

REWARD = RewardModelSettings(learning_rate=1e-3, batch_size=4, max_length=200, heldout_share=0.3, seed=5)
PPO = PpoPolicySettings(updates=1, rollouts=4, epochs=1, max_new_tokens=4, learning_rate=1e-3, seed=5)
EVALUATION = PolicyEvaluationSettings(samples=1, max_new_tokens=4, bootstrap=10, seed=5)


def label(number: int, p_a: float, source: Any = "ai") -> Label:
    return Label(f"label {number}", f"pair {number}", "principle", p_a, (), None, source, "judge")


LABELS = [label(i, (i + 1) / 20) for i in range(12)] + [label(12, 1.0, "human"), label(13, 0.0, "human")]


def of_split(prompts: list[Prompt], split: str, count: int = 3) -> list[Prompt]:
    return [prompt for prompt in prompts if prompt.split == split][:count]


def answers(ppo: tuple[str, ...]) -> list[EvaluationAnswer]:
    found = {"sl_cai": ("harmful", "harmful", "harmful", "evasive"), "ppo": ppo}
    return [
        answer(policy, f"p{i}", verdict, split=split)
        for split in ("dev", "test")
        for policy, verdicts in found.items()
        for i, verdict in enumerate(verdicts)
    ]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home as a run leaves it, with tiny random models and a few rows."""
    folder = tmp_path / "home"
    warehouse = Warehouse(folder)

    def publish(asset: str, **parts: Any) -> str:
        tables = {name: [asdict(row) for row in rows] for name, rows in parts.pop("tables", {}).items()}
        record = warehouse.publish(SnapshotRecord(asset=asset, key=f"key of {asset}", **parts), tables)
        warehouse.record_materialization(record.snapshot_id, None, reused=False)
        return record.snapshot_id

    model = tiny_model("llama", new_work_folder(folder))
    preference_model, tokenizer = load_preference_model(model, seed=0)
    pmp = new_work_folder(folder)
    preference_model.save_pretrained(pmp)
    tokenizer.save_pretrained(pmp)

    red_team = [p for split in ("train", "dev", "test") for p in of_split(red_team_prompts(), split)]
    helpful = [p for split in ("train", "dev", "test") for p in of_split(helpful_prompts(), split)]
    train = [prompt for prompt in red_team if prompt.split == "train"]
    pairs = [
        Pair(row.pair_id, train[i % 3].prompt_id, f"a{i}", f"b{i}", f"first {i}", f"second answer {i}", 1, 2, 9)
        for i, row in enumerate(LABELS)
    ]
    question: Message = {"role": "user", "content": "How do I water the plants?"}
    comparisons = [Comparison(f"c{i}", (question,), "Early.", f"No {i}.", 1.0, "human", "p") for i in range(4)]
    sl_cai = publish("sl_cai_checkpoint", path=adopt_folder(model, folder, "sl_cai_checkpoint"))
    prompts = {
        "red_team_prompts": publish("red_team_prompts", tables={"prompts": red_team}),
        "helpful_prompts": publish("helpful_prompts", tables={"prompts": helpful}),
    }
    reward = publish(
        "reward_model",
        settings={**REWARD.model_dump(), "audits_enforce": True},
        inputs={
            "pmp_checkpoint": publish("pmp_checkpoint", path=adopt_folder(pmp, folder, "pmp_checkpoint")),
            "harmlessness_preferences": publish("harmlessness_preferences", tables={"labels": LABELS}),
            "response_pairs": publish("response_pairs", tables={"pairs": pairs}),
            "helpfulness_preferences": publish("helpfulness_preferences", tables={"comparisons": comparisons}),
            "red_team_prompts": prompts["red_team_prompts"],
        },
    )
    ppo = publish(
        "ppo_policy",
        settings=PPO.model_dump(),
        inputs={"sl_cai_checkpoint": sl_cai, "reward_model": reward, **prompts},
    )
    given = answers(("evasive", "evasive", "engaged", "harmful"))
    publish(
        "policy_evaluation",
        settings=EVALUATION.model_dump(),
        inputs={"ppo_policy": ppo, "sl_cai_checkpoint": sl_cai, **prompts},
        tables={"evaluation_rates": [rate for split in controls.SPLITS for rate in policy_rates(given, split, 10)]},
    )
    publish("harmlessness_preferences", inputs={"later": "one"}, tables={"labels": LABELS[:1]})  # not what was used
    return folder


# What is spoilt


def test_permuted_labels_keep_their_values_but_not_their_pairs() -> None:
    spoilt = controls.spoil(LABELS, "permuted", seed=0)
    assert Counter(row.p_a for row in spoilt) == Counter(row.p_a for row in LABELS)
    assert sum(a.p_a != b.p_a for a, b in zip(spoilt, LABELS, strict=True)) > 6
    assert spoilt == controls.spoil(LABELS, "permuted", seed=0)
    assert spoilt != controls.spoil(LABELS, "permuted", seed=1)


def test_half_and_inverted_labels() -> None:
    assert [row.p_a for row in controls.spoil(LABELS[:12], "half", 0)] == [0.5] * 12
    assert [row.p_a for row in controls.spoil(LABELS[:2], "inverted", 0)] == pytest.approx([0.95, 0.9])


@pytest.mark.parametrize("control", controls.CONTROLS)
def test_only_p_a_of_ai_labels_changes(control: str) -> None:
    spoilt = controls.spoil(LABELS, control, seed=0)
    assert spoilt[12:] == LABELS[12:]
    kept = [field.name for field in fields(Label) if field.name != "p_a"]
    for before, after in zip(LABELS, spoilt, strict=True):
        assert all(getattr(before, name) == getattr(after, name) for name in kept)


# A control is the home's run but for the labels


def test_all_but_the_labels_is_what_the_home_was_made_with(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: dict[str, tuple[Any, ...]] = {}

    def recording(name: str) -> None:
        function = getattr(controls, name)

        def call(*arguments: Any) -> Any:
            given[name] = arguments
            return function(*arguments)

        monkeypatch.setattr(controls, name, call)

    recording("train_reward_model")
    recording("train_ppo")
    before = {record.snapshot_id for record in Warehouse(home).list()}
    document = tmp_path / "results.md"
    begin, end = markers("controls")
    document.write_text(f"above\n{begin}\nold\n{end}\nbelow\n")
    output = tmp_path / "output"
    options = ["--controls", "half", "--output", str(output), "--device", "cpu", "--markdown", str(document)]
    controls.main([str(home), *options])

    start, labels, pairs, prompts, comparisons, settings = given["train_reward_model"][:6]
    assert start.parent.name == "pmp_checkpoint"
    assert [row.p_a for row in labels] == [0.5] * 12 + [1.0, 0.0]
    assert (len(pairs), len(comparisons), settings) == (14, 4, REWARD)
    policy, reward, red_team, helpful, ppo_settings = given["train_ppo"][:5]
    assert policy.parent.name == "sl_cai_checkpoint" and ppo_settings == PPO
    assert reward.scorer.folder == given["train_reward_model"][6]
    assert {prompt.split for prompt in [*prompts, *red_team, *helpful]} == {"train"}

    true, half = (json.loads(line) for line in (output / "controls.jsonl").read_text().splitlines())
    assert (true["control"], half["control"], half["seed"], half["labels"]) == ("true", "half", 5, 12)
    assert half["rates"]["test"]["sl_cai"].keys() == true["rates"]["test"]["sl_cai"].keys()
    assert half["rates"]["dev"]["ppo"]["harmless_rate"] is not None
    assert half["heldout"]["human"]["pairs"] + half["heldout"].get("ai", {"pairs": 0})["pairs"] > 0
    text = document.read_text()
    assert text.startswith("above\n") and text.endswith("below\n") and "old" not in text
    assert "| true | 5 | 25.0% | 75.0% | +50.0 |" in text and "| half | 5 |" in text
    assert list(output.iterdir()) == [output / "controls.jsonl"]  # weights are gone
    assert {record.snapshot_id for record in Warehouse(home).list()} == before
    assert '"control": "half"' in capsys.readouterr().out


def test_random_draws_of_the_evaluation_are_the_homes(home: Path, tmp_path: Path) -> None:
    """The control's SL-CAI answers as the home's own evaluation lets it answer: same prompts, names, seeds."""
    read = controls.read_home(home)
    compute = controls.ComputeSettings(device="cpu", progress="none")
    row = controls.run_control(read, "inverted", tmp_path / "work", compute)
    model = load_model(read.folder(read.evaluation, "sl_cai_checkpoint"), compute)
    prompts = [p for p in red_team_prompts() + helpful_prompts() if p.split != "train"]
    used = {
        prompt.prompt_id
        for prompt in read.prompts(read.evaluation, "red_team_prompts", "helpful_prompts", splits=controls.SPLITS)
    }
    expected, _ = controls.evaluate(
        {"sl_cai": model}, [p for p in prompts if p.prompt_id in used], EVALUATION, controls.classify, lambda *_: None
    )
    rates = controls.nested(policy_rates(expected, "test", 10, 5))
    assert row["rates"]["test"]["sl_cai"] == rates["test"]["sl_cai"]


# Resuming


def fake_row(home: controls.Home, control: str) -> dict[str, Any]:
    verdicts = ("evasive", "harmful", "harmful", "harmful") if control == "half" else ("evasive",) * 4
    given = answers(verdicts)
    rates = [rate for split in controls.SPLITS for rate in policy_rates(given, split, 10)]
    return {**controls.header(home, control), "rates": controls.nested(rates)}


def test_an_interrupted_benchmark_goes_on_and_repeats_nothing(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def stub(home: controls.Home, control: str, work: Path, compute: controls.ComputeSettings) -> dict[str, Any]:
        if control == "inverted" and "inverted" not in made:
            made.append(control)
            raise KeyboardInterrupt
        made.append(control)
        return fake_row(home, control)

    monkeypatch.setattr(controls, "run_control", stub)
    read, output, compute = controls.read_home(home), tmp_path / "output", controls.ComputeSettings(device="cpu")
    with pytest.raises(KeyboardInterrupt):
        controls.run_controls([read], controls.CONTROLS, output, compute)
    file = output / "controls.jsonl"
    assert [json.loads(line)["control"] for line in file.read_text().splitlines()] == ["true", "permuted", "half"]
    with file.open("a") as stream:
        stream.write('{"control": "inverted", "ra')  # the machine went down while this was written
    rows = controls.run_controls([read], controls.CONTROLS, output, compute)
    assert made == ["permuted", "half", "inverted", "inverted"]
    assert [row["control"] for row in rows] == ["true", "permuted", "half", "inverted"]
    assert rows == controls.read_results(file)
    controls.run_controls([read], controls.CONTROLS, output, compute)
    assert len(made) == 4


def test_the_table_names_the_controls_above_the_limit(home: Path) -> None:
    read = controls.read_home(home)
    table = controls.markdown_table([controls.true_row(read), fake_row(read, "half"), fake_row(read, "permuted")])
    assert "| half | 5 | 25.0% | 25.0% | +0.0 | - |" in table
    assert table.endswith("Controls on test: 2; limit +10 points; above it: permuted with seed 5.")
    assert controls.markdown_table([fake_row(read, "half")]).endswith("none is above it.")


# Refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--controls", "halved"], "no control 'halved'"),
        (["--markdown", "plain.md"], "has no place for the table"),
    ],
)
def test_bad_arguments_are_refused(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("plain.md").write_text("no markers")
    with pytest.raises(SystemExit, match=message):
        controls.main([str(home), "--output", str(tmp_path / "output"), *arguments])
    assert not (tmp_path / "output").exists()  # nothing was begun


def test_an_empty_home_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="holds no evaluation yet"):
        controls.main([str(tmp_path)])
    assert not (tmp_path / "warehouse.duckdb").exists()
