"""load_model: a model and its tokenizer by themselves, for those who build an engine around them."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from kilotron.apis.assembly import assemble
from kilotron.config import InferenceConfig
from kilotron.models.gpt_model import GPTModel
from kilotron.tokenization import Tokenizer


class LoadedModel(NamedTuple):
    """What was loaded."""

    model: GPTModel
    """For a `GPTInferenceWrapper`; an `EncoderDecoderModel` is for a `T5InferenceWrapper`."""
    tokenizer: Tokenizer | None
    """None when the checkpoint has none."""


def load_model(
    model: str | Path | None = None, tokenizer: str | Path | Tokenizer | None = None, **options: Any
) -> LoadedModel:
    """Reads a checkpoint's weights and tokenizer and builds no engine.

    Args:
        model: checkpoint folder, hub id, or None for the bundled tiny model.
        tokenizer: folder or ready tokenizer; None takes the one beside the checkpoint.
        **options: options of `InferenceConfig`, such as `dtype` and `device`.

    Raises:
        CheckpointError: the checkpoint is missing, broken or of an unknown architecture.
        ConfigError: an option is unknown or impossible here.
    """
    engine = assemble(model, tokenizer, InferenceConfig.from_dict(options)).engine
    wrapper, held = engine.controller.inference_wrapped_model, engine.controller.tokenizer
    engine.close()  # which gives its cache back; the model stays
    loaded: GPTModel = wrapper.model
    # The checkpoint may name ids that end a text outside of the model's own config.
    loaded.config = replace(loaded.config, eos_token_ids=tuple(sorted(engine.intake.limits.eos_ids)))
    return LoadedModel(loaded, held)
