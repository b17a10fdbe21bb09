"deploy/ as a cluster would read it: all is well, and every kind of slip is found and named."

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from housemlops.cluster.checks import check_deploy
from housemlops.cluster.difference import difference
from housemlops.cluster.manifests import cluster_names, read_cluster, run_tool
from housemlops.cluster.scanners import ALLOWED
from housemlops.commands.workbook import deploy_result
from housemlops.settings import WorkbookError, folder_sha256, repo_root

ROOT = repo_root()
PREDICTION, POSTGRES, MODEL, CLUSTER = (
    "deploy/apps/base/prediction",
    "deploy/infrastructure/base/postgres",
    "deploy/apps/local/model",
    "deploy/clusters/local",
)
AIRFLOW, SECRET = (
    "deploy/apps/base/airflow/release.yaml",
    "deploy/infrastructure/local/secrets/prediction-prediction.yaml",
)


@pytest.fixture
def tree(tmp_path) -> Path:
    "All that check_deploy reads of the local cluster, to be broken"
    for name in ("deploy", "tests/flux-schemas"):
        shutil.copytree(
            ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("production")
        )
    shutil.copy(ROOT / ".sops.yaml", tmp_path)
    return tmp_path


def edit(tree: Path, file: str, old: str, new: str) -> None:
    "One small edit of one file; what it replaces must be there"
    text = (tree / file).read_text()
    assert old in text, f"{old!r} is not in {file}"
    (tree / file).write_text(text.replace(old, new, 1))


def test_the_repository_passes():
    "And the verb counts what it has looked at"
    result = deploy_result(ROOT)
    assert result["ok"] and result["faults"] == [], result
    assert result["clusters"] == ["local", "production"] and result["objects"] > 100


# file, what is replaced, by what, and the sentence that is expected to name the file and the fault
EDITS = {
    "not YAML": (
        f"{PREDICTION}/service.yaml",
        "spec:",
        "spec: [",
        rf"{PREDICTION}/service.yaml is no YAML",
    ),
    "a key twice": (
        f"{PREDICTION}/service.yaml",
        "kind: Service",
        "kind: Service\nkind: Service",
        rf"{PREDICTION}/service.yaml is no YAML: .*duplicate",
    ),
    "a resource that is not there": (
        f"{PREDICTION}/kustomization.yaml",
        "service.yaml",
        "servise.yaml",
        r"prediction cannot be rendered: .*servise.yaml",
    ),
    "a field that does not exist": (
        f"{PREDICTION}/disruption-budget.yaml",
        "maxUnavailable",
        "maxUnavailabel",
        rf"{PREDICTION}/disruption-budget.yaml: .*'maxUnavailabel' was unexpected",
    ),
    "a field of the wrong type": (
        f"{PREDICTION}/autoscaler.yaml",
        "maxReplicas: 6",
        "maxReplicas: many",
        rf"{PREDICTION}/autoscaler.yaml: .*maxReplicas: 'many' is not of type",
    ),
    "a field in the wrong place": (
        f"{PREDICTION}/deployment.yaml",
        "          image: &server",
        "          imag: &server",
        rf"{PREDICTION}/deployment.yaml: .*'imag' was unexpected",
    ),
    "an unknown kind": (
        f"{PREDICTION}/autoscaler.yaml",
        "kind: HorizontalPodAutoscaler",
        "kind: HorizontalAutoscaler",
        rf"{PREDICTION}/autoscaler.yaml: .*a kind that neither",
    ),
    "a version that is no longer served": (
        f"{PREDICTION}/disruption-budget.yaml",
        "policy/v1",
        "policy/v1beta1",
        r"policy/v1beta1 PodDisruptionBudget is a kind that neither",
    ),
    "a Flux version that is no longer served": (
        AIRFLOW,
        "helm.toolkit.fluxcd.io/v2",
        "helm.toolkit.fluxcd.io/v2beta2",
        rf"{AIRFLOW}: .*v2beta2 HelmRelease is a kind that neither",
    ),
    "an unknown field of Flux": (
        f"{CLUSTER}/apps.yaml",
        "prune: true",
        "prunes: true",
        rf"{CLUSTER}/apps.yaml: Kustomization apps: .*prunes",
    ),
    "no pruning": (
        f"{CLUSTER}/apps.yaml",
        "prune: true",
        "prune: false",
        rf"{CLUSTER}/apps.yaml: .*does not prune",
    ),
    "no timeout": (
        f"{CLUSTER}/apps.yaml",
        "  timeout: 20m\n",
        "",
        rf"{CLUSTER}/apps.yaml: .*has no timeout",
    ),
    "no waiting": (
        f"{CLUSTER}/infrastructure.yaml",
        "wait: true",
        "wait: false",
        rf"{CLUSTER}/infrastructure.yaml: .*neither waits",
    ),
    "suspended": (
        f"{CLUSTER}/apps.yaml",
        "prune: true",
        "prune: true\n  suspend: true",
        rf"{CLUSTER}/apps.yaml: .*is suspended",
    ),
    "no decryption": (
        f"{CLUSTER}/infrastructure.yaml",
        "  decryption:\n    provider: sops\n    secretRef:\n      name: sops-age\n",
        "",
        rf"{CLUSTER}/infrastructure.yaml: .*has no decryption",
    ),
    "a path that is not there": (
        f"{CLUSTER}/apps.yaml",
        "path: ./deploy/apps/local",
        "path: ./deploy/apps/locale",
        rf"{CLUSTER}/apps.yaml: .*deploy/apps/locale, and there is no such folder",
    ),
    "a layer that is not there": (
        f"{CLUSTER}/apps.yaml",
        "- name: infrastructure",
        "- name: infrastucture",
        rf"{CLUSTER}/apps.yaml: .*depends on infrastucture.*Did you mean 'infrastructure'",
    ),
    "a circle": (
        f"{CLUSTER}/infrastructure.yaml",
        "  wait: true",
        "  wait: true\n  dependsOn:\n    - name: apps",
        rf"{CLUSTER}/\w+.yaml: these layers wait for each other: .*apps.*→",
    ),
    "a source that is not there": (
        f"{CLUSTER}/apps.yaml",
        "kind: OCIRepository\n    name: flux-system",
        "kind: OCIRepository\n    name: flux",
        rf"{CLUSTER}/apps.yaml: .*refers to OCIRepository flux,",
    ),
    "the health of something else": (
        f"{CLUSTER}/prediction.yaml",
        "      name: prediction\n",
        "      name: predictions\n",
        rf"{CLUSTER}/prediction.yaml: .*health of Deployment predictions",
    ),
    "no order": (
        f"{CLUSTER}/prediction.yaml",
        "  dependsOn:\n    - name: infrastructure\n",
        "",
        rf"{PREDICTION}/deployment.yaml: .*of the layer infrastructure, for which its own layer prediction does not wait",
    ),
    "a variable that nobody defines": (
        f"{CLUSTER}/cluster-vars.yaml",
        "IMAGE_TAG:",
        "IMAGE_TAGS:",
        rf"{PREDICTION}/deployment.yaml: .*holds \$\{{IMAGE_TAG\}}, which {CLUSTER}/\w+.yaml gives no value",
    ),
    "variables that are not filled in": (
        f"{CLUSTER}/prediction.yaml",
        "  postBuild:\n    substituteFrom:\n      - kind: ConfigMap\n        name: cluster-vars\n",
        "",
        rf"{PREDICTION}/deployment.yaml: .*holds \$\{{IMAGE_REGISTRY\}}",
    ),
    "a script that Flux would empty": (
        f"{POSTGRES}/databases.sh",
        "$name",
        "${name}",
        rf"{POSTGRES}/kustomization.yaml: ConfigMap postgres-init-\w+ holds \$\{{name\}}",
    ),
    "a chart's source that is not there": (
        AIRFLOW,
        "kind: HelmRepository\n        name: airflow",
        "kind: HelmRepository\n        name: apache",
        rf"{AIRFLOW}: .*refers to HelmRepository apache",
    ),
    "values from nowhere": (
        AIRFLOW,
        "valuesKey: admin-password",
        "valuesKey: password",
        rf"{AIRFLOW}: .*takes the key password of Secret airflow",
    ),
    "a Secret of a chart that is not there": (
        AIRFLOW,
        "fernetKeySecretName: airflow",
        "fernetKeySecretName: fernet",
        rf"{AIRFLOW}: .*refers to Secret fernet",
    ),
    "a chart with a range": (
        AIRFLOW,
        "version: 1.22.0",
        "version: 1.x",
        rf"{AIRFLOW}: .*version '1.x' of its chart",
    ),
    "a chart that may drift": (
        AIRFLOW,
        "mode: enabled",
        "mode: warn",
        rf"{AIRFLOW}: .*does not correct drift",
    ),
    "a migration that waits for itself": (
        AIRFLOW,
        "migrateDatabaseJob:\n      useHelmHooks: false",
        "migrateDatabaseJob:\n      useHelmHooks: true",
        rf"{AIRFLOW}: .*migrateDatabaseJob as a hook",
    ),
    "a password in a chart's values": (
        AIRFLOW,
        "username: admin",
        "username: admin, password: admin",
        rf"{AIRFLOW}: .*plain value for password",
    ),
    "a Secret that is not there": (
        f"{PREDICTION}/deployment.yaml",
        "secretRef: {name: prediction}",
        "secretRef: {name: predictions}",
        rf"{PREDICTION}/deployment.yaml: .*refers to Secret predictions.*Did you mean",
    ),
    "a key that is not there": (
        "deploy/infrastructure/local/storage/versitygw.yaml",
        "key: AWS_ACCESS_KEY_ID",
        "key: AWS_ACCESS_KEY",
        r"versitygw.yaml: .*takes the key AWS_ACCESS_KEY of Secret store",
    ),
    "a ConfigMap that is not there": (
        f"{PREDICTION}/deployment.yaml",
        "configMap: {name: check}",
        "configMap: {name: checks}",
        rf"{PREDICTION}/deployment.yaml: .*refers to ConfigMap checks",
    ),
    "a namespace that nobody makes": (
        f"{MODEL}/kustomization.yaml",
        "namespace: prediction",
        "namespace: predictions",
        r"is in the namespace predictions",
    ),
    "an autoscaler of nothing": (
        f"{PREDICTION}/autoscaler.yaml",
        "    name: prediction\n  minReplicas",
        "    name: server\n  minReplicas",
        rf"{PREDICTION}/autoscaler.yaml: .*refers to Deployment server",
    ),
    "an autoscaler's work taken back": (
        f"{PREDICTION}/deployment.yaml",
        "  revisionHistoryLimit",
        "  replicas: 2\n  revisionHistoryLimit",
        rf"{PREDICTION}/deployment.yaml: .*sets replicas",
    ),
    "a script whose change nobody notices": (
        f"{POSTGRES}/kustomization.yaml",
        "    files: [databases.sh]",
        "    files: [databases.sh]\n    options: {disableNameSuffixHash: true}",
        rf"{POSTGRES}/statefulset.yaml: .*ConfigMap postgres-init, which has no hash",
    ),
    "a job that cannot change": (
        "deploy/infrastructure/local/storage/buckets.yaml",
        "force: enabled",
        "force: disabled",
        r"storage/buckets.yaml: Job buckets cannot be changed in place",
    ),
    "a job that is made for ever": (
        "deploy/infrastructure/local/storage/buckets.yaml",
        "  backoffLimit",
        "  ttlSecondsAfterFinished: 60\n  backoffLimit",
        r"storage/buckets.yaml: Job buckets removes itself",
    ),
    "a set without its Service": (
        f"{POSTGRES}/statefulset.yaml",
        "serviceName: postgres",
        "serviceName: database",
        rf"{POSTGRES}/statefulset.yaml: .*refers to Service database",
    ),
    "a Service of nothing": (
        f"{PREDICTION}/service.yaml",
        "  selector:\n    app.kubernetes.io/name: prediction",
        "  selector:\n    app.kubernetes.io/name: server",
        rf"{PREDICTION}/service.yaml: .*no pod in the namespace prediction has these labels",
    ),
    "a port that is closed": (
        f"{PREDICTION}/service.yaml",
        "targetPort: http",
        "targetPort: web",
        rf"{PREDICTION}/service.yaml: .*sends to port web",
    ),
    "pods that their Deployment does not find": (
        f"{PREDICTION}/deployment.yaml",
        "    matchLabels:\n      app.kubernetes.io/name: prediction",
        "    matchLabels:\n      app.kubernetes.io/name: server",
        rf"{PREDICTION}/deployment.yaml: .*its own pods are labelled",
    ),
    "a policy that protects nothing": (
        f"{POSTGRES}/network-policy.yaml",
        "      app.kubernetes.io/name: postgres",
        "      app.kubernetes.io/name: postgresql",
        rf"{POSTGRES}/network-policy.yaml: .*no pod in the namespace database",
    ),
    "an address that is not there": (
        f"{CLUSTER}/cluster-vars.yaml",
        "versitygw.storage.svc",
        "versity.storage.svc",
        r"speaks to versity.storage.svc, and there is no such Service.*Did you mean",
    ),
    "a port that is another": (
        f"{CLUSTER}/cluster-vars.yaml",
        "local:7070",
        "local:9000",
        r"speaks to port 9000 of the Service versitygw",
    ),
    "a call that is not let out": (
        f"{PREDICTION}/network-policy.yaml",
        "kubernetes.io/metadata.name: storage",
        "kubernetes.io/metadata.name: mlflow",
        rf"{PREDICTION}/deployment.yaml: .*calls versitygw.storage.svc at port 7070, and no network policy of prediction lets it out",
    ),
    "a call that is not let in": (
        "deploy/infrastructure/local/storage/network-policies.yaml",
        "[mlflow, airflow, prediction, storage]",
        "[mlflow, airflow, storage]",
        rf"{PREDICTION}/deployment.yaml: .*no network policy of storage lets it in",
    ),
    "a database behind a closed door": (
        f"{POSTGRES}/network-policy.yaml",
        "[mlflow, airflow, prediction]",
        "[mlflow, airflow]",
        rf"{PREDICTION}/deployment.yaml: .*calls postgres.database.svc at port 5432, and no network policy of database lets it in",
    ),
    "no memory limit": (
        f"{PREDICTION}/deployment.yaml",
        'limits: {cpu: "1", memory: 512Mi}',
        'limits: {cpu: "1"}',
        rf"{PREDICTION}/deployment.yaml: .*server has no resources.limits.memory",
    ),
    "a volume that is not there": (
        f"{PREDICTION}/deployment.yaml",
        "- name: tmp\n          emptyDir",
        "- name: temp\n          emptyDir",
        rf"{PREDICTION}/deployment.yaml: .*mounts tmp, and the pod has no such volume",
    ),
    "an open namespace": (
        "deploy/infrastructure/base/namespace/namespace.yaml",
        "enforce: restricted",
        "enforce: baseline",
        r"namespace/namespace.yaml: .*does not enforce the restricted",
    ),
    "no default deny": (
        "deploy/infrastructure/base/namespace/network-policies.yaml",
        "policyTypes: [Ingress, Egress]",
        "policyTypes: [Ingress]",
        r"namespace/namespace.yaml: Namespace \w+ has no network policy that denies",
    ),
    "latest": (
        f"{CLUSTER}/cluster-vars.yaml",
        "IMAGE_TAG: 0.1.0",
        "IMAGE_TAG: latest",
        rf"{PREDICTION}/deployment.yaml: the image|the image 'localhost:5001/housemlops-server:latest' has the tag latest",
    ),
    "no tag at all": (
        f"{POSTGRES}/statefulset.yaml",
        "postgres:18",
        "postgres #",
        rf"{POSTGRES}/statefulset.yaml: .*has neither tag nor digest",
    ),
    "an image that nobody builds": (
        f"{PREDICTION}/deployment.yaml",
        "housemlops-server",
        "housemlops-servers",
        rf"{PREDICTION}/deployment.yaml: .*deploy/images/servers has no Dockerfile.*Did you mean 'server'",
    ),
    "a setting that the server does not know": (
        f"{PREDICTION}/deployment.yaml",
        "name: HOUSE_ALLOWED_HOSTS",
        "name: HOUSE_HOSTS",
        rf"{PREDICTION}/deployment.yaml: .*server would not start: HOUSE_HOSTS is not an option",
    ),
    "a setting that the workbook does not know": (
        AIRFLOW,
        "HOUSEMLOPS_MLFLOW_TRACKING_URI",
        "HOUSEMLOPS_MLFLOW_TRACKING_URL",
        rf"{AIRFLOW}: .*HOUSEMLOPS_MLFLOW_TRACKING_URL names no setting.*'tracking_uri'",
    ),
    "a command with a variable that is not there": (
        f"{PREDICTION}/deployment.yaml",
        "$(MODEL_URI)",
        "$(MODEL_URL)",
        rf"{PREDICTION}/deployment.yaml: .*fetch uses \$\(MODEL_URL\).*Did you mean 'MODEL_URI'",
    ),
    "a key that the chart does not find": (
        "deploy/infrastructure/local/secrets/airflow-airflow.yaml",
        "    fernet-key:",
        "    fernetkey:",
        rf"{AIRFLOW}: .*takes the key fernet-key of Secret airflow.*Did you mean 'fernetkey'",
    ),
    "a probe at a closed port": (
        f"{PREDICTION}/deployment.yaml",
        "path: /livez\n              port: http",
        "path: /livez\n              port: web",
        rf"{PREDICTION}/deployment.yaml: .*asked for its health at port web",
    ),
    "ciphertext for somebody else": (
        ".sops.yaml",
        "age: age1",
        "age: age1x",
        r"secrets/[\w-]+.yaml: Secret \w+ is encrypted for age1",
    ),
    "a release without a hash": (
        f"{MODEL}/release.env",
        "MODEL_SHA256=",
        "MODEL_SHA=",
        rf"{MODEL}/release.env: MODEL_SHA256 is 'missing'",
    ),
    "a tag of another version": (
        f"{MODEL}/release.env",
        "MODEL_TAG=v",
        "MODEL_TAG=v1",
        rf"{MODEL}/release.env: MODEL_TAG is v1\d+, and the version is",
    ),
    "a ConfigMap that rolls nothing": (
        f"{MODEL}/kustomization.yaml",
        "    envs: [release.env]",
        "    envs: [release.env]\n    options: {disableNameSuffixHash: true}",
        rf"{MODEL}/kustomization.yaml: ConfigMap release has no hash in its name",
    ),
    "a base from the internet": (
        "deploy/apps/local/kustomization.yaml",
        "[../base/mlflow",
        "[https://example.com/base?ref=main, ../base/mlflow",
        r"deploy/apps/local/kustomization.yaml takes https://example.com/base\?ref=main from outside",
    ),
    "root": (
        f"{PREDICTION}/deployment.yaml",
        "runAsNonRoot: true",
        "runAsNonRoot: false",
        rf"{PREDICTION}/deployment.yaml: .*KSV-",
    ),
    "a root file system to write on": (
        f"{PREDICTION}/deployment.yaml",
        "readOnlyRootFilesystem: true",
        "readOnlyRootFilesystem: false",
        rf"{PREDICTION}/deployment.yaml: .*readOnlyRootFilesystem.*KSV-0014",
    ),
    "an image as root": (
        "deploy/images/workbook/Dockerfile",
        "\nUSER ",
        "\n# USER ",
        r"deploy/images/workbook/Dockerfile.*\((DS|DL)",
    ),
    "a base image that floats": (
        "deploy/images/workbook/Dockerfile",
        "FROM ",
        "FROM python:3.11-slim AS other\nFROM ",
        r"deploy/images/workbook/Dockerfile: the base python:3.11-slim has the tag 3.11-slim",
    ),
    "a script with a slip": (
        "deploy/bootstrap/secrets.sh",
        "set -euo pipefail",
        "set -euo pipefail\nrm -rf $1/*",
        r"deploy/bootstrap/secrets.sh, line \d+: .*\(SC\d+\)",
    ),
    "a Secret that the bootstrap forgets": (
        "deploy/bootstrap/secrets.sh",
        " admin-password ",
        " administrator-password ",
        r"airflow-airflow.yaml: Secret airflow has the keys .*secrets.sh makes",
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_slip_is_found(tree, name):
    file, old, new, sentence = EDITS[name]
    edit(tree, file, old, new)
    found = check_deploy(tree)
    assert any(re.search(sentence, fault) for fault in found), (
        found or "no fault was found"
    )


def plain_secret(tree):
    (tree / SECRET).write_text(
        "apiVersion: v1\nkind: Secret\nmetadata: {name: prediction, namespace: prediction}\nstringData: {HOUSE_DATABASE_URL: somewhere}\n"
    )


def half_plain(tree):
    (tree / SECRET).write_text(
        re.sub(
            r"HOUSE_DATABASE_URL: ENC\[.*",
            "HOUSE_DATABASE_URL: somewhere",
            (tree / SECRET).read_text(),
        )
    )


def private_key(tree):
    (tree / "deploy/clusters/local/age.key").write_text("AGE-SECRET-KEY-1" + "Q" * 58)


def left_over(tree):
    shutil.copy(
        tree / PREDICTION / "service.yaml", tree / PREDICTION / "service-old.yaml"
    )


def old_label(tree):
    edit(
        tree,
        f"{MODEL}/kustomization.yaml",
        "          - spec.template.metadata.labels.[app.kubernetes.io/version]\n",
        "",
    )
    (tree / MODEL / "release.env").write_text(
        re.sub(
            r"(?m)^(MODEL_VERSION=|MODEL_TAG=v)\d+",
            r"\g<1>9",
            (tree / MODEL / "release.env").read_text(),
        )
    )


def no_release(tree):
    (tree / MODEL / "release.env").unlink()


def no_probe(tree):
    (tree / PREDICTION / "deployment.yaml").write_text(
        re.sub(
            r" {10}readinessProbe:\n( {12}.*\n)+",
            "",
            (tree / PREDICTION / "deployment.yaml").read_text(),
        )
    )


FILES = {
    "a Secret in plain text": (
        plain_secret,
        rf"{SECRET}: Secret prediction is not encrypted",
    ),
    "a Secret half in plain text": (
        half_plain,
        rf"{SECRET}: .*its HOUSE_DATABASE_URL is plain text",
    ),
    "a private key": (
        private_key,
        r"deploy/clusters/local/age.key, line 1: what looks like a key",
    ),
    "a file that no cluster reads": (
        left_over,
        rf"{PREDICTION}/service-old.yaml is read by no cluster",
    ),
    "no readiness": (
        no_probe,
        rf"{PREDICTION}/deployment.yaml: .*the container server has no readinessProbe",
    ),
    "a version label that stays behind": (
        old_label,
        rf"{PREDICTION}/deployment.yaml: .*has the version label v\d+, and the release is v9",
    ),
    "no release": (no_release, rf"{MODEL}.*release.env"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_wrong_or_missing(tree, name):
    spoil, sentence = FILES[name]
    spoil(tree)
    found = check_deploy(tree)
    assert any(re.search(sentence, fault) for fault in found), (
        found or "no fault was found"
    )


def test_another_model_changes_nothing_but_the_release(tree):
    "The name and data of the ConfigMap, the references to it, and the version label; and back again"
    before, file = read_cluster(tree, "local"), tree / MODEL / "release.env"
    kept = file.read_text()
    file.write_text(
        re.sub(
            r"(?m)^MODEL_TAG=.*",
            "MODEL_TAG=v7",
            re.sub(
                r"(?m)^MODEL_VERSION=.*",
                "MODEL_VERSION=7",
                re.sub(r"(?m)^(MODEL_SHA256)=.*", rf"\1={'7' * 64}", kept),
            ),
        )
    )
    changed = difference(before, read_cluster(tree, "local")).splitlines()
    assert [line for line in changed if line.startswith("===")] == [
        "=== ConfigMap prediction release",
        "=== Deployment prediction prediction",
    ]
    words = {
        line[1:].strip().removeprefix("- ").partition(":")[0]
        for line in changed
        if not line.startswith("===")
    }
    assert words == {
        "MODEL_SHA256",
        "MODEL_TAG",
        "MODEL_VERSION",
        "name",
        "app.kubernetes.io/version",
    }, changed
    file.write_text(kept)
    assert difference(before, read_cluster(tree, "local")) == ""


def test_production_is_another_overlay_of_the_same():
    "All objects of the bases are in both clusters; what only one has comes from its own folder"
    local, production = (read_cluster(ROOT, name) for name in cluster_names(ROOT))

    def own(one, other):
        return {
            found.file
            for found in one.manifests
            if (found.kind, found.namespace, found.name)
            not in {(here.kind, here.namespace, here.name) for here in other.manifests}
        }

    assert all(
        "/local/" in file
        or "/base/namespaces/storage" in file
        or "/base/namespace/" in file
        for file in own(local, production)
    ), own(local, production)
    assert all("/production/" in file for file in own(production, local)), own(
        production, local
    )


def test_the_model_is_checked_before_it_serves(tmp_path):
    "By the init container, which has nothing of this package, with the hash that the package computes"
    (tmp_path / "graph.onnx").write_bytes(b"a model")
    (tmp_path / "release.json").write_text(
        json.dumps({"model": "house-prices-ames", "version": 7})
    )
    release = {
        "MODEL_NAME": "house-prices-ames",
        "MODEL_VERSION": "7",
        "MODEL_URI": "s3://models/seven",
        "MODEL_SHA256": folder_sha256(tmp_path),
    }

    def check(**other):
        done = subprocess.run(
            [sys.executable, ROOT / PREDICTION / "check.py", tmp_path],
            env=release | other,
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout + done.stderr

    assert check()[0] == 0
    for other, words in (
        ({"MODEL_VERSION": "0"}, "No model has been promoted"),
        ({"MODEL_VERSION": "8"}, "is house-prices-ames version 7"),
        ({"MODEL_NAME": "house-prices-windsor"}, "is house-prices-ames"),
    ):
        code, text = check(**other)
        assert code == 1 and words in text and "Traceback" not in text, text
    (tmp_path / "graph.onnx").write_bytes(b"a Model")
    code, text = check()
    assert code == 1 and "was promoted" in text and "Traceback" not in text, text


def test_outside_the_repository(tmp_path):
    with pytest.raises(WorkbookError, match="no deploy/clusters"):
        check_deploy(tmp_path)


def test_a_missing_tool_is_named():
    with pytest.raises(WorkbookError, match="kubectll is not installed"):
        run_tool("kubectll")


def test_every_allowance_has_a_reason():
    assert (
        all(len(reason.split()) > 3 for _, reason in ALLOWED.values())
        and len(ALLOWED) < 10
    )


# What the bootstrap needs and a test machine has not: each notes how it was called, and remembers what it made.
STUB = r"""#!{python}
import os, shutil, sys
from pathlib import Path
state, name, words = Path(os.environ["STUB_STATE"]), Path(sys.argv[0]).name, sys.argv[1:]
given = "" if sys.stdin.isatty() or "-i" not in words else sys.stdin.read()
with (state/"calls").open("a") as calls: print(name, *words, file=calls)
if words[:1] == ["inspect"]: sys.exit(not (state/"network" if "--format" in words else state/words[1]).exists())
if words[:1] == ["run"]: (state/words[words.index("--name") + 1]).touch()
if words[:2] == ["network", "connect"]: (state/"network").touch()
if words[:2] == ["create", "cluster"]: (state/"housemlops-control-plane").touch()
if words[:2] == ["delete", "cluster"]: [(state/made).unlink(missing_ok=True) for made in ("housemlops-control-plane", "network")]
if words[:1] == ["rm"]: (state/words[-1]).unlink(missing_ok=True)
if "create" in words and "secret" in words: print(given)
if "apply" in words: (state/"applied").open("a").write(given)
if words[:2] == ["push", "artifact"]: shutil.copytree(words[words.index("--path") + 1], state/"artefact", dirs_exist_ok=True)
"""


class Machine:
    "A machine with a checkout and, if asked for, with what the bootstrap needs"

    def __init__(self, tree: Path, equipped: bool):
        self.tree, self.state, programs = (
            tree,
            tree.parent / "state",
            tree.parent / "programs",
        )
        for folder in (self.state, programs):
            folder.mkdir(exist_ok=True)
        for name in ("docker", "kind", "flux") if equipped else ():
            (programs / name).write_text(STUB.replace("{python}", sys.executable))
            (programs / name).chmod(0o755)
        path = [programs, Path(sys.executable).parent, "/usr/bin", "/bin"]
        self.environ = {
            "PATH": os.pathsep.join(map(str, path)),
            "HOME": str(tree.parent),
            "STUB_STATE": str(self.state),
            "LC_ALL": "C",
        }

    def __call__(self, script: str, *arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            ["bash", self.tree / f"deploy/bootstrap/{script}.sh", *arguments],
            env=self.environ,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=120,
        )
        return done.returncode, done.stdout

    def calls(self) -> list[str]:
        "The calls of the three programs since this was last asked"
        path = self.state / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines


@pytest.fixture
def checkout(tree) -> Path:
    "A commit of the tree, with a generated server and a site"
    for name in ("var/serve/current/app.py", "var/site/index.html"):
        (tree / name).parent.mkdir(parents=True)
        (tree / name).touch()
    (tree / ".gitignore").write_text("var/\n")
    for command in (
        ["init", "--quiet", "--initial-branch=main"],
        ["add", "."],
        [
            "-c",
            "user.name=learner",
            "-c",
            "user.email=learner@localhost",
            "commit",
            "--quiet",
            "-m",
            "deploy",
        ],
    ):
        subprocess.run(["git", "-C", tree, *command], check=True)
    return tree


def commands(text: str) -> list[str]:
    "The commands that a bootstrap says it runs, whatever its folder and key are called"
    return [
        re.sub(r"age1\w+", "RECIPIENT", re.sub(r"/\S*/tmp\.\w+", "SCRATCH", line))
        for line in text.splitlines()
        if line.startswith("+ ")
    ]


def test_a_dry_run_says_every_command_and_does_nothing(checkout):
    before = sorted(path for path in checkout.rglob("*") if ".git/" not in str(path))
    machine = Machine(checkout, equipped=False)
    for script, wanted in (
        (
            "up",
            [
                "kind create cluster",
                "docker build",
                "flux --context kind-housemlops install",
                "secrets.sh local",
                "flux push artifact",
                "reconcile kustomization apps",
            ],
        ),
        ("down", ["kind delete cluster"]),
    ):
        code, text = machine(script, "--dry-run")
        assert code == 0 and all(
            any(words in line for line in commands(text)) for words in wanted
        ), text
    assert (
        sorted(path for path in checkout.rglob("*") if ".git/" not in str(path))
        == before
        and machine.calls() == []
    )


def test_a_missing_program_and_a_slip_are_said(checkout):
    machine = Machine(checkout, equipped=False)
    assert machine("up") == (
        1,
        "docker is not installed: deploy/README.md says what is needed\n",
    )
    assert machine("up", "--dryrun") == (2, "Usage: up.sh [--dry-run]\n")


def test_up_is_what_the_dry_run_said_and_may_be_repeated(checkout):
    machine = Machine(checkout, equipped=True)
    said = commands(machine("up", "--dry-run")[1])
    code, text = machine("up")
    assert code == 0 and commands(text) == said, text
    calls, own = machine.calls(), checkout / "var/deploy/local"
    key = re.search(r"AGE-SECRET-KEY-\w+", (own / "age.agekey").read_text())[0]
    assert [call.split()[:3] for call in calls if call.startswith("kind")] == [
        ["kind", "create", "cluster"]
    ]
    assert (
        oct((own / "age.agekey").stat().st_mode)[-2:] == "00"
        and key in (machine.state / "applied").read_text()
    )
    assert (
        key not in text
        and all(key not in call for call in calls)
        and not any(
            key in path.read_text()
            for path in (machine.state / "artefact").rglob("*")
            if path.is_file()
        )
    )
    for path in (machine.state / "artefact/deploy/infrastructure/local/secrets").glob(
        "*-*.yaml"
    ):
        opened = run_tool(
            "sops",
            "decrypt",
            path,
            env={**machine.environ, "SOPS_AGE_KEY_FILE": str(own / "age.agekey")},
        )
        assert opened.returncode == 0 and "ENC[" not in opened.stdout, opened.stderr
    assert (
        subprocess.run(
            ["git", "-C", checkout, "status", "--porcelain"],
            capture_output=True,
            text=True,
        ).stdout
        == ""
    )
    secrets = {path.name: path.read_bytes() for path in (own / "secrets").iterdir()}
    code, text = machine("up")
    again = machine.calls()
    assert code == 0 and not [
        call
        for call in again
        if re.match(r"kind create|docker run|docker network", call)
    ], again
    assert {
        path.name: path.read_bytes() for path in (own / "secrets").iterdir()
    } == secrets


def test_what_up_pushes_is_what_a_cluster_can_read(checkout):
    "With the images' tag of this commit and the cluster's own Secrets in it"
    machine = Machine(checkout, equipped=True)
    assert machine("up")[0] == 0
    shutil.copytree(checkout / "tests", machine.state / "artefact/tests")
    given = read_cluster(machine.state / "artefact", "local")
    before = read_cluster(checkout, "local")
    tag = next(
        one.body["data"]["IMAGE_TAG"]
        for one in given.of("ConfigMap")
        if one.name == "cluster-vars"
    )
    changed = [
        line
        for line in difference(before, given).splitlines()
        if not line.startswith("===")
    ]
    assert given.faults == [] and {
        line.partition(":")[0].strip(" +-") for line in changed
    } == {"IMAGE_TAG", "image", "defaultAirflowTag", "value"}, changed
    assert all(tag in line for line in changed if line.startswith("+"))


def test_down_leaves_nothing_and_may_be_repeated(checkout):
    machine = Machine(checkout, equipped=True)
    assert machine("up")[0] == 0 and (checkout / "var/deploy/local").exists()
    for _ in range(2):
        assert machine("down")[0] == 0
    assert not (checkout / "var/deploy/local").exists() and not list(
        machine.state.glob("housemlops*")
    )
