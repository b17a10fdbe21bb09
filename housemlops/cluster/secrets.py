"""Find secrets that are not encrypted, and open those that are."""

import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from housemlops.cluster.manifests import (
    Cluster,
    documents,
    mappings_in,
    run_tool,
    strings_in,
    tool_path,
)
from housemlops.core.files import read_yaml
from housemlops.settings import WorkbookError

SECRET_NAME = re.compile(
    r"(password|passwd|secret|token|fernet.?key|secret.?key|access.?key|private.?key"
    r"|credential)s?$",
    re.IGNORECASE,
)
# Nothing, a path, a variable, a switch or a number.
HARMLESS = re.compile(r"([/$].*)?|true|false|\d+")
LEAK = re.compile(
    r"AGE-SECRET-KEY-1[0-9A-Z]+|-----BEGIN [A-Z ]*PRIVATE KEY-----"
    r"|\w+://[^\s:/@]+:[^\s:/@$({]+@|\bAKIA[0-9A-Z]{16}\b|\bgh[pousr]_\w{36}"
)


def recipients_of(root: Path, file: str) -> list[str] | None:
    """Return who may read an encrypted file by .sops.yaml; None without a rule."""
    for rule in read_yaml(root / ".sops.yaml").get("creation_rules", ()):
        if re.search(rule.get("path_regex", ""), file):
            return sorted(re.split(r"[\s,]+", rule.get("age", "").strip()))
    return None


def secret_faults(root: Path, cluster: Cluster) -> Iterator[str]:
    """Yield Secrets that are not encrypted, or for somebody else."""
    for secret in cluster.of("Secret"):
        if "sops" not in secret.body:
            yield f"{secret} is not encrypted: sops encrypt --in-place {secret.file}"
            continue
        values = {**(secret.body.get("data") or {})}
        values |= secret.body.get("stringData") or {}
        plain = [key for key in values if not str(values[key]).startswith("ENC[")]
        if plain:
            yield f"{secret} is encrypted, but its {', '.join(plain)} is plain text"
        wanted = recipients_of(root, secret.file)
        actual = [one["recipient"] for one in secret.body["sops"].get("age") or ()]
        if wanted is None:
            yield (
                f"{secret} matches no creation rule of .sops.yaml, so nobody knows who "
                "may read it"
            )
        elif wanted != sorted(actual):
            yield (
                f"{secret} is encrypted for {', '.join(actual) or 'nobody'}, and "
                f".sops.yaml says {', '.join(wanted)}: sops updatekeys {secret.file}"
            )


def named_values(node: object) -> Iterator[tuple[str, str]]:
    """Yield strings with their names; that of an environment variable is its own."""
    yield from strings_in(node)
    for mapping in mappings_in(node):
        name, value = mapping.get("name"), mapping.get("value")
        if isinstance(name, str) and isinstance(value, str):
            yield name, value


def leak_faults(root: Path, cluster: Cluster) -> Iterator[str]:
    """Yield what looks like a secret in objects that are no Secret."""
    for manifest in cluster.manifests:
        if manifest.kind == "Secret":
            continue
        for name, value in named_values(manifest.body):
            secret_name = SECRET_NAME.search(name) and name != "secretKey"
            if secret_name and not HARMLESS.fullmatch(value):
                yield (
                    f"{manifest} has a plain value for {name}: it belongs in an "
                    "encrypted Secret"
                )
            if LEAK.search(value):
                yield f"{manifest} holds what looks like a key or a password, in {name}"


def leaked_files(root: Path) -> Iterator[str]:
    """Yield keys and passwords in any file of deploy/, also if no cluster reads it."""
    for path in sorted((root / "deploy").rglob("*")):
        name = path.relative_to(root).as_posix()
        text = path.read_text(errors="replace") if path.is_file() else ""
        leak = LEAK.search(text)
        if leak:
            line = text[: leak.start()].count("\n") + 1
            yield (
                f"{name}, line {line}: what looks like a key or a password "
                f"({leak[0][:12]}…)"
            )
        is_secret = path.suffix == ".yaml" and re.search(r"(?m)^kind: Secret$", text)
        if is_secret and "\nsops:" not in text:
            yield f"{name} holds a Secret that is not encrypted"


def open_secrets(root: Path, cluster: str) -> dict[tuple[str, str], dict[str, str]]:
    """Make a cluster's Secrets for a throw-away key, and decrypt them.

    Returns:
        (namespace, name) -> values.

    Raises:
        WorkbookError: The bootstrap cannot make them, or they do not decrypt.
    """
    from pyrage import x25519

    key = x25519.Identity.generate()
    script = "deploy/bootstrap/secrets.sh"
    secrets = {}
    with TemporaryDirectory() as made:
        environ = {"PATH": tool_path(), "HOME": made, "SOPS_AGE_KEY": str(key)}
        if cluster != "local":
            environ |= {
                "AWS_ACCESS_KEY_ID": "example",
                "AWS_SECRET_ACCESS_KEY": "example",
                "S3_ENDPOINT": "https://s3.example.com",
            }
        command = (root / script, cluster, key.to_public(), made)
        done = run_tool("bash", *command, env=environ)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["it ended without a message"]
            raise WorkbookError(f"{script} {cluster}: {lines[-1]}")
        for path in sorted(Path(made).glob("*.yaml")):
            done = run_tool("sops", "decrypt", path, env=environ)
            if done.returncode:
                raise WorkbookError(
                    f"{path.name}, made by {script} {cluster}, does not decrypt: "
                    f"{done.stderr.strip().splitlines()[-1]}"
                )
            body = documents(done.stdout)[0]
            place = body["metadata"]["namespace"], body["metadata"]["name"]
            secrets[place] = body.get("stringData", {}) | body.get("data", {})
    return secrets
