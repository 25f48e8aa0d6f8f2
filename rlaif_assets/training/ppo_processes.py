"""PPO in several processes of this machine: the asset writes a job, `accelerate launch` starts them, the first one
answers. Each process runs this module and calls `train_ppo` with its place in the world.

Answers go through files in a work folder: metrics as lines, the result or an error's text whole.
"""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlaif_assets.feedback.errors import JudgeStoppedError
from rlaif_assets.language_models.errors import ModelError
from rlaif_assets.records import Prompt
from rlaif_assets.settings import ComputeSettings, PpoPolicySettings
from rlaif_assets.training.errors import TrainingError
from rlaif_assets.training.ppo import PpoResult, train_ppo
from rlaif_assets.training.rewards import RewardSource, open_reward
from rlaif_assets.training.world import join

POLL_SECONDS = 0.2
LAUNCHER = re.compile(r"^.*failed \(exitcode", re.MULTILINE)  # where its own report of a dead process begins
LOG, RESULT, ERROR, OUTPUT = "metrics.jsonl", "result.pickle", "error.txt", "output.txt"


@dataclass(frozen=True)
class PpoJob:
    """The arguments of `train_ppo`, as they can be sent. `parent`: the process that waits, without which they end."""

    policy: Path
    reward: RewardSource
    red_team: Sequence[Prompt]
    helpful: Sequence[Prompt]
    settings: PpoPolicySettings
    output: Path
    compute: ComputeSettings
    checkpoint: Path | None
    heldout: Sequence[RewardSource]
    parent: int


def train_in_processes(job: PpoJob, log: Callable[[dict[str, float], int], None]) -> PpoResult:
    """What `train_ppo` does, in `job.compute.processes` processes; on GPUs each has its own.

    Raises TrainingError, also where a process ends without an answer (with the end of what they printed).
    """
    # Named as work folders are, so that what a kill leaves is found and removed.
    folder = job.output.parent / f"{os.getpid()}-{uuid.uuid4().hex}"
    folder.mkdir(parents=True)
    try:
        (folder / "job.pickle").write_bytes(pickle.dumps(job))
        command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"]
        command += ["--num_processes", str(job.compute.processes), "--mixed_precision", "no", "--dynamo_backend", "no"]
        command += ["--main_process_port", "0", "-m", "rlaif_assets.training.ppo_processes", str(folder)]
        with (folder / OUTPUT).open("wb") as output:
            launched = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
            try:
                read = 0
                while True:
                    ended = launched.poll() is not None
                    read = _pass_on(folder / LOG, read, log)
                    if ended:
                        break
                    time.sleep(POLL_SECONDS)
            finally:
                if launched.poll() is None:
                    launched.terminate()
                    launched.wait()
        if (folder / ERROR).exists():
            raise TrainingError((folder / ERROR).read_text(encoding="utf-8"))
        if not (folder / RESULT).exists():
            told = LAUNCHER.split((folder / OUTPUT).read_text(encoding="utf-8", errors="replace"), 1)[0].strip()
            raise TrainingError(
                f"PPO's processes ended with status {launched.returncode} and no result: {told[-2000:]}"
            )
        return pickle.loads((folder / RESULT).read_bytes())
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _pass_on(file: Path, read: int, log: Callable[[dict[str, float], int], None]) -> int:
    """Logs the whole lines from byte `read` on; the byte up to which they go."""
    if not file.exists():
        return read
    with file.open("rb") as lines:
        lines.seek(read)
        for line in lines:
            if not line.endswith(b"\n"):
                break
            read += len(line)
            found = json.loads(line)
            log(found["metrics"], found["update"])
    return read


def work(folder: Path) -> None:
    """One of the processes."""
    job: PpoJob = pickle.loads((folder / "job.pickle").read_bytes())
    _end_with(job.parent, folder)
    world = join(cpu=job.compute.device == "cpu" or not _has_gpu())
    compute = job.compute.model_copy(update={"device": world.device, **_shares(job.compute)})

    def log(metrics: dict[str, float], update: int) -> None:
        with (folder / LOG).open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"metrics": metrics, "update": update}) + "\n")

    try:
        reward, *heldout = (open_reward(source, compute) for source in (job.reward, *job.heldout))
        result = train_ppo(
            job.policy,
            reward,
            job.red_team,
            job.helpful,
            job.settings,
            job.output,
            compute,
            log,
            job.checkpoint,
            heldout,
            world,
        )
    except (TrainingError, ModelError, JudgeStoppedError) as error:
        _write(folder / ERROR, str(error).encode())
        raise SystemExit(1) from error
    if world.first:
        _write(folder / RESULT, pickle.dumps(result))
    world.leave()


def _shares(compute: ComputeSettings) -> dict[str, int | None]:
    """Of what is for a whole run: each process's part."""
    limits = {name: getattr(compute, name) for name in ("endpoint_max_calls", "endpoint_max_tokens")}
    parts = {name: limit and max(1, limit // compute.processes) for name, limit in limits.items()}
    return {**parts, "threads": compute.threads or max(1, (os.cpu_count() or 1) // compute.processes)}


def _end_with(parent: int, folder: Path) -> None:
    """Ends this process soon after the one that waits for it, also out of a wait for the others."""

    def watch() -> None:
        while _lives(parent):
            time.sleep(2.0)
        _write(folder / ERROR, f"process {parent}, which started this training, is gone".encode())
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _write(file: Path, content: bytes) -> None:
    aside = file.with_name(f"{file.name}.{os.getpid()}")
    aside.write_bytes(content)
    aside.replace(file)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    work(Path(sys.argv[1]))
