"""What a run is: one frozen `Job`, typed, from defaults, the user's config, recipes and flags."""

from finetune.config.adapter_types import ROWS as ADAPTERS
from finetune.config.job import Job
from finetune.config.precedence import dump, parse, read_yaml, resolve

__all__ = ["ADAPTERS", "Job", "dump", "parse", "read_yaml", "resolve"]
