"""The report of a policy: one HTML page that needs no network, for a person who never opens a terminal.

What is on it is gathered here from the warehouse and laid out by `policy_report.jinja`, which escapes everything. The
same snapshots give the same page. Rates belong to `rates`, pictures to `pictures`, the graph to `ancestry_graph`.
"""

import base64
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from functools import cache
from importlib import resources
from importlib.metadata import version
from itertools import chain
from typing import Any

import jinja2

from rlaif_assets.evaluation.ancestry_graph import HEIGHT, WIDTH, draw_ancestry
from rlaif_assets.evaluation.limits import LIMITS, simulated
from rlaif_assets.evaluation.made_from import Made, learned_from
from rlaif_assets.evaluation.report import (
    NAMES,
    UNITS,
    build_report,
)
from rlaif_assets.feedback.limits import RULES, measured
from rlaif_assets.records import EvaluationRate, Split
from rlaif_assets.store.judgements import JudgementStore
from rlaif_assets.store.trace import POLICY, trace_policy
from rlaif_assets.store.warehouse import Row, SnapshotRecord, Warehouse

TEMPLATE = "policy_report.jinja"
CONVERSATIONS = 6
HARM_RANK = {"harmful": 0, "incoherent": 1, "evasive": 2, "engaged": 3}  # of a conversation's verdict
FLIPS = 3

MEASURES = {
    "harmless_rate": "Harmful requests whose answer does no harm: declined, or answered without harm. More is better.",
    "evasive_rate": "Harmful requests that are declined and nothing more. Fewer is better while harmless is high.",
    "helpful_rate": "Harmless requests that are answered to the point. More is better.",
    "lookalike_refusal_rate": "Requests that only sound harmful and are declined or garbled. Fewer is better.",
    "incoherent_rate": "Answers that make no sense or do not end. Fewer is better.",
    "distinct_share": "Different texts among the answers to harmful requests. A low share: it repeats itself.",
    "commonest_share": "The share of the one text that it gives most often to harmful requests.",
    "mean_length": "Mean length of an answer in tokens (pieces of words).",
    "kl": "How far it went from SL-CAI, in nats per answer: 0 is not at all.",
}
HEADLINES = {
    "harmless_rate": "of harmful {split} prompts answered harmlessly",
    "helpful_rate": "of harmless ones answered helpfully",
    "lookalike_refusal_rate": "of those that only sound harmful turned down",
}
PAID = {"reward_model": "the preference model", "judge": "the judge itself"}  # else a function, or half of the data
KINDS = {
    "harmful": "Harmful request",
    "harmless": "Harmless request",
    "lookalike": "Sounds harmful, is not",
    "unknown": "Request",
}


def policy_page(
    warehouse: Warehouse, policy: SnapshotRecord, evaluation: SnapshotRecord | None, split: Split = "test"
) -> str:
    """The whole page. Without an evaluation the parts that need one say so."""
    found = trace_policy(warehouse, policy.snapshot_id)
    snapshots = sorted(found["snapshots"], key=lambda one: one["created_at"])
    made = learned_from(found["snapshots"], policy.snapshot_id)
    report = build_report(warehouse, split, evaluation) if evaluation else None
    answers = warehouse.rows("evaluation_answers", evaluation.snapshot_id) if evaluation else []
    answers = [row for row in answers if row["split"] == split]
    names = [one["version"] for one in found["registry"]]
    passport = made.get("harmlessness_preferences", {}).get("passport") or None
    audits = _audits(passport)
    return _template().render(
        title=names[0] if names else f"{POLICY} {policy.snapshot_id[:8]}",
        policy=policy,
        evaluation=evaluation,
        split=split,
        names=NAMES,
        report=report,
        summary=list(_summary(report, split, audits)),
        headlines=_headlines(report, split),
        measures=MEASURES,
        prompts=len({row["prompt_id"] for row in answers}),
        samples=1 + max((row["sample"] for row in answers), default=0),
        pictures=_pictures(warehouse, evaluation, split, answers, made, passport),
        made=made,
        models={name: _model(warehouse, made, name) for name in ("base_model", "feedback_model") if name in made},
        principles=_principles(warehouse, made),
        steps=list(_steps(made)),
        passport=passport,
        audits=audits,
        missed=_missed(audits),
        changes=_changes(warehouse, made),
        conversations=_conversations(warehouse, answers),
        kinds=KINDS,
        graph=draw_ancestry(found["snapshots"]),
        box={"width": WIDTH, "height": HEIGHT},
        snapshots=[*snapshots, *([vars(evaluation)] if evaluation else [])],
        simulated=list(simulated(made.values())),
        limits=[LIMITS, *simulated(made.values()), *_limits(report, split, made, passport)],
        software=f"rlaif-assets {version('rlaif-assets')}",
    )


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = number
    source = (resources.files("rlaif_assets.evaluation") / TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(source)


def number(value: float | None, measure: str = "") -> str:
    """As in the tables of `report`: a share in per cent, unless the measure has another form."""
    return "-" if value is None else UNITS.get(measure, "{:.1%}").format(value)


def _summary(report: Mapping[str, Any] | None, split: Split, audits: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What the page says first."""
    if report is None:
        yield "This policy was never evaluated: what it was made from is below, but not how it answers."
    elif (rate := report["policies"].get("ppo", {}).get("harmless_rate")) is not None:
        others = _others(report["policies"], "harmless_rate")
        yield f"It answers {rate:.0%} of harmful {split} prompts harmlessly" + (f", {others}." if others else ".")
    else:
        why = report["policies"].get("ppo", {}).get("reasons", {}).get("harmless_rate", "it was not measured")
        yield f"How many harmful {split} prompts it answers harmlessly is not known: {why}."
    if audits:
        yield f"The judge whose labels it learned from {_missed(audits)}."


def _audits(passport: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The passport's rows with what each shows, its limit in words, and what came of it."""
    found = []
    for row in passport["audits"] if passport else ():
        rule = RULES.get(row["audit"])
        past = rule is not None and row["value"] is not None and not rule.at_least and row["value"] > row["threshold"]
        if row["count"] is None:
            state, colour = "not asked", "none"
        elif row["passed"]:
            state, colour = ("accepted", "warn") if past else ("yes", "yes")
        else:
            state, colour = ("no" if row["blocks"] else "no, a warning"), "no"
        side = "" if rule is None else "at least " if rule.at_least else "at most "
        limit = "" if row["count"] is None else f"{side}{row['threshold']:.4g}"
        told = {"shows": rule.shows if rule else "", "limit": limit, "state": state, "colour": colour}
        found.append({**row, **told, "name": row["audit"].replace("_", " ")})
    return found


def _missed(audits: Sequence[Mapping[str, Any]]) -> str:
    asked = [row for row in audits if row["count"] is not None]
    missed = [row["name"] for row in asked if not row["passed"]]
    if missed:
        return f"missed {len(missed)} of {len(asked)} audits: {', '.join(missed)}"
    return f"passed the {len(asked)} audits that could be made"


def _headlines(report: Mapping[str, Any] | None, split: Split) -> list[dict[str, Any]]:
    """What is told in large figures: {value, what, others, note}; rates that are not known are left out."""
    if report is None:
        return []
    own = report["policies"].get("ppo", {})
    found = [
        {
            "value": f"{own[measure]:.0%}",
            "what": what.format(split=split),
            "others": _others(report["policies"], measure),
            "note": None,
        }
        for measure, what in HEADLINES.items()
        if own.get(measure) is not None
    ]
    duel = report["win_rates"].get("ppo_vs_sl_cai", {})
    if duel.get("rate") is not None:
        told = f"95% interval {duel['low']:.0%} to {duel['high']:.0%}" if duel.get("low") is not None else ""
        what = "of the decided comparisons with SL-CAI won"
        found.append({"value": f"{duel['rate']:.0%}", "what": what, "others": told, "note": duel["note"]})
    return found


def _others(policies: Mapping[str, Mapping[str, Any]], measure: str) -> str:
    """`SL-CAI 78%, base 24%`."""
    others = [(NAMES.get(name, name), values.get(measure)) for name, values in policies.items() if name != "ppo"]
    return ", ".join(f"{name} {value:.0%}" for name, value in reversed(others) if value is not None)


def _pictures(
    warehouse: Warehouse,
    evaluation: SnapshotRecord | None,
    split: Split,
    answers: Sequence[Row],
    made: Made,
    passport: Mapping[str, Any] | None,
) -> dict[str, str]:
    """PNG as data: URIs, by name; what has no numbers has no picture."""
    from rlaif_assets.evaluation import pictures

    found: dict[str, bytes] = {}
    if evaluation is not None:
        rows = warehouse.rows("evaluation_rates", evaluation.snapshot_id)
        rates = [
            EvaluationRate(**{**row, "subject": NAMES.get(row["subject"], row["subject"])})
            for row in rows
            if row["split"] == split
        ]
        found["rates"] = pictures.rates_picture(rates)
    if answers:
        found["lengths"] = pictures.lengths_picture(_lengths(answers))
    updates = warehouse.grouped("rollouts", made[POLICY]["snapshot_id"], "update", means=("score", "kl"))
    if updates:
        score, kl = [row["score"] for row in updates], [row["kl"] for row in updates]
        found["training"] = pictures.curves_picture({"mean score": score, "KL to SL-CAI": kl})
        found["score_by_kl"] = pictures.score_by_kl_picture(kl, {"score": score})
    judge = {name: passport[name]["reliability"] for name in ("reference", "verdicts") if passport and passport[name]}
    if judge:
        found["judge"] = pictures.reliability_picture(judge)
    heldout = made.get("reward_model", {}).get("metrics", {}).get("heldout", {})
    bins = {name: metrics["reliability"] for name, metrics in heldout.items() if metrics.get("reliability")}
    if bins:
        found["preference_model"] = pictures.reliability_picture(bins)
    return {name: f"data:image/png;base64,{base64.b64encode(png).decode()}" for name, png in found.items()}


def _lengths(answers: Sequence[Row]) -> dict[str, list[int]]:
    """Answer lengths in tokens by policy, under the names that people read."""
    found: dict[str, list[int]] = {}
    for row in answers:
        name = str(row["policy"])
        found.setdefault(NAMES.get(name) or name, []).append(row["tokens"])
    return found


def _model(warehouse: Warehouse, made: Made, asset: str) -> Row:
    """The row of `external_models`; empty where there is none."""
    return next(iter(warehouse.rows("external_models", made[asset]["snapshot_id"])), {})


def _steps(made: Made) -> Iterator[str]:
    """What was done, in order, with its numbers; a step that is not in the ancestry is left out."""

    def count(asset: str, table: str) -> str:
        return f"{made[asset]['row_counts'].get(table, 0):,}"

    if "revised_responses" in made:
        yield (
            "The base model answered prompts that ask for harm, then criticised its answers and rewrote them, each "
            f"time under a principle of the constitution: {count('revised_responses', 'revisions')} texts."
        )
    if "sl_cai_checkpoint" in made:
        yield (
            "It was trained to write as in these revisions, and on "
            f"{count('sl_cai_checkpoint', 'answers')} helpful answers of its own. The result is called SL-CAI."
        )
    if "harmlessness_preferences" in made:
        yield (
            f"SL-CAI answered such prompts, two answers at a time, and the judge said which one is better under a "
            f"principle of the constitution: {count('harmlessness_preferences', 'labels')} labels."
        )
    if "reward_model" in made:
        yield (
            "A preference model learned to tell better answers from these labels and from "
            f"{count('helpfulness_preferences', 'comparisons')} comparisons of helpful answers by people or a stand-in."
        )
    settings = made[POLICY]["settings"]
    reward = settings.get("reward", "reward_model")
    yield (
        f"SL-CAI then practised: {count(POLICY, 'rollouts')} answers in {settings.get('updates', '?')} rounds, paid by "
        f"{PAID.get(reward, reward)}, less a price for moving away from SL-CAI (PPO): this policy."
    )


def _principles(warehouse: Warehouse, made: Made) -> dict[str, list[dict[str, Any]]]:
    """Of both constitutions, with how many labels and revisions each is behind. A label that is the mean over several
    principles counts for each."""
    found: dict[str, list[dict[str, Any]]] = {}
    for asset, table, of, used in (
        ("judging_constitution", "judging_principles", "harmlessness_preferences", "labels"),
        ("critique_constitution", "critique_principles", "revised_responses", "revisions"),
    ):
        if asset in made:
            uses = _uses(warehouse, used, made[of]["snapshot_id"]) if of in made else {}
            rows = warehouse.rows(table, made[asset]["snapshot_id"])
            found[used] = [{**row, "uses": uses.get(row["principle_id"], 0)} for row in rows]
    return found


def _uses(warehouse: Warehouse, table: str, snapshot_id: str) -> Mapping[str, int]:
    counts = Counter(
        {row["principle_id"]: row["rows"] for row in warehouse.grouped(table, snapshot_id, "principle_id")}
    )
    if table == "labels" and counts.pop(None, 0):
        averaged = [row for row in warehouse.rows(table, snapshot_id) if row["principle_id"] is None]
        judged = JudgementStore(warehouse).fetch([one for row in averaged for one in row["judgement_ids"]])
        for row in averaged:
            counts.update({judged[one].principle_id for one in row["judgement_ids"] if one in judged})
    return counts


def _changes(warehouse: Warehouse, made: Made) -> dict[str, Any] | None:
    """How this policy's labels differed, when they were made, from the ones before; None where there were none."""
    labels = made.get("harmlessness_preferences", {}).get("snapshot_id")
    compared = [one for one in warehouse.list("label_changes") if one.inputs.get("harmlessness_preferences") == labels]
    if not compared or not compared[0].metrics.get("compared_with"):
        return None
    rows = warehouse.rows("label_changes", compared[0].snapshot_id)
    return {
        **compared[0].metrics,
        "principles": [row for row in rows if row["scope"] == "principle"],
        "flips": warehouse.rows("label_flips", compared[0].snapshot_id, FLIPS),
    }


def _conversations(warehouse: Warehouse, answers: Sequence[Row]) -> list[dict[str, Any]]:
    """{kind, messages, answers by policy}: as many of each kind of prompt, in turn those at which PPO gains most on
    base and those at which it loses most, by verdict first, then those that differ most in words; an intent once."""
    by_draw: defaultdict[tuple[str, str, int], dict[str, Row]] = defaultdict(dict)
    for row in answers:
        by_draw[row["kind"], row["prompt_id"], row["sample"]][row["policy"]] = row
    both = {key: found for key, found in by_draw.items() if "ppo" in found and "base" in found}
    gains = {key: _gain(found) for key, found in both.items()}
    kinds = [kind for kind in KINDS if any(key[0] == kind for key in both)]
    shown = []
    for kind in kinds:
        of_kind = [key for key in sorted(both) if key[0] == kind]
        best = sorted(of_kind, key=lambda key: (-gains[key][0], -gains[key][1]))
        worst = sorted(of_kind, key=lambda key: (gains[key][0], -gains[key][1]))
        chosen: dict[str, tuple[str, str, int]] = {}
        for key in chain.from_iterable(zip(best, worst, strict=True)):
            chosen.setdefault(both[key]["ppo"]["intent"] or key[1], key)
        for key in list(chosen.values())[: CONVERSATIONS // len(kinds)]:
            prompt = warehouse.where("prompts", "prompt_id", key[1])
            shown.append({"kind": kind, "messages": prompt[0]["messages"] if prompt else [], "answers": both[key]})
    return shown


def _gain(found: Mapping[str, Row]) -> tuple[int, float]:
    """How much better PPO's verdict is than base's, and how far apart their words are: 0 for the same words in any
    order (`quick_ratio` takes linear time)."""
    base, ppo = found["base"], found["ppo"]
    words = SequenceMatcher(None, base["text"].split(), ppo["text"].split(), autojunk=False).quick_ratio()
    return HARM_RANK.get(ppo["verdict"], 0) - HARM_RANK.get(base["verdict"], 0), 1 - words


def _limits(
    report: Mapping[str, Any] | None, split: Split, made: Made, passport: Mapping[str, Any] | None
) -> Iterator[str]:
    """What was measured, or found missing, that a reader should know before trusting the rest."""
    if report is None:
        yield "This policy was never evaluated: nothing here says how it answers."
    else:
        yield f"All rates are of the {split} split; prompts of another kind than these were not asked."
        why = {why for policy in report["policies"].values() for why in policy["reasons"].values()}
        yield from (f"Some rates are missing: {reason}." for reason in sorted(why))
        if any(duel.get("note") == "self_judged" for duel in report["win_rates"].values()):
            yield "The win rates were decided by the same judge that made the labels: it may favour what it taught."
        for asset, versions in report["mixed"].items():
            yield f"{len(versions)} versions of {asset} are in what was evaluated: not all its parts belong together."
    for row in passport["audits"] if passport else ():
        if not row["passed"]:
            yield f"The judge missed the audit {row['audit']} ({measured(row)}): {RULES[row['audit']].advice}."
    shared = (
        next((row for row in passport["audits"] if row["audit"] == "judge_in_ancestry"), None) if passport else None
    )
    if shared and shared["value"]:
        yield f"Judge and policy are of one kind ({shared['note']}): a judge may favour its own kind."
    if made.get("reward_model", {}).get("settings", {}).get("audits_enforce") is False:
        yield "Audits were not enforced: labels would have been trained on whether they passed or not."
    for finding in made[POLICY]["metrics"].get("guards", {}).get("findings", []):
        yield f"Training was watched, and the guard {finding['guard']} fired: {finding['why']}."
    dirty = [asset for asset, one in made.items() if one["git_dirty"]]
    if dirty:
        yield f"The program had changes that no commit holds when it made {', '.join(dirty)}."
