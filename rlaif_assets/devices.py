"""The GPUs of this machine, counted without torch, and which process of a home uses which.

A process that takes a GPU by `auto` sees no other one from then on, and holds `gpu-<i>.lock` in the home until it ends,
for its models stay loaded.
"""

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filelock import BaseFileLock

POOL = "gpu"
DEVICES = Path("/dev")
VISIBLE = "CUDA_VISIBLE_DEVICES"

_held: "tuple[int, BaseFileLock] | None" = None


def visible_gpus() -> list[str]:
    """The names of NVIDIA GPUs that this process may see: numbers, or what CUDA_VISIBLE_DEVICES says."""
    visible = os.environ.get(VISIBLE)
    if visible is not None:
        return [name for part in visible.split(",") if (name := part.strip()) and name != "-1"]
    numbers = [path.name.removeprefix("nvidia") for path in DEVICES.glob("nvidia*")]
    return sorted((number for number in numbers if number.isdigit()), key=int)


def take_gpu(home: Path, patience: float = 0.0) -> int | None:
    """Takes the first visible GPU that no other process of this home holds, once in a process; its place among them.

    None where there is none, and where CUDA runs in this process already. Where all are held it waits for one, at most
    `patience` seconds; then it raises BlockingIOError.
    """
    global _held
    torch = sys.modules.get("torch")
    gpus = visible_gpus()
    if _held is not None:
        return _held[0]
    if not gpus or (torch is not None and torch.cuda.is_initialized()):
        return None
    from filelock import FileLock, Timeout

    until = time.monotonic() + patience
    while True:
        for number, name in enumerate(gpus):
            lock = FileLock(home / f"gpu-{number}.lock", timeout=0)
            try:
                lock.acquire()
            except Timeout:
                continue
            _held = (number, lock)
            os.environ[VISIBLE] = name
            return number
        if time.monotonic() >= until:
            raise BlockingIOError(
                f"all {len(gpus)} GPUs are held by other processes of {home} (gpu-*.lock), for {patience:.0f} s"
            )
        time.sleep(min(1.0, patience))


def held_gpu() -> int | None:
    """What `take_gpu` took in this process."""
    return _held[0] if _held else None


def release_gpu() -> None:
    """Gives the lock back; this process must not use the GPU any more."""
    global _held
    if _held is not None:
        _held[1].release()
    _held = None


def gpu_name(device: str | None) -> str | None:
    """The device under the number that it has on this machine, where `auto` took one of several."""
    held = held_gpu()
    return device if held is None or device is None or not device.startswith("cuda") else f"cuda:{held}"


def reset_gpu_memory() -> None:
    """From here on `gpu_memory` counts."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def gpu_memory(device: str | None) -> dict[str, float]:
    """The most memory that tensors of this process have had on its GPU, in MiB; nothing without one."""
    torch = sys.modules.get("torch")
    if device is None or not device.startswith("cuda") or torch is None or not torch.cuda.is_initialized():
        return {}
    return {"peak_gpu_memory_mb": torch.cuda.max_memory_allocated() / 2**20}


def gpu_tags(device: str, processes: int) -> dict[str, object]:
    """Op tags by which a step launcher on Kubernetes or Ray gives a step its GPUs; none where it is to use the CPU."""
    if device == "cpu":
        return {}
    return {
        "dagster-k8s/config": {"container_config": {"resources": {"limits": {"nvidia.com/gpu": str(processes)}}}},
        "dagster-ray/config": {"num_gpus": processes},
    }
