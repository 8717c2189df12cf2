"""Small command lines, one of each kind."""

from pathlib import Path

LORA = ("lora", "--base", "tiny", "--steps", "1", "--batch", "1", "--rank", "1", "--no-samples", "--resolution", "32")


def commands(imgs: Path, place: Path) -> dict[str, tuple[object, ...]]:
    """Every command that reads or writes something, by what it needs."""
    return {
        "lora": (*LORA, "--data", imgs, "--out", place / "out" / "lora"),
        "dry": (*LORA, "--data", imgs, "--dry-run", "--out", place / "out" / "dry"),
        "generate": ("generate", "red apple", "--base", "tiny", "--steps", "1", "--out", place / "out" / "drawn"),
        "check": ("data", "check", imgs, "--base", "tiny"),
        "preview": ("data", "preview", imgs, "--base", "tiny", "--out", place / "out" / "sheet.png"),
        "cache": ("data", "cache", "--data", imgs, "--base", "tiny"),
        "clean": ("clean", place / "out"),
        "models": ("models",),
        "config": ("config",),
    }
