"""Tests of the shared flags: they cover what they mirror, and environment and file give them too."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from kilotron.cli.app import COMMANDS, build_app
from kilotron.cli.options import ENGINE, BeamOptions, EngineOptions, SamplingOptions
from kilotron.config import InferenceConfig
from kilotron.sampling_params import SamplingParams
from unit.cli.conftest import Command

# Fields that have no flag, and why.
WITHOUT_FLAG = {
    "aging_steps": "an expert's knob of the scheduler",
    "max_logits_tokens": "bounds memory inside a step",
    "max_waiting_requests": "a server's limit",
    "logprobs_mode": "a library user's choice",
}
SAMPLING_WITHOUT_FLAG = {
    "num_tokens_total", "termination_id", "detokenize_stop_sequence", "skip_special_tokens", "return_log_probs",
    "skip_prompt_log_probs", "top_n_logprobs", "return_prompt_tokens", "return_segments", "streaming",
    "streaming_interval", "logit_bias", "allowed_token_ids", "priority", "attributes",
    "top_p_decay", "top_p_bound", "prevent_newline_after_colon",
}  # fmt: skip


def names_of(dataclass: type) -> set[str]:
    return {field.name for field in fields(dataclass)}


def test_every_engine_option_has_a_flag_or_a_reason() -> None:
    assert names_of(EngineOptions) - {"tokenizer"} == names_of(InferenceConfig) - set(WITHOUT_FLAG)


def test_every_sampling_field_has_a_flag_or_is_left_to_jsonl() -> None:
    flags = names_of(SamplingOptions) | names_of(BeamOptions)
    assert flags - {"logprobs"} == names_of(SamplingParams) - SAMPLING_WITHOUT_FLAG


def test_flags_left_alone_leave_the_engine_at_its_defaults() -> None:
    assert ENGINE.to_config() == InferenceConfig()


@pytest.mark.parametrize("command_name", COMMANDS)
def test_every_flag_explains_itself(command_name: str) -> None:
    app = build_app()
    for part in command_name.split():
        app = app[part]

    for argument in app.assemble_argument_collection():
        assert argument.children or argument.parameter.help, argument.name


@pytest.mark.parametrize(
    "spelling",
    ["--max-model-len", "--max-sequence-length"],
)
def test_other_engines_spellings_are_understood(command: Command, checkpoint: str, spelling: str) -> None:
    outcome = command("generate", checkpoint, "-p", "abcd", spelling, "10", "--ignore-eos", "--json")

    assert len(outcome.objects[0]["token_ids"]) == 6


def test_weights_are_quantized_by_a_flag_and_the_table_tells(command: Command, checkpoint: str) -> None:
    flags = ("--quantization", "int4", "--quantization-group-size", "32", "--verbose")
    outcome = command("generate", checkpoint, "-p", "abcd", "--max-tokens", "2", *flags)

    assert outcome.code == 0
    assert re.search(r"quantization +int4 in groups of 32 +asked for", outcome.err)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--quantization", "int3"], "quantization must be one of None, int8, int4, not 'int3'"),
        (["--quantization-group-size", "32"], "quantization_group_size=32 goes with quantization='int4', not None"),
    ],
)
def test_impossible_quantization_is_wrong_usage(command: Command, flags: list[str], message: str) -> None:
    outcome = command("generate", "-p", "abcd", *flags)

    assert outcome.code == 2
    assert message in outcome.err


def test_the_command_line_beats_the_environment_beats_the_file(
    command: Command, checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "kilotron.toml"
    file.write_text('ignore-eos = true\nmax-tokens = 5\nnum-prompts = 9\n[generate]\nmax-tokens = 4\nprompt = ["a"]\n')

    def count(*arguments: str) -> int:
        return len(command("generate", checkpoint, "--json", "--config", file, *arguments).objects[0]["token_ids"])

    assert count() == 4
    monkeypatch.setenv("KILOTRON_MAX_TOKENS", "3")
    assert count() == 3
    assert count("--max-tokens", "2") == 2


def test_an_environment_variable_holds_a_whole_prompt(
    command: Command, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KILOTRON_PROMPT", "two words")
    monkeypatch.setenv("KILOTRON_MODEL", checkpoint)

    assert command("generate", "--json", "--max-tokens", "1").objects[0]["prompt"] == "two words"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.toml", "tempratur = 1", "did you mean temperature?"),
        ("a.toml", "[generatee]\nseed = 1", "did you mean generate?"),
        ("a.toml", "[generate]\nmax-tokns = 1", "max-tokns"),
        ("a.toml", "= 1", "a.toml"),
        ("a.yaml", "- 1", "must"),
        ("a.json", "{", "a.json"),
        ("a.ini", "x", ".toml"),
    ],
)
def test_a_wrong_file_is_refused(command: Command, tmp_path: Path, name: str, text: str, message: str) -> None:
    file = tmp_path / name
    file.write_text(text)

    outcome = command("generate", "-p", "a", "--config", file)

    assert outcome.code == 2
    assert message in outcome.err


def test_a_missing_file_is_refused(command: Command) -> None:
    assert command("env", "--config", "nowhere.toml").code == 2
    assert "no such file" in command("env", "--config=nowhere.toml").err
