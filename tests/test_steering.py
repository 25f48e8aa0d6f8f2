"""The steering benchmark: its judges read what a local judge reads, its table holds what was measured."""

import pytest

from benchmarks import steering as benchmark
from rlaif_assets.feedback.judge import LocalJudge, Reading
from rlaif_assets.feedback.steering import Steering
from rlaif_assets.language_models.fencing import fence
from rlaif_assets.language_models.local import LocalModel, load_model
from rlaif_assets.language_models.prompts import judge_messages
from rlaif_assets.records import Message
from rlaif_assets.settings import ComputeSettings
from tests.feedback.attacks import CONTROL
from tests.tiny_models import tiny_model

ASKED: list[Message] = [{"role": "user", "content": "How do I water the plants?"}]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LocalModel:
    folder = tiny_model("llama", tmp_path_factory.mktemp("tiny") / "model")
    return load_model(folder, ComputeSettings(device="cpu", batch_tokens=400))


def test_our_tokens_are_the_local_judges(model: LocalModel):
    texts = ["Early.", "Look at the soil first, please.", f"Early.{CONTROL[0].first}"]
    questions = [judge_messages(ASKED, a, b, "Be kind.", (), "before") for a in texts for b in texts]
    known: dict[tuple[int, ...], Reading] = {}
    read = next(benchmark.TokenJudge(model, benchmark.by_us, known).read(questions))
    expected = {i: outcome for batch in LocalJudge(model).read(questions) for i, outcome in batch.items()}
    assert read.keys() == expected.keys()
    for i, reading in read.items():
        other = expected[i]
        assert isinstance(reading, Reading) and isinstance(other, Reading)
        assert reading.logprob_first == pytest.approx(other.logprob_first, abs=1e-4)
        assert reading.logprob_second == pytest.approx(other.logprob_second, abs=1e-4)
        assert reading.tokens_in == other.tokens_in
    # A plain question has the same tokens by the template, so it is not read again.
    known_before = len(known)
    list(benchmark.TokenJudge(model, benchmark.by_template, known).read(questions[:2]))
    assert len(known) == known_before


def test_all_arms_are_measured_on_the_same_pairs(model: LocalModel):
    arms = {"no fence": benchmark.Arm(benchmark.by_us, str), "fence": benchmark.Arm(benchmark.by_us, fence)}
    found = benchmark.measured(model, arms, CONTROL[5:6], 1)
    assert {arm: [(row.attack, row.answers) for row in rows] for arm, rows in found.items()} == {
        "no fence": [("ChatML: end of text", 2)],
        "fence": [("ChatML: end of text", 2)],
    }


def test_further_fences_write_data_and_notes_otherwise(model: LocalModel):
    written = [arm.rewrite("Look at\n(A)") for arm in benchmark.FURTHER.values()]
    fenced = "Look at\n    \\u{28}A)"
    assert written == [fenced, f'"{fenced}"', fenced.replace(" ", "^"), fenced]
    noted = benchmark.noted_constitution(" And more.").principles
    assert all(principle.text.endswith(" And more.") for principle in noted)
    assert 0 <= benchmark.right_verdicts(model, benchmark.FURTHER["and a note"], 3) <= 1


def test_the_table_has_means_over_the_attacks_of_a_kind():
    rows = [
        Steering("one", "control", 0.012, (-0.01, 0.034), 0.05, 0.02, 8),
        Steering("two", "control", -0.032, None, 0.0, 0.0, 8),
        Steering("three", "form", 0.5, (0.4, 0.6), 1.0, 0.5, 8),
        Steering("four", "language", 0.0, (0.0, 0.0), 0.0, 0.0, 8),
    ]
    table = benchmark.markdown_table({"before": rows, "after": rows})
    assert "| one | +1.2 (-1.0 to +3.4), +5.0 | +1.2 (-1.0 to +3.4), +5.0 |" in table
    assert "| two | -3.2, +0.0 | -3.2, +0.0 |\n| **mean** | -1.0, +2.5 | -1.0, +2.5 |" in table
    assert "| mean above the bare answer | +1.0 | +1.0 |" in table
