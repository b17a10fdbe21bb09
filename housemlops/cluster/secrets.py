"""Find secrets that are not encrypted, and open those that are."""

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

from housemlops.cluster.manifests import Cluster, documents, run_tool, search_path
from housemlops.settings import WorkbookError

SECRETIVE = re.compile(
    r"(password|passwd|secret|token|fernet.?key|secret.?key|access.?key|private.?key|credential)s?$",
    re.IGNORECASE,
)


HARMLESS = re.compile(
    r"([/$].*)?|true|false|\d+"
)  # nothing, a path, a variable, a switch or a number


LEAK = re.compile(
    r"AGE-SECRET-KEY-1[0-9A-Z]+|-----BEGIN [A-Z ]*PRIVATE KEY-----|\w+://[^\s:/@]+:[^\s:/@$({]+@|\bAKIA[0-9A-Z]{16}\b|\bgh[pousr]_\w{36}"
)


def sops_rules(root: Path) -> list[tuple[str, list[str]]]:
    """Who can read which encrypted file.

    Returns:
        Pattern of a path, age recipients.
    """
    found = (
        documents((root / ".sops.yaml").read_text())[0]["creation_rules"]
        if (root / ".sops.yaml").exists()
        else []
    )
    return [
        (rule.get("path_regex", ""), re.split(r"[\s,]+", rule.get("age", "").strip()))
        for rule in found
    ]


def secret_faults(root: Path, cluster: Cluster) -> Iterator[str]:
    "Secrets that are not encrypted, or for somebody else"
    for manifest in cluster.of("Secret"):
        if "sops" not in manifest.body:
            yield f"{manifest} is not encrypted: sops encrypt --in-place {manifest.file}"
            continue
        bare = [
            key
            for part in ("data", "stringData")
            for key, value in (manifest.body.get(part) or {}).items()
            if not str(value).startswith("ENC[")
        ]
        if bare:
            yield f"{manifest} is encrypted, but its {', '.join(bare)} is plain text"
        wanted = next(
            (who for path, who in sops_rules(root) if re.search(path, manifest.file)),
            None,
        )
        given = [one["recipient"] for one in manifest.body["sops"].get("age") or ()]
        if wanted is None:
            yield f"{manifest} matches no creation rule of .sops.yaml, so nobody knows who may read it"
        elif sorted(wanted) != sorted(given):
            yield f"{manifest} is encrypted for {', '.join(given) or 'nobody'}, and .sops.yaml says {', '.join(wanted)}: sops updatekeys {manifest.file}"


def literals(node: object, name: str = "") -> Iterator[tuple[str, str]]:
    """Values with the names they go by, those of environment variables too.

    Returns:
        Name, value.
    """
    if isinstance(node, list):
        yield from chain.from_iterable(literals(part, name) for part in node)
    elif isinstance(node, dict):
        if isinstance(node.get("name"), str) and isinstance(node.get("value"), str):
            yield node["name"], node["value"]
        yield from chain.from_iterable(
            literals(value, key) for key, value in node.items()
        )
    elif isinstance(node, str):
        yield name, node


def leak_faults(root: Path, cluster: Cluster) -> Iterator[str]:
    "Things that look like a secret in objects that are none"
    for manifest in cluster.manifests:
        for name, value in literals(manifest.body) if manifest.kind != "Secret" else ():
            telling = (
                SECRETIVE.search(name)
                and name != "secretKey"
                and not HARMLESS.fullmatch(value)
            )
            if telling:
                yield f"{manifest} has a plain value for {name}: it belongs in an encrypted Secret"
            if LEAK.search(value):
                yield f"{manifest} holds what looks like a key or a password, in {name}"


def leaked_files(root: Path) -> Iterator[str]:
    "Keys and passwords in any file of deploy/, also in one that no cluster reads"
    for path in sorted((root / "deploy").rglob("*")):
        name = path.relative_to(root).as_posix()
        text = path.read_text(errors="replace") if path.is_file() else ""
        if found := LEAK.search(text):
            yield f"{name}, line {text[: found.start()].count(chr(10)) + 1}: what looks like a key or a password ({found[0][:12]}…)"
        if (
            path.suffix == ".yaml"
            and re.search(r"(?m)^kind: Secret$", text)
            and "\nsops:" not in text
        ):
            yield f"{name} holds a Secret that is not encrypted"


def opened(root: Path, name: str) -> dict[tuple[str, str], dict[str, str]]:
    """The Secrets of a cluster, made anew for a throw-away key and decrypted with it.

    Returns:
        (namespace, name) -> values.
    """
    from pyrage import x25519

    key = x25519.Identity.generate()
    store = (
        {
            "AWS_ACCESS_KEY_ID": "example",
            "AWS_SECRET_ACCESS_KEY": "example",
            "S3_ENDPOINT": "https://s3.example.com",
        }
        if name != "local"
        else {}
    )
    tools = store | {"PATH": search_path()}
    with TemporaryDirectory() as made:
        script = root / "deploy/bootstrap/secrets.sh"
        done = run_tool(
            "bash", script, name, key.to_public(), made, env={"HOME": made, **tools}
        )
        if done.returncode:
            raise WorkbookError(
                f"{script.relative_to(root)} {name}: {(done.stderr.strip().splitlines() or ['it ended without a word'])[-1]}"
            )
        found = {}
        for path in sorted(Path(made).glob("*.yaml")):
            done = run_tool(
                "sops",
                "decrypt",
                path,
                env={"HOME": made, "SOPS_AGE_KEY": str(key), **tools},
            )
            if done.returncode:
                raise WorkbookError(
                    f"{path.name}, made by {script.relative_to(root)} {name}, does not decrypt: {done.stderr.strip().splitlines()[-1]}"
                )
            body = documents(done.stdout)[0]
            found[body["metadata"]["namespace"], body["metadata"]["name"]] = body.get(
                "stringData", {}
            ) | body.get("data", {})
    return found
