"""`kilotron generate`, `score` and `bench` with an encoder-decoder model."""

import json
from pathlib import Path

import pytest

from parity.tiny_encoder_decoders import make_tiny_encoder_decoder
from unit.cli.conftest import Command

GREEDY = ("--temperature", "0", "--ignore-eos", "--max-tokens", "4")
IDS = "5, 6, 7"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without a tokenizer, so that prompts are ids."""
    folder = tmp_path_factory.mktemp("t5")
    make_tiny_encoder_decoder("t5", folder)
    return folder


def test_a_prompt_alone_is_the_encoders_and_is_not_continued(command: Command, folder: Path) -> None:
    outcome = command("generate", folder, "--prompt-ids", IDS, "--json", *GREEDY)
    result = outcome.objects[0]
    assert (result["encoder_token_ids"], result["prompt_token_ids"]) == ([5, 6, 7], [0])
    assert len(result["token_ids"]) == 4


def test_encoder_prompts_need_a_tokenizer_as_texts_do(command: Command, folder: Path) -> None:
    outcome = command("generate", folder, "--encoder-prompt", "Hi", *GREEDY)
    assert outcome.code != 0
    assert "encoder prompt 1" in outcome.err


def test_there_is_one_encoder_prompt_for_each_prompt(command: Command, folder: Path) -> None:
    outcome = command("generate", folder, "-p", "a", "-p", "b", "--encoder-prompt", "Hi", *GREEDY)
    assert outcome.code != 0
    assert "1 --encoder-prompt for 2 prompts" in outcome.err


def test_a_model_without_an_encoder_says_so(command: Command, checkpoint: str) -> None:
    outcome = command("generate", checkpoint, "-p", "a", "--encoder-prompt", "Hi", *GREEDY)
    assert outcome.code != 0
    assert "has no encoder" in outcome.err


def test_a_file_may_hold_encoder_prompts(command: Command, checkpoint: str, tmp_path: Path) -> None:
    lines = tmp_path / "in.jsonl"
    lines.write_text(json.dumps({"encoder_prompt": 5}))
    assert "encoder_prompt must be a text" in command("generate", checkpoint, "-f", lines).err
    lines.write_text(json.dumps({"encoder_prompt": "Hi"}))
    assert "has no encoder" in command("generate", checkpoint, "-f", lines).err


def test_score_says_what_it_needs(command: Command, folder: Path) -> None:
    outcome = command("score", folder, "--prompt-ids", IDS)
    assert outcome.code != 0
    assert "give the text to score as prompt" in outcome.err


def test_bench_counts_what_the_encoder_reads(command: Command, folder: Path) -> None:
    arguments = ("--num-prompts", "2", "--input-len", "9", "--output-len", "3", "--json")
    outcome = command("bench", "throughput", folder, *arguments)
    result = outcome.objects[0]
    assert result["prompt_tokens_per_s"] == pytest.approx(20 * result["requests_per_s"] / 2)
