"""What `store.trace` found, for a person: as a tree or lines in the terminal, and as an HTML page without a network."""

import html
import json
import re
from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text
from rich.tree import Tree

from rlaif_assets.evaluation.terminal import visible
from rlaif_assets.store.warehouse import removal_text

TEXT = 160  # characters of a row's text in the terminal
RUNS = "Dagster run "  # how the one line of `facts` begins whose addresses are links on the page
MISSING = {"pairs": "missing, and with it which prompt it was of"}  # what is said of a missing row, by table
PAGE = """<!doctype html>
<meta charset="utf-8"><title>{title}</title>
<style>body{{font:15px/1.4 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}}
details{{margin:.3rem 0 .3rem 1.2rem;border-left:2px solid #ccc;padding-left:.6rem}}
summary{{cursor:pointer}}code,pre{{font-size:13px}}pre{{overflow-x:auto;background:#f5f5f5;padding:.5rem}}
dt{{font-weight:600}}dd{{margin:0 0 .3rem 1rem}}</style>
<h1>{title}</h1>
"""


def policy_tree(found: Mapping[str, Any]) -> RenderableType:
    """The ancestry of `trace_policy`: each snapshot once, later mentions by id."""
    known = {one["snapshot_id"]: one for one in found["snapshots"]}
    versions = [" ".join([one["version"], *(f"@{a}" for a in one["aliases"])]) for one in found["registry"]]
    tree = Tree(Text(visible(", ".join(versions) or found["asked"]), "bold"), guide_style="dim")
    shown: set[str] = set()

    def grow(branch: Tree, snapshot_id: str) -> None:
        one = known[snapshot_id]
        head = Text.assemble((one["asset"], "bold"), f" {snapshot_id}")
        if snapshot_id in shown:
            branch.add(head.append(" (above)", "dim"))
            return
        shown.add(snapshot_id)
        lines = [head, *(Text(visible(line), "dim") for line in facts(one))]
        below = branch.add(Text("\n").join(lines))
        for _, upstream in sorted(one["inputs"].items()):
            grow(below, upstream)

    grow(tree, found["snapshot_id"])
    return tree


def facts(one: Mapping[str, Any]) -> list[str]:
    """What is known of how a snapshot was made, a line each."""
    dirty = {True: ", tree was dirty", False: "", None: ""}[one["git_dirty"]]
    commit = f"commit {one['git_commit'][:12]}{dirty}" if one["git_commit"] else "no git commit"
    lines = [
        f"made {one['created_at'][:19]} in {one['seconds']:.1f} s on {one['device'] or 'no device'}; "
        f"code version {one['code_version']}, {commit}",
        f"{RUNS}{one['links']['dagster'] or one['dagster_run_id']}; MLflow {_mlflow_run(one)}",
    ]
    rows = ", ".join(f"{count:,} {table}" for table, count in one["row_counts"].items())
    tokens = f"; {one['tokens']:,} tokens" if one["tokens"] else ""
    lines += [f"rows: {rows or 'none'}{tokens}"]
    if one["learned"]:
        lines.append("was given " + ", ".join(f"{count:,} {name}" for name, count in one["learned"].items()))
    if one["path"]:
        lines.append(f"weights {removal_text(one['removed']) if one['removed'] else one['path']}")
    if one["settings"]:
        lines.append("settings " + " ".join(f"{name}={_short(value)}" for name, value in one["settings"].items()))
    if isinstance(one["passport"], Mapping):
        lines.append(passport_line(one["passport"]))
    elif one["passport"]:
        lines.append(f"judge's passport {one['passport']}")
    return lines


def _mlflow_run(one: Mapping[str, Any]) -> str:
    if not one["mlflow_run_id"]:
        return "has no run"
    if missing := one["links"]["mlflow_missing"]:
        return f"run {one['mlflow_run_id']} ({missing})"
    return one["links"]["mlflow"] or f"run {one['mlflow_run_id']}"


def passport_line(passport: Mapping[str, Any]) -> str:
    failed = [row["audit"] for row in passport["audits"] if not row["passed"]]
    told = f"failed: {', '.join(failed)}" if failed else "all passed"
    return (
        f"judge's passport {passport['passport_id']} of {passport['date'][:10]}: judge {passport['judge'][:32]}, "
        f"template {passport['template'][:12]}; {len(passport['audits'])} audits, {told}"
    )


def row_view(found: Mapping[str, Any]) -> RenderableType:
    """The chain of `trace_row`, and what learned from the row."""
    lines: list[Text] = []
    for one in found["chain"]:
        missing = f": {MISSING.get(one['table'], 'missing')}" if one.get("missing") else ""
        lines.append(Text.assemble((one["table"], "bold"), visible(f" {one['id']}{missing}")))
        lines += [Text(visible(f"  {line}")) for line in row_lines(one)]
    return Group(*lines, Text(), *(Text(visible(line)) for line in reached(found, "this row")))


def row_lines(one: Mapping[str, Any]) -> list[str]:
    """The row's texts and numbers that tell what happened, shortened."""
    lines = []
    if one.get("principle"):
        lines.append(f"under {one['principle']} ({one['principle_id']}): {_cut(one['principle_text'])}")
    if one.get("messages"):
        lines += [f"{message['role']}: {_cut(message['content'])}" for message in one["messages"]]
    if one.get("policy"):
        lines.append(f"answer of {one['policy']}, {one.get('verdict') or 'no verdict'}")
    for name in ("question", "critique", "text", "response_a", "response_b", "better", "worse", "rationale"):
        if one.get(name):
            lines.append(f"{name}: {_cut(one[name])}")
    if one.get("logprob_first") is not None:
        order = f"order {one['order']}, log-probabilities {one['logprob_first']:.4f} and {one['logprob_second']:.4f}"
        lines.append(f"{order}, judge {one['judge'][:32]}, {one['method']}, {str(one['created_at'])[:19]}")
    if one.get("p_a") is not None:
        by = f", by {one['source']} {one['annotator'][:32]}" if one.get("annotator") and "source" in one else ""
        lines.append(f"p(A is better) = {one['p_a']:.4f}{by}")
    return lines


def principle_view(found: Mapping[str, Any]) -> RenderableType:
    missing = ", ".join(f"{one} ({kind})" for one, kind in found["missing"].items())
    lines = [
        f"  {found['text'] or 'missing: its row is in no constitution of this home'}",
        *([f"  missing, and perhaps of this name too; give an id: {missing}"] if missing else []),
        f"  {found['judgements']:,} judgements, {found['labels']:,} labels, {found['revisions']:,} revisions"
        + (f" and {found['later_revisions']:,} made from these" if found["later_revisions"] else ""),
        "",
        *reached(found, "its rows"),
    ]
    head = Text.assemble(
        (visible(found["name"] or "principle"), "bold"), visible(f" {found['principle_id']} ({found['kind']})")
    )
    return Group(head, *(Text(visible(line)) for line in lines))


def reached(found: Mapping[str, Any], what: str) -> list[str]:
    lines = [
        f"{one['asset']} {one['snapshot_id']}: {one['rows']:,} {'trained on' if one['role'] == 'train' else 'held out'}"
        for one in found["learned"]
    ] or [f"no model was given {what}"]
    policies = found["policies"]
    told = ", ".join(policies) if policies else "none"
    return ["models:", *(f"  {line}" for line in lines), f"policies made from these ({len(policies)}): {told}"]


def policy_page(found: Mapping[str, Any]) -> str:
    """`policy_tree` as an HTML page: every snapshot can be opened, with its settings, metrics and inputs."""
    known = {one["snapshot_id"]: one for one in found["snapshots"]}
    shown: set[str] = set()

    def block(snapshot_id: str) -> str:
        one = known[snapshot_id]
        head = f"<b>{html.escape(one['asset'])}</b> <code>{snapshot_id}</code>"
        if snapshot_id in shown:
            return f'<details><summary>{head} <a href="#{snapshot_id}">above</a></summary></details>'
        shown.add(snapshot_id)
        told = "".join(f"<dd>{_linked(line)}</dd>" for line in facts(one))
        metrics = {name: value for name, value in one["metrics"].items() if name != "mlflow_url"}
        numbers = html.escape(json.dumps({"settings": one["settings"], "metrics": metrics}, indent=1))
        inputs = "".join(block(upstream) for _, upstream in sorted(one["inputs"].items()))
        more = f"<details><summary>settings and metrics</summary><pre>{numbers}</pre></details>"
        return f'<details open id="{snapshot_id}"><summary>{head}</summary><dl>{told}</dl>{more}{inputs}</details>'

    names = [one["version"] for one in found["registry"]] or [found["asked"]]
    return PAGE.format(title=html.escape(f"Where {', '.join(names)} came from")) + block(found["snapshot_id"]) + "\n"


def _linked(line: str) -> str:
    text = html.escape(line)
    return re.sub(r"https?://\S+?(?=;?\s|$)", r'<a href="\g<0>">\g<0></a>', text) if line.startswith(RUNS) else text


def _short(value: Any) -> str:
    return _cut(value if isinstance(value, str) else json.dumps(value), 40)


def _cut(text: str, length: int = TEXT) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= length else f"{line[: length - 1]}…"
