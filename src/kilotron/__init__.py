"""kilotron: an inference runtime for large language models trained with Megatron or published in Hugging Face format.

Public names are imported when they are first used, so that `import kilotron` is instant.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kilotron.apis.async_llm import MegatronAsyncLLM
    from kilotron.apis.llm import MegatronLLM
    from kilotron.apis.model_loading import load_model
    from kilotron.apis.text_generation import beam_search_and_post_process, generate_and_post_process
    from kilotron.async_stream import AsyncStream
    from kilotron.config import InferenceConfig, ServeConfig
    from kilotron.contexts.dynamic_context import DynamicInferenceContext
    from kilotron.contexts.static_context import StaticInferenceContext
    from kilotron.coordinator.coordinator import DataParallelInferenceCoordinator
    from kilotron.coordinator.inference_client import InferenceClient
    from kilotron.engines.abstract_engine import AbstractEngine
    from kilotron.engines.dynamic_engine import DynamicInferenceEngine
    from kilotron.engines.encoder_intake import EncoderDecoderPrompt
    from kilotron.engines.static_engine import MCoreEngine, StaticInferenceEngine
    from kilotron.errors import KilotronError
    from kilotron.inference_request import DynamicInferenceRequest, InferenceRequest, Status
    from kilotron.model_inference_wrappers.abstract_model_inference_wrapper import AbstractModelInferenceWrapper
    from kilotron.model_inference_wrappers.gpt_inference_wrapper import GPTInferenceWrapper
    from kilotron.model_inference_wrappers.inference_wrapper_config import InferenceWrapperConfig
    from kilotron.model_inference_wrappers.t5_inference_wrapper import T5InferenceWrapper
    from kilotron.sampling_params import CommonInferenceParams, SamplingParams
    from kilotron.scheduling.request_pools import Scheduler
    from kilotron.text_generation_controllers.encoder_decoder_text_generation_controller import (
        EncoderDecoderTextGenerationController,
    )
    from kilotron.text_generation_controllers.stream_item import StreamItem
    from kilotron.text_generation_controllers.text_generation_controller import (
        SimpleTextGenerationController,
        TextGenerationController,
    )

_HOMES = {
    "AbstractEngine": "kilotron.engines.abstract_engine",
    "AbstractModelInferenceWrapper": "kilotron.model_inference_wrappers.abstract_model_inference_wrapper",
    "AsyncStream": "kilotron.async_stream",
    "CommonInferenceParams": "kilotron.sampling_params",
    "DataParallelInferenceCoordinator": "kilotron.coordinator.coordinator",
    "DynamicInferenceContext": "kilotron.contexts.dynamic_context",
    "DynamicInferenceEngine": "kilotron.engines.dynamic_engine",
    "DynamicInferenceRequest": "kilotron.inference_request",
    "EncoderDecoderPrompt": "kilotron.engines.encoder_intake",
    "EncoderDecoderTextGenerationController": (
        "kilotron.text_generation_controllers.encoder_decoder_text_generation_controller"
    ),
    "GPTInferenceWrapper": "kilotron.model_inference_wrappers.gpt_inference_wrapper",
    "InferenceClient": "kilotron.coordinator.inference_client",
    "InferenceConfig": "kilotron.config",
    "InferenceRequest": "kilotron.inference_request",
    "InferenceWrapperConfig": "kilotron.model_inference_wrappers.inference_wrapper_config",
    "KilotronError": "kilotron.errors",
    "MCoreEngine": "kilotron.engines.static_engine",
    "MegatronAsyncLLM": "kilotron.apis.async_llm",
    "MegatronLLM": "kilotron.apis.llm",
    "SamplingParams": "kilotron.sampling_params",
    "Scheduler": "kilotron.scheduling.request_pools",
    "ServeConfig": "kilotron.config",
    "SimpleTextGenerationController": "kilotron.text_generation_controllers.text_generation_controller",
    "StaticInferenceContext": "kilotron.contexts.static_context",
    "StaticInferenceEngine": "kilotron.engines.static_engine",
    "Status": "kilotron.inference_request",
    "StreamItem": "kilotron.text_generation_controllers.stream_item",
    "T5InferenceWrapper": "kilotron.model_inference_wrappers.t5_inference_wrapper",
    "TextGenerationController": "kilotron.text_generation_controllers.text_generation_controller",
    "beam_search_and_post_process": "kilotron.apis.text_generation",
    "generate_and_post_process": "kilotron.apis.text_generation",
    "load_model": "kilotron.apis.model_loading",
}

__version__ = "0.1.0"

__all__ = [
    "AbstractEngine",
    "AbstractModelInferenceWrapper",
    "AsyncStream",
    "CommonInferenceParams",
    "DataParallelInferenceCoordinator",
    "DynamicInferenceContext",
    "DynamicInferenceEngine",
    "DynamicInferenceRequest",
    "EncoderDecoderPrompt",
    "EncoderDecoderTextGenerationController",
    "GPTInferenceWrapper",
    "InferenceClient",
    "InferenceConfig",
    "InferenceRequest",
    "InferenceWrapperConfig",
    "KilotronError",
    "MCoreEngine",
    "MegatronAsyncLLM",
    "MegatronLLM",
    "SamplingParams",
    "Scheduler",
    "ServeConfig",
    "SimpleTextGenerationController",
    "StaticInferenceContext",
    "StaticInferenceEngine",
    "Status",
    "StreamItem",
    "T5InferenceWrapper",
    "TextGenerationController",
    "beam_search_and_post_process",
    "generate_and_post_process",
    "load_model",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'kilotron' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
