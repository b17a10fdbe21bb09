"""How long each notebook takes to run on the sample, in seconds, the start of its kernel included: into nbs/site/notebooks.json.

python benchmarks/notebooks.py [NAME ...]      # all of them when none is named, about eight minutes
"""

import json
import os
import subprocess
import sys
import time

from nbclient import NotebookClient
from nbformat import read

from housemlops.orchestrate import graph, pipeline
from housemlops.settings import repo_root

root = repo_root()
os.environ["PYTHONPATH"] = str(root)
names = sys.argv[1:] or [
    *graph(pipeline(root)),
    *sorted(
        {path.stem for path in (root / "nbs").glob("*.ipynb")}
        - {*graph(pipeline(root))}
    ),
]
kept = root / "nbs/site/notebooks.json"
seconds = json.loads(kept.read_text())["seconds"] if kept.exists() else {}
there = {path.stem for path in (root / "nbs").glob("*.ipynb")}
subprocess.run(
    [
        sys.executable,
        "-c",
        "from housemlops.orchestrate import open_build; open_build('sample', 'monitor')",
    ],
    cwd=root,
    check=True,
)
for name in names:
    began = time.monotonic()
    NotebookClient(
        read(root / f"nbs/{name}.ipynb", as_version=4),
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(root / "nbs")}},
    ).execute()
    seconds[name] = round(time.monotonic() - began, 1)
    print(f"{name:16}{seconds[name]:6.1f} s", flush=True)
    kept.write_text(
        json.dumps(
            {
                "made by": "benchmarks/notebooks.py",
                "cores": os.cpu_count(),
                "seconds": {
                    name: seconds[name] for name in sorted(seconds) if name in there
                },
            },
            indent=1,
        )
        + "\n"
    )
