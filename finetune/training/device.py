"""Devices, processes and precision, through accelerate."""

import os

import accelerate
import torch
from accelerate.state import AcceleratorState

from finetune.config.job import Job
from finetune.errors import ConfigError
from finetune.training.accelerating import Accelerator, Processes

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def processes() -> Processes:
    """Joins the other processes. Without an accelerator that must be said, or accelerate quietly starts N runs of one process."""
    state: Processes = accelerate.PartialState(cpu=not torch.accelerator.is_available())
    return state


def precision(job: Job, device: torch.device) -> str:
    """The job's mixed precision; `auto` is bf16 or fp16 on an accelerator, and none on a CPU, where small networks lose by it."""
    if job.run.precision != "auto" or job.optim.masters == "bf16":
        return job.run.precision if job.run.precision != "auto" else "bf16"
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "no"


def accelerator_for(job: Job) -> Accelerator:
    """Raises:
    ConfigError: another number of processes than was asked for, or a precision the device lacks.
    """
    state = processes()
    asked = job.run.processes or int(os.environ.get("WORLD_SIZE", 1))
    if state.num_processes != asked:
        raise ConfigError(
            f"{asked} processes were asked for, {state.num_processes} run",
            f"on a CPU start them with: torchrun --nproc-per-node {asked} -m finetune lora ...",
        )
    mixed = precision(job, state.device)
    if mixed == "fp16" and state.device.type == "cpu":
        raise ConfigError("--precision fp16: a CPU cannot train in it", "use --precision no or bf16")
    AcceleratorState._reset_state()  # or a second run in one process keeps the precision of the first
    accelerator: Accelerator = accelerate.Accelerator(mixed_precision=mixed, cpu=state.device.type == "cpu")
    return accelerator


def peak_memory(device: torch.device) -> int:
    """Most bytes that the accelerator held at once in this process; 0 on a CPU."""
    return int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else 0
