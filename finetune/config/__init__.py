"""What a run is: one frozen `Job`, typed, from defaults, the user's config, recipes and flags."""

from finetune.config.job import Job
from finetune.config.load import dump, parse, read_yaml, resolve
from finetune.methods.rows import ROWS as ADAPTERS

__all__ = ["ADAPTERS", "Job", "dump", "parse", "read_yaml", "resolve"]
