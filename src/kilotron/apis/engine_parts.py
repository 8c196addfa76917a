"""EngineParts: which classes an engine is made of; one set as they are, one with their times on record."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from kilotron.contexts.dynamic_context import DynamicInferenceContext
from kilotron.engines.dynamic_engine import DynamicInferenceEngine
from kilotron.kernels.interface import KernelBackend
from kilotron.model_inference_wrappers.gpt_inference_wrapper import GPTInferenceWrapper
from kilotron.scheduling.scheduler import Scheduler
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
        wrapper=GPTInferenceWrapper,
        context=DynamicInferenceContext,
        controller=TextGenerationController,
        scheduler=Scheduler,
        engine=DynamicInferenceEngine,
    )


def profiled_parts(trace: Trace) -> EngineParts:
    """The same, all with their times in one trace."""
    from kilotron.engines.profiled_engine import (
        ProfiledContext,
        ProfiledController,
        ProfiledEngine,
        ProfiledScheduler,
        ProfiledWrapper,
    )
    from kilotron.kernels.profiling import ProfiledBackend

    return EngineParts(
        kernels=partial(ProfiledBackend, trace=trace),
        wrapper=partial(ProfiledWrapper, trace=trace),
        context=partial(ProfiledContext, trace=trace),
        controller=partial(ProfiledController, trace=trace),
        scheduler=partial(ProfiledScheduler, trace=trace),
        engine=partial(ProfiledEngine, trace=trace),
        trace=trace,
    )
