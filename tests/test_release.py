"Promotion by commit: what it changes, what it refuses, and what is left when it is killed; in a repository with a bare remote."

import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from housemlops.cluster import release
from housemlops.cluster.difference import difference
from housemlops.cluster.manifests import read_cluster
from housemlops.cluster.model_store import fetch_release, store_release
from housemlops.cluster.release import promote_to, release_champion, rollback_in
from housemlops.cluster.release_commit import BranchMoved
from housemlops.cluster.release_file import parse_release, release_file
from housemlops.pipeline.graph import ancestors, graph, pipeline
from housemlops.pipeline.sample import copy_sample, kept_sample
from housemlops.settings import WorkbookError, folder_sha256, repo_root, tracking

ROOT, NAME = repo_root(), "house-prices-sample"
NONE = {
    "MODEL_NAME": "house-prices-ames",
    "MODEL_VERSION": "0",
    "MODEL_TAG": "v0",
    "MODEL_URI": "s3://models/none",
    "MODEL_SHA256": "0" * 64,
    "RUN_ID": "0" * 32,
    "DATA_MD5": "0" * 32,
}


def sh(folder: Path, *arguments: str) -> str:
    return subprocess.run(
        [
            "git",
            "-C",
            folder,
            "-c",
            "user.name=colleague",
            "-c",
            "user.email=colleague@localhost",
            *arguments,
        ],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()


class House:
    "A checkout of deploy/ on main, and the bare repository that the clusters follow"

    def __init__(self, home: Path):
        self.home, self.root, self.remote = home, home / "checkout", home / "remote.git"

    def git(self, *arguments: str) -> str:
        return sh(self.root, *arguments)

    def commit(self, file: str, text: str, message: str = "chore: an edit") -> str:
        (self.root / file).write_text(text)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", message)
        return self.git("rev-parse", "HEAD")

    def push(self) -> None:
        self.git("push", "--quiet", "origin", "main")

    def colleague(self) -> str:
        "Somebody else pushes to main"
        other = self.home / "other"
        if not other.exists():
            sh(self.home, "clone", "--quiet", self.remote, other)
        sh(other, "pull", "--quiet")
        sh(
            other,
            "commit",
            "--quiet",
            "--allow-empty",
            "--message",
            "chore: of a colleague",
        )
        sh(other, "push", "--quiet", "origin", "main")
        return sh(self.remote, "rev-parse", "main")

    def promote(self, env: str = "local", **more):
        return promote_to(env, root=self.root, dataset="sample", **more)

    def seen(self) -> list[str]:
        "HEAD, branches and files here, and branches at the remote"
        return [
            self.git("rev-parse", "HEAD"),
            self.git("for-each-ref", "refs/heads"),
            self.git("status", "--porcelain"),
            self.git("diff", "HEAD"),
            sh(self.remote, "for-each-ref"),
        ]

    def release(self, env: str = "local") -> dict[str, str]:
        return parse_release((self.root / release_file(env)).read_text())

    def model(self, env: str = "local") -> Path:
        return Path(self.release(env)["MODEL_URI"].removeprefix("file://"))


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    "MLflow with two versions in production, the second one champion"
    home = tmp_path_factory.mktemp("registry") / "sample"
    copy_sample(
        kept_sample(
            ROOT, ancestors(graph(pipeline(ROOT)), "monitor"), ROOT / "var/sample"
        ),
        home,
    )
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("HOUSEMLOPS_")]:
            patch.delenv(name)
        for name in (
            "MLFLOW_TRACKING_URI",
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES",
            "MLFLOW_HTTP_REQUEST_TIMEOUT",
        ):
            patch.setenv(name, "")
        patch.setenv("HOUSEMLOPS_PATHS_STATE", str(home / "state"))
        patch.setenv(
            "HOUSEMLOPS_MLFLOW_TRACKING_URI", f"sqlite:///{home}/state/mlflow/mlflow.db"
        )
        patch.setenv(
            "HOUSEMLOPS_MLFLOW_ARTIFACTS", str(home / "state/mlflow/artifacts")
        )
        client = (mlflow := tracking()).MlflowClient()
        first = client.get_model_version_by_alias(NAME, "champion")
        for _ in range(2):
            newest = client.create_model_version(
                NAME, f"models:/{NAME}/{first.version}", first.run_id, tags=first.tags
            )
        client.set_registered_model_alias(NAME, "champion", newest.version)
        yield mlflow
        mlflow.set_tracking_uri("")


def copied(house: House, home: Path) -> House:
    shutil.copytree(house.home, home, symlinks=True)
    sh(home / "checkout", "remote", "set-url", "origin", str(home / "remote.git"))
    return House(home)


@pytest.fixture(scope="module")
def empty(tmp_path_factory) -> House:
    "No model promoted yet; not to be changed"
    house = House(tmp_path_factory.mktemp("house"))
    for name in ("deploy", "tests/flux-schemas"):
        shutil.copytree(ROOT / name, house.root / name)
    for name in ("settings.ini", "params.yaml"):
        shutil.copy(ROOT / name, house.root)
    for env in ("local", "production"):
        (house.root / release_file(env)).write_text(
            "# the model\n"
            + "".join(f"{field}={value}\n" for field, value in NONE.items())
        )
    sh(house.home, "init", "--quiet", "--bare", "--initial-branch=main", house.remote)
    sh(house.home, "init", "--quiet", "--initial-branch=main", house.root)
    house.git("remote", "add", "origin", str(house.remote))
    house.commit("notes.txt", "a note\n", "chore: where we begin")
    house.push()
    return house


@pytest.fixture(scope="module")
def promoted(empty, registry, tmp_path_factory) -> House:
    "Version 1 was promoted to local; not to be changed"
    house = copied(empty, tmp_path_factory.mktemp("promoted") / "house")
    house.promote(what="1", why="the first model")
    return house


@pytest.fixture
def fresh(empty, registry, tmp_path) -> House:
    return copied(empty, tmp_path / "house")


@pytest.fixture
def house(promoted, tmp_path) -> House:
    return copied(promoted, tmp_path / "house")


def test_the_difference_is_the_release_and_nothing_else(fresh):
    "The ConfigMap's name and data, its reference and the version label; and after git revert everything is as before"
    start, before = fresh.git("rev-parse", "HEAD"), read_cluster(fresh.root, "local")
    done = fresh.promote(what="1")
    after = read_cluster(fresh.root, "local")
    changed = difference(before, after).splitlines()
    assert [line for line in changed if line.startswith("===")] == [
        "=== ConfigMap prediction release",
        "=== Deployment prediction prediction",
    ]
    words = {"ConfigMap": set(), "Deployment": set()}
    for line in changed:
        if line.startswith("==="):
            kind = line.split()[1]
        else:
            words[kind].add(line[1:].strip().removeprefix("- ").partition(":")[0])
    assert words == {
        "ConfigMap": {*NONE, "name"},
        "Deployment": {"name", "app.kubernetes.io/version"},
    }, changed
    names = [
        next(
            one.name
            for one in cluster.of("ConfigMap")
            if one.name.startswith("release-")
        )
        for cluster in (before, after)
    ]
    assert {
        line[1:].strip().removeprefix("- ") for line in changed if "name: " in line
    } == {f"name: {name}" for name in names}
    assert fresh.git("diff", "--name-only", start, "HEAD") == release_file("local")
    assert (
        sh(fresh.remote, "rev-parse", "main")
        == fresh.git("rev-parse", "HEAD")
        == done.commit
    )
    fresh.git("revert", "--no-edit", "HEAD")
    assert (
        difference(before, read_cluster(fresh.root, "local")) == ""
        and fresh.git("diff", start, "HEAD") == ""
    )


def test_what_is_released_is_what_the_server_has(house):
    folder, release = house.model(), house.release()
    assert (
        folder_sha256(folder)
        == release["MODEL_SHA256"]
        == folder_sha256(
            Path(os.environ["HOUSEMLOPS_PATHS_STATE"]).parent / "build/serve/model"
        )
    )
    done = subprocess.run(
        [sys.executable, ROOT / "deploy/apps/base/prediction/check.py", folder],
        env=release,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (house.root / release_file("local")).read_text().splitlines()[
        0
    ] == "# the model" and list(release) == list(NONE)


def test_the_message_says_why_and_how_good(house):
    told = house.git("log", "-1", "--format=%B")
    assert told.startswith(
        f"deploy(local): {NAME} v1\n\nthe first model\n\n| metric | model |"
    )
    for words in (
        "MAE ",
        "| gate | value | limit | verdict |",
        "| passed |",
        "Ledger `sample.csv`, MD5",
        f"MLflow run {house.release()['RUN_ID']}",
        house.release()["MODEL_SHA256"],
    ):
        assert words in told, told


def test_a_person_whom_git_does_not_know_may_promote(house, monkeypatch, tmp_path):
    for name in ("HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("EMAIL", "")
    house.git("config", "user.useConfigOnly", "true")
    assert house.promote(what="2").subject == f"deploy(local): {NAME} v2"
    assert (
        house.git("log", "-1", "--format=%an <%ae>")
        == "housemlops <housemlops@localhost>"
    )


def test_production_gets_the_same_bytes(house, monkeypatch, tmp_path):
    done = house.promote("production", why="looked good")
    assert house.release("production") == house.release("local") == done.release
    assert "looked good (as in local)" in house.git(
        "log", "-1", "--format=%b"
    ) and "| passed |" in house.git("log", "-1", "--format=%b")
    house.git("revert", "--no-edit", "HEAD")
    house.push()
    for number, lost in enumerate(
        (False, True)
    ):  # from the other store; and from the registry, when that one is lost
        monkeypatch.setenv(
            "HOUSEMLOPS_RELEASE_STORE", f"file://{tmp_path}/store-{number}"
        )
        if lost:
            house.commit(
                release_file("local"),
                (house.root / release_file("local"))
                .read_text()
                .replace("/releases/", "/gone/"),
            )
            house.push()
        house.promote("production", from_env="local")
        assert house.release("production")["MODEL_URI"].startswith(
            f"file://{tmp_path}/store-{number}/{NAME}/v1-"
        )
        assert (
            folder_sha256(house.model("production"))
            == house.release("local")["MODEL_SHA256"]
            == house.release("production")["MODEL_SHA256"]
        )
        house.git("revert", "--no-edit", "HEAD")
        house.push()


def test_rollback_gives_the_cluster_of_before(house):
    before = read_cluster(house.root, "local")
    for version in "2", "3":
        house.promote(what=version)
    done = rollback_in("local", "prices look odd", root=house.root)
    assert (
        house.release()["MODEL_TAG"] == "v2"
        and sh(house.remote, "rev-parse", "main")
        == house.git("rev-parse", "HEAD")
        == done.commit
    )
    assert (
        done.subject == f'Revert "deploy(local): {NAME} v3"'
        and "prices look odd" in house.git("log", "-1", "--format=%b")
    )
    rollback_in("local", root=house.root)
    assert difference(before, read_cluster(house.root, "local")) == ""
    unchanged = house.seen()
    with pytest.raises(
        WorkbookError,
        match="v1 is the first promotion to local: there is none before it",
    ):
        rollback_in("local", root=house.root)
    assert house.seen() == unchanged
    assert house.promote(what="3").release["MODEL_TAG"] == "v3"
    assert rollback_in("local", root=house.root).release["MODEL_TAG"] == "v1"


def test_rollback_knows_what_a_person_reverted(house):
    for version in "2", "3":
        house.promote(what=version)
    house.git("revert", "--no-edit", "HEAD")
    house.push()
    assert rollback_in("local", root=house.root).release["MODEL_TAG"] == "v1"


def test_rollback_refuses_what_a_person_edited(house):
    house.promote(what="2")
    house.commit(
        release_file("local"),
        (house.root / release_file("local")).read_text() + "# a thought\n",
        "docs: a thought",
    )
    house.push()
    unchanged = house.seen()
    with pytest.raises(WorkbookError, match="is no promotion .*docs: a thought"):
        rollback_in("local", root=house.root)
    with pytest.raises(
        WorkbookError, match="There is no environment 'loca'.*Did you mean 'local'"
    ):
        rollback_in("loca", root=house.root)
    assert house.seen() == unchanged


def dirty(house):
    (house.root / release_file("local")).write_text("MODEL_TAG=v9\n")


def dirty_new(house):
    (house.root / "deploy/apps/new.yaml").write_text("kind: Secret\n")


def staged(house):
    (house.root / "notes.txt").write_text("another\n")
    house.git("add", "notes.txt")


def behind(house):
    house.colleague()


def ahead(house):
    house.commit("notes.txt", "mine\n")


def diverged(house):
    house.colleague()
    house.commit("notes.txt", "mine\n")


def detached(house):
    house.git("checkout", "--quiet", "--detach")


def elsewhere(house):
    house.git("checkout", "--quiet", "-b", "experiment")


def unreachable(house):
    house.git(
        "remote", "set-url", "origin", "https://me:hunter2@localhost:1/houses.git"
    )


def no_remote(house):
    house.git("remote", "remove", "origin")


def no_branch(house):
    sh(house.remote, "branch", "-m", "main", "trunk")


def refusing(house):
    (house.remote / "hooks/pre-receive").write_text("#!/bin/sh\nexit 1\n")
    (house.remote / "hooks/pre-receive").chmod(0o755)


def another_hash(house):
    house.commit(
        release_file("local"),
        (house.root / release_file("local"))
        .read_text()
        .replace(house.release()["MODEL_SHA256"], "7" * 64),
    )
    house.push()


def lost_label(house):
    file = house.root / "deploy/apps/production/model/kustomization.yaml"
    house.commit(
        str(file.relative_to(house.root)),
        file.read_text().replace(
            "          - spec.template.metadata.labels.[app.kubernetes.io/version]\n",
            "",
        ),
    )
    house.push()


def unrendered(house):
    house.commit("deploy/apps/base/prediction/service.yaml", "kind: Service\n")
    house.push()


def another_name(house):
    house.commit(
        release_file("production"),
        (house.root / release_file("production"))
        .read_text()
        .replace("VERSION=0", "VERSION=4")
        .replace("TAG=v0", "TAG=v4"),
    )
    house.push()


def nothing(house):
    pass


REFUSALS = {
    "an edit in deploy/": (
        dirty,
        {},
        r"deploy/apps/local/model/release.env is changed and not committed",
    ),
    "a new file in deploy/": (
        dirty_new,
        {},
        r"deploy/apps/new.yaml is changed and not committed",
    ),
    "something in the index": (staged, {}, r"notes.txt is changed and not committed"),
    "behind": (behind, {}, r"main is behind origin/main by 1: git pull"),
    "ahead": (ahead, {}, r"main is ahead of origin/main by 1, and"),
    "diverged": (
        diverged,
        {},
        r"main and origin/main have diverged \(1 commits here, 1 there\)",
    ),
    "detached": (detached, {}, r"on no branch \(detached HEAD\): git switch main"),
    "another branch": (elsewhere, {}, r"is on experiment: git switch main"),
    "an unreachable remote": (
        unreachable,
        {},
        r"The remote origin does not give its branch main \(fatal: unable to access 'https://localhost:1",
    ),
    "no such remote": (
        no_remote,
        {},
        r"The remote origin does not give its branch main",
    ),
    "no such branch there": (
        no_branch,
        {},
        r"The remote origin does not give its branch main",
    ),
    "a remote that refuses": (
        refusing,
        {},
        r"The push to origin failed \(\[remote rejected\]",
    ),
    "a hash that does not match": (
        another_hash,
        {},
        r"has the SHA-256 \w{12}, but local runs 777777777777",
    ),
    "a release that does not reach the server": (
        lost_label,
        {},
        r"has the version label v0, and the release is v1",
    ),
    "a tree that does not render": (
        unrendered,
        {},
        r"deploy/ would not be right with this release",
    ),
    "a model of another name": (
        another_name,
        {},
        r"production serves house-prices-ames, and this is house-prices-sample",
    ),
    "an unknown environment": (
        nothing,
        {"env": "prodution"},
        r"no environment 'prodution'.*local, production.*Did you mean 'production'",
    ),
    "an unknown source": (nothing, {"from_env": "locale"}, r"Did you mean 'local'"),
    "itself as its source": (
        nothing,
        {"from_env": "production"},
        r"production cannot take its release from itself",
    ),
    "two sources": (nothing, {"what": "2", "from_env": "local"}, r"not both"),
    "an unknown version": (
        nothing,
        {"what": "12"},
        r"house-prices-sample has no version '12'; there is 1, 2, 3",
    ),
    "a version in development": (
        nothing,
        {"what": "dev/1"},
        r"dev/1 is in development: make it champion first",
    ),
    "the same once more": (
        nothing,
        {"env": "local", "what": "1"},
        r"local runs house-prices-sample v1 already",
    ),
    "from where there is nothing": (
        nothing,
        {"env": "local", "from_env": "production"},
        r"production has no model yet",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_changes_nothing(house, name):
    spoil, asked, sentence = REFUSALS[name]
    spoil(house)
    unchanged = house.seen()
    with pytest.raises(WorkbookError, match=sentence) as refused:
        house.promote(**{"env": "production"} | asked)
    assert (
        house.seen() == unchanged
        and "hunter2" not in str(refused.value)
        and "\n" not in str(refused.value)
    )


@pytest.mark.parametrize("place", ["registry", "store"])
def test_changed_bytes_are_refused(house, place):
    graph = (
        house.model() / "graph.onnx"
        if place == "store"
        else next(Path(os.environ["HOUSEMLOPS_MLFLOW_ARTIFACTS"]).rglob("graph.onnx"))
    )
    kept, unchanged = graph.read_bytes(), house.seen()
    graph.write_bytes(kept[::-1])
    try:
        with pytest.raises(
            WorkbookError,
            match="but local runs" if place == "store" else "its files were changed",
        ):
            house.promote(
                **({"env": "production"} if place == "store" else {"what": "2"})
            )
    finally:
        graph.write_bytes(kept)
    assert house.seen() == unchanged


def test_edits_elsewhere_stay_where_they_are(house):
    (house.root / "notes.txt").write_text("unfinished\n")
    (house.root / "new.txt").write_text("unfinished\n")
    done = house.promote("production")
    assert house.git(
        "status", "--porcelain"
    ) == "M notes.txt\n?? new.txt" and house.git(
        "show", "--name-only", "--format=", done.commit
    ) == release_file("production")


def test_somebody_who_was_faster(house, monkeypatch):
    "Between the look at the remote and the push"
    check = release.check_commit
    monkeypatch.setattr(
        release, "check_commit", lambda *given: (check(*given), house.colleague())
    )
    here = house.seen()[:4]
    with pytest.raises(
        BranchMoved,
        match="origin/main has moved in the meantime, so nothing was promoted",
    ):
        house.promote("production")
    assert (
        house.seen()[:4] == here
        and sh(house.remote, "log", "-1", "--format=%s", "main")
        == "chore: of a colleague"
    )


def killed(house: House, at: str, after: int = 0) -> int:  # exit code
    "Promote to production in a process that ends without a word when a function is called"

    def promote():
        function, left = getattr(release, at), [after]

        def die(*given, **more):
            if not left[0]:
                os._exit(9)
            left[0] -= 1
            return function(*given, **more)

        setattr(release, at, die)
        house.promote("production")

    process = multiprocessing.get_context("fork").Process(target=promote)
    process.start()
    process.join(60)
    return process.exitcode


@pytest.mark.parametrize(
    "at, after",
    [("store_release", 0), ("commit_file", 0), ("check_commit", 0), ("push", 0)],
)
def test_killed_before_the_push_nothing_has_happened(house, at, after):
    unchanged = house.seen()
    assert killed(house, at, after) == 9
    assert house.seen() == unchanged and house.git("fsck", "--no-dangling") == ""
    assert house.promote("production").release == house.release("local")


def test_killed_after_the_push_it_is_whole(house, monkeypatch):
    "The promotion is made; the checkout is behind, and git pull brings it there"
    before, git = house.seen(), release.git
    monkeypatch.setattr(
        release,
        "git",
        lambda *words, **more: (
            os._exit(9) if words[0] == "merge" else git(*words, **more)
        ),
    )
    assert killed(house, "git", 1000) == 9
    monkeypatch.undo()
    assert (
        house.seen()[:4] == before[:4]
        and sh(house.remote, "log", "-1", "--format=%s", "main")
        == f"deploy(production): {NAME} v1"
    )
    with pytest.raises(BranchMoved, match="behind origin/main by 1: git pull"):
        house.promote("production")
    house.git("pull", "--quiet", "--ff-only", "origin", "main")
    assert house.release("production") == house.release("local")


@pytest.fixture
def folder(house, tmp_path) -> Path:
    return Path(shutil.copytree(house.model(), tmp_path / "folder"))


class Bucket(BaseHTTPRequestHandler):
    "As much of S3 as a release needs: put, get, head, list; by path, whatever the signature says"

    objects: ClassVar[dict[str, bytes]] = {}
    protocol_version = "HTTP/1.1"

    def answer(self, status: int, body: bytes = b"", **headers):
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_PUT(self):
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if "aws-chunked" in self.headers.get("Content-Encoding", ""):
            data = unchunked(data)
        self.objects[unquote(urlsplit(self.path).path)] = data
        self.answer(200, ETag=f'"{md5(data).hexdigest()}"')

    def do_GET(self):
        url = urlsplit(self.path)
        asked, path = (
            {name: values[0] for name, values in parse_qs(url.query).items()},
            unquote(url.path),
        )
        if "list-type" in asked or path.count("/") < 2:
            begin = f"{path.rstrip('/')}/"
            keys = [
                key[len(begin) :]
                for key in sorted(self.objects)
                if key.startswith(begin + asked.get("prefix", ""))
            ]
            found = "".join(
                f"<Contents><Key>{key}</Key><Size>{len(self.objects[begin + key])}</Size><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>x</ETag></Contents>"
                for key in keys
            )
            return self.answer(
                200,
                f"<ListBucketResult><IsTruncated>false</IsTruncated><KeyCount>{len(keys)}</KeyCount>{found}</ListBucketResult>".encode(),
                Content_Type="application/xml",
            )
        if path not in self.objects:
            return self.answer(
                404,
                b"<Error><Code>NoSuchKey</Code></Error>",
                Content_Type="application/xml",
            )
        self.answer(
            200,
            self.objects[path],
            ETag='"x"',
            Last_Modified="Thu, 01 Jan 2026 00:00:00 GMT",
        )

    do_HEAD = do_GET

    def log_message(self, *words):
        pass


def unchunked(data: bytes) -> bytes:
    "What aws-chunked wraps"
    whole = b""
    while size := int((head := data.partition(b"\r\n"))[0].split(b";")[0], 16):
        whole, data = whole + head[2][:size], head[2][size + 2 :]
    return whole


@pytest.fixture(params=["memory", "file", "s3"])
def store(request, tmp_path, monkeypatch) -> Iterator[str]:
    if request.param != "s3":
        yield (
            f"file://{tmp_path}/store"
            if request.param == "file"
            else f"memory://{tmp_path.name}"
        )
        return
    s3fs = pytest.importorskip("s3fs")
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), type("Empty", (Bucket,), {"objects": {}})
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_ACCESS_KEY_ID": "me",
        "AWS_SECRET_ACCESS_KEY": "hunter2",
        "AWS_DEFAULT_REGION": "us-east-1",
        "NO_PROXY": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    yield "s3://models/houses"
    s3fs.S3FileSystem.clear_instance_cache()
    server.shutdown()


def test_half_an_upload_is_completed_and_a_change_is_refused(
    folder, store, tmp_path, monkeypatch
):
    import fsspec

    fs, left = fsspec.url_to_fs(store)[0], [3]
    put = fs.put_file

    def broken(here, there, **options):
        left[0] -= 1
        if left[0]:
            return put(here, there, **options)
        fs.pipe_file(there, Path(here).read_bytes()[:10])
        raise ConnectionResetError("the line went dead")

    monkeypatch.setattr(fs, "put_file", broken)
    with pytest.raises(WorkbookError, match="does not answer .*the line went dead"):
        store_release(store, NAME, "v1", folder)
    monkeypatch.setattr(fs, "put_file", put)
    uri = store_release(store, NAME, "v1", folder)
    assert uri == f"{store}/{NAME}/v1-{folder_sha256(folder)[:12]}"
    back = tmp_path / "back"
    back.mkdir()
    assert (
        fetch_release(uri, back)
        and folder_sha256(back) == folder_sha256(folder)
        and store_release(store, NAME, "v1", folder) == uri
    )
    graph = f"{fs._strip_protocol(uri)}/graph.onnx"
    fs.pipe_file(graph, fs.cat_file(graph)[::-1])
    with pytest.raises(WorkbookError, match="were changed"):
        store_release(store, NAME, "v1", folder)
    assert not fetch_release(f"{store}/{NAME}/v8", back)


def test_a_store_that_loses_bytes(folder, tmp_path, monkeypatch):
    import fsspec

    fs = fsspec.filesystem("memory")
    monkeypatch.setattr(
        fs,
        "put_file",
        lambda here, there, **more: fs.pipe_file(there, Path(here).read_bytes()[1:]),
    )
    with pytest.raises(WorkbookError, match="does not give back what was written"):
        store_release(f"memory://lossy-{tmp_path.name}", NAME, "v1", folder)


def test_a_store_that_is_none(folder):
    with pytest.raises(
        WorkbookError, match="The store gopher://nowhere does not answer"
    ):
        store_release("gopher://nowhere", NAME, "v1", folder)


def test_a_request_is_a_branch_for_others_to_merge(house, monkeypatch):
    monkeypatch.setenv("HOUSEMLOPS_RELEASE_REQUEST", "yes")
    before = house.seen()
    done = house.promote("production")
    assert (
        house.seen()[:4] == before[:4]
        and sh(house.remote, "rev-parse", "main") == before[0]
    )
    assert (
        sh(house.remote, "rev-parse", "promote/production/v1") == done.commit
        and "open a request to merge it into main" in done.sentence
    )
    with pytest.raises(
        WorkbookError, match="has a branch promote/production/v1 already"
    ):
        house.promote("production")
    other = house.home / "reviewer"
    sh(house.home, "clone", "--quiet", house.remote, other)
    sh(
        other,
        "merge",
        "--quiet",
        "--no-ff",
        "--no-edit",
        "origin/promote/production/v1",
    )
    sh(other, "push", "--quiet", "origin", "main")
    house.git("pull", "--quiet", "--ff-only", "origin", "main")
    assert house.release("production") == house.release("local")
    assert release.last_change(house.root, "HEAD", "production") == (
        done.commit,
        done.subject,
    )


def test_without_a_remote_it_is_a_commit(house, monkeypatch):
    monkeypatch.setenv("HOUSEMLOPS_RELEASE_REMOTE", "")
    done, there = house.promote("production"), sh(house.remote, "rev-parse", "main")
    assert (
        house.git("rev-parse", "HEAD") == done.commit != there
        and house.git("status", "--porcelain") == ""
        and "git push" in done.sentence
    )


@pytest.fixture
def automatic(house, monkeypatch) -> House:
    monkeypatch.setenv("HOUSEMLOPS_RELEASE_CLUSTER", "local")
    return house


def test_the_lifecycle_promotes_past_every_checkout(automatic):
    "On top of what the remote has, whatever state the checkout is in; and once only"
    dirty(automatic)
    diverged(automatic)
    here, theirs = automatic.seen()[:4], sh(automatic.remote, "rev-parse", "main")
    done = release_champion(automatic.root, "sample")
    assert (
        automatic.seen()[:4] == here
        and sh(automatic.remote, "rev-parse", "main") == done.commit
        and sh(automatic.remote, "rev-parse", "main^") == theirs
    )
    assert (
        done.subject == f"deploy(local): {NAME} v3"
        and f"{NAME} v3 for local: commit" in done.sentence
    )
    assert (
        release_champion(automatic.root, "sample") is None
        and sh(automatic.remote, "rev-parse", "main") == done.commit
    )


def test_two_runs_that_finish_together(automatic, monkeypatch):
    check, others = release.check_commit, []

    def meanwhile(*given):
        check(*given)
        if not others:
            others.append(automatic.colleague())

    monkeypatch.setattr(release, "check_commit", meanwhile)
    done = release_champion(automatic.root, "sample")
    assert (
        others == [sh(automatic.remote, "rev-parse", f"{done.commit}^")]
        and sh(automatic.remote, "rev-parse", "main") == done.commit
    )


def test_the_lifecycle_needs_a_remote_and_is_off_by_default(house, monkeypatch):
    assert release_champion(house.root, "sample") is None
    monkeypatch.setenv("HOUSEMLOPS_RELEASE_CLUSTER", "local")
    monkeypatch.setenv("HOUSEMLOPS_RELEASE_REMOTE", "")
    with pytest.raises(WorkbookError, match="needs a remote"):
        release_champion(house.root, "sample")


@pytest.mark.parametrize(
    "url, page",
    [
        ("git@example.com:team/houses.git", "https://example.com/team/houses"),
        ("ssh://git@example.com:22/team/houses.git", "https://example.com/team/houses"),
        (
            "https://me:secret@example.com/team/houses.git/",
            "https://example.com/team/houses",
        ),
        ("/srv/houses.git", "/srv/houses.git"),
    ],
)
def test_where_to_open_a_request(url, page):
    assert release.web_page(url) == page


def test_the_dags_promote_after_the_stage_serve_and_a_replay_does_not(
    automatic, tmp_path
):
    from housemlops.operations.loops import LifecycleHooks, RetrainingHooks
    from housemlops.operations.replay_airflow import replay_environment

    (tmp_path / "params.yaml").write_text("dataset: sample\n")
    before = automatic.seen()
    assert (
        LifecycleHooks().after(automatic.root, tmp_path, "train", {}) is None
        and automatic.seen() == before
    )
    LifecycleHooks().after(automatic.root, tmp_path, "serve", {})
    assert (
        sh(automatic.remote, "log", "-1", "--format=%s", "main")
        == f"deploy(local): {NAME} v3"
        and automatic.seen()[:4] == before[:4]
    )
    assert (
        issubclass(RetrainingHooks, LifecycleHooks)
        and replay_environment(automatic.root, 5000, "2010-01")[
            "HOUSEMLOPS_RELEASE_CLUSTER"
        ]
        == ""
    )


def test_the_verbs(house, monkeypatch, capsys):
    from housemlops.cli import main

    house.commit("dvc.yaml", "stages: {}\n")
    house.push()
    monkeypatch.chdir(house.root)

    def typed(*words):
        try:
            main([*words])
        except SystemExit as end:
            return end.code or 0, "".join(capsys.readouterr())

    code, text = typed("promote", "--env", "production", "--why", "a good week")
    assert (
        code == 0
        and f"{NAME} v1 for production: commit {house.git('rev-parse', 'HEAD')[:12]} on origin/main"
        in text
    )
    code, text = typed(
        "promote", "--env", "production", "--from", "local", "--why", "again"
    )
    assert (
        code == 1
        and text
        == f"Stopped: production runs {NAME} v1 already, so there is nothing to promote\n"
    )
    code, text = typed("rollback", "--env", "production", "--why", "odd")
    assert code == 1 and "there is none before it to go back to" in text
    assert typed("promote", "--why", "which one?")[0] == 1
