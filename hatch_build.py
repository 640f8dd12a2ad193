"""What the package says of itself: its links, and README.md with links that work anywhere."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RELATIVE = re.compile(r"(!?\[[^\]]*\]\()(?![a-z]+:|#)([^)\s]+\))")


def project_urls(repository: str) -> dict[str, str]:
    """The links of the package; none without a repository."""
    if not repository:
        return {}
    tree = f"{repository}/blob/main"
    return {
        "Repository": repository,
        "Documentation": f"{tree}/docs/index.md",
        "Changelog": f"{tree}/CHANGELOG.md",
        "Issues": f"{repository}/issues",
    }


def with_links(text: str, repository: str) -> str:
    """Markdown whose relative links lead to the repository; pictures to the files themselves."""
    if not repository:
        return text
    return RELATIVE.sub(
        lambda link: (
            f"{link[1]}{repository}/{'raw' if link[1][0] == '!' else 'blob'}/main/{link[2]}"
        ),
        text,
    )


class Metadata(MetadataHookInterface):
    """Fills in `readme` and `urls` from the one setting in pyproject.toml."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Called by hatchling when it builds."""
        root = Path(self.root)
        settings = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))
        repository = settings["tool"]["sample-attention"]["repository"].rstrip("/")
        text = with_links((root / "README.md").read_text("utf-8"), repository)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
        metadata["urls"] = project_urls(repository)
