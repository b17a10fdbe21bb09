"Is the model that was fetched the one that release.env names? Ends with a sentence when it is not."

import hashlib
import json
import os
import sys
from pathlib import Path

folder, want = Path(sys.argv[1]), os.environ
if want["MODEL_VERSION"] == "0":
    sys.exit("No model has been promoted to this cluster yet")
names = sorted(
    path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
)
lines = "".join(
    f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n"
    for name in names
)
found = hashlib.sha256(lines.encode()).hexdigest()
if found != want["MODEL_SHA256"]:
    sys.exit(
        f"{want['MODEL_URI']} has the SHA-256 {found[:12]}, but {want['MODEL_SHA256'][:12]} was promoted"
    )
note = json.loads((folder / "release.json").read_text(encoding="utf-8"))
if (note["model"], str(note["version"])) != (want["MODEL_NAME"], want["MODEL_VERSION"]):
    sys.exit(
        f"{want['MODEL_URI']} is {note['model']} version {note['version']}, but {want['MODEL_NAME']} version {want['MODEL_VERSION']} was promoted"
    )
print(
    f"{want['MODEL_NAME']} version {want['MODEL_VERSION']}, SHA-256 {found[:12]}: as promoted"
)
