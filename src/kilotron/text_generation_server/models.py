"""GET /v1/models and /v1/models/{id}: the one model that is served."""

from starlette.requests import Request
from starlette.responses import Response

from kilotron.text_generation_server.json_response import json_response
from kilotron.text_generation_server.response_types import ModelCard, ModelList
from kilotron.text_generation_server.server_state import ServerState


class ModelsEndpoints:
    """What clients ask before anything else."""

    def __init__(self, state: ServerState) -> None:
        self._state = state

    async def list_all(self, request: Request) -> Response:
        """All models."""
        return json_response(ModelList(data=[self._card()]))

    async def show(self, request: Request) -> Response:
        """One model; 404 if it is another one."""
        self._state.check_model(request.path_params["model"])
        return json_response(self._card())

    def _card(self) -> ModelCard:
        facts, name = self._state.facts, self._state.model_name
        return ModelCard(
            id=name,
            created=self._state.started_at,
            root=name,
            max_model_len=facts.max_sequence_length,
            default_sampling=facts.default_sampling,
        )
