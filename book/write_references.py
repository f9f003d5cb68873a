"""Writes references.md, the page of the works that chapters cite, from references.bib.

    python book/write_references.py

A list in plain Markdown, which JupyterLab shows as the site does; a bibliography directive stands raw there.
"""

import re
from pathlib import Path

from pybtex.database import parse_file
from pybtex.plugin import find_plugin

BIBLIOGRAPHY = Path(__file__).with_name("references.bib")


def label(entry) -> str:
    """How a chapter's prose names a work: "Ho et al. (2020)"."""
    names = [
        " ".join(map(str, person.rich_last_names))
        for person in entry.persons["author"]
    ]
    who = (
        names[0]
        if len(names) == 1
        else " and ".join(names)
        if len(names) == 2
        else f"{names[0]} et al."
    )
    return f"{who} ({entry.fields['year']})"


def page() -> str:
    """The text of references.md."""
    works = parse_file(BIBLIOGRAPHY).entries
    style = find_plugin("pybtex.style.formatting", "plain")()
    backend = find_plugin("pybtex.backends", "markdown")()
    lines = []
    for work in style.format_entries(works.values()):
        text = re.sub(
            r"\\([-.()])", r"\1", work.text.render(backend)
        )  # escapes that Markdown does not need here
        lines.append(f"- **{label(works[work.key])}.** " + " ".join(text.split()))
    return "\n".join(["# References", "", *sorted(lines), ""])


if __name__ == "__main__":
    BIBLIOGRAPHY.with_suffix(".md").write_text(page(), encoding="utf-8")
