"""What surrounds generation: models, tokenizer, health, metrics, admin, the older API, and its description."""

import asyncio
import copy
import subprocess
import sys
from typing import Any

import msgspec
import pytest
from openai.types import Model
from prometheus_client.parser import text_string_to_metric_families

from kilotron import SamplingParams
from kilotron.apis.llm import MegatronLLM
from kilotron.config import ServeConfig
from kilotron.coordinator.wire import (
    ControlAnswer,
    EngineFacts,
    EngineLoad,
    HistogramFigures,
    MetricsAnswer,
    ReplicaStatus,
    ServiceStatus,
    Verb,
)
from kilotron.errors import LifecycleError, ServiceUnavailableError
from kilotron.text_generation_server.app import build_app
from serving import Service

STORY = "Once upon a time, there was a"


class StatusClient:
    """A service in a state of our choice."""

    def __init__(self, facts: EngineFacts | None, status: ServiceStatus) -> None:
        self.facts = facts
        self.status = status
        self.verbs: list[tuple[str, str]] = []
        self.metrics = MetricsAnswer("", {}, {}, {}, status.replicas)

    def count(self, name: str, amount: int = 1) -> None:
        pass

    def submit(self, submission: Any) -> Any:
        raise ServiceUnavailableError("no engine is alive", 2.0)

    async def control(self, verb: Verb, kv_mode: str = "persist") -> ControlAnswer:
        if verb == "resume":
            raise LifecycleError("resume needs a suspended service; it is running")
        self.verbs.append((verb, kv_mode))
        return ControlAnswer("", "suspended" if verb == "suspend" else "paused", 1024)

    async def read_metrics(self) -> MetricsAnswer:
        return self.metrics

    async def read_timeline(self, request_id: str) -> list[dict[str, Any]] | None:
        return [{"event": "queued", "t": 0.0}] if request_id == "a" * 32 else None


def a_status(phase: Any = "ready", *, is_live: bool = True, state: Any = "running") -> ServiceStatus:
    replica = ReplicaStatus("r", phase, 0.4 if phase == "loading" else 1.0, is_live, EngineLoad(num_running=3))
    return ServiceStatus(state, [replica], None, 0, 0)


def test_the_model_is_listed_with_its_context_length(service: Service) -> None:
    cards = service.get("/v1/models").json()["data"]
    Model.model_validate(cards[0], strict=True)
    assert cards[0]["id"] == cards[0]["root"] == "kilotron-tiny"
    assert cards[0]["max_model_len"] == service.facts.max_sequence_length
    assert service.get("/v1/models/kilotron-tiny").json() == cards[0]
    assert service.get("/v1/models/other").json()["error"]["code"] == "model_not_found"


def test_the_model_can_have_another_name(service: Service) -> None:
    name = "org/my-model"
    assert service.get(f"/v1/models/{name}", served_model_name=name).json()["id"] == name
    body = {"prompt": "a", "max_tokens": 1, "model": name}
    assert service.post("/v1/completions", body, served_model_name=name).json()["model"] == name


def test_a_folder_becomes_its_name(service: Service) -> None:
    facts = msgspec.structs.replace(service.facts, model="/home/secret/llama")
    client = StatusClient(facts, a_status())
    assert service.get("/v1/models", client=client).json()["data"][0]["id"] == "llama"


def test_texts_and_ids_go_to_and_fro(service: Service) -> None:
    text = "Hello, café!"
    answer = service.post("/tokenize", {"prompt": text, "add_special_tokens": False, "return_token_strs": True}).json()
    assert answer["tokens"] == service.tokenizer.tokenize(text, add_special_tokens=False)
    assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"])
    assert answer["max_model_len"] == service.facts.max_sequence_length
    assert service.post("/detokenize", {"tokens": answer["tokens"]}).json() == {"prompt": text}


def test_a_conversation_is_counted_as_chat_counts_it(service: Service) -> None:
    messages = [{"role": "user", "content": "hi"}]
    ids = service.post("/tokenize", {"messages": messages}).json()["tokens"]
    body = {"messages": messages, "max_tokens": 1, "return_token_ids": True}
    assert service.post("/v1/chat/completions", body).json()["prompt_token_ids"] == ids


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {}),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}),
        ("/tokenize", {"prompt": "a", "promt": "b"}),
        ("/detokenize", {"tokens": [-1]}),
        ("/detokenize", {"tokens": [10**6]}),
        ("/detokenize", {"tokens": [2**70]}),
        ("/detokenize", {"tokens": "a"}),
    ],
)
def test_wrong_bodies_of_the_tokenizer_are_refused(service: Service, path: str, body: Any) -> None:
    assert service.post(path, body).status_code == 400


def test_the_tokenizer_tells_its_special_tokens(service: Service) -> None:
    info = service.get("/tokenizer_info").json()
    assert info["eos_token"] == "<|endoftext|>"
    assert "messages" in info["chat_template"]


@pytest.mark.parametrize("path", ["/health", "/livez", "/v1/health", "/ready", "/readyz", "/ready?deep=1", "/version"])
def test_a_healthy_service_says_so(service: Service, path: str) -> None:
    assert service.get(path).status_code == 200


@pytest.mark.parametrize(
    ("facts", "status", "code"),
    [
        (False, a_status("loading"), "loading"),
        (True, a_status(state="paused"), "paused"),
        (True, a_status(state="suspended"), "suspended"),
        (True, a_status(is_live=False), "engine_unavailable"),
        (False, ServiceStatus("running", [], None, 0, 0), "loading"),
    ],
)
def test_a_service_that_is_not_ready_says_why(service: Service, facts: bool, status: ServiceStatus, code: str) -> None:
    client = StatusClient(service.facts if facts else None, status)
    response = service.get("/readyz", client=client)
    assert (response.status_code, response.json()["error"]["code"], response.json()["status"]) == (503, code, code)
    assert 1 <= int(response.headers["retry-after"]) <= 30
    assert service.get("/livez", client=client).status_code == 200


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize"])
def test_requests_to_a_model_that_loads_get_its_progress(service: Service, path: str) -> None:
    client = StatusClient(None, a_status("loading"))
    body = {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}
    del body["prompt" if "chat" in path else "messages"]
    response = service.post(path, body, client=client)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "loading")
    assert "40%" in response.json()["error"]["message"]
    assert int(response.headers["retry-after"]) >= 1


def test_without_engines_requests_are_refused_at_once(service: Service) -> None:
    client = StatusClient(service.facts, a_status(is_live=False))
    response = service.post("/v1/completions", {"prompt": "a"}, client=client)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "service_unavailable")


def test_metrics_have_our_names_and_vllms(service: Service) -> None:
    client = StatusClient(service.facts, a_status())
    client.metrics = MetricsAnswer(
        "",
        {"num_requests_running": 3.0, "kv_cache_usage_perc": 0.25, "replicas_ready": 1.0},
        {"prompt_tokens": 7, "request_success/stop": 2, "request_success/length": 1, "http_responses/200": 5},
        {"time_to_first_token_seconds": HistogramFigures([0.1, 1.0], [1, 2, 3], 9.5)},
        client.status.replicas,
    )
    response = service.get("/metrics", client=client)
    assert response.headers["content-type"].startswith("text/plain")
    samples = {
        (sample.name, *sorted((k, v) for k, v in sample.labels.items() if k not in ("model_name", "engine"))): sample
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }
    for prefix in ("kilotron", "vllm"):
        assert samples[(f"{prefix}:num_requests_running",)].value == 3
        assert samples[(f"{prefix}:num_requests_running",)].labels == {"model_name": "kilotron-tiny", "engine": "0"}
        assert samples[(f"{prefix}:prompt_tokens_total",)].value == 7
        assert samples[(f"{prefix}:request_success_total", ("finished_reason", "stop"))].value == 2
        assert samples[(f"{prefix}:time_to_first_token_seconds_bucket", ("le", "1.0"))].value == 3
        assert samples[(f"{prefix}:time_to_first_token_seconds_bucket", ("le", "+Inf"))].value == 6
        assert samples[(f"{prefix}:time_to_first_token_seconds_sum",)].value == 9.5
    assert samples[("kilotron:http_responses_total", ("code", "200"))].value == 5
    assert ("vllm:http_responses_total", ("code", "200")) not in samples


def test_responses_are_counted_by_status(service: Service) -> None:
    def counts() -> dict[str, int]:
        return dict(asyncio.run(service.client.read_metrics()).counters)

    before = counts()
    service.get("/v1/models")
    service.get("/nowhere")
    after = counts()
    assert after["http_responses/200"] == before.get("http_responses/200", 0) + 1
    assert after["http_responses/404"] == before.get("http_responses/404", 0) + 1


def test_verbs_reach_the_service_and_wrong_ones_are_conflicts(service: Service) -> None:
    client = StatusClient(service.facts, a_status())
    assert service.post("/admin/pause", client=client).json() == {"state": "paused", "freed_bytes": 1024}
    assert service.post("/admin/suspend", {"kv_mode": "offload"}, client=client).json()["state"] == "suspended"
    assert client.verbs == [("pause", "persist"), ("suspend", "offload")]
    assert service.post("/admin/suspend", {"kv_mode": "forget"}, client=client).status_code == 400
    conflict = service.post("/admin/resume", client=client)
    assert (conflict.status_code, conflict.json()["error"]["code"]) == (409, "lifecycle_error")


def test_a_timeline_is_found_by_the_answers_id(service: Service) -> None:
    client = StatusClient(service.facts, a_status())
    assert service.get(f"/debug/requests/chatcmpl-{'a' * 32}", client=client).json()["events"][0]["event"] == "queued"
    assert service.get(f"/debug/requests/{'b' * 32}", client=client).status_code == 404


class TestLegacyApi:
    """PUT /api."""

    def put(self, service: Service, body: Any) -> Any:
        async def test(http: Any) -> Any:
            return await http.put("/api", json=body)

        return service.run(test)

    def test_it_gives_prompt_and_continuation(self, service: Service, llm: MegatronLLM) -> None:
        body = {
            "prompts": [STORY, "The cat"],
            "tokens_to_generate": 8,
            "temperature": 0.5,
            "random_seed": 3,
            "logprobs": True,
        }
        answer = self.put(service, body).json()
        params = SamplingParams(temperature=0.5, seed=3, num_tokens_to_generate=8, return_log_probs=True)
        for index, direct in enumerate(llm.generate([STORY, "The cat"], params)):
            assert answer["text"][index] == body["prompts"][index] + direct.generated_text
            assert answer["tokens"][index] == direct.prompt_tokens + direct.generated_tokens
            assert answer["logprobs"][index] == direct.prompt_log_probs + direct.generated_log_probs
            assert "".join(answer["segments"][index]) == answer["text"][index]

    def test_the_older_sampling_fields_have_an_effect(self, service: Service, llm: MegatronLLM) -> None:
        body = {"prompts": [STORY], "tokens_to_generate": 12, "random_seed": 3, "top_p": 0.9, "stop_on_eol": True}
        older = {"top_p_decay": 0.8, "top_p_bound": 0.2, "prevent_newline_after_colon": True}
        params = SamplingParams(seed=3, top_p=0.9, num_tokens_to_generate=12, stop=["\n"])
        for fields in ({}, older):
            direct = llm.generate([STORY], copy.copy(params).add_attributes(fields))[0]
            assert self.put(service, body | fields).json()["text"] == [STORY + direct.generated_text]

    def test_an_empty_prompt_can_begin_with_bos(self, service: Service) -> None:
        answer = self.put(service, {"prompts": [""], "add_BOS": True, "tokens_to_generate": 2}).json()
        assert answer["tokens"][0][0] == service.tokenizer.bos_id

    @pytest.mark.parametrize(
        ("body", "message"),
        [
            ({}, "prompts argument required"),
            ({"prompts": "a"}, "prompts is not a list of strings"),
            ({"prompts": []}, "prompts is empty"),
            ({"prompts": ["a"] * 129}, "Maximum number of prompts is 128"),
            ({"prompts": [""]}, "Empty prompts require add_BOS=true"),
            ({"prompts": ["a"], "max_len": 5}, "max_len is no longer used.  Replace with tokens_to_generate"),
            ({"sentences": ["a"]}, "sentences is no longer used.  Replace with prompts"),
            ({"prompts": ["a"], "beam_width": 1}, "beam_width must be an integer > 1"),
            ({"prompts": ["a"], "beam_width": 2.0}, "beam_width must be integer"),
            ({"prompts": ["a", "b"], "beam_width": 2}, "When doing beam_search, batch size must be 1"),
            ({"prompts": ["a"], "beam_width": 2, "length_penalty": "1"}, "length_penalty must be a float"),
            ({"prompts": ["a"], "stop_token": "x"}, "stop_token must be an integer"),
            ({"prompts": ["a"], "tokens_to_generate": 0}, "tokens_to_generate=0 implies logprobs should be True"),
            ({"prompts": ["a"], "tokens_to_generate": "5"}, "tokens_to_generate must be an integer greater than 0"),
            ({"prompts": ["a"], "logprobs": 1}, "logprobs must be a boolean value"),
            ({"prompts": ["a"], "top_k": 5, "top_p": 0.5}, "cannot set both top-k and top-p samplings."),
            ({"prompts": ["a"], "top_p_decay": 0.5}, "top_p_decay cannot be set without top_p"),
            (
                {"prompts": ["a"], "top_p": 0.5, "top_p_decay": 2.0},
                "top_p_decay must be less than or equal to 1.0",
            ),
            (
                {"prompts": ["a"], "top_p": 0.5, "top_p_bound": 0.6},
                "top_p_bound must be greater than 0 and less than top_p",
            ),
        ],
    )
    def test_mistakes_have_megatrons_messages_and_status_400(self, service: Service, body: Any, message: str) -> None:
        response = self.put(service, body)
        assert (response.status_code, response.json()["error"]["message"]) == (400, message)


def test_the_description_covers_every_route(service: Service) -> None:
    document = service.get("/openapi.json").json()
    app = build_app(service.client, service.tokenizer, ServeConfig(), None)
    described = {(path, method.upper()) for path, methods in document["paths"].items() for method in methods}
    routes = {(route.path.replace(":path}", "}"), route.method) for route in app.routes}
    assert routes - described == {("/openapi.json", "GET")}
    chat = document["components"]["schemas"]["ChatRequest"]
    assert chat["additionalProperties"] is False
    assert chat["required"] == ["messages"]


def test_the_description_says_what_messages_and_prompts_look_like(service: Service) -> None:
    schemas = service.get("/openapi.json").json()["components"]["schemas"]
    for name in ("ChatRequest", "TokenizeRequest"):
        assert "'required': ['role', 'content']" in str(schemas[name]["properties"]["messages"])
    text, many = schemas["CompletionRequest"]["properties"]["prompt"]["anyOf"]
    assert text == {"type": "string", "minLength": 1}
    assert (many["type"], many["minItems"], len(many["anyOf"])) == ("array", 1, 3)
    assert schemas["LegacyRequest"]["required"] == ["prompts"]


def test_without_a_chat_template_chat_says_so(service: Service) -> None:
    app = build_app(service.client, service.tokenizer, ServeConfig(), None)
    assert app.state.renderer is None
    plain = Service(service.client, service.facts, service.tokenizer, has_template=False)
    response = plain.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]})
    assert response.status_code == 400
    assert "chat template" in response.json()["error"]["message"]


def test_the_application_never_imports_torch() -> None:
    code = "import sys, kilotron.text_generation_server.app; print({'torch', 'zmq', 'openai'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
