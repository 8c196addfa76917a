"""kilotron: an inference runtime for large language models trained with Megatron or published in Hugging Face format.

Public names are imported when they are first used, so that `import kilotron` is instant.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kilotron.apis.async_llm import MegatronAsyncLLM
    from kilotron.apis.llm import MegatronLLM
    from kilotron.async_stream import AsyncStream
    from kilotron.config import InferenceConfig, ServeConfig
    from kilotron.coordinator.coordinator import DataParallelInferenceCoordinator
    from kilotron.coordinator.inference_client import InferenceClient
    from kilotron.engines.abstract_engine import AbstractEngine
    from kilotron.engines.dynamic_engine import DynamicInferenceEngine
    from kilotron.errors import KilotronError
    from kilotron.inference_request import InferenceRequest, Status
    from kilotron.sampling_params import CommonInferenceParams, SamplingParams
    from kilotron.text_generation_controllers.stream_item import StreamItem

_HOMES = {
    "AbstractEngine": "kilotron.engines.abstract_engine",
    "AsyncStream": "kilotron.async_stream",
    "CommonInferenceParams": "kilotron.sampling_params",
    "DataParallelInferenceCoordinator": "kilotron.coordinator.coordinator",
    "DynamicInferenceEngine": "kilotron.engines.dynamic_engine",
    "InferenceClient": "kilotron.coordinator.inference_client",
    "InferenceConfig": "kilotron.config",
    "InferenceRequest": "kilotron.inference_request",
    "KilotronError": "kilotron.errors",
    "MegatronAsyncLLM": "kilotron.apis.async_llm",
    "MegatronLLM": "kilotron.apis.llm",
    "SamplingParams": "kilotron.sampling_params",
    "ServeConfig": "kilotron.config",
    "Status": "kilotron.inference_request",
    "StreamItem": "kilotron.text_generation_controllers.stream_item",
}

__version__ = "0.1.0"

__all__ = [
    "AbstractEngine",
    "AsyncStream",
    "CommonInferenceParams",
    "DataParallelInferenceCoordinator",
    "DynamicInferenceEngine",
    "InferenceClient",
    "InferenceConfig",
    "InferenceRequest",
    "KilotronError",
    "MegatronAsyncLLM",
    "MegatronLLM",
    "SamplingParams",
    "ServeConfig",
    "Status",
    "StreamItem",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'kilotron' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
