"""Reads the files a Hugging Face tokenizer folder consists of, with the precedence transformers 5 gives them.

tokenizer.json is the truth about encoding, post-processor (what `add_special_tokens` adds) included: `add_bos_token`
and `add_eos_token` in tokenizer_config.json describe that post-processor and change nothing. The other files name the
special tokens, add tokens the first one lacks, and bring chat templates. Knows nothing of how text is made from ids.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from kilotron.errors import TokenizerError

TOKENIZER_JSON = "tokenizer.json"
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True, kw_only=True)
class TokenizerFiles:
    """What the files of one folder say."""

    backend: Backend  # encodes and knows the vocabulary, all added tokens included
    special_tokens: Mapping[str, str]  # "bos_token" -> "<s>", and any other name the files use
    chat_templates: Mapping[str, str]  # by name, "default" for the usual one


def read_tokenizer_files(folder: Path) -> TokenizerFiles:
    """Reads a folder with a tokenizer.json.

    Args:
        folder: The folder.

    Raises:
        TokenizerError: a file is missing, is not JSON, or says what the `tokenizers` library does not know.
    """
    config = _read_object(folder / "tokenizer_config.json")
    backend = parse_backend(_read_text(folder / TOKENIZER_JSON), str(folder / TOKENIZER_JSON))
    backend.no_truncation()
    backend.no_padding()
    in_backend = backend.get_added_tokens_decoder()
    if "added_tokens_decoder" in config:
        declared = _declared_tokens(config["added_tokens_decoder"])
    else:  # the layout before 2023
        config |= {key: value for key, value in _read_object(folder / "special_tokens_map.json").items() if value}
        declared = _legacy_added_tokens(folder / "added_tokens.json", config) | in_backend
    special_tokens = {
        key: spelling for key, value in config.items() if key.endswith("_token") and (spelling := _spelling(value))
    }
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or ()
    if isinstance(extra, Mapping):
        special_tokens |= {str(key): spelling for key, value in extra.items() if (spelling := _spelling(value))}
        extra = ()
    specials = [*_values_of(config, special_tokens), *(extra if isinstance(extra, list) else ())]
    _add_missing_tokens(backend, in_backend, declared, specials)
    return TokenizerFiles(
        backend=backend, special_tokens=special_tokens, chat_templates=_read_chat_templates(folder, config)
    )


def parse_backend(description: str, origin: str) -> Backend:
    """Builds a tokenizer from the text of a tokenizer.json.

    Args:
        description: The text.
        origin: Where it comes from, for the error message.

    Raises:
        TokenizerError: the library cannot make a tokenizer of it.
    """
    try:
        return Backend.from_str(description)
    except Exception as error:  # the library raises bare Exception
        raise TokenizerError(f"{origin} cannot be read by tokenizers: {error}") from error


def _read_object(path: Path) -> dict[str, object]:
    """A JSON object out of a file that need not exist."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise TokenizerError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise TokenizerError(f"{path} must hold a JSON object, not a {type(content).__name__}")
    return content


def _spelling(value: object) -> str | None:
    """A token is written as its spelling, or as an object with flags."""
    content = value.get("content") if isinstance(value, Mapping) else value
    return content if isinstance(content, str) and content else None


def _added_token(value: object) -> AddedToken:
    spelling = _spelling(value)
    if spelling is None:
        raise TokenizerError(f"a token must be a string or an object with 'content', not {value!r}")
    flags = {key: bool(value[key]) for key in _FLAGS if key in value} if isinstance(value, Mapping) else {}
    return AddedToken(spelling, **flags)


def _declared_tokens(decoder: object) -> dict[int, AddedToken]:
    if not isinstance(decoder, Mapping) or not all(str(key).isdecimal() for key in decoder):
        raise TokenizerError("added_tokens_decoder in tokenizer_config.json must map ids to tokens")
    return {int(key): _added_token(value) for key, value in decoder.items()}


def _legacy_added_tokens(path: Path, config: Mapping[str, object]) -> dict[int, AddedToken]:
    extra = config.get("additional_special_tokens")
    values = [value for key, value in config.items() if key.endswith("_token")]
    special = {_spelling(value) for value in [*values, *(extra if isinstance(extra, list) else ())]}
    declared = {}
    for spelling, token_id in _read_object(path).items():
        if not isinstance(token_id, int):
            raise TokenizerError(f"{path} must map tokens to ids, not to {token_id!r}")
        is_special = spelling in special
        declared[token_id] = AddedToken(spelling, normalized=not is_special, special=is_special)
    return declared


def _values_of(config: Mapping[str, object], special_tokens: Mapping[str, str]) -> list[object]:
    """The named tokens with their flags, where the file gives any."""
    return [config.get(key) or spelling for key, spelling in special_tokens.items()]


def _add_missing_tokens(
    backend: Backend,
    in_backend: Mapping[int, AddedToken],
    declared: Mapping[int, AddedToken],
    specials: Iterable[object],
) -> None:
    # Compared with all flags: adding a known token again gives it the flags of the configuration.
    known = {repr(token) for token in in_backend.values()}
    missing = [declared[token_id] for token_id in sorted(declared) if repr(declared[token_id]) not in known]
    spellings = {token.content for token in (*in_backend.values(), *missing)}
    named = set()
    for value in specials:
        token = _added_token(value)
        named.add(token.content)
        if token.content not in spellings:
            spellings.add(token.content)
            # normalized follows special unless the file says otherwise, so both are set together.
            flags = {"normalized": False, **(value if isinstance(value, Mapping) else {}), "special": True}
            missing.append(_added_token({**flags, "content": token.content}))
    for token in missing:
        token.special = token.special or token.content in named
    if missing:
        backend.add_tokens(missing)


def _read_chat_templates(folder: Path, config: Mapping[str, object]) -> dict[str, str]:
    """Files of their own replace what the configuration says; chat_template.json is the oldest layout."""
    templates = {path.stem: _read_text(path) for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    if (folder / "chat_template.jinja").is_file():
        templates["default"] = _read_text(folder / "chat_template.jinja")
    if templates:
        return templates
    declared = config.get("chat_template") or _read_object(folder / "chat_template.json").get("chat_template")
    return named_templates(declared)


def named_templates(declared: object) -> dict[str, str]:
    """Templates by name, from any of the ways they are declared: one source, a mapping, or a list of name and source.

    Args:
        declared: The `chat_template` of a configuration, or `None`.

    Raises:
        TokenizerError: it is none of these.
    """
    if not declared:
        return {}
    if isinstance(declared, str):
        return {"default": declared}
    if isinstance(declared, list) and all(isinstance(item, Mapping) for item in declared):
        declared = {item.get("name"): item.get("template") for item in declared}
    if isinstance(declared, Mapping) and all(isinstance(item, str) for pair in declared.items() for item in pair):
        return dict(declared)
    raise TokenizerError("chat_template must be a string, or a list of objects with 'name' and 'template'")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{path} cannot be read: {error}") from error
