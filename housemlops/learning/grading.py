"""Compare what a learner wrote with the solution, and say what is wrong."""

import ast
import math
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

BEGIN, END = "### BEGIN", "### END"  # around what a reader is to find


def answered(source: str) -> str:
    "The cell of a solution without the marks"
    return "\n".join(
        line for line in source.splitlines() if line.strip() not in (BEGIN, END)
    )


@dataclass(frozen=True)
class Exercise:
    "A question, its answer, and what a teacher knows about both"

    number: int
    title: str
    source: str  # of the cell, with the marks
    hints: list[str] = field(default_factory=list)
    wrong: dict[str, str] = field(
        default_factory=dict
    )  # code, run after the answer -> what to say to it
    compare: list[str] = field(default_factory=list)  # expressions that are judged
    learned: str = ""  # said when it is solved


KINDS = {
    bool: "True or False",
    float: "a number",
    str: "text",
    set: "a set",
    dict: "a dictionary",
    list: "a list",
    pd.DataFrame: "a table",
    type(None): "None",
}


def kind(value: object) -> type:
    """What a value counts as.

    Returns:
        A key of KINDS, or the type itself.
    """
    match value:
        case bool() | np.bool_():
            return bool
        case int() | float() | np.number():
            return float
        case set() | frozenset():
            return set
        case list() | tuple() | np.ndarray() | pd.Series() | pd.Index():
            return list
    return next(
        (known for known in (str, dict, pd.DataFrame) if isinstance(value, known)),
        type(value),
    )


def differs(mine: object, right: object) -> str:
    """How an answer differs from the right one, in words that do not give it away.

    Returns:
        Empty when they agree.
    """
    wanted, got = kind(right), kind(mine)
    if wanted is set and got is list:
        mine, got = {*mine}, set
    if wanted is not got:
        return f"should be {KINDS.get(wanted, wanted.__name__)}, and is {KINDS.get(got, got.__name__)}"
    if wanted is float:
        return number_differs(float(mine), float(right))
    if wanted is set:
        return " and ".join(
            filter(
                None,
                [
                    f"lacks {len(right - mine)} of what belongs in it"
                    * bool(right - mine),
                    f"has {len(mine - right)} that do not belong in it"
                    * bool(mine - right),
                ],
            )
        )
    if wanted is dict:
        return dict_differs(mine, right)
    if wanted is list:
        return list_differs([*mine], [*right])
    if wanted is pd.DataFrame:
        return dict_differs(
            mine.reset_index().to_dict("list"), right.reset_index().to_dict("list")
        )
    return "" if mine == right else "is not right"


def number_differs(mine: float, right: float) -> str:
    "How a number differs"
    if math.isclose(mine, right, rel_tol=1e-4, abs_tol=1e-9) or (
        math.isnan(mine) and math.isnan(right)
    ):
        return ""
    if math.isnan(mine):
        return "is not a number (NaN): is something missing among the values?"
    if math.isclose(mine, -right, rel_tol=1e-4):
        return "has the wrong sign"
    if any(math.isclose(mine, right * factor, rel_tol=1e-4) for factor in (100, 0.01)):
        return "is a hundred times off: a share, or a percentage?"
    return "is a number, but not the right one"


def list_differs(mine: list, right: list) -> str:
    "How a list, an array or a column differs"
    if len(mine) != len(right):
        return f"has {len(mine)} entries, which is too {'few' if len(mine) < len(right) else 'many'}"
    wrong = sum(bool(differs(a, b)) for a, b in zip(mine, right))
    return (
        f"has the right length, but {wrong} of its {len(right)} entries {'differ' if wrong > 1 else 'differs'}"
        if wrong
        else ""
    )


def dict_differs(mine: dict, right: dict) -> str:
    "How a dictionary or a table differs"
    if {*mine} != {*right}:
        return (
            f"should have {len(right)} keys or columns as asked, and has {len({*mine} & {*right})} of them"
            + f" and {len({*mine} - {*right})} others" * bool({*mine} - {*right})
        )
    return next(
        (
            f"is wrong at {key!r}, which {why}"
            for key, value in right.items()
            if (why := differs(mine[key], value))
        ),
        "",
    )


@dataclass(frozen=True)
class Verdict:
    "What became of an exercise"

    state: str  # not attempted, not yet, correct
    says: str

    def __repr__(self) -> str:
        return f"{ {'correct': '✓', 'not yet': '✗'}.get(self.state, '·') } {self.state.capitalize()}: {self.says}"

    def _repr_markdown_(self) -> str:
        return re.sub(r"^(\S) ([^:]*):", r"\1 **\2.**", repr(self))


@dataclass(frozen=True)
class Trouble:
    "An error in place of a value"

    says: str


def value_of(expression: str, space: dict) -> Any:
    """The value of an expression among a reader's variables.

    Returns:
        `...` when it is not there yet.
    """
    names = {
        node.id
        for node in ast.walk(ast.parse(expression))
        if isinstance(node, ast.Name)
    }
    if any(space.get(name, ...) is ... for name in names):
        return ...
    try:
        return eval(expression, space)
    except Exception as error:
        return Trouble(f"stops with {type(error).__name__}: {error}")


def after(code: str, space: dict) -> dict:
    """A copy of some variables after some code.

    Returns:
        Variables.
    """
    scope = dict(space)
    exec(compile(code, "<answer>", "exec"), scope)
    return scope


def foreseen(expression: str, mine: object, exercise: Exercise, solved: dict) -> str:
    """What the teacher says to a wrong answer that was foreseen.

    Args:
        solved: Variables after the answer.

    Returns:
        Empty when it is a new one.
    """
    return next(
        (
            says
            for code, says in exercise.wrong.items()
            if not differs(mine, value_of(expression, after(code, solved)))
        ),
        "",
    )


def judge(exercise: Exercise, space: dict) -> Verdict:
    """Whether an exercise is solved, and if not, which variable to look at.

    Returns:
        A reader's variables.
    """
    mine = {expression: value_of(expression, space) for expression in exercise.compare}
    if all(value is ... for value in mine.values()):
        return Verdict(
            "not attempted",
            "put your answer in the place of `...`, run the cell, and check again",
        )
    try:
        solved = after(answered(exercise.source), space)
    except Exception as error:
        return Verdict(
            "not yet",
            f"the answer cannot be judged, because what it builds on has changed ({type(error).__name__}: {error}): restart the kernel and run the cells from the top",
        )
    right = {expression: value_of(expression, solved) for expression in mine}
    for expression, value in mine.items():
        if value is ...:
            return Verdict("not yet", f"`{expression}` is still open")
        if isinstance(value, Trouble):
            return Verdict("not yet", f"`{expression}` {value.says}")
        if why := differs(value, right[expression]):
            told = (
                foreseen(expression, value, exercise, solved)
                if kind(value) in (kind(right[expression]), list)
                else ""
            )
            return Verdict("not yet", f"`{expression}` {told or why}")
    return Verdict("correct", exercise.learned or exercise.title)
