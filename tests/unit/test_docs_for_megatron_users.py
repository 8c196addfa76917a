"""docs/for-megatron-users.md names nothing of kilotron's that does not exist: names, flags, fields, routes, files."""

import ast
import importlib
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

import kilotron
from kilotron.cli.app import COMMANDS, build_app
from kilotron.text_generation_server import app as server

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "for-megatron-users.md"
TEXT = DOCUMENT.read_text(encoding="utf-8")
CONSOLE = [line.removeprefix("$ ") for line in TEXT.splitlines() if line.startswith("$ kilotron ")]
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
CODE = re.compile(r"`([^`]+)`")
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z_-]*")
NAME = re.compile(r"\bkilotron(?:\.\w+)+")
FIELD = re.compile(r"(?<!\.)\b(SamplingParams|InferenceConfig|ServeConfig)\.(\w+)")
ROUTE = re.compile(r"(GET|PUT|POST) (/\S+)")
PROSE = TEXT[TEXT.index("## What behaves differently") :]


def our_cells() -> Iterator[str]:
    """The cells of tables below "here" and "what to know"; those of Megatron's side name what is not ours."""
    ours: list[int] = []
    for line in TEXT.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if cells and not set(line) <= set("|- ") and not ours:
            ours = [index for index, cell in enumerate(cells) if cell in ("here", "what to know", "`src/kilotron/`")]
            assert ours, line
        elif cells and not set(line) <= set("|- "):
            yield from (cells[index] for index in ours)
        elif not cells:
            ours = []


OURS = [code for cell in our_cells() for code in CODE.findall(cell)]


@cache
def flags_of(command: str) -> frozenset[str]:
    """Those that a command takes, in every spelling."""
    part = build_app()
    for name in command.split():
        part = part[name]
    return frozenset(name for argument in part.assemble_argument_collection() for name in argument.names)


def resolve(name: str) -> Any:
    """`kilotron.a.b` as a module, or as what the module before it holds."""
    value: Any = kilotron
    for depth, part in enumerate(name.split(".")[1:], start=2):
        if not hasattr(value, part):
            importlib.import_module(".".join(name.split(".")[:depth]))
        value = getattr(value, part)
    return value


def command_of(words: str) -> str:
    """The command that a line runs, such as "bench serve"."""
    rest = words.removeprefix("kilotron ")
    return next(name for name in sorted(COMMANDS, key=len, reverse=True) if rest == name or rest.startswith(name + " "))


def test_the_tables_were_found() -> None:
    assert len(OURS) > 100


@pytest.mark.parametrize("name", sorted(set(NAME.findall(TEXT))))
def test_a_name_exists(name: str) -> None:
    resolve(name)


@pytest.mark.parametrize(("owner", "field"), sorted({pair for code in OURS for pair in FIELD.findall(code)}))
def test_a_field_exists(owner: str, field: str) -> None:
    found = getattr(kilotron, owner)
    assert is_dataclass(found)
    assert field in {each.name for each in fields(found)}


@pytest.mark.parametrize("line", sorted({code for code in [*OURS, *CONSOLE] if code.startswith("kilotron ")}))
def test_a_command_and_its_flags_exist(line: str) -> None:
    assert set(FLAG.findall(line)) <= flags_of(command_of(line))


@pytest.mark.parametrize("flag", sorted({flag for code in OURS for flag in FLAG.findall(code)}))
def test_a_flag_exists_on_some_command(flag: str) -> None:
    assert any(flag in flags_of(command) for command in COMMANDS)


@pytest.mark.parametrize(
    "route", sorted({route for code in [*OURS, *CODE.findall(PROSE)] for route in ROUTE.findall(code)})
)
def test_a_route_exists(route: tuple[str, str]) -> None:
    routes = server.build_app(Mock(), Mock(), kilotron.ServeConfig(), None).routes
    method, path = route
    assert (method, path) in {(each.method, each.path.replace("{request_id}", "{id}")) for each in routes}


def test_the_python_example_imports_what_there_is() -> None:
    examples = [code for language, code in BLOCK.findall(TEXT) if language == "python"]
    imported = [node for code in examples for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)]
    assert imported
    for node in imported:
        assert all(hasattr(importlib.import_module(str(node.module)), alias.name) for alias in node.names)


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\btests/[\w./-]+", TEXT))))
def test_a_file_of_ours_is_there(path: str) -> None:
    assert (ROOT / path.rstrip(".")).exists()


@pytest.mark.parametrize("path", sorted({code for code in OURS if re.fullmatch(r"[a-z_]+/[\w/.]*", code)}))
def test_a_place_in_the_sources_is_there(path: str) -> None:
    assert (ROOT / "src" / "kilotron" / path).exists()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)]+)\)", TEXT))))
def test_a_link_leads_somewhere(target: str) -> None:
    file, _, heading = target.partition("#")
    text = (DOCUMENT.parent / file).read_text(encoding="utf-8") if file else TEXT
    headings = [
        re.sub(r"[^\w -]", "", line).strip().lower().replace(" ", "-") for line in text.splitlines() if line[:1] == "#"
    ]
    assert not heading or heading in headings
