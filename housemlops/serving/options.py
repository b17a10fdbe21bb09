"""Read a server's options from its environment."""

import re
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

PREFIX = "HOUSE_"


class OptionError(Exception):
    """An option cannot be used. The message says why, in one sentence."""


def split_list(text: str) -> list[str]:
    """Return the items of a list that is separated by commas."""
    items = [item.strip() for item in text.split(",")]
    return [item for item in items if item]


class Options(BaseModel):
    """How a server is run: `HOUSE_<NAME>` in its environment."""

    model_config = ConfigDict(validate_default=True)

    model: Path = Field(
        "model", description="folder of the model, or a link that is followed"
    )
    database_url: str = Field(
        "sqlite:///predictions.db", description="where predictions are logged"
    )
    api_keys: list[str] = Field(
        "",
        description="keys that give access, separated by commas; empty: no key is "
        "needed",
    )
    allowed_hosts: list[str] = Field(
        "127.0.0.1,localhost", description="names by which this server is called"
    )
    allowed_origins: list[str] = Field(
        "",
        description="web pages that may send requests besides the server's own, as "
        "`https://app.example`, separated by commas",
    )
    retention_days: int = Field(
        0, ge=0, le=36_500, description="how long predictions are kept; 0: for ever"
    )
    max_bytes: int = Field(
        1 << 20, ge=1024, le=64 << 20, description="of a request's body"
    )
    max_rows: int = Field(1000, ge=1, le=100_000, description="houses in a request")
    max_header_bytes: int = Field(
        16 << 10, ge=1024, le=1 << 20, description="of a request's line and headers"
    )
    max_connections: int = Field(
        500,
        ge=1,
        le=100_000,
        description="open at a time; one more closes the one that has idled longest",
    )
    request_seconds: int = Field(
        20, ge=1, le=3600, description="that a request may take to arrive"
    )
    keep_alive_seconds: int = Field(
        5, ge=1, le=3600, description="that an idle connection stays open"
    )
    grace_seconds: int = Field(
        4, ge=0, le=600, description="to finish open requests after SIGTERM"
    )

    @field_validator("api_keys", mode="before")
    @classmethod
    def read_keys(cls, text: str) -> list[str]:
        """Split the keys; refuse a list of none, and keys that are easy to guess."""
        keys = split_list(text)
        if text and not keys:
            raise ValueError("holds no key: name one, or leave the option out")
        if any(len(key) < 16 for key in keys):
            raise ValueError(
                "a key has at least 16 characters; create one with: openssl rand -hex 16"
            )
        return keys

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def read_hosts(cls, text: str) -> list[str]:
        """Split the host names; refuse a list of none."""
        hosts = split_list(text)
        if not hosts:
            raise ValueError("names no host: give the names of this server")
        for host in hosts:
            if not re.fullmatch(r"\*|(\*\.)?[\w${}.-]+", host):
                raise ValueError(
                    f"{host!r} is no name of a host, as house.example or *.example"
                )
        return hosts

    @field_validator("allowed_origins", mode="before")
    @classmethod
    def read_origins(cls, text: str) -> list[str]:
        """Split the origins, each a scheme and a host, in lower case."""
        origins = split_list(text)
        for origin in origins:
            if not re.fullmatch(r"https?://[\w.-]+(:\d{1,5})?", origin):
                raise ValueError(f"{origin!r} is no origin, as https://app.example")
        return origins


def read_options(environ: Mapping[str, str], home: Path) -> Options:
    """Read the options of a server from an environment.

    Args:
        environ: Of the process.
        home: Folder of the program; relative paths start here.

    Raises:
        OptionError: Names the first option that is unknown or cannot be used.
    """
    given = {
        name.removeprefix(PREFIX).lower(): value
        for name, value in environ.items()
        if name.startswith(PREFIX)
    }
    unknown = sorted(given.keys() - Options.model_fields.keys())
    if unknown:
        names = ", ".join(PREFIX + name.upper() for name in Options.model_fields)
        raise OptionError(
            f"{PREFIX}{unknown[0].upper()} is not an option of this server; "
            f"its options are {names}"
        )
    try:
        options = Options(**given)
    except ValidationError as error:
        first = error.errors()[0]
        reason = first["msg"].removeprefix("Value error, ")
        raise OptionError(f"{PREFIX}{first['loc'][0].upper()}: {reason}") from None
    url = options.database_url
    if url.startswith("sqlite:///") and not url.startswith("sqlite:////"):
        url = f"sqlite:///{home / url.removeprefix('sqlite:///')}"
    changes = {"model": home / options.model, "database_url": url}
    return options.model_copy(update=changes)
