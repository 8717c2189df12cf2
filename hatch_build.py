"""The README as a package index shows it: what it shows and links to is addressed in the repository that the package is built from.

The address is git's own (`git remote get-url origin`) and the commit that is built. Where there is none, pictures are left out.
"""

import re
import subprocess
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

PICTURE = re.compile(r"!\[([^\]]*)\]\((?![a-z]+:)([^)]+)\)\n*")
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?![a-z]+:|#)([^)]+)\)")
REMOTE = re.compile(r"(?:(?:https?|ssh)://(?:[^/@]*@)?|git@)([\w.-]+)(?::\d+)?[:/]([\w./~-]+?)(?:\.git)?/?")


class Readme(MetadataHookInterface):
    """Fills `readme` and `urls`; the archive that a wheel is built from has them already."""

    PLUGIN_NAME = "custom"

    def update(self, metadata: dict[str, Any]) -> None:
        if "readme" in metadata:
            return
        address, commit = web_address(git(self.root, "remote", "get-url", "origin")), git(self.root, "rev-parse", "HEAD")
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": addressed(text, address and f"{address}/%s/{commit}/")}
        if address:
            metadata["urls"] = {"Repository": address, "Changelog": f"{address}/blob/{commit}/CHANGELOG.md"}


def git(root: str, *words: str) -> str:
    """What git says of the repository in `root`, or nothing; a repository around it is not it."""
    if not (Path(root) / ".git").exists():
        return ""
    try:
        done = subprocess.run(["git", "-C", root, *words], capture_output=True, text=True)  # noqa: S603, S607
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def web_address(remote: str) -> str:
    """`https://host/owner/name` of a remote, without what it holds of names and passwords; nothing for a folder."""
    match = REMOTE.fullmatch(remote)
    return f"https://{match[1]}/{match[2]}" if match else ""


def addressed(text: str, place: str) -> str:
    """Markdown whose relative pictures and links lead to `place`, in which %s is the way in which a file is seen: raw or as a page."""
    if not place:
        return LINK.sub(r"\1", PICTURE.sub("", text))
    text = PICTURE.sub(lambda m: m[0].replace(f"({m[2]})", f"({place % 'raw'}{m[2]})"), text)
    return LINK.sub(lambda m: f"[{m[1]}]({place % 'blob'}{m[2]})", text)
