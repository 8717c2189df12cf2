"""`--dry-run`."""
