"""ServerState: what all endpoints share, and the questions that each of them asks first."""

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, Protocol

from kilotron.config import ServeConfig
from kilotron.coordinator.service_client import ServiceClient
from kilotron.coordinator.submissions import request_limits_of
from kilotron.coordinator.wire import EngineFacts, ServiceStatus
from kilotron.engines.request_intake import RequestIntake
from kilotron.text_generation_server.http_errors import HttpError
from kilotron.text_generation_server.refusal_gate import RefusalGate
from kilotron.tokenization.prompt_text import PlainPromptTokenizer
from kilotron.tokenization.tokenizer import Tokenizer

_LOADING_RETRY_AFTER_S = 2.0


class ChatRenderer(Protocol):
    """Writes a conversation with the model's chat template; `TemplateWorker` is one."""

    async def render(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        documents: Sequence[Mapping[str, object]] | None = None,
        variables: Mapping[str, object] | None = None,
    ) -> str:
        """The prompt's text.

        Raises:
            ChatTemplateError: there is no template, or it failed or refused the messages.
        """


@dataclass(slots=True)
class ServerState:
    """One front end's parts. Everything but `intake` and the caches is there from the start."""

    client: ServiceClient
    tokenizer: Tokenizer | None
    config: ServeConfig
    renderer: ChatRenderer | None
    """None where the model has no chat template."""
    is_complete: bool = True
    """Tokenizer and renderer are those of the model; False while a front end does not know it yet."""
    gate: RefusalGate = field(default_factory=RefusalGate)
    """Closed while the queue has no place."""
    is_draining: bool = False
    """No new work is taken."""
    started_at: int = field(default_factory=lambda: int(time.time()))
    """Unix time, for `created`."""
    longest_token_chars: int | None = None
    """Of the vocabulary; counted when a very long prompt comes first."""
    _intake: tuple[EngineFacts, RequestIntake] | None = None

    @property
    def facts(self) -> EngineFacts:
        """The model's facts.

        Raises:
            HttpError: 503; no replica has loaded the model yet.
        """
        facts = self.client.facts
        if facts is None or not self.is_complete:
            raise self.not_ready()
        return facts

    @property
    def intake(self) -> RequestIntake:
        """Checks requests against the model's limits.

        Raises:
            HttpError: 503; they are not known yet.
        """
        facts = self.facts
        if self._intake is None or self._intake[0] is not facts:
            self._intake = (facts, RequestIntake(PlainPromptTokenizer(self.tokenizer), request_limits_of(facts)))
        return self._intake[1]

    @property
    def model_name(self) -> str:
        """The model's name in requests and answers; never a path.

        Raises:
            HttpError: 503; it is not known yet.
        """
        if self.config.served_model_name is not None:
            return self.config.served_model_name
        model = self.facts.model
        return PurePath(model).name if model.startswith(("/", ".", "~")) else model

    @property
    def fingerprint(self) -> str:
        """`system_fingerprint`: changes when the weights do."""
        return f"kilotron-{self.facts.model_hash[:12]}"

    def check_model(self, name: str | None) -> None:
        """Whether this is the model that is served.

        Raises:
            HttpError: 404 naming the one that is.
        """
        if name and name != self.model_name:
            raise HttpError(
                404,
                f"the model {name[:128]!r} does not exist here; use {self.model_name!r}",
                param="model",
                code="model_not_found",
            )

    def find_request_id(self, given: str) -> str:
        """The service's id of a request, given that or the `id` of its answer."""
        return given.removeprefix("chatcmpl-").removeprefix("cmpl-")

    def not_ready(self) -> HttpError:
        """Why no request can be taken now."""
        reason, code = explain_status(self.client.status)
        if self.is_draining:
            reason, code = "the server is shutting down", "shutting_down"
        elif not self.is_complete and self.client.facts is not None:
            reason, code = "the tokenizer is loading", "loading"
        return HttpError(503, reason, code=code, retry_after_s=_LOADING_RETRY_AFTER_S)

    @property
    def is_ready(self) -> bool:
        """Whether a request sent now would run."""
        return (
            self.client.status.is_ready and self.client.facts is not None and self.is_complete and not self.is_draining
        )


def explain_status(status: ServiceStatus) -> tuple[str, str]:
    """Why a service is not ready, as a sentence and a code."""
    if status.state != "running":
        return f"the server is {status.state}", status.state
    loading = [replica.progress for replica in status.replicas if replica.phase != "ready"]
    if loading:
        return f"the model is loading ({max(loading):.0%})", "loading"
    if not status.replicas:
        return "the server is starting", "loading"
    return "no engine is alive; the server starts a new one", "engine_unavailable"


def owner_of(scope: Mapping[str, Any]) -> str:
    """The key id that authentication found; "" where there are no keys."""
    identity = scope.get("state", {}).get("identity")
    return getattr(identity, "key_id", None) or ""


def new_request_id() -> str:
    """32 hex digits."""
    return secrets.token_hex(16)
