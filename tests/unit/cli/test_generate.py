"""Tests of `kilotron generate`."""

import json
from pathlib import Path

import pytest
import torch

from unit.cli.conftest import Command, Terminal
from unit.cli.tiny_checkpoint import CONTEXT_LENGTH, write_tiny_checkpoint

GREEDY = ("--temperature", "0", "--ignore-eos")


def test_one_prompt_is_printed_with_its_continuation(command: Command, checkpoint: str) -> None:
    outcome = command("generate", checkpoint, "-p", "Once upon", "--max-tokens", "4", *GREEDY)

    assert outcome.code == 0
    assert outcome.out.startswith("Once upon")
    assert len(outcome.out.strip()) > len("Once upon")
    assert outcome.err == ""


def test_no_echo_leaves_the_prompt_out(command: Command, checkpoint: str) -> None:
    arguments = ("generate", checkpoint, "-p", "Once upon", "--max-tokens", "4", *GREEDY)

    assert "Once upon" + command(*arguments, "--no-echo").out == command(*arguments).out


def test_several_prompts_come_in_order_under_headings(command: Command, checkpoint: str) -> None:
    outcome = command("generate", checkpoint, "-p", "first", "-p", "second", "--max-tokens", "3", *GREEDY)

    assert outcome.out.index("prompt 1 of 2") < outcome.out.index("first")
    assert outcome.out.index("first") < outcome.out.index("prompt 2 of 2") < outcome.out.index("second")


def test_json_gives_one_object_per_prompt(command: Command, checkpoint: str) -> None:
    outcome = command("generate", checkpoint, "-p", "a", "--prompt-ids", "5, 6", "--max-tokens", "3", "--json", *GREEDY)

    first, second = outcome.objects
    assert first["prompt"] == "a"
    assert second["prompt_token_ids"] == [5, 6]
    assert len(first["token_ids"]) == 3
    assert first["finish_reason"] == "length"
    assert first["timings"]["latency_s"] > 0
    assert "logprobs" not in first


def test_logprobs_name_each_token_and_the_likeliest_ones(command: Command, checkpoint: str) -> None:
    outcome = command(
        "generate", checkpoint, "-p", "a", "--max-tokens", "2", "--json", "--logprobs", "3", "--temperature", "0"
    )

    result = outcome.objects[0]
    token = result["logprobs"][0]
    assert token["id"] == result["token_ids"][0]
    assert token["logprob"] <= 0
    assert len(token["top"]) == 3
    assert token["top"][0] == {key: token[key] for key in ("token", "id", "logprob")}


def test_continuations_stand_in_choices(command: Command, checkpoint: str) -> None:
    outcome = command("generate", checkpoint, "-p", "a", "--n", "3", "--max-tokens", "2", "--json", "--seed", "1")

    assert [choice["index"] for choice in outcome.objects[0]["choices"]] == [0, 1, 2]


def test_the_same_seed_gives_the_same_text(command: Command, checkpoint: str) -> None:
    arguments = ("generate", checkpoint, "-p", "a", "--max-tokens", "8", "--temperature", "1", "--seed", "7")

    assert command(*arguments).out == command(*arguments).out


def test_the_models_own_sampling_defaults_hold_and_are_told(command: Command, checkpoint: str) -> None:
    outcome = command("generate", checkpoint, "-p", "a", "--max-tokens", "1", "-v")

    assert "temperature=0.5, top_p=0.9" in outcome.err
    assert "first token" in outcome.err


def test_without_a_length_the_answer_fills_what_the_context_leaves(command: Command, checkpoint: str) -> None:
    outcome = command("generate", checkpoint, "-p", "abcdefgh", "--json", *GREEDY)

    assert len(outcome.objects[0]["token_ids"]) == CONTEXT_LENGTH - 8


def test_a_length_beyond_the_context_is_refused_by_the_name_of_the_prompt(command: Command, checkpoint: str) -> None:
    outcome = command("generate", checkpoint, "-p", "ok", "-p", "abc", "--max-tokens", str(CONTEXT_LENGTH - 2))

    assert outcome.code == 2
    assert outcome.out == ""
    assert outcome.err.startswith("kilotron: error: prompt 2: ")
    assert outcome.err.count("\n") == 1


def test_a_prompt_may_come_through_a_pipe(command: Command, checkpoint: str) -> None:
    outcome = command("generate", checkpoint, "--max-tokens", "2", *GREEDY, stdin="two\nlines\n")

    assert outcome.out.startswith("two\nlines")


def test_a_dash_reads_the_pipe_among_other_prompts(command: Command, checkpoint: str) -> None:
    arguments = ("generate", checkpoint, "-p", "one", "-p", "-", "--max-tokens", "2", "--json", *GREEDY)

    assert [result["prompt"] for result in command(*arguments, stdin="two\n").objects] == ["one", "two"]


def test_on_a_terminal_a_missing_prompt_says_what_to_type(command: Command, checkpoint: str) -> None:
    outcome = command("generate", checkpoint, stdin=Terminal())

    assert outcome.code == 2
    assert 'kilotron generate -p "Once upon a time"' in outcome.err


def test_a_line_of_a_file_brings_its_own_id_and_sampling(command: Command, checkpoint: str, tmp_path: Path) -> None:
    lines = [
        {"prompt": "a", "id": "x", "max_tokens": 1},
        {"prompt_token_ids": [1, 2], "num_tokens_total": 5},
        {"messages": [{"role": "user", "content": "hi"}]},
    ]
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")

    results = command("generate", checkpoint, "-f", file, "--json", "--max-tokens", "2", *GREEDY).objects

    assert [len(result["token_ids"]) for result in results] == [1, 3, 2]
    assert [result.get("id") for result in results] == ["x", None, None]
    assert results[2]["prompt"] == "[user]hi[assistant]"


def test_chat_writes_each_prompt_with_the_chat_template(command: Command, checkpoint: str) -> None:
    outcome = command("generate", checkpoint, "--chat", "-p", "hi", "--max-tokens", "1", "--json")

    assert len(outcome.objects[0]["prompt_token_ids"]) == len("[user]hi[assistant]")
    assert command("generate", checkpoint, "--chat", "-p", "hi", "--max-tokens", "1").out.startswith("hi\n")


def test_chat_without_a_template_is_a_wrong_use(command: Command, tmp_path: Path) -> None:
    bare = write_tiny_checkpoint(tmp_path / "bare", has_template=False)
    outcome = command("generate", bare, "--chat", "-p", "hi")

    assert outcome.code == 2
    assert "chat template" in outcome.err


def test_the_bundled_model_says_that_it_is_one(command: Command) -> None:
    outcome = command("generate", "-p", "Once upon a time", "--max-tokens", "3")

    assert outcome.code == 0
    assert outcome.err.startswith("kilotron: no MODEL given, using the bundled tiny model")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("no-such-folder", "-p", "a"), 1, "no-such-folder"),
        (("Once upon a time",), 2, "-p 'Once upon a time'"),
        (("-p", "a", "--temperature", "-1"), 2, "temperature"),
        (("-p", "a", "--temperature", "hot"), 2, '"hot"'),
        (("-p", "a", "--temprature", "1"), 2, "Did you mean --temperature?"),
        (("-p", "a", "--block-size", "0"), 2, "block_size_tokens"),
        (("-p", "--json"), 2, "--json is a flag"),
        (("--prompt-ids", "1,x"), 2, "whole numbers"),
        (("--prompt-ids", "99999"), 2, "vocabulary"),
    ],
)
def test_a_mistake_is_told_in_one_line(command: Command, arguments: tuple[str, ...], code: int, message: str) -> None:
    outcome = command("generate", *arguments)

    assert outcome.code == code
    assert outcome.out == ""
    assert message in outcome.err
    assert "Traceback" not in outcome.err


def test_a_seed_of_the_engine_gives_the_same_text_as_in_python(command: Command, checkpoint: str) -> None:
    from kilotron.apis.llm import MegatronLLM

    with MegatronLLM(checkpoint, random_seed=5) as llm:
        params = llm.default_sampling_params
        params.num_tokens_to_generate = 8
        expected = llm.generate(["a", "b"], params)

    outcome = command("generate", checkpoint, "-p", "a", "-p", "b", "--max-tokens", "8", "--random-seed", "5", "--json")

    assert [result["token_ids"] for result in outcome.objects] == [request.generated_tokens for request in expected]


def test_without_a_tokenizer_the_answer_is_shown_as_ids(command: Command, checkpoint: str, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((Path(checkpoint) / name).read_bytes())
    arguments = ("generate", tmp_path, "--prompt-ids", "5,6", "--max-tokens", "3", "--no-echo", *GREEDY)
    expected = command(*arguments, "--json").objects[0]["token_ids"]

    assert command(*arguments).out.split() == [str(token_id) for token_id in expected]
    assert [line for line in command(*arguments, "--prompt-ids", "7").out.splitlines() if line[:1].isdigit()]


def test_unknown_kernels_are_wrong_usage(command: Command, checkpoint: str) -> None:
    outcome = command("generate", checkpoint, "-p", "a", "--kernels", "fast")

    assert outcome.code == 2
    assert "known: auto, cpu, reference" in outcome.err


def test_the_bundled_model_runs_on_one_thread_unless_told_otherwise(command: Command) -> None:
    before = torch.get_num_threads()
    try:
        for flags, expected in (((), 1), (("--num-threads", "2"), 2)):
            torch.set_num_threads(3)
            assert command("generate", "-p", "Once", "--max-tokens", "2", *flags).code == 0
            assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)


def test_beams_are_shown_best_first_with_their_scores(command: Command, checkpoint: str) -> None:
    arguments = ("generate", checkpoint, "-p", "a", "--max-tokens", "3", "--beam-width", "4", "--num-return-gen", "2")
    outcome = command(*arguments, "--length-penalty", "0", "--early-stopping", "never")

    assert "prompt 1 of 1, beam 1 of 2, score -" in outcome.out
    assert "prompt 1 of 1, beam 2 of 2, score -" in outcome.out


def test_json_has_the_beams(command: Command, checkpoint: str) -> None:
    arguments = ("generate", checkpoint, "-p", "a", "--max-tokens", "3", "--beam-width", "4", "--num-return-gen", "3")
    result = command(*arguments, "--json").objects[0]

    scores = [beam["score"] for beam in result["beams"]]
    assert scores == sorted(scores, reverse=True)
    assert (result["beams"][0]["token_ids"], result["beams"][0]["text"]) == (result["token_ids"], result["text"])


def test_more_results_than_beams_are_refused_before_the_model_is_loaded(command: Command) -> None:
    outcome = command("generate", "/no/such/model", "-p", "a", "--num-return-gen", "3")

    assert outcome.code == 2
    assert "num_return_gen=3 exceeds beam_width=1" in outcome.err
