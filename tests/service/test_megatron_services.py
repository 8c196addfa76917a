"""`kilotron serve` of checkpoints that megatron-core wrote: a decoder and T5, through the whole process tree."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from service.http_calls import Answer
from service.running_service import RunningService, running, wait_for

DATA = Path(__file__).parents[1] / "data" / "megatron"
GREEDY = {"temperature": 0, "max_tokens": 8, "ignore_eos": True, "return_token_ids": True}
BEAMS = {"use_beam_search": True, "best_of": 4, "n": 2, "max_tokens": 8, "ignore_eos": True}


@pytest.fixture(scope="module")
def llama() -> Iterator[RunningService]:
    with running(str(DATA / "llama" / "torch_dist"), "--tokenizer", "null:99", num_replicas=2) as service:
        yield service


@pytest.fixture(scope="module")
def t5() -> Iterator[RunningService]:
    with running(str(DATA / "t5" / "torch_dist")) as service:  # the saved arguments say which tokenizer
        yield service


def in_megatron(family: str) -> Iterator[tuple[list[int], list[int], list[int]]]:
    """What the encoder reads, what the decoder begins with, and Megatron's greedy tokens."""
    found = load_file(DATA / family / "expected.safetensors")
    for number in range(3):
        encoder_prompt = found.get(f"{number}.encoder_prompt")
        yield (
            [] if encoder_prompt is None else encoder_prompt.tolist(),
            found[f"{number}.prompt"].tolist(),
            found[f"{number}.greedy"].tolist(),
        )


def as_text(token_ids: list[int]) -> str:
    return " ".join(map(str, token_ids))


def complete(service: RunningService, **fields: Any) -> Any:
    answer = service.ask("POST", "/v1/completions", fields)
    assert answer.status == 200, answer.text
    return answer.json


def test_a_megatron_folder_is_served_with_megatrons_tokens(llama: RunningService) -> None:
    for _, prompt, greedy in in_megatron("llama"):
        for form in (prompt, as_text(prompt)):
            choice = complete(llama, prompt=form, **GREEDY)["choices"][0]
            assert choice["token_ids"] == greedy
            assert choice["text"].split() == [str(token_id) for token_id in greedy]


def test_both_replicas_find_the_same_beams(llama: RunningService) -> None:
    choices = [complete(llama, prompt=[1, 2, 3], **BEAMS)["choices"] for _ in range(6)]
    assert choices == [choices[0]] * 6
    assert len(choices[0]) == 2
    assert choices[0][0]["score"] >= choices[0][1]["score"]


def test_beams_lost_with_their_engine_are_found_on_the_other_one(llama: RunningService) -> None:
    body = {"prompt": [1, 2, 3], "use_beam_search": True, "best_of": 64, "max_tokens": 60, "ignore_eos": True}
    expected = llama.complete(body).texts
    calls = [llama.start(body) for _ in range(4)]
    wait_for(lambda: llama.metrics()["num_requests_running"] > 0)
    pid = llama.kill("engine")
    for call in calls:
        call.wait()
        assert (call.status, call.texts or call.error["code"]) in ((200, expected), (503, "engine_died"))
    llama.wait_replaced(pid)
    llama.wait_idle()


def test_what_the_tokenizer_cannot_read_is_a_400_with_the_fields_name(llama: RunningService) -> None:
    answers: list[Answer] = [
        llama.ask("POST", "/v1/completions", {"prompt": ["1 2", "hello"]}),
        llama.ask("POST", "/tokenize", {"prompt": "hello"}),
        llama.ask("PUT", "/api", {"prompts": ["hello"]}),
    ]
    assert [answer.status for answer in answers] == [400] * 3
    assert [answer.error["param"] for answer in answers] == ["prompt[1]", "prompt", "prompts"]


def test_megatrons_own_api_gives_all_beams(llama: RunningService) -> None:
    body = {"prompts": ["1 2 3"], "tokens_to_generate": 8, "beam_width": 4}
    answer = llama.ask("PUT", "/api", body)
    assert answer.status == 200, answer.text
    assert all(text.startswith("1 2 3 ") for text in answer.json["text"])
    assert answer.json["scores"] == sorted(answer.json["scores"], reverse=True)


def test_t5_reads_encoder_prompts(t5: RunningService) -> None:
    cases = list(in_megatron("t5"))
    for encoder_prompt, prompt, greedy in cases:
        for form in (list, as_text):
            body = {"prompt": form(prompt), "encoder_prompt": form(encoder_prompt), **GREEDY}
            answer = complete(t5, **body)
            assert answer["choices"][0]["token_ids"] == greedy
            assert answer["usage"]["prompt_tokens"] >= len(prompt) + len(encoder_prompt)
    many = complete(t5, prompt=[case[1] for case in cases], encoder_prompt=[case[0] for case in cases], **GREEDY)
    assert [choice["token_ids"] for choice in many["choices"]] == [case[2] for case in cases]


def test_t5_finds_beams_and_frees_what_its_encoder_wrote_when_a_caller_leaves(t5: RunningService) -> None:
    encoder_prompt, prompt, _ = list(in_megatron("t5"))[2]
    body = {"prompt": prompt, "encoder_prompt": encoder_prompt} | BEAMS
    scores = [choice["score"] for choice in complete(t5, **body)["choices"]]
    assert scores == sorted(scores, reverse=True)
    t5.start(body | {"best_of": 64, "max_tokens": 50}).leave(abruptly=True)
    t5.wait_idle()


@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("encoder_prompt", {"encoder_prompt": ["1", "2"]}),
        ("encoder_prompt", {"encoder_prompt": []}),
        ("encoder_prompt", {"encoder_prompt": ""}),
        ("encoder_prompt", {"encoder_prompt": [99_999]}),
        ("encoder_prompt", {"encoder_prompt": "hello"}),
        ("encoder_prompt", {"encoder_prompt": [5] * 10_000}),
        ("encoder_prompt[0]", {"encoder_prompt": [None]}),
        ("prompt", {"encoder_prompt": [5], "prompt": [99_999]}),
        ("prompt", {"prompt": "hello"}),
    ],
)
def test_a_wrong_encoder_prompt_is_named(t5: RunningService, param: str, fields: dict[str, Any]) -> None:
    answer = t5.ask("POST", "/v1/completions", {"prompt": "1 2"} | fields)
    assert (answer.status, answer.error["param"]) == (400, param), answer.text
