"""Break a checkout on purpose, and check that it was mended."""

import json
import os
import re
import shutil
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

from housemlops.core.repository import git
from housemlops.learning.faults import LABS, find_lab
from housemlops.learning.lab_tools import Lab, commit, tune
from housemlops.core.repository import snapshot
from housemlops.pipeline.graph import ancestors, graph, pipeline
from housemlops.pipeline.parameters import read_notebook
from housemlops.pipeline.sample import kept_sample, relocate
from housemlops.processes import run_captured
from housemlops.settings import WorkbookError, repo_root, settings


def lab_rows() -> list[
    tuple[str, str, int, str]
]:  # name, title, minutes, what one learns
    "The labs, the easier ones first"
    return [
        (lab.name, lab.title, lab.minutes, lab.learn)
        for lab in sorted(LABS, key=lambda lab: lab.minutes)
    ]


def labs_home(root: Path | None = None) -> Path:
    "Where the workspaces are; found from inside one of them, too"
    root = root or repo_root()
    return (
        root.parent
        if (root.parent / f"{root.name}.json").exists()
        else settings(root).paths.state / "labs"
    )


def lab_environment(workspace: Path) -> dict[str, str]:
    "The workspace's package first, and nothing of the checkout's settings"
    own = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HOUSEMLOPS_", "MLFLOW_", "AIRFLOW", "GIT_"))
    }
    return own | {
        "PYTHONPATH": str(workspace),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONWARNINGS": "ignore",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def make_clone(root: Path, workspace: Path) -> None:
    "A clone of the checkout as it is now, on the sample, with the outputs of a lifecycle"
    kept = kept_sample(
        root,
        ancestors(graph(pipeline(root)), "monitor"),
        (settings(root).paths.state / "sample").resolve(),
    )
    taken = snapshot(root)[0]
    git("clone", "--quiet", "--no-checkout", str(root), str(workspace), root=root)
    git("checkout", "--quiet", "-B", "main", taken, root=workspace)
    git("remote", "remove", "origin", root=workspace)
    for key, value in (("name", "learner"), ("email", "learner@localhost")):
        git("config", f"user.{key}", value, root=workspace)
    shutil.copytree(kept / "build", workspace / "build", dirs_exist_ok=True)
    shutil.copytree(
        kept / "state", workspace / "var", symlinks=True, dirs_exist_ok=True
    )
    relocate(
        workspace / "var/mlflow/mlflow.db", str(kept / "state"), str(workspace / "var")
    )
    tune(
        workspace,
        dataset="sample",
        as_of="2010-08",
        folds=2,
        trees=20,
        learning_rate=0.1,
    )
    commit(workspace, "chore: work on the sample")


def break_lab(
    name: str,
    again: bool = False,  # start over?
    root: Path | None = None,
    home: Path | None = None,
) -> Path:  # the workspace
    "Put a fault into a workspace of its own; WorkbookError when it is there already"
    root = root or repo_root()
    lab, home = find_lab(name), home or labs_home(root)
    if (root.parent / f"{root.name}.json").exists():
        raise WorkbookError(
            f"This is the workspace of the lab {root.name}: go back to your own checkout, and type it there"
        )
    workspace, note = home / name, home / f"{name}.json"
    if note.exists() and not again:
        raise WorkbookError(
            f"{name} is broken already, in {workspace}: go on there, or start over with --again"
        )
    note.unlink(missing_ok=True)
    shutil.rmtree(workspace, ignore_errors=True)
    home.mkdir(parents=True, exist_ok=True)
    make_clone(root, workspace)
    harmless(workspace, "docs: say where the data comes from")
    known = in_workspace(workspace, "put", name)
    if git("status", "--porcelain", root=workspace):
        commit(workspace, lab.message)
    guilty = git("rev-parse", "HEAD", root=workspace)
    harmless(workspace, "docs: thank the people who asked")
    note.write_text(
        json.dumps(
            {"lab": name, "commit": guilty, "began": time.time(), **known}, indent=1
        )
    )
    return workspace


def harmless(workspace: Path, message: str) -> None:
    "A commit that changes nothing that matters"
    with (workspace / "README.md").open("a", encoding="utf-8") as file:
        file.write(f"\n<!-- {message.partition(': ')[2]} -->\n")
    commit(workspace, message)


def in_workspace(
    workspace: Path,
    what: str,  # put or probe
    name: str,
    note: dict | None = None,
) -> dict | list:
    "Let a lab's function run with the package of its workspace; WorkbookError with its last line when it stops"
    program = f"import sys, json; from housemlops.learning.labs import act; print('\\n' + json.dumps(act({what!r}, {name!r}, json.load(sys.stdin))))"
    done = run_captured(
        [sys.executable, "-c", program],
        cwd=workspace,
        env=lab_environment(workspace),
        input=json.dumps(note or {}),
    )
    if done.returncode:
        raise WorkbookError(
            (done.stderr.strip().splitlines() or ["no message"])[-1].removeprefix(
                "housemlops.settings.WorkbookError: "
            )
        )
    return json.loads(done.stdout.splitlines()[-1])


def act(what: str, name: str, note: dict) -> dict | tuple:
    "What a process in a workspace is asked to do"
    lab = find_lab(name)
    return lab.put(Path.cwd()) or {} if what == "put" else lab.probe(note)


def told(name: str, workspace: Path) -> list[str]:  # lines
    "A lab as the engineer on call gets it"
    lab = find_lab(name)
    return [
        f"{lab.name}: {lab.title} ({lab.minutes} minutes)",
        "",
        textwrap.fill(lab.told, 110, initial_indent="  ", subsequent_indent="  "),
        "",
        "Where (use a terminal of its own):",
        f"  cd {workspace} && export PYTHONPATH=$PWD",
        "",
        "Worth typing there:",
        *(f"  {line}" for line in lab.tools),
        "",
        f"When you think it is mended: housemlops check {name}",
        f"When you give up:            housemlops mend {name}",
    ]


def find_workspace(name: str, home: Path) -> tuple[Path, dict]:  # and its note
    "The workspace of a lab; WorkbookError when there is none"
    lab = find_lab(name)
    if not (home / f"{name}.json").exists():
        raise WorkbookError(
            f"The lab {name} has not been begun: housemlops break {lab.name}"
        )
    return home / name, json.loads((home / f"{name}.json").read_text())


def exported_lines(
    workspace: Path, room: str
) -> list[set[str]]:  # of the notebook, of the module
    "The lines of a room's exported cells, and those of its module"
    cells = [
        "".join(cell["source"])
        for cell in read_notebook(workspace, room)["cells"]
        if cell["cell_type"] == "code"
    ]
    module = re.sub(
        r"(?s)__all__ = \[.*?\]",
        "",
        (workspace / f"housemlops/{room}.py").read_text(encoding="utf-8"),
    )
    texts = [
        "\n".join(
            cell.partition("\n")[2] for cell in cells if cell.startswith("#| export")
        ),
        module,
    ]
    return [
        {
            line
            for line in text.replace("from housemlops import", "from . import")
            .replace("from housemlops.", "from .")
            .splitlines()
            if line.strip() and not line.startswith("# ")
        }
        for text in texts
    ]


def out_of_step(
    workspace: Path, changed: str
) -> list[str]:  # of the rooms in which the fault was
    "Rooms whose notebook says something that its module does not, or the other way round"
    rooms = re.findall(r"nbs/(\w+)\.ipynb", changed)

    def differ(texts):
        return texts[0] - texts[1] or {
            line
            for line in texts[1] - texts[0]
            if line.startswith((" ", "def ", "class "))
        }

    return [
        room
        for room in rooms
        if (workspace / f"housemlops/{room}.py").exists()
        and differ(exported_lines(workspace, room))
    ]


def check_lab(name: str, home: Path | None = None) -> tuple[str, str]:  # state, and why
    "Whether a fault is mended, by what the workspace does"
    workspace, note = find_workspace(name, home or labs_home())
    rooms = out_of_step(
        workspace,
        git("show", "--format=", "--name-only", note["commit"], root=workspace),
    )
    unexported = (
        f"nbs/{rooms[0]}.ipynb and housemlops/{rooms[0]}.py say different things: edit the notebook, then `housemlops sync`"
        if rooms
        else ""
    )
    try:
        wrong, lacking = in_workspace(workspace, "probe", name, note)
    except WorkbookError as error:
        return "not mended", f"the workspace stops with: {error}"
    if wrong:
        return "not mended", "; ".join(filter(None, [wrong, unexported]))
    edits = git("status", "--porcelain", root=workspace).splitlines()
    uncommitted = (
        f"{edits[0].strip().split()[-1]} is not committed, and the schedule uses the branch as committed"
        if edits
        else ""
    )
    rest = "; ".join(filter(None, [lacking, unexported, uncommitted]))
    lab = find_lab(name)
    return (
        ("mended, but", rest)
        if rest
        else (
            "mended",
            f"you have learned to {lab.learn}. What would have caught it: {lab.caught}",
        )
    )


def first_bad(
    commits: list,  # the first is good, the last is bad
    bad: Callable[[object], bool],
) -> object:
    "The commit that brought the fault"
    low, high = 0, len(commits) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if bad(commits[middle]) else (middle, high)
    return commits[high]


def mend_steps(lab: Lab, workspace: Path, guilty: str) -> list[str]:  # shell commands
    "The commands that mend a lab, for this workspace"
    files = " ".join(
        git("show", "--format=", "--name-only", guilty, root=workspace).split()
    )
    return [
        line.replace("{commit}", guilty[:12])
        .replace("{files}", files)
        .replace("{name}", lab.name)
        for line in lab.mend
    ]


def shortened(steps: list[str], longest: int = 240) -> list[str]:
    return [step if len(step) <= longest else f"{step[:longest]} …" for step in steps]


def mend_lab(
    name: str, home: Path | None = None
) -> list[str]:  # lines that tell what was done
    "Show how a fault is mended, and do it; edits that were not committed are lost"
    home = home or labs_home()
    lab, (workspace, note) = find_lab(name), find_workspace(name, home)
    steps = mend_steps(lab, workspace, note["commit"])
    git("reset", "--quiet", "--hard", root=workspace)
    done = run_captured(
        ["bash", "-ec", "\n".join(steps)],
        cwd=workspace,
        env=lab_environment(workspace),
    )
    if done.returncode:
        raise WorkbookError(
            f"The lab could not be mended, because the workspace was changed too much ({(done.stderr.strip().splitlines() or ['no message'])[-1]}): housemlops break {name} --again"
        )
    return [
        f"What it was:  {lab.why}",
        f"Its commit:   git show {note['commit'][:12]}",
        "",
        "What mends it:",
        *(f"  {step}" for step in shortened(steps)),
        "",
        f"What would have caught it: {lab.caught}",
    ]
