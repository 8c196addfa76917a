"""Keeps user text from forging special tokens in a conversation that a chat template renders.

Owns the stand-ins that travel through the template in place of what could forge, and how the rendered text is encoded.
Knows no template and no tokenizer, only their interfaces.
"""

import json
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from kilotron.errors import ChatTemplateError
from kilotron.tokenization.chat_template import Message
from kilotron.tokenization.tokenizer import Tokenizer

# Planes 15 and 16: characters that mean nothing to anybody and that no filter of a template changes.
_PRIVATE_USE = re.compile("[\U000f0000-\U000ffffd\U00100000-\U0010fffd]")
_PLANES = (0xF0000, 0x100000)
_NUM_IN_PLANE = 0xFFFE

Json = object
_Span = tuple[int, int]


def special_spellings(tokenizer: Tokenizer) -> frozenset[str]:
    """How a tokenizer's special tokens are written."""
    return frozenset(tokenizer.token_text(token_id) for token_id in tokenizer.special_ids()) - {""}


@dataclass(frozen=True, kw_only=True)
class ShieldedConversation:
    """What to render in place of a conversation, and how to read what came out."""

    messages: list[Message]
    tools: list[Mapping[str, object]] | None
    documents: list[Mapping[str, object]] | None
    variables: dict[str, object]
    _stand_ins: Mapping[str, str]  # character -> the text it stands for
    _spellings: "re.Pattern[str]"

    def tokenize(self, rendered: str, tokenizer: Tokenizer) -> list[int]:
        """Encodes what the template wrote: its special tokens become tokens, those that users wrote stay text.

        Without forgery in it the ids are those of the text encoded at once.

        Raises:
            InvalidRequestError: the text cannot be encoded.
        """
        text, marked = self._restored(rendered)
        ids: list[int] = []
        for piece, is_plain in self._pieces(text, self._forged(text, marked)):
            ids += tokenizer.tokenize(piece, add_special_tokens=False, parse_special=not is_plain)
        return ids

    def _restored(self, rendered: str) -> tuple[str, list[_Span]]:
        """The text, and where in it the stand-ins were."""
        if not self._stand_ins:
            return rendered, []
        # A template may also have written them the way that `tojson(ensure_ascii=True)` does.
        originals = {**self._stand_ins, **{_in_ascii(key): _in_ascii(text) for key, text in self._stand_ins.items()}}
        pattern = re.compile("|".join(map(re.escape, originals)))
        pieces, marked, length, end = [], [], 0, 0
        for match in pattern.finditer(rendered):
            original = originals[match.group()]
            length += match.start() - end
            pieces += [rendered[end : match.start()], original]
            marked.append((length, length + len(original)))
            length += len(original)
            end = match.end()
        return "".join([*pieces, rendered[end:]]), marked

    def _forged(self, text: str, marked: Sequence[_Span]) -> list[_Span]:
        """Each spelling in the text that users wrote at least a part of, in order and apart from each other."""
        forged: list[_Span] = []
        if marked:
            spans = iter(marked)
            span = next(spans, None)
            for found in _overlapping(self._spellings, text):
                while span is not None and span[1] <= found[0]:
                    span = next(spans, None)
                if span is None:
                    break
                if found[1] <= span[0]:
                    continue
                if forged and found[0] < forged[-1][1]:
                    forged[-1] = (forged[-1][0], max(found[1], forged[-1][1]))
                else:
                    forged.append(found)
        return forged

    def _pieces(self, text: str, forged: Sequence[_Span]) -> Iterator[tuple[str, bool]]:
        """The text in pieces, each with whether it is plain text only.

        What lies between two forgeries and holds no spelling goes with them: fewer cuts, and not as many as a user
        likes to cause.
        """
        runs: list[_Span] = []
        for start, end in forged:
            if runs and not self._spellings.search(text, runs[-1][1], start):
                runs[-1] = (runs[-1][0], end)
            else:
                runs.append((start, end))
        position = 0
        for start, end in runs:
            if position < start:
                yield text[position:start], False
            yield text[start:end], True
            position = end
        if position < len(text) or not runs:
            yield text[position:], False


class UntrustedText:
    """Shields conversations against one tokenizer's special tokens. Made once, shared freely.

    Every string of a conversation is looked at, keys too. A whole spelling gets a stand-in: a character that nothing
    else in the conversation contains, chosen at random for each conversation. So does the beginning of a spelling at
    the end of a string, and the end of one at the beginning, unless it has letters only: a template that writes two
    strings side by side could join them.

    What a template makes by other means is out of reach: by taking text out of the middle of a string, or by writing
    `<|` and `|>` itself around a string that the user chose. Some templates write roles so, and a server must allow
    known roles only.

    Example:
        >>> def encode(untrusted: UntrustedText, messages: list[Message], tokenizer: Tokenizer) -> list[int]:
        ...     shielded = untrusted.shield(messages)
        ...     return shielded.tokenize(tokenizer.apply_chat_template(shielded.messages), tokenizer)
    """

    def __init__(self, spellings: Iterable[str]) -> None:
        """Prepares the search for these spellings."""
        given = sorted({spelling for spelling in spellings if spelling})
        self._spellings = re.compile(_any_of(given) if given else "(?!)")
        # A part of letters only stays: templates compare with words such as "text".
        beginnings = {spelling[:length] for spelling in given for length in range(1, len(spelling))}
        endings = {spelling[start:] for spelling in given for start in range(1, len(spelling))}
        self._beginnings = {part for part in beginnings if not part.isalnum()}
        self._endings = {part for part in endings if not part.isalnum()}
        self._max_length = max(map(len, given), default=0)

    def shield(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        documents: Sequence[Mapping[str, object]] | None = None,
        variables: Mapping[str, object] | None = None,
    ) -> ShieldedConversation:
        """Puts stand-ins where user text could forge a special token; what is given stays as it is.

        Raises:
            ChatTemplateError: something is nested too deeply.
        """
        try:
            stand_ins = _StandIns([messages, tools, documents, variables])
            return ShieldedConversation(
                messages=[self._shield_mapping(message, stand_ins) for message in messages],
                tools=None if tools is None else [self._shield_mapping(tool, stand_ins) for tool in tools],
                documents=None if documents is None else [self._shield_mapping(text, stand_ins) for text in documents],
                variables=self._shield_mapping(variables or {}, stand_ins),
                _stand_ins=stand_ins.originals,
                _spellings=self._spellings,
            )
        except RecursionError as error:
            raise ChatTemplateError("what is given to the chat template is nested too deeply") from error

    def _shield_mapping(self, values: Message, stand_ins: "_StandIns") -> dict[str, object]:
        # Templates know keys by name, so only a whole spelling in one is touched.
        return {
            self._shield_spellings(key, stand_ins): self._shield_value(item, stand_ins) for key, item in values.items()
        }

    def _shield_value(self, value: Json, stand_ins: "_StandIns") -> Json:
        if isinstance(value, str):
            return self._shield_text(value, stand_ins)
        if isinstance(value, Mapping):
            return self._shield_mapping(value, stand_ins)
        if isinstance(value, list | tuple):
            return [self._shield_value(item, stand_ins) for item in value]
        return value

    def _shield_text(self, text: str, stand_ins: "_StandIns") -> str:
        shielded = self._shield_spellings(text, stand_ins)
        return self._shield_beginning(self._shield_end(shielded, stand_ins), stand_ins)

    def _shield_spellings(self, text: str, stand_ins: "_StandIns") -> str:
        return self._spellings.sub(lambda match: stand_ins.stand_in(match.group()), text)

    # Templates trim, so blanks at the ends do not keep two strings apart.

    def _shield_end(self, text: str, stand_ins: "_StandIns") -> str:
        end = len(text.rstrip())
        for length in range(min(self._max_length - 1, end), 0, -1):
            part = text[end - length : end]
            if part in self._beginnings:
                return text[: end - length] + stand_ins.stand_in(part) + text[end:]
        return text

    def _shield_beginning(self, text: str, stand_ins: "_StandIns") -> str:
        start = len(text) - len(text.lstrip())
        for length in range(min(self._max_length - 1, len(text) - start), 0, -1):
            part = text[start : start + length]
            if part in self._endings:
                return text[:start] + stand_ins.stand_in(part) + text[start + length :]
        return text


class _StandIns:
    """The stand-ins of one conversation; each stands for one text."""

    def __init__(self, conversation: Json) -> None:
        self.originals: dict[str, str] = {}
        self._by_original: dict[str, str] = {}
        self._taken: set[str] = set()
        for text in _strings(conversation):
            if not text.isascii():
                self._taken.update(_PRIVATE_USE.findall(text))

    def stand_in(self, original: str) -> str:
        if original not in self._by_original:
            if len(self._taken) >= len(_PLANES) * _NUM_IN_PLANE // 2:
                raise ChatTemplateError("the conversation uses too many private-use characters of Unicode")
            character = _random_character()
            while character in self._taken:
                character = _random_character()
            self._taken.add(character)
            self.originals[character] = original
            self._by_original[original] = character
        return self._by_original[original]


def _random_character() -> str:
    return chr(secrets.choice(_PLANES) + secrets.randbelow(_NUM_IN_PLANE))


def _strings(value: Json) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


def _in_ascii(text: str) -> str:
    return json.dumps(text)[1:-1]


def _overlapping(pattern: "re.Pattern[str]", text: str) -> Iterator[_Span]:
    """Where a spelling begins, with the longest that begins there, also inside of another."""
    match = pattern.search(text)
    while match is not None:
        yield match.span()
        match = pattern.search(text, match.start() + 1)


def _any_of(texts: Sequence[str]) -> str:
    """A pattern for any of these texts, the longest first.

    Written as a tree of beginnings, so that trying a place costs the length of a text and not the number of texts.

    Args:
        texts: Sorted, different and not all empty.
    """
    beginning = _common_beginning(texts[0], texts[-1])
    rests = [text[len(beginning) :] for text in texts]
    is_optional = rests[0] == ""
    groups: dict[str, list[str]] = {}
    for rest in rests:
        if rest:
            groups.setdefault(rest[0], []).append(rest)
    if not groups:
        return re.escape(beginning)
    tree = "|".join(_any_of(group) for group in groups.values())
    return f"{re.escape(beginning)}(?:{tree}){'?' if is_optional else ''}"


def _common_beginning(first: str, second: str) -> str:
    length = 0
    while length < min(len(first), len(second)) and first[length] == second[length]:
        length += 1
    return first[:length]
