"""What model: one file per family, chosen from the pipeline's own `model_index.json`."""
