"""`kilotron chat`: a conversation in the terminal, or over a pipe with one message per line; model here or remote."""

import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Any

from kilotron.cli.chat_commands import ChatCommands
from kilotron.cli.chat_session import ChatSession
from kilotron.cli.failures import EXIT_FAILED, UsageError, print_error
from kilotron.cli.loaded_model import check_model_name, open_model
from kilotron.cli.local_answers import LocalAnswers
from kilotron.cli.options import (
    ENGINE,
    PROMPT_GROUP,
    RUN,
    SAMPLING,
    SERVER,
    TEXT,
    EngineOptions,
    Model,
    RunOptions,
    SamplingOptions,
    ServerOptions,
    flag,
)
from kilotron.cli.output import dim, note
from kilotron.cli.signals import Signals
from kilotron.errors import KilotronError


def chat(
    model: Model = None,
    /,
    *,
    system: Annotated[str | None, flag("What the model is told first.", group=PROMPT_GROUP, **TEXT)] = None,
    server: ServerOptions = SERVER,
    sampling: SamplingOptions = SAMPLING,
    run: RunOptions = RUN,
    engine: EngineOptions = ENGINE,
) -> int:
    """Talk with a model.

    Answers appear as they are generated. /help lists the commands; Ctrl-C stops
    an answer, Ctrl-D ends the chat. Without a terminal each line of standard
    input is a message, and the answers go to standard output. With --url a
    server answers; MODEL is then an id there, by default its first one.

    Try:
      kilotron chat
      kilotron chat Qwen/Qwen3-0.6B --system "Answer in one sentence."
      echo "Who was Ada Lovelace?" | kilotron chat ./checkpoint --temperature 0
      kilotron chat --url http://localhost:8000
    """
    check_model_name(model)
    asked = sampling.given()
    if asked.get("n", 1) != 1:
        raise UsageError("a chat has one answer at a time; leave out --n, or use kilotron generate")
    if server.url is not None:
        return _chat_remotely(server, server.url, model, asked, system, engine)
    with open_model(model, engine, run) as loaded, Signals() as signals:
        session = ChatSession(LocalAnswers(loaded), asked, system)
        return _Conversation(session, signals, on_answered=loaded.tell_times).run()


def _chat_remotely(
    server: ServerOptions, url: str, model: str | None, asked: dict[str, Any], system: str | None, engine: EngineOptions
) -> int:
    from kilotron.cli.remote.server_address import server_address
    from kilotron.cli.remote.server_session import ServerSession
    from kilotron.cli.remote_answers import RemoteAnswers

    useless = engine.changed()
    if useless:
        note(f"with --url the server's own options count, not {', '.join(useless)}")
    with ServerSession(server_address(url, server.api_key_file)) as remote, Signals() as signals:
        source = RemoteAnswers(remote, model or remote.first_model())
        source.describe_sampling(asked)  # refuses what makes no sense before anything is typed
        return _Conversation(ChatSession(source, asked, system), signals).run()


class _Conversation:
    """The loop of reading a line and answering it."""

    def __init__(self, session: ChatSession, signals: Signals, on_answered: Callable[[], None] = lambda: None) -> None:
        self._session = session
        self._signals = signals
        self._on_answered = on_answered
        self._commands = ChatCommands(session)
        self._is_terminal = sys.stdin.isatty()
        self._exit_code = 0

    def run(self) -> int:
        """Talks until the end of input, /exit, or Ctrl-C twice at the prompt."""
        if self._is_terminal:
            with suppress(ImportError):
                import readline  # noqa: F401 - gives input() its line editing
            note(f"chatting with {self._session.source.name}; /help for commands, Ctrl-D to end")
        while (text := self._read()) is not None:
            try:
                if not self._take(text):
                    break
            except KilotronError as error:
                print_error(str(error))
                # A person has read it and goes on; a script must hear of it.
                self._exit_code = 0 if self._is_terminal else EXIT_FAILED
        return self._exit_code

    def _take(self, text: str) -> bool:
        if text.startswith("/") and not text.startswith("//"):
            return self._commands.run(text)
        if text.strip():
            self._answer(text.removeprefix("/") if text.startswith("//") else text)
        return True

    def _answer(self, text: str) -> None:
        out = sys.stdout
        is_first = True
        with self._signals.soft() as is_stopped:
            for piece in self._session.answer(text, is_stopped=is_stopped):
                if is_first and self._session.num_dropped:
                    note(f"the context is full; the oldest {self._session.num_dropped} messages were dropped")
                is_first = False
                out.write(piece)
                out.flush()
            if is_stopped():
                out.write(dim(" (stopped)", out) if out.isatty() else "")
        out.write("\n")
        out.flush()
        self._on_answered()

    def _read(self) -> str | None:
        """The next message, its continued lines joined; None at the end."""
        lines: list[str] = []
        while True:
            try:
                line = self._read_line("... " if lines else "> ")
            except EOFError:
                return "\n".join(lines) if lines else None
            except KeyboardInterrupt:
                if not self._is_terminal or self._signals.num_interrupts > 1:
                    raise
                print("\n(Ctrl-C again, or Ctrl-D, ends the chat)", file=sys.stderr)
                lines = []
                continue
            self._signals.forget()
            if not line.endswith("\\"):
                return "\n".join([*lines, line])
            lines.append(line[:-1])

    def _read_line(self, prompt: str) -> str:
        if self._is_terminal:
            return input(prompt)
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.removesuffix("\n")
