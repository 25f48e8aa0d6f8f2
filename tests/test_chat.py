"""`rlaif chat`: the same person, one conversation for each policy."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rlaif_assets.cli import app
from rlaif_assets.evaluation.chat import Chat, talk
from rlaif_assets.language_models.local import load_model
from rlaif_assets.settings import ComputeSettings
from tests.homes import Home
from tests.tiny_models import tiny_model

ROOT = Path(__file__).parent.parent
COMPUTE = ComputeSettings(device="cpu", threads=1, progress="none")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: tiny_model(kind, tmp_path_factory.mktemp(kind), stops=20) for kind in ("llama", "qwen2")}


def new_chat(folders: dict[str, Path], seed: int = 0, max_new_tokens: int = 8) -> Chat:
    return Chat({name: load_model(folder, COMPUTE) for name, folder in folders.items()}, max_new_tokens, 1.0, seed)


def test_each_policy_keeps_its_own_conversation(folders: dict[str, Path]) -> None:
    chat = new_chat(folders)
    found = list(talk(chat, ["How do I water plants?", "  ", "And indoors?"]))
    assert [name for name, _ in found] == ["llama", "qwen2"] * 2
    for name in folders:
        said = [message["content"] for message in chat.said[name]]
        answers = [answer for speaker, answer in found if speaker == name]
        assert said == ["How do I water plants?", answers[0], "And indoors?", answers[1]]
    assert list(talk(new_chat(folders), ["How do I water plants?", "And indoors?"])) == found
    assert list(talk(new_chat(folders, seed=1), ["How do I water plants?"])) != found[:2]


def test_reset_forgets_and_quit_ends(folders: dict[str, Path]) -> None:
    chat = new_chat(folders)
    first, again = (list(talk(chat, lines)) for lines in (["Hello?"], ["/reset", "Hello?", "/quit", "More?"]))
    assert again == first


def test_what_does_not_fit_is_told_and_forgotten(folders: dict[str, Path]) -> None:
    chat = new_chat(folders)
    told = list(talk(chat, ["word " * 4000, "Hello?"]))
    assert all("[no answer: " in answer and "/reset" in answer for _, answer in told[:2])
    assert all(len(said) == 2 for said in chat.said.values())


def test_an_answer_cannot_steer_the_terminal(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "\x1b[2J[red]:warning: two\nlines\u202e"
    monkeypatch.setattr("rlaif_assets.evaluation.chat.talk", lambda chat, lines: [("@candidate", said)])
    done = CliRunner().invoke(app, ["chat", "--home", str(home.folder)])
    assert done.exit_code == 0, done.output
    assert done.output == "@candidate: \\x1b[2J[red]:warning: two\nlines\\u202e\n"


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_a_line_that_is_not_utf_8_is_no_end(home: Home, locale: str) -> None:
    words = [sys.executable, "-m", "rlaif_assets.cli", "chat", "--max-new-tokens", "4", "--home", str(home.folder)]
    done = subprocess.run(
        words,
        input=b"A caf\xe9?\nAnd tea?\n/quit\n",
        capture_output=True,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        | {"LC_ALL": locale, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().count("@candidate: ") == 2


def test_the_command_talks_to_policies_of_a_home(home: Home) -> None:
    words = ["chat", "@candidate", "sl_cai_checkpoint", "--max-new-tokens", "4", "--home", str(home.folder)]
    done = CliRunner().invoke(app, words, input="How do I water plants?\n/quit\n")
    assert done.exit_code == 0, done.output
    assert "@candidate: " in done.output and "sl_cai_checkpoint: " in done.output
    reward = CliRunner().invoke(app, ["chat", "reward_model", "--home", str(home.folder)])
    assert reward.exit_code == 1 and "reward_model is LlamaForSequenceClassification, not a causal" in reward.output
    without = CliRunner().invoke(app, ["chat", "red_team_prompts", "--home", str(home.folder)])
    assert without.exit_code == 1 and "has no weights" in without.output
