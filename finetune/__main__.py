"""`python -m finetune` is `ft`."""

from finetune.cli import main

main()
