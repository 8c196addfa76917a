"""`kilotron convert`: a checkpoint in the other format, Megatron's or Hugging Face's."""

import re
import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Group, Parameter

from kilotron.cli.failures import UsageError
from kilotron.cli.options import OUTPUT_GROUP, RUN, RunOptions, flag, switch
from kilotron.cli.output import format_bytes, note, print_json

if TYPE_CHECKING:
    from kilotron.apis.convert import ConversionOptions, ConversionReport

_RESULT = Group("Result", sort_key=1)
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|KB|MB|GB|TB|KiB|MiB|GiB|TiB)?", re.IGNORECASE)
_UNITS = {"": 1, "b": 1} | {
    f"{letter}{ending}": base**power
    for ending, base in (("b", 1000), ("ib", 1024))
    for power, letter in enumerate("kmgt", start=1)
}

Source = Annotated[str, Parameter(help="Checkpoint folder (Megatron's or Hugging Face's), or Hugging Face id.")]
Output = Annotated[str, Parameter(help="Folder to write, which must not be there yet.")]


@Parameter(name="*", group=_RESULT)
@dataclass(frozen=True, kw_only=True)
class ResultOptions:
    """What is written. Fields of ConversionOptions."""

    to: Annotated[Literal["megatron", "huggingface"] | None, flag("Format to write; by default the other one.")] = None
    architecture: Annotated[
        str | None, flag("Of a Hugging Face result, such as LlamaForCausalLM; by default the plainest one.")
    ] = None
    vocab_size: Annotated[
        int | None, flag("Rows of a padded vocabulary that count; by default what the tokenizer says.")
    ] = None
    tokenizer: Annotated[str | None, flag("Folder or file of the tokenizer; by default that beside the source.")] = None
    transformer_impl: Annotated[
        Literal["transformer_engine", "local"],
        flag("Megatron's --transformer-impl that will load a Megatron result."),
    ] = "transformer_engine"
    max_shard_size: Annotated[str, flag("Largest file of weights, such as 500MB.")] = "5GB"
    overwrite: Annotated[bool, switch("Replace the folder if it is there.")] = False

    def to_options(self) -> "ConversionOptions":
        """Raises UsageError when a size makes no sense."""
        max_shard_bytes = _parse_size(self.max_shard_size)
        if self.vocab_size is not None and self.vocab_size < 1:
            raise UsageError(f"--vocab-size must be positive, not {self.vocab_size}")
        from kilotron.apis.convert import ConversionOptions

        values = {name: value for name, value in asdict(self).items() if name != "max_shard_size"}
        return ConversionOptions(**values, max_shard_bytes=max_shard_bytes)


RESULT = ResultOptions()


def convert(
    source: Source,
    output: Output,
    /,
    *,
    result: ResultOptions = RESULT,
    json: Annotated[bool, switch("Tell the result as one JSON object.", group=OUTPUT_GROUP)] = False,
    run: RunOptions = RUN,
) -> int:
    """Megatron checkpoints to Hugging Face's, and back.

    Weights keep their dtype and every bit. All is read back and compared before
    the folder gets its name; until then it is OUTPUT.unfinished, and the same
    command goes on where an earlier one was stopped.

    Try:
      kilotron convert Qwen/Qwen3-0.6B ./megatron
      kilotron convert ./megatron ./back --max-shard-size 2GB
    """
    options = result.to_options()
    from kilotron.apis.convert import convert_checkpoint

    try:
        with _Bars(is_wanted=run.progress) as bars:
            report = convert_checkpoint(source, output, options, on_progress=bars.update)
    except KeyboardInterrupt:
        note("stopped; what is done is kept, and the same command goes on from there")
        raise
    for line in report.notes:
        note(line)
    if json:
        print_json(report.describe())
    else:
        print(_sentence(report))
        print(report.folder)
    return 0


def _sentence(report: "ConversionReport") -> str:
    from kilotron.apis.convert import FORMAT_NAMES

    kept = f", {report.num_files_kept} of them kept from an earlier run" if report.num_files_kept else ""
    files = f"{report.num_files} file{'s' if report.num_files != 1 else ''}"
    return (
        f"{FORMAT_NAMES[report.source_format]} to {FORMAT_NAMES[report.format]} ({report.architecture}): "
        f"{report.num_tensors} tensors, {format_bytes(report.num_bytes)} in {files}{kept}, read back and found equal"
    )


class _Bars(ExitStack):
    """A progress bar for each kind of work, one after the other."""

    def __init__(self, *, is_wanted: bool | None) -> None:
        super().__init__()
        self._is_wanted = sys.stderr.isatty() if is_wanted is None else is_wanted
        self._doing = ""

    def update(self, doing: str, bytes_done: int, bytes_total: int) -> None:
        """Called as bytes are done."""
        from kilotron.apis.progress import LoadProgressBar

        if doing != self._doing:
            self.close()
            self._doing = doing
            self._bar = self.enter_context(LoadProgressBar(is_wanted=self._is_wanted, doing=doing))
        self._bar.update(bytes_done, bytes_total)


def _parse_size(text: str) -> int:
    match = _SIZE.fullmatch(text.strip())
    size = int(float(match[1]) * _UNITS[(match[2] or "").lower()]) if match else 0
    if size < 1:
        raise UsageError(f"--max-shard-size must be a size such as 500MB or 5GB, not {text!r}")
    return size
