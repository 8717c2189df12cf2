"""What model: one file per family, chosen from the pipeline's own `model_index.json`."""

import os

# Before transformers is imported: it warns that torchvision is missing, which nothing here needs.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
