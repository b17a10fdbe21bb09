"Checkouts for tests: a clone of this repository as it is now, on the sample, and what a learner types in it."

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from urllib.parse import quote

from filelock import FileLock
from ruamel.yaml import YAML

from housemlops.core.repository import snapshot
from housemlops.pipeline.graph import graph, pipeline
from housemlops.pipeline.sample import copy_sample, kept_sample, relocate
from housemlops.settings import repo_root, settings
from trap import plain_environment

ROOT = repo_root()
STAGES = list(graph(pipeline(ROOT)))


# Secrets in the environment and the settings of the learner's checkout; test_canary looks for them in what runs leave.
CANARIES = {
    name: f"canary/{hashlib.sha256(name.encode()).hexdigest()[:24]}"
    for name in ("webhook", "smtp", "aws", "tracking", "token", "sender")
}
SECRETS = {
    "HOUSEMLOPS_ALERTS_WEBHOOK": f"http://127.0.0.1:9/hooks/{CANARIES['webhook']}",
    "AIRFLOW_CONN_SMTP_DEFAULT": f"smtp://me:{quote(CANARIES['smtp'], safe='')}@127.0.0.1:9",
    "AWS_ACCESS_KEY_ID": "example",
    "AWS_SECRET_ACCESS_KEY": CANARIES["aws"],
    "MLFLOW_TRACKING_PASSWORD": CANARIES["tracking"],
    "GIT_TOKEN": CANARIES["token"],
}


class Checkout:
    "A learner's checkout, and what they type in it"

    def __init__(self, path: Path, more: dict[str, str] = MappingProxyType({})):
        self.path = path
        self.environ = {
            k: v
            for k, v in plain_environment().items()
            if not k.startswith(("HOUSEMLOPS_", "AIRFLOW", "MLFLOW"))
        } | {
            "PYTHONPATH": str(path),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "COLUMNS": "200",
            **{
                f"HOUSEMLOPS_{name}_PORT": str(20000 + os.getpid() % 10000 + i)
                for i, name in enumerate(("AIRFLOW", "MLFLOW", "SERVER", "FRONT"))
            },
            **more,
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

    def housemlops(self, *arguments: str, under=list) -> tuple[int, str]:
        "A command's exit code and output; `under` makes the command that runs it"
        done = subprocess.run(
            under([Path(sys.executable).with_name("housemlops"), *arguments]),
            cwd=self.path,
            env=self.environ,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=1500,
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
            timeout=1500,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return json.loads(done.stdout)

    def run(
        self, *arguments: str, code: int = 0, under=list
    ) -> tuple[dict[str, str], str]:
        "A run: what became of each stage, and all that was printed"
        found, text = self.housemlops("run", *arguments, under=under)
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


def clone(path: Path, more: dict[str, str] = MappingProxyType({})) -> Checkout:
    "A clone of this repository as it is now, on the sample, with a poor model that passes its gates"
    subprocess.run(["git", "clone", "--quiet", "--shared", ROOT, path], check=True)
    checkout = Checkout(path, more)
    checkout.git("checkout", "--quiet", "-B", "main", snapshot(ROOT)[0])
    checkout.params(
        lambda p: (
            p.update(dataset="sample"),
            p["train"].update(POOR),
            p["evaluate"]["thresholds"]["sample"].update(width=1.0),
        )
    )
    checkout.git("commit", "--quiet", "--all", "--message", "chore: use the sample")
    empty = airflow_database()
    (path / "var/airflow").mkdir(parents=True)
    for file in (empty / "airflow.db", next(empty.glob("migrated-*"))):
        shutil.copy(file, path / "var/airflow")
    return checkout


def airflow_database() -> Path:
    "A folder with Airflow's database, migrated and empty; made once and kept under this checkout's state folder"
    home = settings(ROOT).paths.state / "tests" / version("apache-airflow")
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(home / "lock"):
        if not list(home.glob("airflow/migrated-*")):
            environ = {
                k: v for k, v in os.environ.items() if not k.startswith("AIRFLOW")
            }
            code = "from pathlib import Path; from housemlops.pipeline.scheduler import prepare_airflow; prepare_airflow(Path.cwd())"
            subprocess.run(
                [sys.executable, "-c", code],
                cwd=ROOT,
                env=environ | {"HOUSEMLOPS_PATHS_STATE": str(home)},
                check=True,
            )
    return home / "airflow"


def copy_checkout(checkout: Checkout, path: Path) -> Checkout:
    "A copy of a checkout that has run: its cache, its MLflow store and its releases, without its workspaces"
    shutil.copytree(
        checkout.path,
        path,
        symlinks=True,
        ignore=shutil.ignore_patterns("workspaces", "latest"),
    )
    relocate(path / "var/mlflow/mlflow.db", str(checkout.path), str(path))
    copy = Checkout(path)
    copy.git("worktree", "prune")
    return copy


class Sample:
    "A checkout on the sample with the outputs of all stages, made without Airflow, DVC or notebooks"

    def __init__(self, path: Path):
        self.path, self.state = path / "workbook", path / "made/state"
        home = settings(ROOT).paths.state / "sample"
        copy_sample(kept_sample(ROOT, STAGES, home), path / "made")
        self.build = path / "made/build"
        self.release = (self.state / "serve/current").resolve()
        clone(self.path)
        self.environ = Checkout(self.path).environ | {
            "HOUSEMLOPS_PATHS_STATE": str(self.state),
            "HOUSEMLOPS_MLFLOW_TRACKING_URI": f"sqlite:///{self.state}/mlflow/mlflow.db",
            "HOUSEMLOPS_MLFLOW_ARTIFACTS": str(self.state / "mlflow/artifacts"),
        }

    def registry(self):
        import mlflow

        return mlflow.MlflowClient(f"sqlite:///{self.state}/mlflow/mlflow.db")
