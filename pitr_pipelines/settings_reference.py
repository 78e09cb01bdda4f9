"""The page that lists every setting, made from the models that read them, so that it cannot be wrong.

    python -m pitr_pipelines.settings_reference > docs/settings.md

A pure function of the models in `settings`, `offsite_settings` and `alert_settings`: it reads no pitr.yaml,
and writes to standard output only. A test compares the page in docs/ with it.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from pitr_pipelines.alert_settings import Variable
from pitr_pipelines.dagster_settings import Link, Owner
from pitr_pipelines.offsite_settings import TimeOfDay, Url, Zone
from pitr_pipelines.settings import Cron, Dsn, Query, Settings, TimeZone

_HEAD = """\
# Settings

<!-- Written by `python -m pitr_pipelines.settings_reference > docs/settings.md`. Do not edit. -->

Everything that `pitr.yaml` may hold. The file is `./pitr.yaml`, or the one that the environment variable
`PITR_CONFIG` names, or that `--config` does. Relative paths are taken from its directory. A key that is not
listed here is refused. The [pitr.yaml](../pitr.yaml) of this repository is a commented example; it names
every key.

No setting holds a secret: passwords, tokens and credentials come from the environment or from files of their
own ([security.md](security.md)).
"""

_KINDS = {
    TimeZone: "time zone, such as Europe/Paris",
    Zone: "time zone, such as Europe/Paris",
    Cron: "cron expression of five fields",
    Dsn: "connection string",
    Query: "SQL",
    Link: "address (http or https)",
    Owner: "e-mail address or team:NAME",
    Url: "address (http or https)",
    TimeOfDay: 'time of day, in quotes: "06:00"',
    Variable: "name of an environment variable",
}
_WORDS_OF_VALIDATORS = {get_args(kind)[1]: words for kind, words in _KINDS.items()}
_WORDS_OF_TYPES: dict[Any, str] = {
    bool: "true or false",
    int: "whole number",
    float: "number",
    str: "text",
    Path: "path",
    date: "date",
}


@dataclass(frozen=True, slots=True)
class Key:
    """One setting. `path` is how it is reached: `databases.NAME.dsn`; a list's entries are `[]`."""

    path: str
    takes: str
    default: str
    meaning: str
    section: type[BaseModel] | None = None
    """The model of what stands below it, if anything does."""


def keys(model: type[BaseModel], within: str = "") -> Iterator[Key]:
    """Yield the settings of `model`, in its order, without those below them."""
    for name, field in model.model_fields.items():
        below, many = _below(field.annotation)
        default = _default(field, below)
        meaning = field.description or ""
        if default == "none":
            # What follows from elsewhere has its words in the description.
            meaning, _, words = meaning.partition("; default: ")
            default = words or default
        takes = {"": "settings", "dict": "a map: name to settings", "list": "a list of settings"}[many]
        yield Key(
            path=f"{within}{name}",
            takes=takes if below else _takes(field.annotation, tuple(field.metadata)),
            default=default,
            meaning=meaning,
            section=below,
        )


def all_keys(model: type[BaseModel] = Settings, within: str = "") -> Iterator[Key]:
    """Yield every setting, each followed by those below it."""
    for key in keys(model, within):
        yield key
        if key.section is not None:
            yield from all_keys(key.section, f"{_place(key)}.")


def reference() -> str:
    """Return the page, in Markdown."""
    parts = [_HEAD, _table(list(keys(Settings)))]
    for key in all_keys():
        if key.section is not None:
            place = _place(key)
            meaning = key.meaning[:1].upper() + key.meaning[1:]
            parts.append(f"## `{place}`\n\n{meaning}.\n")
            parts.append(_table(list(keys(key.section, f"{place}."))))
    return "\n".join(parts)


def _place(key: Key) -> str:
    suffix = {"a map: name to settings": ".NAME", "a list of settings": "[]"}.get(key.takes, "")
    return key.path + suffix


def _table(rows: list[Key]) -> str:
    lines = ["| key | takes | default | meaning |", "| --- | --- | --- | --- |"]
    for key in rows:
        takes = key.takes
        if key.section is not None:
            takes = f"[{takes}](#{_anchor(_place(key))})"
        name = key.path.rsplit(".", 1)[-1]
        cells = (f"`{name}`", takes, key.default, key.meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _anchor(heading: str) -> str:
    return "".join(letter for letter in heading.lower() if letter.isalnum() or letter in "_-")


def _default(field: FieldInfo, below: type[BaseModel] | None) -> str:
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined or value is None or value in ((), {}, ""):
        return "none"
    if below is not None:
        return "as below"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _below(annotation: Any) -> tuple[type[BaseModel] | None, str]:
    """Return the model that an annotation leads to, if any, and whether by a dict or a list."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        for choice in get_args(annotation):
            if choice is not type(None) and _below(choice)[0]:
                return _below(choice)
        return None, ""
    if origin is dict:
        return _below(get_args(annotation)[1])[0], "dict"
    if origin is tuple:
        return _below(get_args(annotation)[0])[0], "list"
    is_model = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return (annotation if is_model else None), ""


def _takes(annotation: Any, metadata: tuple[Any, ...] = ()) -> str:
    """Say in a user's words which values fit."""
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *more = get_args(annotation)
        return _takes(inner, (*more, *metadata))
    if origin in (Union, types.UnionType):
        choices = [choice for choice in get_args(annotation) if choice is not type(None)]
        return ", ".join(_takes(choice, metadata if len(choices) == 1 else ()) for choice in choices)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if origin is tuple:
        return f"list: {_takes(get_args(annotation)[0])}"
    if origin is dict:
        name, value = get_args(annotation)
        return f"map: {_takes(name)} to {_takes(value)}{_bounds(metadata)}"
    for known in metadata:
        if known in _WORDS_OF_VALIDATORS:
            return _WORDS_OF_VALIDATORS[known]
    return _WORDS_OF_TYPES[annotation] + _bounds(metadata)


def _bounds(metadata: tuple[Any, ...]) -> str:
    said = []
    for bound in metadata:
        if isinstance(bound, Ge):
            said.append(f"{bound.ge} or more")
        elif isinstance(bound, Gt):
            said.append(f"more than {bound.gt}")
        elif isinstance(bound, Le):
            said.append(f"at most {bound.le}")
        elif isinstance(bound, Lt):
            said.append(f"less than {bound.lt}")
        elif isinstance(bound, MaxLen):
            said.append(f"at most {bound.max_length} long")
    return "".join(f", {words}" for words in said)


if __name__ == "__main__":
    print(reference(), end="")
