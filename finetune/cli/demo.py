"""`ft generate`."""


def command() -> None:
    """Draw."""
