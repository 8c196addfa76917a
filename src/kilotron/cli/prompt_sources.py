"""Collects the prompts of a command from flags, files and standard input. Knows no tokenizer and no engine."""

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kilotron.cli.failures import UsageError
from kilotron.cli.options import PromptOptions
from kilotron.errors import SamplingParamsError
from kilotron.sampling_params import SamplingParams

_STDIN = "-"
_FLAG = re.compile("--[a-z][a-z-]+(=.*)?")
_FORMS = ("prompt", "prompt_token_ids", "messages")


@dataclass(frozen=True, kw_only=True)
class PromptSource:
    """One prompt as the user gave it: a text, ids, or messages."""

    where: str
    """For error messages: "prompt 2", "file.jsonl line 3"."""
    prompt: str | Sequence[int] | None = None
    messages: Sequence[Mapping[str, object]] | None = None
    encoder_prompt: str | None = None
    """What an encoder reads beside the prompt; without it an encoder reads the prompt itself."""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """Sampling fields of this prompt alone."""
    id: object = None
    """The user's own name for it, given back with the result."""


def read_prompts(options: PromptOptions, *, command: str) -> list[PromptSource]:
    """All prompts, in the order -p, --prompt-ids, --prompt-file; else standard input as one prompt.

    Raises:
        UsageError: there is none, or a file or a line of it is wrong.
    """
    for text in options.prompt:
        if _FLAG.fullmatch(text):
            raise UsageError(f"-p needs a text, and {text} is a flag; pipe the text in if you really mean it")
    texts = [_read_stdin() if text == _STDIN else text for text in options.prompt]
    sources = [PromptSource(where=f"prompt {index}", prompt=text) for index, text in enumerate(texts, start=1)]
    sources += [PromptSource(where=f"--prompt-ids {ids}", prompt=_parse_ids(ids)) for ids in options.prompt_ids]
    sources = _with_encoder_prompts(sources, options.encoder_prompt)
    if options.prompt_file is not None:
        sources += _read_file(options.prompt_file, is_whole=options.whole_file)
    elif options.whole_file:
        raise UsageError("--whole-file needs --prompt-file FILE")
    if sources:
        return sources
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError(
            f'no prompt; type kilotron {command} -p "Once upon a time", or give --prompt-file FILE, '
            f"or pipe text into kilotron {command}"
        )
    return [PromptSource(where="standard input", prompt=_read_stdin())]


def _with_encoder_prompts(sources: list[PromptSource], encoder_prompts: Sequence[str]) -> list[PromptSource]:
    """One for each prompt, or prompts of nothing where there are none."""
    if not encoder_prompts:
        return sources
    if not sources:
        sources = [PromptSource(where=f"encoder prompt {index + 1}") for index in range(len(encoder_prompts))]
    if len(sources) != len(encoder_prompts):
        raise UsageError(
            f"{len(encoder_prompts)} --encoder-prompt for {len(sources)} prompts; give one for each, or no prompts"
        )
    return [replace(source, encoder_prompt=text) for source, text in zip(sources, encoder_prompts, strict=True)]


def _read_stdin() -> str:
    text = sys.stdin.read()
    if not text:
        raise UsageError("standard input is empty; pipe a text in, or give -p TEXT")
    return text.removesuffix("\n")


def _read_file(path: Path, *, is_whole: bool) -> list[PromptSource]:
    name = "standard input" if str(path) == _STDIN else str(path)
    try:
        text = sys.stdin.read() if str(path) == _STDIN else path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"--prompt-file {path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--prompt-file {path}: {error}") from error
    if is_whole:
        return [PromptSource(where=name, prompt=text)]
    is_jsonl = path.suffix in (".jsonl", ".ndjson") or (str(path) == _STDIN and text.lstrip().startswith("{"))
    sources = []
    for where, line in _lines(name, text):
        sources.append(_parse_line(where, line) if is_jsonl else PromptSource(where=where, prompt=line))
    if not sources:
        raise UsageError(f"{name} has no prompt in it")
    return sources


def _lines(name: str, text: str) -> Iterator[tuple[str, str]]:
    # Not splitlines: a prompt in JSON may hold other line separators.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{name} line {number}", line.removesuffix("\r")


def _parse_line(where: str, line: str) -> PromptSource:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise UsageError(f"{where} is not JSON: {error}") from error
    has_encoder = isinstance(fields, dict) and "encoder_prompt" in fields
    num_forms = sum(form in fields for form in _FORMS) if isinstance(fields, dict) else 0
    if num_forms > 1 or (num_forms == 0 and not has_encoder):
        raise UsageError(f"{where} must be a JSON object with one of {', '.join(_FORMS)}")
    if has_encoder and not isinstance(fields["encoder_prompt"], str):
        raise UsageError(f"{where}: encoder_prompt must be a text")
    sampling = {name: value for name, value in fields.items() if name not in (*_FORMS, "id", "encoder_prompt")}
    try:
        SamplingParams.from_dict(sampling)
    except SamplingParamsError as error:
        raise UsageError(f"{where}: {error}") from error
    prompt = fields.get("prompt", fields.get("prompt_token_ids"))
    if "prompt" in fields and not isinstance(prompt, str):
        raise UsageError(f"{where}: prompt must be a text; token ids go into prompt_token_ids")
    if "prompt_token_ids" in fields and not isinstance(prompt, list):
        raise UsageError(f"{where}: prompt_token_ids must be a list of whole numbers")
    messages = fields.get("messages")
    return PromptSource(
        where=where,
        prompt=prompt,
        messages=messages,
        encoder_prompt=fields.get("encoder_prompt"),
        sampling=sampling,
        id=fields.get("id"),
    )


def _parse_ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.strip("[] ").replace(",", " ").split()]
    except ValueError:
        raise UsageError(f'--prompt-ids must be whole numbers such as "1,2,3", not {text!r}') from None
