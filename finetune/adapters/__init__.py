"""The files that leave: key layouts, metadata, writing and reading back."""
