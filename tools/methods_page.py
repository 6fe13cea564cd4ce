"""Writes docs/methods.md from the registry: `python tools/methods_page.py`."""

from __future__ import annotations

from pathlib import Path

from idgen.adapters.registry import method, methods

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"
HEAD = """# Methods

Made from the registry by `python tools/methods_page.py`. "Verified" says what is compared with the original implementation, run
with the same weights; the published weights themselves were not at hand where this was built.

| method | name | base | takes | norm | ways in | files | verified | licence of the weights | paper |
|---|---|---|---|---|---|---|---|---|---|
"""


def page() -> str:
    """The whole page."""
    rows = []
    for name in methods():
        one = method(name)
        cells = (
            one.title,
            f"`{one.name}`",
            ", ".join(one.bases),
            one.recogniser,
            one.norm or "-",
            "; ".join(one.injections),
            one.files,
            one.verified,
            one.licence,
            one.paper,
        )
        rows.append("| " + " | ".join(cells) + " |")
    return HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
