"""Check the exercises of the course."""

import ast
import json
import os
import re
import sys
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

from filelock import FileLock

from housemlops.learning.grading import BEGIN, END, Exercise, Verdict, answered, judge
from housemlops.pipeline.sample import open_build
from housemlops.settings import WorkbookError, did_you_mean, repo_root, settings


def given_names(code: str) -> list[str]:
    """The names that top-level assignments define; those with a leading underscore are scaffolding.

    Returns:
        In order, each once.
    """
    targets = [
        target
        for node in ast.parse(code).body
        if isinstance(node, ast.Assign)
        for target in node.targets
    ]
    found = [
        name.id
        for target in targets
        for name in ast.walk(target)
        if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
    ]
    return [name for name in dict.fromkeys(found) if not name.startswith("_")]


def opened(lines: list[str]) -> list[str]:
    "What a reader finds in place of some lines of a solution"
    indent = lines[0][: len(lines[0]) - len(lines[0].lstrip())]
    return (
        [f"{indent}return ..."]
        if indent
        else [f"{name} = ..." for name in given_names("\n".join(lines))]
    )


def blanked(source: str) -> str:
    "The cell of a solution, with what stands between the marks left open"
    kept, inside = [], None
    for line in source.splitlines():
        match line.strip():
            case "### BEGIN":
                inside = []
            case "### END":
                kept, inside = kept + opened(inside), None
            case _:
                (kept if inside is None else inside).append(line)
    return "\n".join(kept)


def solutions_path(stage: str, root: Path) -> Path:
    "Where the solutions of a stage are; WorkbookError with the nearest name when there are none"
    path = root / f"nbs/exercises/solutions/{stage}.ipynb"
    if path.exists():
        return path
    names = sorted(found.stem for found in path.parent.glob("*.ipynb"))
    raise WorkbookError(
        f"There are no exercises for {stage!r}.{did_you_mean(stage, names)} There are some for {', '.join(names)}."
    )


def cells(notebook: dict, tag: str = "") -> list[tuple[dict, str]]:
    """The cells of a notebook, or those with a tag.

    Returns:
        Cell, source.
    """
    return [
        (cell, "".join(cell["source"]))
        for cell in notebook["cells"]
        if not tag or tag in cell["metadata"].get("tags", ())
    ]


def read_exercises(path: Path) -> list[Exercise]:
    "The exercises of a notebook of solutions"
    notebook, found, title = json.loads(path.read_text(encoding="utf-8")), [], ""
    for cell, source in cells(notebook):
        tags = cell["metadata"].get("tags", ())
        if cell["cell_type"] == "markdown" and (
            heading := re.search(r"^## (?:\d+\. )?(.*)$", source, re.MULTILINE)
        ):
            title = heading[1]
        if "exercise" in tags:
            inner = re.findall(
                rf"^{BEGIN}\n(.*?)^{END}", source, re.MULTILINE | re.DOTALL
            )
            found.append(
                Exercise(
                    len(found) + 1,
                    title,
                    source,
                    compare=[name for part in inner for name in given_names(part)],
                )
            )
        if "teacher" in tags:
            told = {
                node.targets[0].id: ast.literal_eval(node.value)
                for node in ast.parse(source).body
            }
            found[-1] = Exercise(**{**vars(found[-1]), **told})
    return found


def blank(notebook: dict) -> dict:
    "A notebook of exercises from a notebook of solutions"

    def emptied(cell, source):
        tagged = "exercise" in cell["metadata"].get("tags", ())
        kept = {
            "id": cell["id"],
            "cell_type": cell["cell_type"],
            "metadata": {},
            "source": (blanked(source) if tagged else source).splitlines(keepends=True),
        }
        return kept | (
            {"execution_count": None, "outputs": []}
            if cell["cell_type"] == "code"
            else {}
        )

    kept = [
        emptied(cell, source)
        for cell, source in cells(notebook)
        if "teacher" not in cell["metadata"].get("tags", ())
    ]
    return {**notebook, "cells": kept}


def write_blanks(root: Path) -> list[Path]:
    """Write nbs/exercises/<stage>.ipynb from nbs/exercises/solutions/<stage>.ipynb.

    Returns:
        Blanks.
    """
    written = []
    for path in sorted((root / "nbs/exercises/solutions").glob("*.ipynb")):
        text = (
            json.dumps(
                blank(json.loads(path.read_text(encoding="utf-8"))),
                sort_keys=True,
                indent=1,
                ensure_ascii=False,
            )
            + "\n"
        )
        written.append(root / "nbs/exercises" / path.name)
        if not written[-1].exists() or written[-1].read_text(encoding="utf-8") != text:
            written[-1].write_text(text, encoding="utf-8")
    return written


def shown(notebook: dict, exercises: Iterable[Exercise]) -> list[str]:
    "Lines of the solutions, hints and wrong answers that a blank gives away, and outputs"
    text = "\n".join(source for _, source in cells(notebook))
    hidden = [
        line.strip()
        for each in exercises
        for line in answered(each.source).splitlines()
        if line not in blanked(each.source).splitlines()
    ]
    hidden += [
        words
        for each in exercises
        for words in [*each.hints, *each.wrong.values(), each.learned]
    ]
    return [line for line in hidden if len(line) > 7 and line in text] + [
        str(cell["id"]) for cell, _ in cells(notebook) if cell.get("outputs")
    ]


@cache
def progress_path() -> Path:
    "Where progress is noted; as first asked, for a notebook may move into a scratch state folder later"
    return settings().paths.state / "course.json"


def read_progress(path: Path) -> dict[str, dict[str, str]]:
    """What a reader has solved; WorkbookError when the note cannot be read.

    Returns:
        Stage -> number -> state; labs -> name -> state.
    """
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise WorkbookError(
            f"{path.name} in the state folder cannot be read: delete it to begin the exercises anew"
        ) from None


def note(path: Path, stage: str, number: int | str, state: str) -> None:
    "Remember what became of an exercise, or of a lab (its stage is `labs`, its number is its name), unless it is solved already"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        known = read_progress(path)
        if state == "not attempted" or known.get(stage, {}).get(str(number)) in (
            "correct",
            state,
        ):
            return
        known.setdefault(stage, {})[str(number)] = state
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        draft.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        os.replace(draft, path)


class Note(Verdict):
    "A hint or a solution, as text and in Markdown"

    def __repr__(self) -> str:
        return f"{self.state}: {self.says}"

    def _repr_markdown_(self) -> str:
        return f"**{self.state}.** {self.says}"


def exercises(
    stage: str,
    space: dict | None = None,
    path: Path | None = None,
    root: Path | None = None,
) -> tuple[Callable, Callable, Callable]:
    """The helpers of a notebook of exercises, each called with the number of an exercise.

    Args:
        space: A reader's variables; those of the caller when not given.
        path: Of the progress.

    Returns:
        Check, hint, solution.
    """
    space, path = (
        sys._getframe(1).f_globals if space is None else space,
        path or progress_path(),
    )
    all_of_it, told = read_exercises(solutions_path(stage, root or repo_root())), {}

    def numbered(number):
        if number in range(1, len(all_of_it) + 1):
            return all_of_it[number - 1]
        raise WorkbookError(
            f"There is no exercise {number!r}: this notebook has 1 to {len(all_of_it)}"
        )

    def check(number: int = 1) -> Verdict:
        "Say whether an exercise is solved, and remember it"
        found = judge(numbered(number), space)
        note(path, stage, number, found.state)
        return found

    def hint(number: int = 1) -> Verdict:
        "The next hint"
        hints = numbered(number).hints
        told[number] = min(told.get(number, 0) + 1, len(hints))
        return Note(f"Hint {told[number]} of {len(hints)}", hints[told[number] - 1])

    def solution(number: int = 1) -> Note:
        "One way to do it"
        return Note(
            "One way to do it",
            f"\n```python\n{answered(numbered(number).source)}\n```\n",
        )

    return check, hint, solution


@cache
def sample_build(stage: str) -> Path:
    """The sample as a stage finds it, opened once a kernel.

    Returns:
        Folder of the outputs of the earlier stages.
    """
    return open_build("sample", stage)
