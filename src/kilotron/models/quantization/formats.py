"""Finds how a checkpoint's matrices are quantized, by the `quant_method` in its config.json."""

from collections.abc import Callable, Mapping
from typing import Any

from kilotron.errors import CheckpointError
from kilotron.models.config_fields import ConfigFields
from kilotron.models.quantization.awq import AwqFormat
from kilotron.models.quantization.compressed_tensors import CompressedTensorsFormat
from kilotron.models.quantization.fp8 import Fp8Format
from kilotron.models.quantization.gptq import GptqFormat
from kilotron.models.quantization.stored_matrix import MatrixFormat

FORMATS: Mapping[str, Callable[[ConfigFields], MatrixFormat]] = {
    "awq": AwqFormat,
    "compressed-tensors": CompressedTensorsFormat,
    "fp8": Fp8Format,
    "gptq": GptqFormat,
}
SECTIONS = ("quantization_config", "compression_config")


def find_format(config: Mapping[str, Any]) -> MatrixFormat | None:
    """The format that a config.json names; None when the weights are plain.

    Raises:
        CheckpointError: it is none of the known ones, or its settings are.
    """
    inner = {name: value for name, value in config.items() if isinstance(value, Mapping) and name not in SECTIONS}
    parts = {"config.json": config} | {f"config.json: {name}": part for name, part in inner.items()}
    for source, part in parts.items():
        for section in SECTIONS:
            if part.get(section):
                return _make_format(ConfigFields(part, source).section(section))
    return None


def _make_format(fields: ConfigFields) -> MatrixFormat:
    # Only compressed-tensors has written settings without the name of a method.
    method = fields.text("quant_method", "compressed-tensors" if "config_groups" in fields else "unknown")
    if method not in FORMATS:
        raise CheckpointError(
            f"{fields.source}: the weights are quantized with {method!r}, which is not read; known: "
            f"{', '.join(sorted(FORMATS))}; or take the plain checkpoint and quantize it with quantization='int4'"
        )
    return FORMATS[method](fields)
