"""The tree drawn in the docstring of `errors` is the tree there is."""

import builtins
import inspect
import pickle
import re

import pytest

from kilotron import errors

LINE = re.compile(
    r"^(?P<branch>(?:\|   |    )*(?:\|-- |`-- ))(?P<name>\w+) +(?:\((?P<builtin>\w+)\))? *(?P<meaning>\S.*)$"
)


def drawn_classes() -> dict[str, tuple[str, str | None]]:
    """Name -> name of the parent and of the built-in class beside it."""
    drawn: dict[str, tuple[str, str | None]] = {}
    parents = ["KilotronError"]
    for line in (errors.__doc__ or "").splitlines():
        if (match := LINE.match(line)) is not None:
            depth = len(match["branch"]) // 4
            drawn[match["name"]] = (parents[depth - 1], match["builtin"])
            parents[depth:] = [match["name"]]
    return drawn


def classes() -> dict[str, type]:
    return {
        name: member
        for name, member in vars(errors).items()
        if inspect.isclass(member) and member.__module__ == errors.__name__
    }


def test_every_drawn_class_exists_and_every_class_is_drawn() -> None:
    assert {*drawn_classes(), "KilotronError"} == set(classes())


@pytest.mark.parametrize(("name", "bases"), drawn_classes().items())
def test_class_has_the_bases_that_are_drawn(name: str, bases: tuple[str, str | None]) -> None:
    parent, builtin = bases
    expected = (getattr(errors, parent), *([getattr(builtins, builtin)] if builtin else []))
    assert getattr(errors, name).__bases__ == expected


@pytest.mark.parametrize("name", sorted(classes()))
def test_message_is_shown_as_it_was_given_and_survives_a_process_boundary(name: str) -> None:
    error = classes()[name]("it's this value; do that")
    assert str(error) == str(pickle.loads(pickle.dumps(error))) == "it's this value; do that"
    assert error.__class__.__doc__


def test_error_without_a_message_can_be_shown() -> None:
    assert [str(error()) for error in classes().values()] == [""] * len(classes())
