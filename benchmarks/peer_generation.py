"""A side of `labelling.py` or `generation.py` in a process and, for distilabel, an environment of its own.

    PYTHON benchmarks/peer_generation.py < REQUEST

REQUEST is JSON: `folder` of a model without a chat template, `prompts` as texts, `threads`, `device`, `dtype`, `side`
(distilabel or pipeline), and `arguments` of generation, by default one greedy token. Prints JSON: the generated texts,
seconds without loading and warm-up, and versions.
Needs nothing of this project, whose own environment need not hold distilabel.
"""

import importlib
import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

ARGUMENTS = {"max_new_tokens": 1, "do_sample": False, "repetition_penalty": 1.0}


def with_distilabel(request: dict[str, Any]) -> Callable[[list[str]], list[str]]:
    models = importlib.import_module("distilabel.models.llms")
    llm = models.TransformersLLM(
        model=request["folder"],
        device=request["device"],
        torch_dtype=request["dtype"],
        disable_cuda_device_placement=True,
    )
    llm.load()

    arguments = request.get("arguments", ARGUMENTS)

    def generate(prompts: list[str]) -> list[str]:
        asked = [[{"role": "user", "content": prompt}] for prompt in prompts]
        return [output["generations"][0] for output in llm.generate(inputs=asked, num_generations=1, **arguments)]

    return generate


def with_pipeline(request: dict[str, Any]) -> Callable[[list[str]], list[str]]:
    """What distilabel does: a pipeline's default, one prompt at a time."""
    transformers = importlib.import_module("transformers")
    pipe = transformers.pipeline(
        "text-generation", model=request["folder"], device=request["device"], dtype=request["dtype"]
    )

    arguments = request.get("arguments", ARGUMENTS)

    def generate(prompts: list[str]) -> list[str]:
        return [output[0]["generated_text"] for output in pipe(prompts, return_full_text=False, **arguments)]

    return generate


def main() -> None:
    request = json.load(sys.stdin)
    torch = importlib.import_module("torch")
    torch.set_num_threads(request["threads"])
    generate = with_distilabel(request) if request["side"] == "distilabel" else with_pipeline(request)
    generate(request["prompts"][:1])
    started = time.perf_counter()
    texts = generate(request["prompts"])
    seconds = time.perf_counter() - started
    packages = ["transformers", "torch"] + ["distilabel"] * (request["side"] == "distilabel")
    print("\n" + json.dumps({"texts": texts, "seconds": seconds, "versions": {p: version(p) for p in packages}}))


if __name__ == "__main__":
    main()
