"""The shape gate: every source file keeps the rules of `shape_gate.py`, or has a waiver that says why not."""

from pathlib import Path

import pytest

from shape_gate import PACKAGE, Violation, check_file, needless_waivers, unwaived

SOURCE_ROOT = Path(__file__).parents[1] / "src" / PACKAGE

# (path or path::symbol, check) -> reason. A path is relative to src/kilotron, a symbol is a dotted name inside the
# file, the check is the word in brackets in the gate's message. When a limit hurts, a noun is missing: find it before
# you write a line here. A waiver that excuses nothing fails the gate.
WAIVERS: dict[tuple[str, str], str] = {
    (
        "tokenization/tokenizer_files.py::parse_backend",
        "broad-except",
    ): "the tokenizers library raises bare Exception for a file it cannot parse; it becomes a TokenizerError",
}


def paths_of_sources() -> list[str]:
    return sorted(path.relative_to(SOURCE_ROOT).as_posix() for path in SOURCE_ROOT.rglob("*.py"))


def violations_of(path: str) -> list[Violation]:
    return check_file(path, (SOURCE_ROOT / path).read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", paths_of_sources())
def test_file_keeps_the_shape_of_the_house(path: str) -> None:
    violations = unwaived(violations_of(path), WAIVERS)

    assert not violations, "\n" + "\n".join(map(str, violations))


def test_every_waiver_is_still_needed() -> None:
    violations = [violation for path in paths_of_sources() for violation in violations_of(path)]

    assert needless_waivers(violations, WAIVERS) == []


def test_every_waiver_gives_a_reason() -> None:
    assert [where for where, reason in WAIVERS.items() if len(reason.split()) < 4] == []
