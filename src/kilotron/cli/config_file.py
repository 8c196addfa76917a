"""The file given by --config: flags for all commands at its top, and tables such as [generate] for one.

A key that is no flag of any command is refused; a key at the top counts for the commands that have such a flag.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from cyclopts import App
from cyclopts.config import ConfigFromFile, Dict, Json, Toml, Yaml
from cyclopts.exceptions import CycloptsError

from kilotron.cli.failures import UsageError

_FORMATS: dict[str, Callable[..., ConfigFromFile]] = {".toml": Toml, ".yaml": Yaml, ".yml": Yaml, ".json": Json}


def file_sources(path: Path, app: App, commands: Iterable[str]) -> list[Dict]:
    """Where flags that were not given get their values, first match first: the command's table, then the top.

    Args:
        path: the file.
        app: the command tree.
        commands: names of commands, groups in front: "bench latency".

    Raises:
        UsageError: the file is missing or broken, or holds something that no command knows.
    """
    data = _read(path)
    tables = {name: value for name, value in data.items() if isinstance(value, Mapping)}
    flags = {name: value for name, value in data.items() if name not in tables}
    _check_names(path, "table", tables, {name.partition(" ")[0] for name in commands})
    _check_names(path, "flag", flags, {flag for name in commands for flag in _flags_of(app, name)})
    source = str(path)
    return [
        Dict(tables, source=source),
        Dict(flags, source=source, use_commands_as_keys=False, allow_unknown=True),
    ]


def _read(path: Path) -> dict[str, Any]:
    if path.suffix not in _FORMATS:
        raise UsageError(f"--config {path}: the name must end in {', '.join(_FORMATS)}")
    try:
        data = _FORMATS[path.suffix](path, must_exist=True).config
    except FileNotFoundError:
        raise UsageError(f"--config {path}: no such file") from None
    except CycloptsError as error:
        raise UsageError(f"--config {path}: {error}") from error
    if not isinstance(data, dict):
        raise UsageError(f"--config {path}: it must hold flags and tables, not {type(data).__name__}")
    return data


def _check_names(path: Path, kind: str, names: Iterable[str], known: Iterable[str]) -> None:
    spellings = {name.replace("_", "-"): name for name in names}
    for spelling, name in spellings.items():
        if spelling not in known:
            near = difflib.get_close_matches(spelling, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(known))}"
            raise UsageError(f"--config {path}: no command has a {kind} {name!r}; {hint}")


def _flags_of(app: App, command: str) -> set[str]:
    for part in command.split():
        app = app[part]
    arguments = app.assemble_argument_collection()
    names = {name for argument in arguments for name in argument.names if name.startswith("--")}
    return {name.removeprefix("--") for name in names}
