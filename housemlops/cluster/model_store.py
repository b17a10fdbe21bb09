"""Keep releases of models in a store that the clusters can read."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from housemlops.settings import Settings, WorkbookError, folder_sha256


def store_url(chosen: Settings) -> str:
    """Return where releases are kept."""
    store = chosen.release.store or str(chosen.paths.state / "releases")
    if "://" not in store:
        store = f"file://{Path(store).resolve()}"
    return store.rstrip("/")


def without_passwords(text: str) -> str:
    """Return a text without the passwords in its addresses."""
    return re.sub(r"(?<=://)[^@/\s]*@", "", text)


@contextmanager
def store_errors(url: str) -> Iterator[None]:
    """Turn what goes wrong with a store into one sentence."""
    try:
        yield
    except WorkbookError:
        raise
    except Exception as error:
        message = (str(error).strip() or "no message").splitlines()[0][:200]
        raise WorkbookError(
            f"The store {without_passwords(url)} does not answer "
            f"({type(error).__name__}: {message}): see [release] store in settings.ini"
        ) from error


def stored_files(fs, path: str) -> dict[str, int]:
    """Return the files of a release in a store, and their sizes in bytes."""
    fs.invalidate_cache()
    if not fs.exists(path):
        return {}
    names = sorted(fs.find(path))
    return {name[len(path) :].lstrip("/"): fs.size(name) for name in names}


def stored_sha256(fs, path: str) -> str:
    """Return the hash of a release in a store, as `folder_sha256` computes it."""
    lines = ""
    for name in sorted(stored_files(fs, path)):
        sha256 = hashlib.sha256(fs.cat_file(f"{path}/{name}")).hexdigest()
        lines += f"{sha256}  {name}\n"
    return hashlib.sha256(lines.encode()).hexdigest()


def store_release(store: str, name: str, tag: str, folder: Path) -> str:
    """Put a release into a store, unless it is there, and return its address.

    Args:
        store: URL.
        name: Such as house-prices-ames.
        tag: Such as v7.
        folder: The release.

    Raises:
        WorkbookError: The store does not answer, or its files were changed.
    """
    import fsspec

    sha256 = folder_sha256(folder)
    uri = f"{store}/{name}/{tag}-{sha256[:12]}"
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files = {path.relative_to(folder).as_posix(): path for path in paths}
    sizes = {file: path.stat().st_size for file, path in files.items()}
    with store_errors(store):
        fs, target = fsspec.url_to_fs(uri)
        stored = stored_files(fs, target)
        # Fewer files, or other sizes, are an upload that was interrupted.
        if stored == sizes or stored.keys() - sizes.keys():
            if stored_sha256(fs, target) == sha256:
                return uri
            raise WorkbookError(
                f"The files of {without_passwords(uri)} were changed: find out by "
                "whom, remove the folder, and promote again"
            )
        for file, path in files.items():
            fs.makedirs(f"{target}/{file}".rpartition("/")[0], exist_ok=True)
            fs.put_file(str(path), f"{target}/{file}")
        if stored_sha256(fs, target) != sha256:
            raise WorkbookError(
                f"The store {without_passwords(store)} does not give back what was "
                "written to it, so nothing was promoted"
            )
    return uri


def fetch_release(uri: str, folder: Path) -> bool:
    """Fetch a release into an empty folder, and return whether there is one."""
    import fsspec

    with store_errors(uri):
        fs, path = fsspec.url_to_fs(uri)
        names = stored_files(fs, path)
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            fs.get_file(f"{path}/{name}", str(folder / name))
    return bool(names)
