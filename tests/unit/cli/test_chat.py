"""Tests of `kilotron chat`: the conversation, its commands, and the end of the context."""

import json
import os
import signal
from pathlib import Path

import pytest

from kilotron.cli.chat_session import ChatSession
from kilotron.cli.loaded_model import LoadedModel
from kilotron.cli.local_answers import LocalAnswers
from kilotron.cli.signals import Signals
from kilotron.errors import PromptTooLongError
from unit.cli.conftest import Command
from unit.cli.tiny_checkpoint import write_tiny_checkpoint

SHORT = ("--max-tokens", "4", "--temperature", "0", "--ignore-eos")


def never() -> bool:
    return False


@pytest.fixture(scope="module")
def loaded(checkpoint: str) -> LoadedModel:
    from kilotron.apis.llm import MegatronLLM
    from kilotron.cli.options import RUN

    return LoadedModel(MegatronLLM(checkpoint, max_requests=2), "tiny", RUN, None)


def make_session(loaded: LoadedModel, **sampling: object) -> ChatSession:
    return ChatSession(
        LocalAnswers(loaded), {"num_tokens_to_generate": 8, "temperature": 0.0, "ignore_eos": True} | sampling
    )


def test_each_line_of_a_pipe_gets_an_answer_on_standard_output(command: Command, checkpoint: str) -> None:
    outcome = command("chat", checkpoint, *SHORT, stdin="hello\nand you?\n")

    assert outcome.code == 0
    assert len(outcome.out.rstrip("\n")) >= 4
    assert outcome.err == ""


def test_a_backslash_joins_lines_into_one_message(command: Command, checkpoint: str, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    command("chat", checkpoint, *SHORT, stdin=f"one\\\ntwo\n/save {file}\n")

    assert json.loads(file.read_text())["messages"][0] == {"role": "user", "content": "one\ntwo"}


def test_saving_needs_an_exclamation_mark_to_overwrite(command: Command, checkpoint: str, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    file.write_text("precious")

    outcome = command("chat", checkpoint, *SHORT, stdin=f"/save {file}\n")
    assert outcome.code == 1
    assert "/save!" in outcome.err
    assert file.read_text() == "precious"

    assert command("chat", checkpoint, *SHORT, stdin=f"/save! {file}\n").code == 0
    assert json.loads(file.read_text())["messages"] == []


def test_commands_speak_on_standard_error_only(command: Command, checkpoint: str) -> None:
    outcome = command(
        "chat", checkpoint, stdin="/help\n/stats\n/set\n/set top-p 0.5\n/system Be brief.\n/reset\n/exit\nx\n"
    )

    assert outcome.code == 0
    assert outcome.out == ""
    for expected in ("/save FILE", "0 of 128 tokens", "temperature=0.5, top_p=0.9", "top_p=0.5", "forgotten"):
        assert expected in outcome.err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/statz", "did you mean /stats?"),
        ("/set top_pp 1", "did you mean top_p?"),
        ("/set temperature hot", "temperature must be a number"),
        ("/set top_p 7", "top_p"),
        ("/set n 2", "nothing is called n"),
        ("/save", "needs a file"),
    ],
)
def test_a_wrong_command_is_told_and_the_chat_goes_on(
    command: Command, checkpoint: str, line: str, message: str
) -> None:
    outcome = command("chat", checkpoint, *SHORT, stdin=f"{line}\nhello\n")

    assert outcome.code == 1  # over a pipe nobody reads along
    assert message in outcome.err
    assert outcome.out.strip("\n")


def test_a_value_that_was_set_can_go_back_to_the_default(command: Command, checkpoint: str) -> None:
    outcome = command("chat", checkpoint, stdin="/set temperature 0.25\n/set temperature\n")

    first, second = outcome.err.splitlines()
    assert "temperature=0.25" in first
    assert "temperature=0.5" in second


def test_a_model_without_template_points_to_generate(command: Command, tmp_path: Path) -> None:
    outcome = command("chat", write_tiny_checkpoint(tmp_path / "bare", has_template=False), stdin="hi\n")

    assert outcome.code == 2
    assert "kilotron generate" in outcome.err


def test_a_message_too_long_is_refused_and_forgotten(loaded: LoadedModel) -> None:
    session = make_session(loaded)

    with pytest.raises(PromptTooLongError, match="128"):
        list(session.answer("x" * 200, is_stopped=never))

    assert session.turns == []
    assert list(session.answer("hi", is_stopped=never))


def test_the_oldest_turns_are_dropped_when_the_context_is_full(loaded: LoadedModel) -> None:
    session = make_session(loaded)
    session.system = "S"

    dropped = 0
    for number in range(12):
        list(session.answer(f"message {number}", is_stopped=never))
        dropped += session.num_dropped
        assert session.turns[0]["role"] == "user"
        assert session.turns[-2]["content"] == f"message {number}"

    assert dropped > 0
    assert len(session.turns) == 24 - dropped
    assert session.messages[0] == {"role": "system", "content": "S"}


def test_an_answer_that_is_stopped_keeps_what_was_said(loaded: LoadedModel) -> None:
    session = make_session(loaded, num_tokens_to_generate=100)
    said: list[str] = []

    for piece in session.answer("hi", is_stopped=lambda: len(said) > 3):
        said.append(piece)

    assert session.turns[-1] == {"role": "assistant", "content": "".join(said)}
    assert session.figures is not None
    assert 0 < session.figures.generated_tokens < 100
    assert loaded.llm.engine.num_unfinished_requests == 0


def test_leaving_an_answer_early_ends_its_request(loaded: LoadedModel) -> None:
    session = make_session(loaded)
    answer = session.answer("hi", is_stopped=never)
    next(answer)
    answer.close()

    assert loaded.llm.engine.num_unfinished_requests == 0
    assert list(session.answer("again", is_stopped=never))


def test_the_second_answer_finds_the_first_in_the_prefix_cache(loaded: LoadedModel) -> None:
    session = make_session(loaded)
    list(session.answer("x" * 40, is_stopped=never))
    list(session.answer("y", is_stopped=never))

    assert session.figures is not None
    assert session.figures.cached_tokens >= 32


def test_a_soft_interrupt_is_a_flag_and_then_forgotten() -> None:
    with Signals() as signals:
        with signals.soft() as is_stopped:
            assert not is_stopped()
            os.kill(os.getpid(), signal.SIGINT)
            assert is_stopped()
        assert signals.num_interrupts == 0
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
