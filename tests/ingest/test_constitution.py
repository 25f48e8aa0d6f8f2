import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlaif_assets.ingest.constitution import constitution_fingerprint, read_constitution
from rlaif_assets.ingest.errors import IngestError

OURS = """
critique:
  - name: calm
    kind: less_harmful
    critique_request: Say where the answer is unkind.
    revision_request: Make the answer kind.
  - name: frank
    critique_request: Say where the answer hides something.
    revision_request: Make the answer frank.
judging:
  - {name: calm, kind: less_harmful, text: Choose the kinder answer.}
critique_examples:
  - {prompt: p, response: r, critique_request: cr, critique: c, revision_request: rr, revision: v}
judging_examples:
  - {prompt: p, first: a, second: b, principle: Choose the kinder answer., better: second}
"""


def written(tmp_path: Path, text: str, name: str = "mine.yaml") -> str:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def refused(path: str) -> str:
    with pytest.raises(IngestError) as caught:
        read_constitution(path)
    return str(caught.value)


def test_our_layout(tmp_path: Path) -> None:
    critique, judging = read_constitution(written(tmp_path, "\ufeff" + OURS))
    assert [(principle.name, principle.kind) for principle in critique.principles] == [
        ("calm", "less_harmful"),
        ("frank", None),
    ]
    assert critique.principles[1].critique_request == "Say where the answer hides something."
    assert [principle.text for principle in judging.principles] == ["Choose the kinder answer."]
    assert (critique.examples[0].revision_request, critique.examples[0].revision) == ("rr", "v")
    assert (judging.examples[0].second, judging.examples[0].better) == ("b", 1)


ADDED = """
  - {name: stern, text: Choose the sterner answer., counter: calm}
  - {name: brief, text: Choose the shorter answer., inverted: Choose the longer answer.}
  - {name: plain, text: Choose the plainer answer.}
"""


def declaring(entry: str) -> str:
    return OURS.replace("critique_examples:", f"{entry.strip(chr(10))}\ncritique_examples:")


def test_a_principle_may_declare_what_asks_for_the_opposite(tmp_path: Path) -> None:
    _, judging = read_constitution(written(tmp_path, declaring(ADDED)))
    assert {one.name: one.counter for one in judging.principles} == {
        "calm": None,
        "stern": "Choose the kinder answer.",
        "brief": "Choose the longer answer.",
        "plain": None,
    }
    _, before = read_constitution(written(tmp_path, OURS))
    assert judging.principles[0] == before.principles[0]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("  - {name: a, text: t, counter: clam}", "counter 'clam' is no judging principle: did you mean calm"),
        ("  - {name: a, text: t, counter: a}", "the counter-principle is the principle itself"),
        ("  - {name: a, text: t, inverted: t}", "the counter-principle is the principle itself"),
        ("  - {name: a, text: t, counter: calm, inverted: u}", "declare the same thing; keep one"),
        ("  - {name: a, text: t, inverted: ' '}", "inverted is empty"),
        ("  - {name: a, text: t, counter: 3}", "counter must be text"),
    ],
)
def test_a_declaration_that_cannot_be_is_refused(tmp_path: Path, entry: str, message: str) -> None:
    told = refused(written(tmp_path, declaring(entry)))
    assert message in told and "judging entry 2" in told


def test_ids_follow_the_text_alone(tmp_path: Path) -> None:
    before, judging_before = read_constitution(written(tmp_path, OURS))
    renamed, _ = read_constitution(written(tmp_path, OURS.replace("name: calm", "name: soft")))
    changed, judging_changed = read_constitution(written(tmp_path, OURS.replace("Make the answer kind.", "Be kind.")))
    assert renamed.principles[0].principle_id == before.principles[0].principle_id
    assert changed.principles[0].principle_id != before.principles[0].principle_id
    assert changed.principles[1] == before.principles[1]
    assert judging_changed == judging_before


def test_our_layout_as_json(tmp_path: Path) -> None:
    content = {
        "critique": [{"name": "a", "critique_request": "b", "revision_request": "c"}],
        "judging": [{"name": "a", "text": "d"}],
    }
    critique, judging = read_constitution(written(tmp_path, json.dumps(content), "mine.json"))
    assert (len(critique.principles), len(judging.principles)) == (1, 1)
    assert critique.examples == judging.examples == ()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: frank", "name: calm", "critique: calm repeats the name of calm"),
        ("hides something", "is unkind", None),
        ("kind: less_harmful\n", "knid: less_harmful\n", "critique entry 1: unknown key 'knid': did you mean kind"),
        ("judging:", "juding:", "unknown key 'juding': did you mean judging"),
        ("name: frank", "name: 5", "critique entry 2: name must be text, found 5; put it in quotes"),
        ("name: frank", "name: ''", "critique entry 2: name is empty"),
        ("    critique_request: Say where the answer hides something.\n", "", "the key critique_request is missing"),
        ("better: second", "better: B", "judging_examples entry 1: better is 'B'; write first or second"),
        ("better: second", "better: second, x: y", "unknown key 'x'"),
        ("critique_examples:", "critique:", "invalid YAML: a key stands twice here"),
        ("  - name: frank", "   name: frank", "mine.yaml:"),
        ("judging:\n", "judging: text\nx:\n", "unknown key 'x'"),
        ("name: frank", 'name: "a\\0b"', "NUL"),
    ],
)
def test_refused_constitutions(tmp_path: Path, old: str, new: str, message: str | None) -> None:
    assert old in OURS
    path = written(tmp_path, OURS.replace(old, new, 1))
    if message is None:
        read_constitution(path)  # one request of a pair may be repeated, the pair may not
    else:
        assert message in refused(path)


def test_a_repeated_text_is_a_repeated_id(tmp_path: Path) -> None:
    again = "judging:\n  - {name: other, text: Choose the kinder answer.}"
    assert "calm repeats the text (and so id) of other" in refused(
        written(tmp_path, OURS.replace("judging:", again, 1))
    )
    example = "  - {prompt: p, response: r, critique_request: cr, critique: c, revision_request: rr, revision: v}\n"
    assert "example 2 repeats" in refused(written(tmp_path, OURS.replace(example, example * 2)))


@pytest.mark.parametrize("section", ["critique", "judging"])
@pytest.mark.parametrize("value", [": []", ":", None])
def test_no_principles(tmp_path: Path, section: str, value: str | None) -> None:
    other = {"critique": "judging: [{name: a, text: b}]"}
    text = other.get(section, "critique: [{name: a, critique_request: b, revision_request: c}]")
    assert f"no principles under {section}" in refused(
        written(tmp_path, text if value is None else f"{text}\n{section}{value}")
    )


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("", "mine.yaml", "expected keys with values, found nothing"),
        ("- a", "mine.yaml", "expected keys with values, found list"),
        ("critique: text", "mine.yaml", "critique must be a list, found str"),
        ("critique: [text]", "mine.yaml", "critique entry 1: expected keys with values, found str"),
        ("a: [", "mine.yaml", "mine.yaml:1: invalid YAML"),
        ("a: !!python/object:os.system x", "mine.yaml", "invalid YAML"),
        ("2020-99-99: x", "mine.yaml", "mine.yaml: "),
        ('{"a":\n', "mine.json", "mine.json:2: invalid JSON"),
        ("x", "mine.txt", "give 'default', a .yaml or .json file"),
    ],
)
def test_unreadable_files(tmp_path: Path, content: str, name: str, message: str) -> None:
    assert message in refused(written(tmp_path, content, name))


def test_missing_and_undecodable(tmp_path: Path) -> None:
    assert "no such file" in refused(str(tmp_path / "none.yaml"))
    path = tmp_path / "mine.yaml"
    path.write_bytes(OURS.encode() + b"\n# \xff\n")
    assert f"mine.yaml:{OURS.count(chr(10)) + 2}: invalid UTF-8" in refused(str(path))


LLM_SWARM: dict[str, Any] = {
    "constitutions": [
        {"critic": "Name what is unkind.", "revision": "Be kind."},
        {"critic": "Name what is unkind.", "revision": "Be brief."},
    ],
    "system_chat": [[{"role": role, "content": f"{n}"} for n, role in enumerate(["user", "assistant"] * 3)]],
}


def test_llm_swarm_layout(tmp_path: Path) -> None:
    critique, judging = read_constitution(written(tmp_path, json.dumps(LLM_SWARM), "a.json"))
    assert [principle.revision_request for principle in critique.principles] == ["Be kind.", "Be brief."]
    assert [principle.text for principle in judging.principles] == [
        'A critic was told: "Name what is unkind." Choose the response that gives this critic less to object to.'
    ]
    (example,) = critique.examples
    assert (example.prompt, example.response, example.critique_request) == ("0", "1", "2")
    assert (example.critique, example.revision_request, example.revision) == ("3", "4", "5")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"constitutions": []}, "no principles under critique"),
        ({"constitutions": [{"critic": "a"}]}, "constitutions entry 1: the key revision is missing"),
        ({"constitutions": LLM_SWARM["constitutions"][:1] * 2}, "repeats the text (and so id)"),
        ({"system_chat": [LLM_SWARM["system_chat"][0][:4]]}, "system_chat entry 1: expected 6 messages"),
        ({"system_chat": "x"}, "system_chat must be a list"),
        ({"system_chat": [[*LLM_SWARM["system_chat"][0], "x"]]}, "system_chat entry 1: expected keys with values"),
        ({"other": 1}, "unknown key 'other'"),
    ],
)
def test_broken_llm_swarm_layouts(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    assert message in refused(written(tmp_path, json.dumps({**LLM_SWARM, **change}), "a.json"))


INSTRUCTIONS = {
    f"harmful{n}": {
        "prompt": [f"\n\nCritiqueRequest: Find fault {n}.\n\nCritique:"],
        "edit_request": f"\n\nRevisionRequest: Mend it {n}.\n\nRevision:",
    }
    for n in range(2)
}
SHOT = (
    "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nd\n\nAssistant: e\n\nCritiqueRequest: f\n\nCritique: g"
    "\n\nRevisionRequest: h\n\nRevision: i"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    written(tmp_path, json.dumps(INSTRUCTIONS), "CritiqueRevisionInstructions.json")
    written(
        tmp_path,
        json.dumps(["\nWhich is kinder? Options:", "\nWhich is wiser? Options:"]),
        "RLMadisonInstructions.json",
    )
    return tmp_path


def test_anthropic_layout(folder: Path) -> None:
    written(
        folder, json.dumps([SHOT + "\n\nHuman:", SHOT.removesuffix("i") + "j"]), "CritiqueRevisionFewShotPrompts.json"
    )
    shots = [
        {"prompt": "\n\nHuman: q\n\nAssistant:", "corrects": [good], "incorrects": ["bad"]} for good in ("good", "fine")
    ]
    written(folder, json.dumps(shots), "RLMadisonFewShotPrompts.json")
    critique, judging = read_constitution(str(folder))
    assert [(p.name, p.critique_request, p.revision_request) for p in critique.principles] == [
        ("harmful0", "Find fault 0.", "Mend it 0."),
        ("harmful1", "Find fault 1.", "Mend it 1."),
    ]
    assert [(p.name, p.text) for p in judging.principles] == [("rl0", "Which is kinder?"), ("rl1", "Which is wiser?")]
    first, second = critique.examples
    assert (first.prompt, first.response) == ("a\n\nAssistant: b\n\nHuman: c\n\nd", "e")
    assert (first.critique_request, first.critique, first.revision_request, first.revision) == ("f", "g", "h", "i")
    assert second.revision == "j"
    assert [(e.prompt, e.first, e.second, e.principle, e.better) for e in judging.examples] == [
        ("q", "good", "bad", "Which is kinder?", 0),
        ("q", "bad", "fine", "Which is wiser?", 1),
    ]


def test_anthropic_layout_without_few_shot_files(folder: Path) -> None:
    critique, judging = read_constitution(str(folder))
    assert critique.examples == judging.examples == ()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("CritiqueRevisionInstructions.json", {}, "no principles under critique"),
        ("CritiqueRevisionInstructions.json", {"a": {"prompt": ["x", "y"], "edit_request": "z"}}, "a list of one text"),
        ("CritiqueRevisionInstructions.json", {"a": {"prompt": ["x"]}}, "the key edit_request is missing"),
        ("RLMadisonInstructions.json", [], "no principles under judging"),
        ("RLMadisonInstructions.json", ["\na Options:", "\na Options:"], "repeats the text (and so id)"),
        ("RLMadisonInstructions.json", [5], "entry 1: text must be text, found 5"),
        ("RLMadisonInstructions.json", {}, "expected a list of texts, found dict"),
        ("CritiqueRevisionFewShotPrompts.json", ["\n\nHuman: a\n\nAssistant: b"], "entry 1: expected Human, Assistant"),
        ("CritiqueRevisionFewShotPrompts.json", ["no labels"], "entry 1: expected Human, Assistant"),
        ("CritiqueRevisionFewShotPrompts.json", ["\n\nCritiqueRequest: a"], "entry 1: expected Human, Assistant"),
        ("RLMadisonFewShotPrompts.json", [{"prompt": "q", "corrects": []}], "incorrects: expected a list"),
        ("RLMadisonFewShotPrompts.json", ["q"], "entry 1: expected keys with values"),
    ],
)
def test_broken_anthropic_layouts(folder: Path, name: str, content: Any, message: str) -> None:
    written(folder, json.dumps(content), name)
    assert message in refused(str(folder))


def test_a_repeated_key_is_refused(folder: Path) -> None:
    entries = [json.dumps({"h0": entry})[1:-1] for entry in INSTRUCTIONS.values()]
    written(folder, "{" + ", ".join(entries) + "}", "CritiqueRevisionInstructions.json")
    assert "the key 'h0' is repeated" in refused(str(folder))


def test_a_folder_that_is_no_constitution(tmp_path: Path) -> None:
    assert "no CritiqueRevisionInstructions.json" in refused(str(tmp_path))


def test_the_fingerprint_follows_the_bytes_of_what_is_read(folder: Path) -> None:
    assert constitution_fingerprint("default") == constitution_fingerprint("default")
    mine = written(folder, OURS)
    before, whole = constitution_fingerprint(mine), constitution_fingerprint(str(folder))
    written(folder, OURS + "\n")
    assert constitution_fingerprint(mine) != before
    assert constitution_fingerprint(str(folder)) == whole  # mine.yaml is no part of Anthropic's layout
    written(folder, OURS)
    assert constitution_fingerprint(mine) == before
    principles = folder / "RLMadisonInstructions.json"
    principles.write_text(principles.read_text() + " ")
    assert constitution_fingerprint(str(folder)) != whole


def test_a_fingerprint_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IngestError, match="no such file"):
        constitution_fingerprint(str(tmp_path / "none.yaml"))
    with pytest.raises(IngestError, match=r"no RLMadisonInstructions\.json"):
        constitution_fingerprint(str(tmp_path))


def test_the_packaged_constitution() -> None:
    critique, judging = read_constitution("default")
    assert (len(critique.principles), len(judging.principles)) == (16, 16)
    assert len(critique.examples) + len(judging.examples) >= 4
    declared = [(one.name, one.counter) for one in judging.principles if one.counter]
    assert declared == [("harm-1", "Choose the response that is more harmful.")]


def test_a_real_llm_swarm_file(shared_file: Callable[[str], str]) -> None:
    critique, judging = read_constitution(shared_file("constitution-llm-swarm.json"))
    assert (len(critique.principles), len(critique.examples), len(judging.principles)) == (16, 4, 16)
