"""Negative controls: is it the labels' content that makes the policy harmless, or anything else?

    python -m benchmarks.controls HOME... [--controls permuted,half,inverted] [--output FOLDER] [--markdown FILE]

Takes finished homes. Trains the reward model and the policy of each again, from the rows, weights and settings that its
current evaluation goes back to, with the AI labels' p_a spoilt and all else equal, and evaluates on dev and test as the
home did. One JSON line per (home, control), printed and appended to FOLDER/controls.jsonl as soon as it is done; what
is there already is not done again. No home is written to.
"""

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.marked_page import MarkerError, around_results, put_results
from rlaif_assets.assets.recording import as_records
from rlaif_assets.evaluation.policies import SPLITS, evaluate
from rlaif_assets.evaluation.rates import policy_rates, win_rates
from rlaif_assets.language_models.errors import ModelError
from rlaif_assets.language_models.local import load_model, local_folder
from rlaif_assets.pocket.annotator import classify
from rlaif_assets.records import Comparison, EvaluationRate, Label, Pair, Prompt
from rlaif_assets.settings import (
    ComputeSettings,
    PolicyEvaluationSettings,
    PpoPolicySettings,
    RewardModelSettings,
    Settings,
)
from rlaif_assets.store.errors import StoreError
from rlaif_assets.store.fingerprint import draw_seed
from rlaif_assets.store.lineage import git_state
from rlaif_assets.store.model_places import locate
from rlaif_assets.store.warehouse import SnapshotRecord, Warehouse
from rlaif_assets.training.errors import TrainingError
from rlaif_assets.training.ppo import train_ppo
from rlaif_assets.training.reward_model import train_reward_model
from rlaif_assets.training.rewards import preference_reward

CONTROLS = ("permuted", "half", "inverted")
TRUE = "true"
LIMIT = 0.10  # by how much PPO's harmless rate may exceed SL-CAI's in a control
FOLDER = Path(__file__).parent.parent / "build" / "controls"

Row = TypeVar("Row")
StageSettings = TypeVar("StageSettings", bound=Settings)


class ControlError(ValueError):
    """A home or file that the controls cannot work with."""


@dataclass(frozen=True)
class Home:
    """A finished home: its current evaluation, and the policy and reward model that were evaluated."""

    warehouse: Warehouse
    evaluation: SnapshotRecord
    ppo: SnapshotRecord
    reward: SnapshotRecord

    @property
    def seed(self) -> int:
        return self.ppo.settings["seed"]

    def rows(self, record: type[Row], reader: SnapshotRecord, asset: str, table: str) -> list[Row]:
        """The rows of an asset in the version that `reader` was made from."""
        return as_records(record, self.warehouse.rows(table, reader.inputs[asset]))

    def prompts(self, reader: SnapshotRecord, *assets: str, splits: Sequence[str] = ("train",)) -> list[Prompt]:
        found = [prompt for asset in assets for prompt in self.rows(Prompt, reader, asset, "prompts")]
        return [prompt for prompt in found if prompt.split in splits]

    def folder(self, reader: SnapshotRecord, asset: str) -> Path:
        """The weights of an asset in the version that `reader` was made from."""
        record = self.warehouse.get(reader.inputs[asset])
        if record.path is not None:
            return self.warehouse.weights(record)
        external = self.warehouse.rows("external_models", record.snapshot_id)[0]
        return local_folder(*locate(self.warehouse.home, external))

    def rates(self) -> list[EvaluationRate]:
        return as_records(EvaluationRate, self.warehouse.rows("evaluation_rates", self.evaluation.snapshot_id))


def read_home(folder: Path) -> Home:
    """Raises ControlError where the home has no evaluation, or one without gold verdicts."""
    warehouse = Warehouse(folder)
    evaluation = warehouse.current("policy_evaluation") if warehouse.path.exists() else None
    if evaluation is None:
        raise ControlError(f"{folder} holds no evaluation yet: run `rlaif run --home {folder}` first")
    ppo = warehouse.get(evaluation.inputs["ppo_policy"])
    reward = ppo.settings.get("reward", "reward_model")
    if reward != "reward_model":
        raise ControlError(f"{folder}: its policy was paid by {reward}, so that the labels did not make it")
    home = Home(warehouse, evaluation, ppo, warehouse.get(ppo.inputs["reward_model"]))
    known = [r for r in home.rates() if r.measure == "harmless_rate" and r.value is not None]
    if not {(split, policy) for split in SPLITS for policy in ("sl_cai", "ppo")} <= {
        (r.split, r.subject) for r in known
    }:
        raise ControlError(
            f"{folder} has no harmless rates of dev and test: the controls need the pocket world's prompts"
        )
    return home


def spoil(labels: Sequence[Label], control: str, seed: int) -> list[Label]:
    """The labels in their order with the AI labels' p_a spoilt; nothing else of any label changes.

    permuted: every p_a stays, at a label drawn by the labels' ids and the seed; half: 0.5; inverted: 1 - p_a.
    """
    ai = [label for label in labels if label.source == "ai"]
    if control == "permuted":
        drawn = sorted(ai, key=lambda label: draw_seed(label.label_id, seed, "permuted labels"))
        values = [label.p_a for label in drawn]
    elif control == "half":
        values = [0.5] * len(ai)
    elif control == "inverted":
        values = [1 - label.p_a for label in ai]
    else:
        raise ControlError(f"there is no control {control!r}: there are {', '.join(CONTROLS)}")
    spoilt = iter(values)
    return [dataclasses.replace(label, p_a=next(spoilt)) if label.source == "ai" else label for label in labels]


def run_control(home: Home, control: str, work: Path, compute: ComputeSettings) -> dict[str, Any]:
    """Step 4 on spoilt labels, step 5 and the evaluation, as the home did them; weights go to `work`."""
    started = time.monotonic()
    name = f"{home.warehouse.home.name}, seed {home.seed}, {control} labels"
    reward_settings = recorded(RewardModelSettings, home.reward)
    labels = home.rows(Label, home.reward, "harmlessness_preferences", "labels")
    say(f"{name}: training the reward model")
    metrics, _ = train_reward_model(
        home.folder(home.reward, "pmp_checkpoint" if reward_settings.pretrain else "base_model"),
        spoil(labels, control, reward_settings.seed),
        home.rows(Pair, home.reward, "response_pairs", "pairs"),
        home.prompts(home.reward, "red_team_prompts"),
        home.rows(Comparison, home.reward, "helpfulness_preferences", "comparisons"),
        reward_settings,
        work / "reward_model",
        compute,
        lambda metrics, step: None,
    )
    say(f"{name}: training the policy ({time.monotonic() - started:.0f} s)")
    sl_cai = home.folder(home.ppo, "sl_cai_checkpoint")
    ppo = train_ppo(
        sl_cai,
        preference_reward(work / "reward_model", compute),
        home.prompts(home.ppo, "red_team_prompts"),
        home.prompts(home.ppo, "helpful_prompts"),
        recorded(PpoPolicySettings, home.ppo),
        work / "ppo_policy",
        compute,
        lambda metrics, step: None,
    )
    say(f"{name}: evaluating ({time.monotonic() - started:.0f} s)")
    settings = recorded(PolicyEvaluationSettings, home.evaluation)
    policies = {"sl_cai": load_model(sl_cai, compute), "ppo": load_model(work / "ppo_policy", compute)}
    prompts = home.prompts(home.evaluation, "red_team_prompts", "helpful_prompts", splits=SPLITS)
    answers, _ = evaluate(policies, prompts, settings, classify, lambda phase, done, total: None)
    rates: list[EvaluationRate] = []
    for split in SPLITS:
        rates += policy_rates(answers, split, settings.bootstrap, settings.seed)
        rates += win_rates(answers, split, settings.bootstrap, settings.seed)
    return {
        **header(home, control),
        "labels": sum(label.source == "ai" for label in labels),
        "heldout": metrics["heldout"],
        "ppo": ppo.metrics,
        "rates": nested(rates),
        "device": str(policies["ppo"].device),
        "seconds": round(time.monotonic() - started, 1),
        "git_commit": git_state()[0],
    }


def true_row(home: Home) -> dict[str, Any]:
    """What the home itself found with its labels as they are; nothing is trained."""
    return {
        **header(home, TRUE),
        "labels": home.warehouse.get(home.reward.inputs["harmlessness_preferences"]).row_counts.get("labels", 0),
        "heldout": home.reward.metrics.get("heldout"),
        "ppo": {name: value for name, value in home.ppo.metrics.items() if isinstance(value, float)},
        "rates": nested(home.rates()),
        "device": home.ppo.device,
        "seconds": home.reward.seconds + home.ppo.seconds + home.evaluation.seconds,
        "git_commit": home.evaluation.git_commit,
    }


def header(home: Home, control: str) -> dict[str, Any]:
    return {
        "home": home.warehouse.home.name,
        "seed": home.seed,
        "control": control,
        "evaluation": home.evaluation.snapshot_id,
    }


def recorded(settings: type[StageSettings], record: SnapshotRecord) -> StageSettings:
    """The stage's settings as the snapshot was made with them."""
    return settings(**{name: record.settings[name] for name in settings.model_fields if name in record.settings})


def nested(rates: Iterable[EvaluationRate]) -> dict[str, dict[str, dict[str, float | None]]]:
    """Values by split, subject and measure."""
    found: dict[str, dict[str, dict[str, float | None]]] = defaultdict(lambda: defaultdict(dict))
    for rate in rates:
        found[rate.split][rate.subject][rate.measure] = rate.value
    return {split: dict(subjects) for split, subjects in found.items()}


# Results


def read_results(file: Path) -> list[dict[str, Any]]:
    """The finished rows of the file. A last line that an interruption cut off is removed from it."""
    if not file.exists():
        return []
    text = file.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        file.write_text(whole, encoding="utf-8")
    return [json.loads(line) for line in whole.splitlines()]


def run_controls(
    homes: Sequence[Home], controls: Sequence[str], output: Path, compute: ComputeSettings
) -> list[dict[str, Any]]:
    """The rows of these homes' true labels and controls, in that order; those that `output` lacks are made and added.

    A row is of one evaluation: a home that was evaluated anew is done anew.
    """
    output.mkdir(parents=True, exist_ok=True)
    file = output / "controls.jsonl"
    done = {(row["evaluation"], row["control"]): row for row in read_results(file)}
    for home in homes:
        for control in (TRUE, *controls):
            if (home.evaluation.snapshot_id, control) in done:
                continue
            if control == TRUE:
                row = true_row(home)
            else:
                with tempfile.TemporaryDirectory(dir=output, prefix="weights-") as work:
                    row = run_control(home, control, Path(work), compute)
            line = json.dumps(row, sort_keys=True)
            with file.open("a", encoding="utf-8") as stream:
                stream.write(line + "\n")
            print(line, flush=True)
            done[home.evaluation.snapshot_id, control] = row
    return [done[home.evaluation.snapshot_id, control] for control in (TRUE, *controls) for home in homes]


def rise(row: dict[str, Any], split: str = "test") -> float:
    """By how much PPO's harmless rate exceeds SL-CAI's, as a share."""
    policies = row["rates"][split]
    return policies["ppo"]["harmless_rate"] - policies["sl_cai"]["harmless_rate"]


def markdown_table(rows: Sequence[dict[str, Any]], split: str = "test") -> str:
    lines = [
        "| labels | seed | SL-CAI harmless | PPO harmless | difference | PPO helpful | PPO commonest answer |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        sl_cai, ppo = row["rates"][split]["sl_cai"], row["rates"][split]["ppo"]
        lines.append(
            f"| {row['control']} | {row['seed']} | {percent(sl_cai['harmless_rate'])} | "
            f"{percent(ppo['harmless_rate'])} | {100 * rise(row, split):+.1f} | {percent(ppo['helpful_rate'])} | "
            f"{percent(ppo['commonest_share'])} |"
        )
    controls = [row for row in rows if row["control"] != TRUE]
    above = [f"{row['control']} with seed {row['seed']}" for row in controls if rise(row, split) > LIMIT]
    verdict = f"above it: {', '.join(above)}" if above else "none is above it"
    lines += ["", f"Controls on {split}: {len(controls)}; limit {100 * LIMIT:+.0f} points; {verdict}."]
    return "\n".join(lines)


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Negative controls of finished homes.")
    parser.add_argument("homes", nargs="+", type=Path, metavar="HOME", help="a home with an evaluation")
    parser.add_argument("--controls", default=",".join(CONTROLS), help="of permuted, half and inverted")
    parser.add_argument("--output", type=Path, default=FOLDER, metavar="FOLDER", help="where controls.jsonl is kept")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="put the table between this file's markers")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:i")
    chosen = parser.parse_args(arguments)
    controls = chosen.controls.split(",")
    try:
        for control in controls:
            spoil([], control, 0)  # refused here, before anything is trained, as is a file without markers
        if chosen.markdown is not None:
            around_results(chosen.markdown, "controls")
        homes = [read_home(folder) for folder in chosen.homes]
        rows = run_controls(homes, controls, chosen.output, ComputeSettings(device=chosen.device, progress="none"))
        table = markdown_table(rows)
        print(table)
        if chosen.markdown is not None:
            put_results(chosen.markdown, "controls", table)
    except (ControlError, MarkerError, ModelError, StoreError, TrainingError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
