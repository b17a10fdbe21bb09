"""Keep promoted models in a store that the clusters can read."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from housemlops.lineage import find_model
from housemlops.model.registry import registered_name
from housemlops.serve import generate
from housemlops.settings import (
    Settings,
    WorkbookError,
    folder_sha256,
)


@contextmanager
def made(mlflow, version) -> Iterator[Path]:
    """The release of a registered version: the folder `model/` of its server.

    Returns:
        The folder; gone afterwards.
    """
    with TemporaryDirectory() as scratch:
        generate(mlflow, version, Path(scratch))
        yield Path(scratch) / "model"


def in_production(mlflow, dataset: str, what: str):
    """The version to be released; WorkbookError for one in development.

    Returns:
        -> ModelVersion.
    """
    name = registered_name(dataset)
    version = find_model(mlflow.MlflowClient(), dataset, what)
    if version.name == name:
        return version
    raise WorkbookError(
        f"{what} is in development: make it champion first (`housemlops promote {what} --why ...`), then release {name} by its number"
    )


def store_of(chosen: Settings) -> str:
    """Where releases are kept.

    Returns:
        URL.
    """
    store = chosen.release.store or str(chosen.paths.state / "releases")
    return (store if "://" in store else f"file://{Path(store).resolve()}").rstrip("/")


@contextmanager
def store_errors(url: str) -> Iterator[None]:
    "What goes wrong with a store, as a sentence"
    try:
        yield
    except WorkbookError:
        raise
    except Exception as error:
        raise WorkbookError(
            f"The store {bare(url)} does not answer ({type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0][:200]}): see [release] store in settings.ini"
        ) from error


def bare(text: str) -> str:
    "A text without the passwords in its addresses"
    return re.sub(r"(?<=://)[^@/\s]*@", "", text)


def stored(fs, path: str) -> dict[str, int]:
    """The files of a release in a store.

    Returns:
        Name -> bytes; empty when there is nothing.
    """
    fs.invalidate_cache()
    return (
        {name[len(path) :].lstrip("/"): fs.size(name) for name in sorted(fs.find(path))}
        if fs.exists(path)
        else {}
    )


def stored_sha256(fs, path: str) -> str:
    "The hash of a release as it is in a store, as `folder_sha256` has it"
    lines = "".join(
        f"{hashlib.sha256(fs.cat_file(f'{path}/{name}')).hexdigest()}  {name}\n"
        for name in sorted(stored(fs, path))
    )
    return hashlib.sha256(lines.encode()).hexdigest()


def keep(store: str, name: str, tag: str, folder: Path) -> str:
    """Put a release into a store, unless it is there; WorkbookError when it is there and was changed.

    Args:
        store: URL.
        tag: Such as house-prices-ames, v7.
        folder: The release.

    Returns:
        Its address.
    """
    import fsspec

    sha256, files = (
        folder_sha256(folder),
        {
            path.relative_to(folder).as_posix(): path
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        },
    )
    uri = f"{store}/{name}/{tag}-{sha256[:12]}"
    with store_errors(store):
        fs, path = fsspec.url_to_fs(uri)
        there = stored(fs, path)
        if there.keys() - files.keys() or there == {
            name: file.stat().st_size for name, file in files.items()
        }:
            if stored_sha256(fs, path) == sha256:
                return uri
            raise WorkbookError(
                f"The files of {bare(uri)} were changed: find out by whom, remove the folder, and promote again"
            )
        for name, file in files.items():
            fs.makedirs(f"{path}/{name}".rpartition("/")[0], exist_ok=True)
            fs.put_file(str(file), f"{path}/{name}")
        if stored_sha256(fs, path) != sha256:
            raise WorkbookError(
                f"The store {bare(store)} does not give back what was written to it, so nothing was promoted"
            )
    return uri


def bring(uri: str, folder: Path) -> bool:
    """Fetch a release from a store.

    Args:
        uri: Of a release.
        folder: Exists, empty.

    Returns:
        Whether there is one.
    """
    import fsspec

    with store_errors(uri):
        fs, path = fsspec.url_to_fs(uri)
        for name in (names := stored(fs, path)):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            fs.get_file(f"{path}/{name}", str(folder / name))
    return bool(names)


def file_of(env: str) -> str:
    """The file that names the model of an environment.

    Returns:
        From the root of the repository.
    """
    return f"deploy/apps/{env}/model/release.env"
