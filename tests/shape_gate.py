"""The rules of the house's shape, as pure functions from (relative path, source text) to violations.

Knows nothing of pytest and reads no files; `test_architecture.py` feeds it the tree, `test_shape_gate.py` bad examples.
A path is relative to `src/kilotron`. The home of a file is the first part of its path, without `.py`.
"""

import ast
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath

PACKAGE = "kilotron"

# Lowest first. A home may import homes of a lower line only: not its own line, not above.
RANKS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("trace",),
    ("config", "sampling_params", "async_stream", "tokenization", "kernels", "checkpoints"),
    ("inference_request", "memory", "parallel", "sampling"),
    ("models", "scheduling"),
    ("contexts",),
    ("model_inference_wrappers",),
    ("text_generation_controllers",),
    ("engines",),
    ("coordinator",),
    ("text_generation_server",),
    ("apis",),
    ("cli",),
    ("__init__", "__main__"),
)
RANK_OF_HOME = {home: rank for rank, homes in enumerate(RANKS) for home in homes}

PURE_HOMES = {"errors", "trace", "config", "sampling_params", "inference_request", "scheduling"}
IMPURE_MODULES = {"torch", "asyncio", "zmq"}

DEVICE_HOMES = {"kernels", "config"}
DEVICE_MODULES = ("torch.cuda", "triton")
DEVICE_WORD = re.compile("cuda|amx", re.IGNORECASE)

MAX_FILE_LINES = 600
MAX_FUNCTION_LINES = 60
MAX_COMPLEXITY = 10
MAX_ATTRIBUTES = 15

FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}

UNPICKLER = "checkpoints/restricted_unpickler.py"
PICKLE_MODULES = ("pickle", "_pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve")
# Each of these pickles behind its name, or runs text as code.
UNSAFE_CALLS = ("torch.load", "yaml.load", "eval", "exec", "builtins.eval", "builtins.exec")
PICKLING_METHODS = {
    "send_pyobj", "recv_pyobj",
    "all_gather_object", "broadcast_object_list", "gather_object", "recv_object_list", "scatter_object_list",
    "send_object_list",
}  # fmt: skip
UNSAFE_FLAGS = {"trust_remote_code", "allow_pickle"}

USER_INPUT_HOMES = {
    "apis", "checkpoints", "cli", "config", "coordinator", "inference_request", "sampling_params",
    "text_generation_server", "tokenization",
}  # fmt: skip
BOUNDARY_HOMES = {"apis", "cli", "coordinator", "engines", "text_generation_server"}
BROAD_EXCEPTIONS = {"Exception", "BaseException"}

UNFINISHED_MARK = re.compile(r"\b(TODO|FIXME|XXX)\b|\bNotImplementedError\b")

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
Finding = tuple[int, str]  # line and message; the whole file is line 0
WHOLE_FILE = 0


@dataclass(frozen=True)
class Violation:
    """One rule broken at one place; `symbol` is the dotted name inside the file, empty for the file itself."""

    check: str
    path: str
    symbol: str
    line: int
    message: str

    def __str__(self) -> str:
        symbol = f" {self.symbol}" if self.symbol else ""
        return f"{self.path}:{self.line}:{symbol} [{self.check}] {self.message}"


@dataclass(frozen=True)
class SourceFile:
    """A parsed file and what several rules ask of it."""

    path: str
    source: str
    tree: ast.Module

    @property
    def home(self) -> str:
        return PurePosixPath(self.path).parts[0].removesuffix(".py")

    @cached_property
    def nodes(self) -> list[ast.AST]:
        return list(ast.walk(self.tree))

    @cached_property
    def imports(self) -> list[tuple[str, int]]:
        """Dotted name and line of everything imported: at the top, lazily, for typing, by name through importlib."""
        return [(name, node.lineno) for node in self.nodes for name in _imported_names(node)]

    @cached_property
    def names(self) -> set[tuple[str, int]]:
        """What is imported or named in an expression, aliases written out (`t.cuda` is `torch.cuda`), with its line."""
        inner = {id(node.value) for node in self.nodes if isinstance(node, ast.Attribute)}
        outer = (node for node in self.nodes if isinstance(node, ast.Attribute | ast.Name) and id(node) not in inner)
        return set(self.imports) | {(dotted, node.lineno) for node in outer if (dotted := self._dotted_name(node))}

    @cached_property
    def definitions(self) -> list[tuple[str, FunctionNode | ast.ClassDef]]:
        """Every function and class, however deep, under its dotted name."""
        return list(_definitions(self.tree, ""))

    @cached_property
    def bare_strings(self) -> set[int]:
        """Identities of the strings that stand alone as a statement: docstrings."""
        return {id(node.value) for node in self.nodes if isinstance(node, ast.Expr)}

    @cached_property
    def _aliases(self) -> dict[str, str]:
        aliases: dict[str, str] = {}
        for node in self.nodes:
            if isinstance(node, ast.Import):
                aliases |= {alias.asname: alias.name for alias in node.names if alias.asname}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                aliases |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        return aliases

    def _dotted_name(self, node: ast.expr) -> str:
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name):
            return ""
        return ".".join([self._aliases.get(node.id, node.id), *reversed(parts)])

    def symbol_at(self, line: int) -> str:
        """The innermost function or class around a line."""
        around = [name for name, node in self.definitions if node.lineno <= line <= (node.end_lineno or line)]
        return around[-1] if around else ""


def check_file(path: str, source: str) -> list[Violation]:
    """Everything that is wrong with the shape of one file."""
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        return [Violation("syntax", path, "", error.lineno or 1, str(error))]
    file = SourceFile(path, source, tree)
    return [
        Violation(name, path, file.symbol_at(line), line, message)
        for name, check in CHECKS.items()
        for line, message in check(file)
    ]


def unwaived(violations: list[Violation], waivers: Mapping[tuple[str, str], str]) -> list[Violation]:
    """The violations that no waiver excuses. A waiver names (path, check) or (path::symbol, check)."""
    return [violation for violation in violations if not any(key in waivers for key in _waiver_keys(violation))]


def needless_waivers(violations: list[Violation], waivers: Mapping[tuple[str, str], str]) -> list[tuple[str, str]]:
    """The waivers that excuse nothing any more and must go."""
    needed = {key for violation in violations for key in _waiver_keys(violation)}
    return sorted(set(waivers) - needed)


def complexity_of(function: FunctionNode) -> int:
    """McCabe's number, counted as ruff's C901 does: nested functions add to the one that holds them."""
    return 1 + sum(_decisions(node) for node in ast.walk(function) if node is not function)


def _check_home(file: SourceFile) -> Iterator[Finding]:
    if file.home == "assets":
        yield WHOLE_FILE, "assets holds data, no code"
    elif file.home not in RANK_OF_HOME:
        yield WHOLE_FILE, f"'{file.home}' has no rank; give it one in RANKS, which is a design decision"


def _check_relative_imports(file: SourceFile) -> Iterator[Finding]:
    for node in file.nodes:
        if isinstance(node, ast.ImportFrom) and node.level:
            yield node.lineno, "imports are absolute"


def _check_imports_point_down(file: SourceFile) -> Iterator[Finding]:
    targets: dict[str, tuple[str, int]] = {}  # home -> where it is named first
    for dotted, line in sorted(file.names, key=lambda item: item[1]):
        first, *rest = dotted.split(".")
        if first == PACKAGE and rest:
            targets.setdefault(rest[0], (dotted, line))
    for home, (dotted, line) in targets.items():
        if home == file.home:
            continue
        if home not in RANK_OF_HOME:
            yield line, f"'{dotted}' is in no home of the rank list"
        elif RANK_OF_HOME[home] >= RANK_OF_HOME.get(file.home, -1):
            yield line, f"'{file.home}' may not import '{dotted}': it is not below"


def _check_purity(file: SourceFile) -> Iterator[Finding]:
    if file.home in PURE_HOMES:
        for dotted, line in file.imports:
            if dotted.split(".")[0] in IMPURE_MODULES:
                yield line, f"'{file.home}' is pure and may not import '{dotted}'"


def _check_devices(file: SourceFile) -> Iterator[Finding]:
    if file.home in DEVICE_HOMES:
        return
    found = {(dotted, line) for dotted, line in file.names if _starts_with(dotted, DEVICE_MODULES)}
    found |= {(word, line) for word, line in _words(file) if DEVICE_WORD.search(word)}
    for word, line in sorted(found, key=lambda item: item[1]):
        yield line, f"'{word[:60]}' names a device outside of kernels/"


def _check_file_size(file: SourceFile) -> Iterator[Finding]:
    lines = len(file.source.splitlines())
    if lines > MAX_FILE_LINES:
        yield WHOLE_FILE, f"{lines} lines, at most {MAX_FILE_LINES}: which noun is missing?"


def _check_names(file: SourceFile) -> Iterator[Finding]:
    for part in PurePosixPath(file.path).parts:
        if part.removesuffix(".py").strip("_") in FORBIDDEN_NAMES:
            yield WHOLE_FILE, f"'{part}' says nothing: which noun is missing?"


def _check_function_size(file: SourceFile) -> Iterator[Finding]:
    for _, node in file.definitions:
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        if isinstance(node, FunctionNode) and lines > MAX_FUNCTION_LINES:
            yield node.lineno, f"{lines} lines, at most {MAX_FUNCTION_LINES}"


def _check_complexity(file: SourceFile) -> Iterator[Finding]:
    for _, node in file.definitions:
        if isinstance(node, FunctionNode) and (number := complexity_of(node)) > MAX_COMPLEXITY:
            yield node.lineno, f"complexity {number}, at most {MAX_COMPLEXITY}"


def _check_class_width(file: SourceFile) -> Iterator[Finding]:
    for _, node in file.definitions:
        if isinstance(node, ast.ClassDef):
            names = {child.attr for child in _walk_class(node) if _is_stored_on_self(child)}
            if len(names) > MAX_ATTRIBUTES:
                message = f"{len(names)} attributes on self, at most {MAX_ATTRIBUTES}: {', '.join(sorted(names))}"
                yield node.lineno, message


def _check_unsafe(file: SourceFile) -> Iterator[Finding]:
    if file.path == UNPICKLER:
        return
    for dotted, line in sorted(file.names):
        if _starts_with(dotted, (*PICKLE_MODULES, *UNSAFE_CALLS)):
            yield line, f"'{dotted}' runs what it reads"
    for node in file.nodes:
        if isinstance(node, ast.Attribute) and node.attr in PICKLING_METHODS:
            yield node.lineno, f"'{node.attr}' pickles"
        for flag in _raised_flags(node):
            yield node.lineno, f"'{flag}' must not be switched on"


def _check_asserts(file: SourceFile) -> Iterator[Finding]:
    if file.home in USER_INPUT_HOMES:
        for node in file.nodes:
            if isinstance(node, ast.Assert):
                yield node.lineno, "user input is met with an error of errors.py, not an assert"


def _check_docstring(file: SourceFile) -> Iterator[Finding]:
    if not ast.get_docstring(file.tree):
        yield WHOLE_FILE, "a module says what it owns and what it does not know"


def _check_broad_except(file: SourceFile) -> Iterator[Finding]:
    if file.home in BOUNDARY_HOMES:
        return
    for node in file.nodes:
        if _catches_everything(node):
            yield node.lineno, "only a process or task boundary catches everything"


def _check_unfinished(file: SourceFile) -> Iterator[Finding]:
    for line, text in enumerate(file.source.splitlines(), start=1):
        if mark := UNFINISHED_MARK.search(text):
            yield line, f"'{mark.group()}' is work that is not done"


CHECKS: dict[str, Callable[[SourceFile], Iterator[Finding]]] = {
    "home": _check_home,
    "relative-import": _check_relative_imports,
    "import-rank": _check_imports_point_down,
    "purity": _check_purity,
    "devices": _check_devices,
    "file-size": _check_file_size,
    "name": _check_names,
    "function-size": _check_function_size,
    "complexity": _check_complexity,
    "class-width": _check_class_width,
    "unsafe": _check_unsafe,
    "assert": _check_asserts,
    "docstring": _check_docstring,
    "broad-except": _check_broad_except,
    "unfinished": _check_unfinished,
}


def _waiver_keys(violation: Violation) -> list[tuple[str, str]]:
    return [(violation.path, violation.check), (f"{violation.path}::{violation.symbol}", violation.check)]


def _starts_with(dotted: str, modules: tuple[str, ...]) -> bool:
    return any(dotted == module or dotted.startswith(f"{module}.") for module in modules)


def _imported_names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and not node.level:
        return [f"{node.module}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Call) and _last_name(node.func) in {"import_module", "__import__"}:
        return [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
    return []


def _last_name(node: ast.AST | None) -> str:
    return getattr(node, "attr", None) or getattr(node, "id", "")


def _definitions(node: ast.AST, prefix: str) -> Iterator[tuple[str, FunctionNode | ast.ClassDef]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, FunctionNode | ast.ClassDef):
            yield prefix + child.name, child
            yield from _definitions(child, f"{prefix}{child.name}.")
        else:
            yield from _definitions(child, prefix)


def _words(file: SourceFile) -> Iterator[tuple[str, int]]:
    """Identifiers, imported names and strings with their lines; docstrings and comments may say what they like."""
    for node in file.nodes:
        line = getattr(node, "lineno", 1)
        if isinstance(node, ast.Constant):
            if isinstance(node.value, str) and id(node) not in file.bare_strings:
                yield node.value, line
        elif isinstance(node, ast.Global | ast.Nonlocal):
            yield from ((name, line) for name in node.names)
        else:
            fields = (getattr(node, field, None) for field in ("id", "attr", "name", "arg", "asname", "module"))
            yield from ((word, line) for word in fields if isinstance(word, str))


def _decisions(node: ast.AST) -> int:
    if isinstance(node, ast.Try | ast.TryStar):
        return bool(node.orelse)
    if isinstance(node, ast.Match):
        return -_is_catch_all(node.cases[-1])
    counted = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.FunctionDef, ast.AsyncFunctionDef)
    return isinstance(node, (*counted, ast.match_case))


def _is_catch_all(case: ast.match_case) -> bool:
    return case.guard is None and isinstance(case.pattern, ast.MatchAs) and case.pattern.pattern is None


def _walk_class(node: ast.ClassDef) -> Iterator[ast.AST]:
    waiting: list[ast.AST] = list(node.body)
    while waiting:
        child = waiting.pop()
        if not isinstance(child, ast.ClassDef):
            yield child
            waiting.extend(ast.iter_child_nodes(child))


def _is_stored_on_self(node: ast.AST) -> bool:
    stored = isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    return stored and isinstance(node.value, ast.Name) and node.value.id == "self"


def _raised_flags(node: ast.AST) -> Iterator[str]:
    """Dangerous options given as a keyword or in a dictionary with anything but a plain False or None."""
    pairs: list[tuple[object, ast.expr]] = []
    if isinstance(node, ast.Call):
        pairs = [(keyword.arg, keyword.value) for keyword in node.keywords]
    elif isinstance(node, ast.Dict):
        keys = [getattr(key, "value", None) for key in node.keys]
        pairs = list(zip(keys, node.values, strict=True))
    for name, value in pairs:
        if name in UNSAFE_FLAGS and not (isinstance(value, ast.Constant) and not value.value):
            yield str(name)


def _catches_everything(node: ast.AST) -> bool:
    if isinstance(node, ast.ExceptHandler):
        caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
        return node.type is None or any(_last_name(one) in BROAD_EXCEPTIONS for one in caught)
    if isinstance(node, ast.Call) and _last_name(node.func) == "suppress":
        return any(_last_name(arg) in BROAD_EXCEPTIONS for arg in node.args)
    return False
