"""MegatronLLM and MegatronAsyncLLM with use_coordinator=True: the same results, lifecycle, and nothing left behind."""

import asyncio
import json
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from fakes import TINY_OPTIONS, make_model
from kilotron.apis.async_llm import MegatronAsyncLLM
from kilotron.apis.llm import MegatronLLM
from kilotron.config import KVMode, ServeConfig
from kilotron.coordinator.credentials import Credentials
from kilotron.coordinator.inference_client import InferenceClient
from kilotron.errors import (
    ConfigError,
    EngineClosedError,
    InvalidRequestError,
    LifecycleError,
    ProtocolError,
    SamplingParamsError,
    ServiceUnavailableError,
)
from kilotron.sampling_params import SamplingParams
from kilotron.tokenization import ByteTokenizer

GREEDY = SamplingParams(temperature=0.0, num_tokens_to_generate=12, ignore_eos=True)
SAMPLED = SamplingParams(temperature=1.0, seed=5, n=3, num_tokens_to_generate=9, logprobs=2, prompt_logprobs=2)
BEAMS = SamplingParams(beam_width=4, num_return_gen=3, num_tokens_to_generate=9, logprobs=0)
PROMPTS = ["one", "two and more", [7, 8, 9]]


def make_local(**options: object) -> MegatronLLM:
    """A ready model behind a coordinator: the engine runs in a thread of this process."""
    return MegatronLLM(make_model(), ByteTokenizer(), use_coordinator=True, **TINY_OPTIONS | options)


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the run folders of this test are, and no other's; short, since a socket's path must be."""
    with tempfile.TemporaryDirectory(prefix="kt-") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield Path(folder)


@pytest.fixture(scope="module")
def direct() -> Iterator[MegatronLLM]:
    with MegatronLLM(make_model(), ByteTokenizer(), **TINY_OPTIONS) as llm:
        yield llm


@pytest.fixture(scope="module")
def served() -> Iterator[MegatronLLM]:
    """The bundled model in two engine processes."""
    with MegatronLLM(use_coordinator=True, data_parallel_size=2, num_threads=1) as llm:
        yield llm


def test_through_a_coordinator_everything_is_as_without_one(direct: MegatronLLM) -> None:
    with make_local() as llm:
        for params in (GREEDY, SAMPLED, BEAMS):
            for ours, theirs in zip(llm.generate(PROMPTS, params), direct.generate(PROMPTS, params), strict=True):
                for mine, other in zip(ours.choices, theirs.choices, strict=True):
                    for field in (
                        "generated_tokens generated_text generated_log_probs generated_top_n_logprobs prompt_log_probs "
                        "beams prompt_top_n_logprobs finish_reason stop_reason status prompt_tokens prompt"
                    ).split():
                        assert getattr(mine, field) == getattr(other, field), field
        streamed = list(llm.generate_stream("one", GREEDY))
        assert "".join(item.text for item in streamed) == direct.generate("one", GREEDY)[0].generated_text
        assert llm.score("one and two")[0].prompt_log_probs == direct.score("one and two")[0].prompt_log_probs


def test_bad_prompts_are_refused_before_anything_is_sent(direct: MegatronLLM) -> None:
    with make_local() as llm:
        for prompt in ([], [300], "x" * 300):
            with pytest.raises(InvalidRequestError):
                llm.generate(["good", prompt], GREEDY)
        with pytest.raises(SamplingParamsError):
            next(iter(llm.generate_stream("one", SAMPLED)))
        assert llm.generate("one", GREEDY)[0].generated_text == direct.generate("one", GREEDY)[0].generated_text


def test_verbs_in_the_wrong_order_raise_at_once_and_repeats_change_nothing() -> None:
    with make_local() as llm:
        for verb in (llm.suspend, llm.resume):
            with pytest.raises(LifecycleError):
                verb()
        llm.unpause()
        llm.pause()
        llm.pause()
        with pytest.raises(LifecycleError):
            llm.resume() if llm.suspend("persist") else llm.unpause()
        llm.suspend("persist")
        llm.resume()
        llm.resume()
        llm.unpause()
        llm.unpause()
        assert llm.generate("one", GREEDY)[0].finish_reason == "length"


@pytest.mark.parametrize("kv_mode", ["persist", "offload", "recompute"])
def test_requests_under_way_go_on_with_the_same_tokens_after_a_suspension(direct: MegatronLLM, kv_mode: KVMode) -> None:
    params = SamplingParams(temperature=0.0, num_tokens_to_generate=60, ignore_eos=True)
    expected = direct.generate("one", params)[0].generated_text
    with make_local() as llm:
        stream = llm.generate_stream("one", params)
        text = next(stream).text
        llm.pause()
        llm.suspend(kv_mode)
        llm.resume()
        llm.unpause()
        assert text + "".join(item.text for item in stream) == expected


def test_what_is_asked_for_while_paused_waits_and_is_answered_later(direct: MegatronLLM) -> None:
    with make_local() as llm:
        llm.pause()
        texts: list[str] = []
        asking = threading.Thread(target=lambda: texts.append(llm.generate("one", GREEDY)[0].generated_text))
        asking.start()
        asking.join(0.2)
        assert asking.is_alive()
        llm.unpause()
        asking.join(20)
        assert texts == [direct.generate("one", GREEDY)[0].generated_text]


def test_two_instances_live_beside_each_other_and_leave_nothing_behind(direct: MegatronLLM, runtime: Path) -> None:
    processes = len(children())
    one, two = make_local(), make_local()
    one.pause()
    expected = direct.generate("one", GREEDY)[0].generated_text
    assert two.generate("one", GREEDY)[0].generated_text == expected
    one.shutdown()
    assert two.generate("one", GREEDY)[0].generated_text == expected
    two.shutdown()
    two.shutdown()
    with pytest.raises(EngineClosedError):
        two.generate("one")
    assert (list(runtime.iterdir()), len(children())) == ([], processes)


def test_over_tcp_it_is_the_same(direct: MegatronLLM) -> None:
    with (
        make_local() as _,
        MegatronLLM(
            make_model(), ByteTokenizer(), use_coordinator=True, coordinator_host="127.0.0.1", **TINY_OPTIONS
        ) as llm,
    ):
        assert llm.credentials.address.startswith("tcp://127.0.0.1:")
        assert llm.credentials.curve is not None
        assert llm.generate("one", GREEDY)[0].generated_text == direct.generate("one", GREEDY)[0].generated_text


def test_without_a_coordinator_what_needs_one_says_so(direct: MegatronLLM) -> None:
    for call in (direct.pause, direct.unpause, direct.suspend, direct.resume, direct.serve, direct.wait_for_shutdown):
        with pytest.raises(RuntimeError, match="use_coordinator=True"):
            call()
    for options in ({"coordinator_port": 1}, {"coordinator_host": "localhost"}, {"data_parallel_size": 2}):
        with pytest.raises(ValueError, match="use_coordinator=True"):
            MegatronLLM(make_model(), ByteTokenizer(), **options)


def test_a_ready_model_cannot_be_in_two_places() -> None:
    with pytest.raises(ConfigError, match="data_parallel_size"):
        MegatronLLM(make_model(), ByteTokenizer(), use_coordinator=True, data_parallel_size=2)


def test_a_model_that_does_not_exist_is_told_of_and_leaves_nothing(tmp_path: Path, runtime: Path) -> None:
    processes = len(children())
    with pytest.raises(ConfigError, match="nowhere"):
        MegatronLLM(tmp_path / "nowhere", use_coordinator=True)
    assert (list(runtime.iterdir()), len(children())) == ([], processes)


def test_engines_in_processes_of_their_own_give_what_one_here_gives(served: MegatronLLM) -> None:
    params = SamplingParams(temperature=0.0, num_tokens_to_generate=8)
    prompts = [f"Once upon a time {number}" for number in range(12)]
    with MegatronLLM(num_threads=1) as here:
        expected = [request.generated_text for request in here.generate(prompts, params)]
        assert served.default_sampling_params == here.default_sampling_params
    assert [request.generated_text for request in served.generate(prompts, params)] == expected
    params = SamplingParams(beam_width=3, num_return_gen=3, num_tokens_to_generate=8)
    with MegatronLLM(num_threads=1) as here:
        beams = [request.beams for request in here.generate(prompts, params)]
    assert [request.beams for request in served.generate(prompts, params)] == beams
    with pytest.raises(LifecycleError, match="processes of their own"):
        served.engine.step()


def test_a_server_can_be_put_in_front_of_the_engines(served: MegatronLLM) -> None:
    url = served.serve(ServeConfig(port=0), blocking=False)
    body = json.dumps({"prompt": "Once upon a time", "max_tokens": 4, "temperature": 0}).encode()
    request = urllib.request.Request(f"{url}/v1/completions", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as response:
        answer = json.load(response)
    params = SamplingParams(temperature=0.0, num_tokens_to_generate=4)
    assert answer["choices"][0]["text"] == served.generate("Once upon a time", params)[0].generated_text


def test_a_public_server_without_a_key_is_refused(served: MegatronLLM) -> None:
    with pytest.raises(ConfigError, match="KILOTRON_API_KEY"):
        served.serve(ServeConfig(host="0.0.0.0", port=0))


def test_asynchronous_callers_have_the_same(direct: MegatronLLM) -> None:
    async def story() -> None:
        async with MegatronAsyncLLM(make_model(), ByteTokenizer(), use_coordinator=True, **TINY_OPTIONS) as llm:
            expected = [request.generated_text for request in direct.generate(PROMPTS, GREEDY)]
            requests = await llm.generate(PROMPTS, GREEDY)
            assert isinstance(requests, list)
            assert [request.generated_text for request in requests] == expected
            pieces = [item.text async for item in llm.generate_stream(PROMPTS[1], GREEDY)]
            assert "".join(pieces) == expected[1]
            with pytest.raises(LifecycleError):
                await llm.suspend()
            await llm.pause()
            assert await llm.suspend("recompute") >= 0
            await llm.resume()
            await llm.unpause()
            waiting = asyncio.create_task(llm.generate("one", SamplingParams(num_tokens_to_generate=200)))
            await asyncio.sleep(0.01)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert (await llm.generate("one", GREEDY)).generated_text == expected[0]  # type: ignore[union-attr]

    asyncio.run(story())


def test_other_programs_reach_the_engines_with_a_client(direct: MegatronLLM) -> None:
    async def story(llm: MegatronLLM) -> None:
        async with InferenceClient(llm.credentials, ByteTokenizer()) as client:
            futures = [client.add_request(prompt, GREEDY) for prompt in PROMPTS]
            texts = [(await future).generated_text for future in futures]
            assert texts == [request.generated_text for request in direct.generate(PROMPTS, GREEDY)]
            assert "".join([item.text async for item in client.add_request_streaming("one", GREEDY)]) == texts[0]
            with pytest.raises(InvalidRequestError):
                client.add_request([999], GREEDY)
            with pytest.raises(LifecycleError):
                await client.suspend_engines()
            await client.pause_engines()
            waiting = client.add_request("one", GREEDY)
            await client.suspend_engines("recompute")
            await client.resume_engines()
            await client.unpause_engines()
            assert (await waiting).generated_text == texts[0]
        with pytest.raises(ServiceUnavailableError):
            await client.add_request_streaming("one", GREEDY).__anext__()

    with make_local() as llm:
        asyncio.run(story(llm))


def test_a_client_without_the_credentials_gets_nowhere(tmp_path: Path) -> None:
    async def story(credentials: Credentials) -> None:
        wrong = Credentials(address=credentials.address, secret="0" * 64)
        with pytest.raises(ProtocolError):
            await InferenceClient(wrong).start(connect_timeout_s=10)

    with make_local() as llm:
        asyncio.run(story(llm.credentials))
        file = tmp_path / "credentials"
        file.write_bytes(llm.credentials.to_json())
        file.chmod(0o644)
        with pytest.raises(ConfigError, match="chmod 600"):
            Credentials.from_file(file)
        file.chmod(0o600)
        assert Credentials.from_file(file) == llm.credentials
