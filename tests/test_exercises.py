"The exercises are tested as a teacher would: blank, wrong and right, and nothing given away."

import json
import os
import re

import pytest

from housemlops.learning.exercises import (
    blank,
    blanked,
    cells,
    given_names,
    note,
    read_exercises,
    read_progress,
    shown,
    solutions_path,
    write_blanks,
)
from housemlops.learning.grading import Exercise, answered, judge, value_of
from housemlops.learning.reading import notebook_table, reading_order
from housemlops.pipeline.graph import graph, pipeline
from housemlops.settings import repo_root

ROOT = repo_root()
STAGES = [*graph(pipeline(ROOT))]
HELP = ("check", "hint", "solution")


def notebook(path):
    return json.loads((ROOT / "nbs" / path).read_text(encoding="utf-8"))


@pytest.fixture
def reader(tmp_path, monkeypatch):
    "Where a reader's progress goes; the scratch state that a notebook moves into is left again"
    monkeypatch.setattr(
        "housemlops.learning.exercises.progress_path", lambda: tmp_path / "course.json"
    )
    before = dict(os.environ)
    yield tmp_path / "course.json"
    os.environ.clear()
    os.environ.update(before)


def run(code, space):
    exec(compile(code, "<cell>", "exec"), space)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_blank_wrong_and_right(stage, reader):
    "Every cell of the blank runs; then each exercise is not attempted, wrong in each foreseen way, and correct"
    space = {"__name__": "__main__"}
    for cell, source in cells(notebook(f"exercises/{stage}.ipynb")):
        if cell["cell_type"] == "code":
            run(source, space)
    exercises = read_exercises(solutions_path(stage, ROOT))
    assert 3 <= len(exercises) <= 5
    assert read_progress(reader) == {}, (
        "a reader who has only run the notebook has solved nothing"
    )
    check, hint, solution = (space[name] for name in HELP)
    for exercise in exercises:
        where, answer = f"{stage} {exercise.number}", answered(exercise.source)
        assert judge(exercise, space).state == "not attempted", where
        run(answer, right := dict(space))
        truth = {
            expression: value_of(expression, right) for expression in exercise.compare
        }
        assert len(exercise.wrong) >= 2, where
        for code, says in exercise.wrong.items():
            run(f"{answer}\n{code}", scope := dict(space))
            found = judge(exercise, scope)
            assert found.state == "not yet" and found.says.endswith(says), (
                f"{where}: {code}: {found}"
            )
            assert re.match("`([^`]*)`", found.says)[1] in exercise.compare, where
        for name in {*re.findall(r"[a-z]\w*", " ".join(exercise.compare))} & {
            *given_names(answer)
        }:
            found = judge(exercise, right | {name: object()})
            assert found.state == "not yet" and f"`{name}" in found.says, (
                f"{where}: {found}"
            )
            assert not gives_away(found.says, truth.values()), f"{where}: {found}"
        run(answer, space)
        assert check(exercise.number).state == "correct", (
            f"{where}: {check(exercise.number)}"
        )
        assert (
            len({str(hint(exercise.number)) for _ in range(9)})
            == len(exercise.hints)
            >= 1
        ), where
        assert answer in str(solution(exercise.number)), where
    assert read_progress(reader) == {
        stage: {str(exercise.number): "correct" for exercise in exercises}
    }


def gives_away(text, truths):
    return [
        truth
        for truth in truths
        if isinstance(truth, (str, int, float))
        and not isinstance(truth, bool)
        and re.search(rf"(?<![\w.]){re.escape(str(truth))}(?![\w.])", text)
    ]


@pytest.mark.parametrize("stage", STAGES)
def test_blanks_give_nothing_away(stage):
    exercises, found = (
        read_exercises(solutions_path(stage, ROOT)),
        notebook(f"exercises/{stage}.ipynb"),
    )
    assert shown(found, exercises) == []
    assert found == blank(notebook(f"exercises/solutions/{stage}.ipynb")), (
        "stale: type `housemlops sync`"
    )
    asked = [source for cell, source in cells(found) if source.startswith("check(")]
    assert asked == [f"check({exercise.number})" for exercise in exercises]


def test_what_is_given_away_is_seen():
    "A solution, a hint or an output that slips into a blank is named"
    exercises, found = (
        read_exercises(solutions_path("ingest", ROOT)),
        notebook("exercises/ingest.ipynb"),
    )
    line = next(
        line
        for line in answered(exercises[0].source).splitlines()
        if line not in blanked(exercises[0].source)
    )
    for slipped in (
        line,
        exercises[1].hints[0],
        next(iter(exercises[2].wrong.values())),
    ):
        assert shown(
            found
            | {
                "cells": [
                    *found["cells"],
                    {
                        "cell_type": "markdown",
                        "metadata": {},
                        "source": f"By the way: {slipped}",
                    },
                ]
            },
            exercises,
        ), slipped
    found["cells"][1]["outputs"] = [
        {"output_type": "stream", "name": "stdout", "text": "42"}
    ]
    assert shown(found, exercises) == [found["cells"][1]["id"]]


def test_a_stale_blank_is_written_anew(tmp_path):
    (tmp_path / "nbs/exercises/solutions").mkdir(parents=True)
    text = (ROOT / "nbs/exercises/solutions/ingest.ipynb").read_text(encoding="utf-8")
    (tmp_path / "nbs/exercises/solutions/ingest.ipynb").write_text(
        text.replace("hint(1)` for a hint", "hint(1)` for a clue")
    )
    (tmp_path / "nbs/exercises/ingest.ipynb").write_text("{}")
    [path] = write_blanks(tmp_path)
    assert (
        "for a clue" in path.read_text()
        and path.read_text() != (ROOT / "nbs/exercises/ingest.ipynb").read_text()
    )


def test_a_note_is_written_whole_by_many_at_once(tmp_path):
    "Kernels that check at the same moment lose nothing of each other"
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        [
            *pool.map(
                lambda number: note(
                    tmp_path / "course.json", "ingest", number, "correct"
                ),
                range(40),
            )
        ]
    assert len(read_progress(tmp_path / "course.json")["ingest"]) == 40
    assert [*tmp_path.glob(".course*")] == []


def test_an_unfinished_note_leaves_the_old_one(tmp_path, monkeypatch):
    note(tmp_path / "course.json", "ingest", 1, "correct")
    monkeypatch.setattr(
        os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        note(tmp_path / "course.json", "ingest", 2, "correct")
    assert read_progress(tmp_path / "course.json") == {"ingest": {"1": "correct"}}


def test_an_answer_that_cannot_be_judged_says_what_to_do():
    broken = Exercise(
        1, "", "### BEGIN\nmean = sum(prices) / len(prices)\n### END", compare=["mean"]
    )
    assert "restart the kernel" in judge(broken, {"prices": None, "mean": 3}).says


def test_the_index_leads_to_every_notebook():
    there = {path.stem for path in (ROOT / "nbs").glob("*.ipynb")} - {"index"}
    assert {*reading_order(ROOT)} == there, (
        "a notebook that the index does not name is not found by a reader"
    )


def test_every_notebook_was_timed_and_is_quick():
    rows = notebook_table(ROOT)
    assert [row["notebook"] for row in rows if row["seconds"] is None] == [], (
        "type `python benchmarks/notebooks.py NAME`"
    )
    assert [row["notebook"] for row in rows if row["seconds"] > 90] == []
    assert {
        row["notebook"]: row["exercises"] for row in rows if row["exercises"]
    }.keys() == {*STAGES}


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_names_and_links_its_exercises(stage):
    text = "\n".join(source for _, source in cells(notebook(f"{stage}.ipynb")))
    assert f"](exercises/{stage}.ipynb)" in text
    for exercise in read_exercises(solutions_path(stage, ROOT)):
        assert f"* {exercise.title}\n" in text, exercise.title


def test_the_index_is_committed_without_anybodys_progress():
    outputs = json.dumps(
        [cell.get("outputs") for cell, _ in cells(notebook("index.ipynb"))]
    )
    assert "it shows your own progress" in outputs and "exercises solved" not in outputs
