"""EngineParts: which classes an engine is made of; one set as they are, one with their times on record."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from kilotron.contexts.dynamic_context import DynamicInferenceContext
from kilotron.engines.dynamic_engine import DynamicInferenceEngine
from kilotron.kernels.interface import KernelBackend
from kilotron.model_inference_wrappers.gpt_inference_wrapper import GPTInferenceWrapper
from kilotron.model_inference_wrappers.t5_inference_wrapper import T5InferenceWrapper
from kilotron.models.encoder_decoder_model import EncoderDecoderModel
from kilotron.models.gpt_model import GPTModel
from kilotron.scheduling.scheduler import Scheduler
from kilotron.text_generation_controllers.encoder_decoder_text_generation_controller import (
    EncoderDecoderTextGenerationController,
)
from kilotron.text_generation_controllers.text_generation_controller import TextGenerationController
from kilotron.trace import Trace


class EngineParts(NamedTuple):
    """What `assembly` calls to make each part, with that class's arguments."""

    kernels: Callable[[KernelBackend], KernelBackend]
    """Given the backend that was chosen."""
    wrapper: Callable[..., GPTInferenceWrapper]
    context: Callable[..., DynamicInferenceContext]
    controller: Callable[..., TextGenerationController]
    scheduler: Callable[..., Scheduler]
    engine: Callable[..., DynamicInferenceEngine]
    trace: Trace | None = None
    """Where the times go, if anywhere."""


def plain_parts() -> EngineParts:
    """The classes as they are."""
    return EngineParts(
        kernels=lambda chosen: chosen,
        wrapper=wrap_model,
        context=DynamicInferenceContext,
        controller=make_controller,
        scheduler=Scheduler,
        engine=DynamicInferenceEngine,
    )


def wrap_model(model: GPTModel, *arguments: Any) -> GPTInferenceWrapper:
    """The wrapper for a model's kind; see the classes for the arguments."""
    kind = T5InferenceWrapper if isinstance(model, EncoderDecoderModel) else GPTInferenceWrapper
    return kind(model, *arguments)


def make_controller(wrapper: GPTInferenceWrapper, *arguments: Any, **options: Any) -> TextGenerationController:
    """The controller for a model's kind; see the classes for the arguments."""
    kind = TextGenerationController if wrapper.encoder_decoder is None else EncoderDecoderTextGenerationController
    return kind(wrapper, *arguments, **options)


def profiled_parts(trace: Trace) -> EngineParts:
    """The same, all with their times in one trace."""
    from kilotron.engines.profiled_engine import (
        ProfiledContext,
        ProfiledEngine,
        ProfiledScheduler,
        make_profiled_controller,
        wrap_profiled_model,
    )
    from kilotron.kernels.profiling import ProfiledBackend

    return EngineParts(
        kernels=partial(ProfiledBackend, trace=trace),
        wrapper=partial(wrap_profiled_model, trace=trace),
        context=partial(ProfiledContext, trace=trace),
        controller=partial(make_profiled_controller, trace=trace),
        scheduler=partial(ProfiledScheduler, trace=trace),
        engine=partial(ProfiledEngine, trace=trace),
        trace=trace,
    )
