"Make an age key in a file that only its owner can read, unless the file is there, and print the key's recipient. Usage: key.py FILE"

import os
import sys
from pathlib import Path

from pyrage import x25519

path = Path(sys.argv[1])
if not path.exists():
    with open(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        file.write(f"{x25519.Identity.generate()}\n")
print(x25519.Identity.from_str(path.read_text().split()[-1]).to_public())
