"A learner's checkout: a clone of this repository as it is now, on the sample, and what is typed in it."

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from ruamel.yaml import YAML

from housemlops.orchestrate import graph, pipeline, snapshot
from housemlops.settings import repo_root

ROOT = repo_root()
STAGES = list(graph(pipeline(ROOT)))


class Checkout:
    "A learner's checkout, and what they type in it"

    def __init__(self, path: Path):
        self.path = path
        self.environ = {
            k: v
            for k, v in os.environ.items()
            if not k.startswith(("HOUSEMLOPS_", "AIRFLOW", "MLFLOW"))
        } | {
            "PYTHONPATH": str(path),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "COLUMNS": "200",
            **{
                f"HOUSEMLOPS_{name}_PORT": str(20000 + os.getpid() % 10000 + i)
                for i, name in enumerate(("AIRFLOW", "MLFLOW", "SERVER", "FRONT"))
            },
        }

    def git(self, *arguments: str) -> str:
        return subprocess.run(
            [
                "git",
                "-C",
                self.path,
                "-c",
                "user.name=learner",
                "-c",
                "user.email=learner@localhost",
                *arguments,
            ],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()

    def housemlops(self, *arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            [Path(sys.executable).with_name("housemlops"), *arguments],
            cwd=self.path,
            env=self.environ,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=600,
        )
        return done.returncode, done.stdout

    def json(self, *arguments: str, code: int = 0) -> dict:
        "What a command prints with --json: one object, and nothing else on standard output"
        done = subprocess.run(
            [Path(sys.executable).with_name("housemlops"), *arguments, "--json"],
            cwd=self.path,
            env=self.environ,
            text=True,
            capture_output=True,
            timeout=600,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return json.loads(done.stdout)

    def run(self, *arguments: str, code: int = 0) -> tuple[dict[str, str], str]:
        "A run: what became of each stage, and all that was printed"
        found, text = self.housemlops("run", *arguments)
        assert found == code, text
        return dict(
            re.findall(
                rf"^\s*({'|'.join(STAGES)})\s.*(ran|restored|unchanged|failed)",
                text,
                re.MULTILINE,
            )
        ), text

    def params(self, change) -> None:
        yaml, path = YAML(), self.path / "params.yaml"
        content = yaml.load(path.read_text())
        change(content)
        with path.open("w") as file:
            yaml.dump(content, file)

    def build(self, name: str) -> dict:
        return json.loads((self.path / "var/latest/build" / name).read_text())

    def outs(self, workspace: Path | None = None) -> dict[str, str]:
        lock = YAML(typ="safe").load(
            ((workspace or self.path / "var/latest") / "dvc.lock").read_text()
        )["stages"]
        return {
            out["path"]: out["md5"] for stage in lock.values() for out in stage["outs"]
        }


POOR = {
    "trees": 10,
    "learning_rate": 0.1,
    "svr_c": 0.03,
    "ridge_alpha": 5000.0,
    "folds": 2,
}  # quick
GOOD = {"trees": 60, "learning_rate": 0.06, "svr_c": 3.0, "ridge_alpha": 20.0}


def clone(path: Path) -> Checkout:
    "A clone of this repository as it is now, on the sample, with a poor model that passes its gates"
    subprocess.run(["git", "clone", "--quiet", "--shared", ROOT, path], check=True)
    checkout = Checkout(path)
    checkout.git("checkout", "--quiet", "-B", "main", snapshot(ROOT)[0])
    checkout.params(
        lambda p: (
            p.update(dataset="sample"),
            p["train"].update(POOR),
            p["evaluate"]["thresholds"]["sample"].update(width=1.0),
        )
    )
    checkout.git("commit", "--quiet", "--all", "--message", "chore: use the sample")
    return checkout
