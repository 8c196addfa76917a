"""The commands inside `kilotron chat`: lines that begin with a slash. What they say goes to standard error."""

import difflib
import json
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from kilotron.cli.answer_source import AnswerFigures
from kilotron.cli.chat_session import ChatSession
from kilotron.cli.failures import UsageError
from kilotron.cli.options import SamplingOptions
from kilotron.cli.output import format_table
from kilotron.cli.sampling_layers import ALIASES

_NOT_FOR_CHAT = {"n", "logprobs"}
_SETTABLE = sorted({field.name for field in fields(SamplingOptions)} - _NOT_FOR_CHAT | set(ALIASES))


class _Command(NamedTuple):
    run: Callable[[str], bool]
    """Takes what follows the name; says whether the chat goes on."""
    usage: str
    summary: str


class ChatCommands:
    """What a user can ask of the chat itself."""

    def __init__(self, session: ChatSession) -> None:
        self._session = session
        self._commands = {
            "/help": _Command(self._help, "/help", "this list"),
            "/reset": _Command(self._reset, "/reset", "forget the conversation, keep the system message"),
            "/system": _Command(self._system, "/system [TEXT]", "tell the model what it is; without TEXT, nothing"),
            "/set": _Command(self._set, "/set [NAME [VALUE]]", "change sampling; without VALUE, back to the default"),
            "/stats": _Command(self._stats, "/stats", "tokens, speed, context and memory"),
            "/save": _Command(self._save, "/save FILE", "write the conversation as JSON; /save! FILE overwrites"),
            "/save!": _Command(self._overwrite, "", ""),
            "/exit": _Command(lambda _: False, "/exit", "end; so does Ctrl-D"),
        }

    def run(self, line: str) -> bool:
        """Runs one command; says whether the chat goes on.

        Raises:
            UsageError: there is no such command, or it is used wrongly.
            KilotronError: what it does failed.
        """
        name, _, rest = line.strip().partition(" ")
        command = self._commands.get(name)
        if command is None:
            near = difflib.get_close_matches(name, self._commands, n=1)
            hint = f"did you mean {near[0]}?" if near else "/help lists them"
            raise UsageError(f"there is no command {name}; {hint} (a message that begins with a slash: write two)")
        return command.run(rest.strip())

    def _help(self, rest: str) -> bool:
        _say(format_table([(command.usage, command.summary) for command in self._commands.values() if command.usage]))
        _say(
            "A line that ends in \\ goes on in the next. Ctrl-C stops an answer; twice at the prompt it ends the chat."
        )
        return True

    def _reset(self, rest: str) -> bool:
        self._session.reset()
        _say("the conversation is forgotten")
        return True

    def _system(self, text: str) -> bool:
        self._session.system = text or None
        _say("the system message is set" if text else "there is no system message")
        return True

    def _set(self, rest: str) -> bool:
        name, _, value = rest.partition(" ")
        name = name.lstrip("-").replace("-", "_")
        if not name:
            return self._say_sampling()
        if name not in _SETTABLE:
            near = difflib.get_close_matches(name, _SETTABLE, n=1)
            raise UsageError(
                f"nothing is called {name}; "
                + (f"did you mean {near[0]}?" if near else f"known: {', '.join(_SETTABLE)}")
            )
        name = ALIASES.get(name, name)
        if value.strip():
            changes = {name: _parse_value(value.strip())}
            self._session.source.describe_sampling(self._session.sampling | changes)  # refuses what makes no sense
            self._session.sampling |= changes
        else:
            self._session.sampling.pop(name, None)
        return self._say_sampling()

    def _say_sampling(self) -> bool:
        _say(f"sampling: {self._session.source.describe_sampling(self._session.sampling)}")
        return True

    def _stats(self, rest: str) -> bool:
        session = self._session
        model, *others = session.source.describe(session.messages)
        answer = [] if session.figures is None else _describe_figures(session.figures)
        sampling = ("sampling", session.source.describe_sampling(session.sampling))
        _say(format_table([model, *answer, *others, sampling]))
        return True

    def _save(self, file: str) -> bool:
        return self._write(file, may_overwrite=False)

    def _overwrite(self, file: str) -> bool:
        return self._write(file, may_overwrite=True)

    def _write(self, file: str, *, may_overwrite: bool) -> bool:
        if not file:
            raise UsageError("/save needs a file: /save talk.json")
        path = Path(file).expanduser()
        data = {
            "model": self._session.source.name,
            "messages": self._session.messages,
            "sampling": self._session.sampling,
        }
        try:
            with path.open("w" if may_overwrite else "x", encoding="utf-8") as stream:
                json.dump(data, stream, ensure_ascii=False, indent=2)
                stream.write("\n")
        except FileExistsError:
            raise UsageError(f"{path} exists; /save! {file} overwrites it") from None
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}") from error
        _say(f"saved {len(self._session.messages)} messages to {path}")
        return True


def _describe_figures(figures: AnswerFigures) -> list[tuple[str, str]]:
    rows = []
    if figures.generated_tokens is not None:
        speed = "" if figures.tokens_per_s is None else f", {figures.tokens_per_s:.1f} tokens/s"
        first = "" if figures.first_token_s is None else f", the first after {figures.first_token_s:.3f} s"
        rows.append(("last answer", f"{figures.generated_tokens} tokens{first}{speed}"))
    if figures.prompt_tokens is not None:
        cached = "" if figures.cached_tokens is None else f", {figures.cached_tokens} of them cached"
        rows.append(("its prompt", f"{figures.prompt_tokens} tokens{cached}"))
    return rows


def _parse_value(text: str) -> Any:
    """A number, true, false or a list as in JSON; else the text itself."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _say(text: str) -> None:
    print(text, file=sys.stderr)
