"""A prompt as the request that asks for its continuation, in the shape of the endpoint."""

import json
from typing import Any

from kilotron.cli.load.load_options import PATHS
from kilotron.cli.load.load_run import ReadyRequest
from kilotron.cli.load.workload import LoadRequest
from kilotron.cli.remote.http_exchange import Connector


class RequestWriter:
    """Writes requests.

    Args:
        backend: openai or openai-chat.
        model: its id.
        ignores_eos: whether answers go on past the model's end of text.
    """

    def __init__(self, backend: str, model: str, *, ignores_eos: bool) -> None:
        self.path = PATHS[backend]
        self.is_chat = backend == "openai-chat"
        self._shared: dict[str, Any] = {
            "model": model,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if ignores_eos:  # not in OpenAI's protocol, so a server may refuse it
            self._shared["ignore_eos"] = True

    def fields(self, request: LoadRequest) -> dict[str, Any]:
        """The request's JSON."""
        if self.is_chat:
            asked = {"messages": [{"role": "user", "content": request.prompt}]}
            return self._shared | asked | {"max_completion_tokens": request.output_len}
        return self._shared | {"prompt": request.prompt, "max_tokens": request.output_len}

    def write(self, connector: Connector, request: LoadRequest) -> ReadyRequest:
        """The request's bytes."""
        body = json.dumps(self.fields(request), separators=(",", ":")).encode()
        return ReadyRequest(connector.post_request(self.path, body), request.input_len)
