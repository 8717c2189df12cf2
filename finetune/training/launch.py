"""From the command line to a run: one process, or the workers of `torchrun` and `accelerate launch`.

The first process resolves the command line; the others get nothing but the `run.yaml` that it writes.
"""

import os
from typing import Any

from finetune import config, files
from finetune.config import Job
from finetune.run_folder import RunFolder
from finetune.training.device import processes
from finetune.training.run import train as train_here


def train(job: Job, fresh: bool) -> dict[str, Any]:
    """Trains and returns the summary (empty in workers)."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return train_here(job, fresh)
    state = processes()
    shared = RunFolder(job.run.folder).job
    if state.is_main_process:
        files.write_text(shared, config.dump(job))
    state.wait_for_everyone()
    if not state.is_main_process:
        job = config.parse(config.read_yaml(shared))
    state.wait_for_everyone()
    if state.is_main_process:
        shared.unlink(missing_ok=True)
    return train_here(job, fresh)
