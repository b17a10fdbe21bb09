"""The reading order of the notebooks, and how far a reader is."""

import json
import os
import re
from pathlib import Path

import pandas as pd

from housemlops.learning.exercises import (
    cells,
    progress_path,
    read_exercises,
    read_progress,
)
from housemlops.learning.faults import LABS
from housemlops.settings import repo_root

STEPS = (
    5,
    10,
    15,
    20,
    30,
    45,
    60,
    90,
    120,
)  # minutes; a guess is not more exact than that


def notebook_facts(path: Path, root: Path) -> dict:
    """What can be counted in a notebook.

    Returns:
        Title, words, code_lines, plots, exercises, minutes.
    """
    notebook = json.loads(path.read_text(encoding="utf-8"))
    prose = [
        source for cell, source in cells(notebook) if cell["cell_type"] == "markdown"
    ]
    code = [
        (cell, source)
        for cell, source in cells(notebook)
        if cell["cell_type"] == "code"
    ]
    words = sum(
        len(re.findall(r"\w[\w'’.-]*", re.sub(r"\]\([^)]*\)", "", text)))
        for text in prose
    )
    lines = sum(
        bool(line.strip()) for _, source in code for line in source.splitlines()
    )
    plots = sum(
        any(kind.startswith("image/") for kind in output.get("data", ()))
        for cell, _ in code
        for output in cell.get("outputs", ())
    )
    solved = root / f"nbs/exercises/solutions/{path.name}"
    return {
        "title": prose[0].splitlines()[0].strip("# "),
        "summary": next(
            (
                line.strip("> ")
                for line in prose[0].splitlines()
                if line.startswith("> ")
            ),
            "",
        ),
        "words": words,
        "code_lines": lines,
        "plots": plots,
        "exercises": len(read_exercises(solved)) if solved.exists() else 0,
        "minutes": min(STEPS, key=lambda step: abs(step - words / 180 - lines / 12)),
    }


def notebook_groups(root: Path) -> dict[str, list[str]]:
    """Return the notebooks as the index groups them: heading -> names, in its order.

    The headings are those of the index below which notebooks are named for the first
    time. Notebooks that the index does not name come last.
    """
    index = json.loads((root / "nbs/index.ipynb").read_text(encoding="utf-8"))
    heading, groups, seen = "Notebooks", {}, {"index"}
    for cell, source in cells(index):
        if cell["cell_type"] != "markdown":
            continue
        for line in source.splitlines():
            if line.startswith("## "):
                heading = line.removeprefix("## ")
            for name in re.findall(r"\]\((\w+)\.ipynb", line):
                if name not in seen and (root / f"nbs/{name}.ipynb").exists():
                    seen.add(name)
                    groups.setdefault(heading, []).append(name)
    unnamed = sorted({path.stem for path in (root / "nbs").glob("*.ipynb")} - seen)
    if unnamed:
        groups.setdefault(heading, []).extend(unnamed)
    return groups


def reading_order(root: Path) -> list[str]:
    """Return the names of all notebooks but the index, in its order."""
    return [name for names in notebook_groups(root).values() for name in names]


def notebook_table(root: Path | None = None) -> list[dict]:
    """Time, words per line of code, plots and exercises of every notebook.

    Returns:
        One row a notebook, in reading order.
    """
    root = root or repo_root()
    measured = root / "nbs/site/notebooks.json"
    seconds = (
        json.loads(measured.read_text(encoding="utf-8"))["seconds"]
        if measured.exists()
        else {}
    )

    def row(name):
        facts = notebook_facts(root / f"nbs/{name}.ipynb", root)
        return {
            "notebook": name,
            "seconds": seconds.get(name),
            **facts,
            "words_per_line": round(facts["words"] / max(facts["code_lines"], 1), 1),
        }

    return [row(name) for name in reading_order(root)]


def path_table(root: Path | None = None) -> pd.DataFrame:
    """The notebooks in reading order: what about, minutes to read, seconds to run, exercises.

    Returns:
        One row a notebook.
    """
    rows = notebook_table(root)
    seconds = [
        "" if row["seconds"] is None else f"{row['seconds']:.0f} s" for row in rows
    ]
    return pd.DataFrame(
        {
            "what you do": [row["title"] for row in rows],
            "to read and try": [f"{row['minutes']} min" for row in rows],
            "to run": seconds,
            "exercises": [row["exercises"] or "" for row in rows],
        },
        index=pd.Index([row["notebook"] for row in rows], name="notebook"),
    )


class Progress:
    "How far a reader has come, as text and in Markdown"

    def __init__(
        self,
        root: Path | None = None,
        path: Path | None = None,
        reader: bool | None = None,
    ):
        root, self.reader = (
            root or repo_root(),
            "JPY_SESSION_NAME" in os.environ if reader is None else reader,
        )
        self.there = {
            row["notebook"]: row["exercises"]
            for row in notebook_table(root)
            if row["exercises"]
        }
        self.known = read_progress(path or progress_path()) if self.reader else {}
        self.labs = len(LABS)

    def lines(self) -> list[tuple[str, int, int]]:
        """Solved exercises of each stage.

        Returns:
            Stage, solved, of.
        """
        return [
            (stage, self.solved(stage), number) for stage, number in self.there.items()
        ]

    def solved(self, stage: str) -> int:
        "How many exercises of a stage are solved, or how many labs"
        return [*self.known.get(stage, {}).values()].count("correct")

    def __repr__(self) -> str:
        return re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", self._repr_markdown_())

    def _repr_markdown_(self) -> str:
        if not self.reader:
            return f"{sum(self.there.values())} exercises, in a notebook beside each stage. Run this cell in JupyterLab, and it shows your own progress."
        solved, there = sum(line[1] for line in self.lines()), sum(self.there.values())
        mended, parts = (
            self.solved("labs"),
            [
                (f"[{stage}](exercises/{stage}.ipynb)", done, number)
                for stage, done, number in self.lines()
            ],
        )
        rows = [
            f"| {name} | {'●' * done}{'○' * (number - done)} | {done} of {number} |"
            for name, done, number in [
                *parts,
                ("[labs](labs.ipynb)", mended, self.labs),
            ]
        ]
        onward = next(
            (f"Go on with {name}." for name, done, number in parts if done < number),
            "The [labs](labs.ipynb) wait."
            if mended < self.labs
            else "All of it: well done.",
        )
        return "\n".join(
            [
                f"**{solved} of {there} exercises solved, {mended} of {self.labs} labs mended.** {onward}",
                "",
                "| | | done |",
                "|---|---|---|",
                *rows,
            ]
        )
