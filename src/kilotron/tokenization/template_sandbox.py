"""The jinja2 environment in which chat templates run: what they may call, and how far they may go.

Follows the contract of transformers, so that a published template renders to the same text. Knows nothing of messages.
Imports jinja2, so it is itself imported when the first template is rendered.
"""

import json
import threading
import time
from datetime import datetime
from importlib.metadata import version
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from kilotron.errors import ChatTemplateError

_OLDEST_SAFE_JINJA2 = (3, 1, 6)  # before that the sandbox can be left
_MAX_POWER_BITS = 4096


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """An environment that templates cannot leave, change, or keep busy for ever.

    Every turn of a loop and every call of a macro looks at the clock, and `+`, `*` and `**` refuse to make huge values.
    """

    intercepted_binops = frozenset({"+", "*", "**"})

    def __init__(self, max_length: int) -> None:
        """Builds the environment.

        Args:
            max_length: The longest string or list that an operator may make.

        Raises:
            ChatTemplateError: the installed jinja2 is too old to be safe.
        """
        installed = version("jinja2")
        if tuple(int(part) for part in installed.split(".")[:3] if part.isdigit()) < _OLDEST_SAFE_JINJA2:
            raise ChatTemplateError(f"chat templates need jinja2>=3.1.6, but {installed} is installed: upgrade it")
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols])
        self._max_length = max_length
        self._rendering = threading.local()  # one template may be rendered by several threads at a time
        self.filters["tojson"] = _tojson
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now
        self.globals["dict"] = _TemplateDict()
        self.globals["namespace"] = _TemplateNamespace

    def set_deadline(self, deadline: float) -> None:
        """Sets when rendering in this thread must be over, on the clock of `time.monotonic`."""
        self._rendering.deadline = deadline

    def check_deadline(self) -> None:
        """Called from within templates, see `_parse`.

        Raises:
            SecurityError: it is too late.
        """
        if time.monotonic() > self._rendering.deadline:
            raise SecurityError("the chat template takes too long")

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """jinja2's hook for the operators named in `intercepted_binops`."""
        if operator == "**":
            if isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > _MAX_POWER_BITS:
                raise SecurityError("the chat template computes a number that is too large")
        elif _length_of_result(operator, left, right) > self._max_length:
            raise SecurityError(f"the chat template makes a value of more than {self._max_length} items")
        return super().call_binop(context, operator, left, right)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = Parser(self, source, name, filename).parse()
        for node in template.find_all((nodes.For, nodes.Macro, nodes.CallBlock)):
            if isinstance(node, (nodes.For, nodes.Macro, nodes.CallBlock)):  # for mypy: find_all promises less
                check = nodes.Call(nodes.EnvironmentAttribute("check_deadline"), [], [], None, None)
                node.body.insert(0, nodes.ExprStmt(check, lineno=node.lineno))
        template.set_environment(self)
        template.set_lineno(1)  # of the new nodes only; others keep theirs
        return template


class _GenerationTag(Extension):
    """`{% generation %}` marks what an assistant wrote, for training; here its content is just text."""

    tags = {"generation"}  # noqa: RUF012  the type jinja2 declares

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

    def _content(self, caller: Macro) -> str:
        return caller()


class _TemplateDict:
    """`dict` without the attributes of a class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args, **kwargs)


class _TemplateNamespace(Namespace):
    """`namespace` that stores no names with a leading underscore, by which the sandbox could be left."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        # Not "self" in the list: it may be one of the names to store.
        self, *given = args
        attributes = dict(*given, **kwargs)
        for name in attributes:
            _refuse_underscore(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_underscore(name)
        super().__setitem__(name, value)


def _refuse_underscore(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a chat template may not store the name {name!r} in a namespace")


def _length_of_result(operator: str, left: Any, right: Any) -> int:
    if operator == "+":
        return len(left) + len(right) if hasattr(left, "__len__") and hasattr(right, "__len__") else 0
    if isinstance(left, int):
        left, right = right, left
    return len(left) * right if hasattr(left, "__len__") and isinstance(right, int) else 0


def _tojson(
    value: Any,
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002  templates may give these by position
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002
) -> str:
    """JSON as models were trained on it; jinja2's own filter escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)
