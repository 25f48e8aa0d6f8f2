"""A real third-party server with the packaged model: llama-cpp-python's, which gives log-probabilities.

It builds from source for some twenty minutes, so it lives in an environment of its own (the packages
llama-cpp-python[server], gguf and safetensors), whose Python LLAMA_CPP_PYTHON names.
"""

import math
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlaif_assets.feedback.endpoint_judge import EndpointJudge, detect_method
from rlaif_assets.feedback.judge import LocalJudge, Reading
from rlaif_assets.language_models.endpoint import Endpoint
from rlaif_assets.language_models.local import load_model
from rlaif_assets.pocket.world import model_folder
from rlaif_assets.settings import ComputeSettings, FeedbackModelSettings
from tests.feedback.test_transformers_serve import questions, wait_for

PYTHON = os.environ.get("LLAMA_CPP_PYTHON", "")
WRITER = Path(__file__).parents[1] / "gguf_pocket.py"
NAME = "pocket"

pytestmark = pytest.mark.skipif(
    not PYTHON, reason="needs LLAMA_CPP_PYTHON: a Python with llama-cpp-python[server], gguf and safetensors"
)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("llama")
    file, log = folder / "pocket.gguf", folder / "serve.log"
    subprocess.run([PYTHON, WRITER, model_folder(), file], check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["--model", str(file), "--model_alias", NAME, "--n_ctx", "1536", "--logits_all", "true", "--n_threads", "1"]
    with log.open("w") as output:
        server = subprocess.Popen(
            [PYTHON, "-m", "llama_cpp.server", *words, "--host", "127.0.0.1", "--port", str(port)],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            wait_for(server, f"http://127.0.0.1:{port}/v1/models", log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()
            server.wait(30)


def test_its_log_probabilities_are_those_of_the_same_model_here(url: str) -> None:
    settings = FeedbackModelSettings(source=url, model=NAME, verdict_request="")
    compute = ComputeSettings(device="cpu", endpoint_timeout=300, endpoint_concurrency=1)
    method, version, reason = detect_method(Endpoint(url, NAME, compute), settings)
    assert (method, reason) == ("logprobs", "the server gives log-probabilities")
    judge = EndpointJudge(Endpoint(url, NAME, compute, version), method, settings)
    served = {number: outcome for batch in judge.read(questions()) for number, outcome in batch.items()}
    local = LocalJudge(load_model(model_folder(), compute))
    here = {number: outcome for batch in local.read(questions()) for number, outcome in batch.items()}
    for number in range(len(questions())):
        theirs, ours = served[number], here[number]
        assert isinstance(theirs, Reading) and isinstance(ours, Reading), (theirs, ours)
        assert theirs.method == "logprobs"
        pairs = ((theirs.logprob_first, ours.logprob_first), (theirs.logprob_second, ours.logprob_second))
        for logprob, expected in pairs:
            print(f"question {number}: {math.exp(logprob):.4f} (here {math.exp(expected):.4f})")
            assert math.exp(logprob) == pytest.approx(math.exp(expected), abs=0.01)
