"""Constitutions from three layouts: our YAML, llm-swarm's JSON, Anthropic's published folder.

One file holds two constitutions: principles for critique and revision, and principles for judging. Our layout (YAML, or
the same in JSON):

    critique:           [{name, kind?, critique_request, revision_request}]
    judging:            [{name, kind?, text, counter? | inverted?}]
    critique_examples:  [{prompt, response, critique_request, critique, revision_request, revision}]   (may be missing)
    judging_examples:   [{prompt, first, second, principle, better: first|second}]                     (may be missing)

llm-swarm (`constitutions: [{critic, revision}]`, `system_chat`) has no judging principles: each distinct critic text
becomes one, by the rule JUDGING_FROM_CRITIC. Anthropic's folder: `CritiqueRevisionInstructions.json` and
`RLMadisonInstructions.json`, and the two few-shot files where they are there; the wrappers are stripped. Its judging
examples name no principle: the i-th takes the i-th judging principle, and the better response stands first in every
other one. Ids hash the principle's text, not its name.

A judging principle may declare what asks for the opposite: `counter` names another judging principle of the file,
`inverted` is a text that serves the audits alone. An audit then has pairs judged by both.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from rlaif_assets.ingest.conversations import checked
from rlaif_assets.ingest.errors import IngestError, RowError
from rlaif_assets.ingest.files import open_source, read_text
from rlaif_assets.records import (
    CritiqueConstitution,
    CritiqueExample,
    CritiquePrinciple,
    JudgingConstitution,
    JudgingExample,
    JudgingPrinciple,
)
from rlaif_assets.settings import StrictLoader, nearest
from rlaif_assets.store.fingerprint import canonical_json, row_id, sha256_text

SECTIONS = ("critique", "judging", "critique_examples", "judging_examples")
CRITIQUE_FIELDS = ("name", "critique_request", "revision_request")
JUDGING_FIELDS = ("name", "text")
CRITIQUE_EXAMPLE_FIELDS = ("prompt", "response", "critique_request", "critique", "revision_request", "revision")
JUDGING_EXAMPLE_FIELDS = ("prompt", "first", "second", "principle", "better")
JUDGING_FROM_CRITIC = 'A critic was told: "{critic}" Choose the response that gives this critic less to object to.'
CRITIQUE_FILE, CRITIQUE_SHOTS_FILE = "CritiqueRevisionInstructions.json", "CritiqueRevisionFewShotPrompts.json"
JUDGING_FILE, JUDGING_SHOTS_FILE = "RLMadisonInstructions.json", "RLMadisonFewShotPrompts.json"
_LABELS = re.compile(r"\n\n(Human|Assistant|CritiqueRequest|Critique|RevisionRequest|Revision):")
_SHOT_TAIL = ("CritiqueRequest", "Critique", "RevisionRequest", "Revision")


def read_constitution(path: str) -> tuple[CritiqueConstitution, JudgingConstitution]:
    """Reads 'default' (the packaged one), a YAML or JSON file, or a folder in Anthropic's layout.

    Raises IngestError: nothing readable, no principles, an unknown or missing key, a repeated name or text.
    """
    if path == "default":
        text = (resources.files("rlaif_assets") / "constitutions" / "default.yaml").read_text(encoding="utf-8")
        return _build(_parse_yaml(text, "default.yaml"), "default.yaml")
    if Path(path).is_dir():
        return _build(_anthropic_layout(Path(path)), path)
    suffix = Path(path).suffix.lower()
    if suffix not in (".yaml", ".yml", ".json"):
        raise IngestError(f"{path}: give 'default', a .yaml or .json file, or a folder with {CRITIQUE_FILE}")
    value = _parse_json(Path(path)) if suffix == ".json" else _parse_yaml(read_text(path), path)
    if isinstance(value, dict) and "constitutions" in value:
        value = _llm_swarm_layout(value, path)
    return _build(value, path)


def constitution_fingerprint(path: str) -> str:
    """64 hex digits that change when a byte of what `read_constitution` reads does. Nothing is parsed.

    Raises IngestError where nothing can be read.
    """
    if path == "default":
        return sha256_text((resources.files("rlaif_assets") / "constitutions" / "default.yaml").read_text("utf-8"))
    names = (CRITIQUE_FILE, JUDGING_FILE, CRITIQUE_SHOTS_FILE, JUDGING_SHOTS_FILE)
    folder = [found for name in names if (found := Path(path) / name).is_file()]
    if Path(path).is_dir() and not folder:
        raise IngestError(f"{path}: no {JUDGING_FILE}; a constitution folder holds {CRITIQUE_FILE} and {JUDGING_FILE}")
    hashes: list[list[str]] = []
    for file in folder or [Path(path)]:
        try:
            with open_source(str(file)) as stream:
                hashes.append([file.name, hashlib.sha256(stream.read()).hexdigest()])
        except OSError as error:
            raise IngestError(f"{file}: cannot be read: {error}") from error
    return sha256_text(canonical_json(hashes))


def _build(value: Any, where: str) -> tuple[CritiqueConstitution, JudgingConstitution]:
    """Checks our layout and makes the records; the other layouts are brought into it first."""
    content = _mapping(value, where)
    _refuse_unknown(content, SECTIONS, where)
    critique: list[CritiquePrinciple] = []
    for place, item in _items(content, "critique", where):
        name, request, revision = _texts(item, CRITIQUE_FIELDS, place, optional=("kind",))
        identifier = row_id("critique_principle", request, revision)
        critique.append(CritiquePrinciple(identifier, name, request, revision, _kind(item, place)))
    judging: list[JudgingPrinciple] = []
    for place, item in _items(content, "judging", where):
        name, text = _texts(item, JUDGING_FIELDS, place, optional=("kind", "counter", "inverted"))
        identifier, counter = row_id("judging_principle", text), _counter(item, content, place, where)
        judging.append(JudgingPrinciple(identifier, name, text, _kind(item, place), counter))
    critique_examples: list[CritiqueExample] = []
    for place, item in _items(content, "critique_examples", where):
        texts = _texts(item, CRITIQUE_EXAMPLE_FIELDS, place)
        critique_examples.append(CritiqueExample(row_id("critique_example", *texts), *texts))
    judging_examples: list[JudgingExample] = []
    for place, item in _items(content, "judging_examples", where):
        *texts, better = _texts(item, JUDGING_EXAMPLE_FIELDS, place)
        if better not in ("first", "second"):
            raise IngestError(f"{place}: better is {better!r}; write first or second")
        identifier = row_id("judging_example", *texts, better)
        judging_examples.append(JudgingExample(identifier, *texts, better=0 if better == "first" else 1))
    for section, principles in (("critique", critique), ("judging", judging)):
        if not principles:
            raise IngestError(f"{where}: no principles under {section}; a constitution needs at least one")
        _refuse_repeated(((principle.name, principle.name) for principle in principles), where, section, "name")
        _refuse_repeated(((p.principle_id, p.name) for p in principles), where, section, "text (and so id)")
    for section, examples in (("critique_examples", critique_examples), ("judging_examples", judging_examples)):
        numbered = ((example.example_id, f"example {number}") for number, example in enumerate(examples, 1))
        _refuse_repeated(numbered, where, section, "text (and so id)")
    return (
        CritiqueConstitution(tuple(critique), tuple(critique_examples)),
        JudgingConstitution(tuple(judging), tuple(judging_examples)),
    )


def _items(content: Mapping[str, Any], section: str, where: str) -> Iterable[tuple[str, dict[str, Any]]]:
    """(place, mapping) of every entry of a section. A missing or null section is empty."""
    value = content.get(section)
    if value is None:
        return
    if not isinstance(value, list):
        raise IngestError(f"{where}: {section} must be a list, found {type(value).__name__}")
    for number, item in enumerate(value, 1):
        place = f"{where}: {section} entry {number}"
        yield place, _mapping(item, place)


def _texts(item: dict[str, Any], names: tuple[str, ...], place: str, optional: tuple[str, ...] = ()) -> list[str]:
    _refuse_unknown(item, (*names, *optional), place)
    return [_text(item, name, place) for name in names]


def _text(item: dict[str, Any], name: str, place: str) -> str:
    value = item.get(name)
    if value is None:
        raise IngestError(f"{place}: the key {name} is missing or empty; add it")
    if not isinstance(value, str):
        raise IngestError(f"{place}: {name} must be text, found {value!r}; put it in quotes")
    if not value.strip():
        raise IngestError(f"{place}: {name} is empty; write its text or remove the entry")
    try:
        return checked(value).strip()
    except RowError as problem:
        raise IngestError(f"{place}: {name}: {problem}; remove it") from problem


def _kind(item: dict[str, Any], place: str) -> str | None:
    return None if item.get("kind") is None else _text(item, "kind", place)


def _counter(item: dict[str, Any], content: Mapping[str, Any], place: str, where: str) -> str | None:
    """The text of the principle that asks for the opposite; None where none is declared."""
    if item.get("counter") is not None and item.get("inverted") is not None:
        raise IngestError(f"{place}: counter and inverted declare the same thing; keep one")
    if item.get("counter") is not None:
        named = _text(item, "counter", place)
        texts = {str(other.get("name")): other for _, other in _items(content, "judging", where)}
        if named not in texts:
            raise IngestError(f"{place}: counter {named!r} is no judging principle: {nearest(named, list(texts))}")
        text = _text(texts[named], "text", place)
    elif item.get("inverted") is not None:
        text = _text(item, "inverted", place)
    else:
        return None
    if text == _text(item, "text", place):
        raise IngestError(f"{place}: the counter-principle is the principle itself; name or write its opposite")
    return text


def _mapping(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise IngestError(f"{place}: expected keys with values, found {_found(value)}")
    return value


def _found(value: Any) -> str:
    return "nothing" if value is None else type(value).__name__


def _refuse_unknown(item: dict[str, Any], known: tuple[str, ...], place: str) -> None:
    for key in item:
        if key not in known:
            raise IngestError(f"{place}: unknown key {key!r}: {nearest(str(key), list(known))}")


def _refuse_repeated(keys_and_names: Iterable[tuple[str, str]], where: str, section: str, what: str) -> None:
    seen: dict[str, str] = {}
    for key, name in keys_and_names:
        if key in seen:
            raise IngestError(f"{where}: {section}: {name} repeats the {what} of {seen[key]}; change or remove one")
        seen[key] = name


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=StrictLoader)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise IngestError(f"{where}{line}: invalid YAML: {error.problem}; repair that line") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise IngestError(f"{where}: invalid YAML: {error}") from error


def _parse_json(path: Path) -> Any:
    try:
        return json.loads(read_text(str(path)), object_pairs_hook=lambda pairs: _without_repeats(pairs, path))
    except json.JSONDecodeError as error:
        raise IngestError(f"{path}:{error.lineno}: invalid JSON: {error.msg}; repair that line") from error
    except RecursionError as error:
        raise IngestError(f"{path}: invalid JSON: nested too deeply") from error


def _llm_swarm_layout(value: dict[str, Any], where: str) -> dict[str, Any]:
    _refuse_unknown(value, ("constitutions", "system_chat"), where)
    pairs = [_texts(item, ("critic", "revision"), place) for place, item in _items(value, "constitutions", where)]
    examples: list[dict[str, str]] = []
    chats = value.get("system_chat") or []
    if not isinstance(chats, list):
        raise IngestError(f"{where}: system_chat must be a list, found {_found(chats)}")
    for number, chat in enumerate(chats, 1):
        place = f"{where}: system_chat entry {number}"
        messages = [_mapping(message, place) for message in chat] if isinstance(chat, list) else []
        roles = [message.get("role") for message in messages]
        if roles != ["user", "assistant"] * 3:
            raise IngestError(f"{place}: expected 6 messages, user and assistant in turn")
        examples.append(dict(zip(CRITIQUE_EXAMPLE_FIELDS, (_text(m, "content", place) for m in messages), strict=True)))
    critics = list(dict.fromkeys(critic for critic, _ in pairs))
    return {
        "critique": [
            {"name": f"principle-{number}", "critique_request": critic, "revision_request": revision}
            for number, (critic, revision) in enumerate(pairs, 1)
        ],
        "judging": [
            {"name": f"principle-{number}", "text": JUDGING_FROM_CRITIC.format(critic=critic)}
            for number, critic in enumerate(critics, 1)
        ],
        "critique_examples": examples,
    }


def _anthropic_layout(folder: Path) -> dict[str, Any]:
    for name in (CRITIQUE_FILE, JUDGING_FILE):
        if not (folder / name).is_file():
            raise IngestError(f"{folder}: no {name}; a constitution folder holds {CRITIQUE_FILE} and {JUDGING_FILE}")
    critique: list[dict[str, str]] = []
    for name, item in _mapping(_parse_json(folder / CRITIQUE_FILE), str(folder / CRITIQUE_FILE)).items():
        place = f"{folder / CRITIQUE_FILE}: {name}"
        entry = _mapping(item, place)
        _refuse_unknown(entry, ("prompt", "edit_request"), place)
        prompts = entry.get("prompt")
        if not isinstance(prompts, list) or len(prompts) != 1:
            raise IngestError(f"{place}: prompt must be a list of one text")
        request = _unwrap(_text({"prompt": prompts[0]}, "prompt", place), "CritiqueRequest:", "Critique:")
        revision = _unwrap(_text(entry, "edit_request", place), "RevisionRequest:", "Revision:")
        critique.append({"name": name, "critique_request": request, "revision_request": revision})
    place = str(folder / JUDGING_FILE)
    principles = [_unwrap(text, "", "Options:") for text in _text_list(_parse_json(folder / JUDGING_FILE), place)]
    return {
        "critique": critique,
        "judging": [{"name": f"rl{number}", "text": text} for number, text in enumerate(principles)],
        "critique_examples": _critique_shots(folder / CRITIQUE_SHOTS_FILE),
        "judging_examples": _judging_shots(folder / JUDGING_SHOTS_FILE, principles),
    }


def _unwrap(text: str, before: str, after: str) -> str:
    return text.strip().removeprefix(before).removesuffix(after).strip()


def _without_repeats(pairs: Sequence[tuple[str, Any]], path: Path) -> dict[str, Any]:
    """A JSON object. Python's own reading keeps the last of equal keys and drops the others."""
    keys = [key for key, _ in pairs]
    repeated = next((key for key in keys if keys.count(key) > 1), None)
    if repeated is not None:
        raise IngestError(f"{path}: the key {repeated!r} is repeated in one object; rename or remove one of them")
    return dict(pairs)


def _text_list(value: Any, place: str) -> list[str]:
    if not isinstance(value, list):
        raise IngestError(f"{place}: expected a list of texts, found {_found(value)}")
    return [_text({"text": text}, "text", f"{place}: entry {number}") for number, text in enumerate(value, 1)]


def _critique_shots(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    return [
        _critique_shot(text, f"{path}: entry {number}")
        for number, text in enumerate(_text_list(_parse_json(path), str(path)), 1)
    ]


def _critique_shot(text: str, place: str) -> dict[str, str]:
    """Human, Assistant, ..., then one critique and revision; a dangling 'Human:' at the end is dropped."""
    _, *parts = _LABELS.split("\n\n" + text.removesuffix("Human:").strip())
    labels, texts = parts[::2], [part.strip() for part in parts[1::2]]
    end = labels.index("CritiqueRequest") if "CritiqueRequest" in labels else len(labels)
    if labels[:1] != ["Human"] or labels[end - 1] != "Assistant" or tuple(labels[end : end + 4]) != _SHOT_TAIL:
        raise IngestError(f"{place}: expected Human, Assistant, {', '.join(_SHOT_TAIL)} in this order")
    turns = zip(labels[1 : end - 1], texts[1 : end - 1], strict=True)
    prompt = "\n\n".join([texts[0], *(f"{label}: {turn}" for label, turn in turns)])
    return dict(zip(CRITIQUE_EXAMPLE_FIELDS, [prompt, texts[end - 1], *texts[end : end + 4]], strict=True))


def _judging_shots(path: Path, principles: list[str]) -> list[dict[str, str]]:
    if not path.exists() or not principles:
        return []
    entries = _parse_json(path)
    if not isinstance(entries, list):
        raise IngestError(f"{path}: expected a list, found {_found(entries)}")
    examples: list[dict[str, str]] = []
    for number, value in enumerate(entries):
        place = f"{path}: entry {number + 1}"
        entry = _mapping(value, place)
        better = _text_list(entry.get("corrects"), f"{place}: corrects")
        worse = _text_list(entry.get("incorrects"), f"{place}: incorrects")
        if len(better) != 1 or len(worse) != 1:
            raise IngestError(f"{place}: expected one text in corrects and one in incorrects")
        first, second, side = (better[0], worse[0], "first") if number % 2 == 0 else (worse[0], better[0], "second")
        prompt = _unwrap(_text(entry, "prompt", place), "Human:", "Assistant:")
        principle = principles[number % len(principles)]
        examples.append(dict(zip(JUDGING_EXAMPLE_FIELDS, (prompt, first, second, principle, side), strict=True)))
    return examples
