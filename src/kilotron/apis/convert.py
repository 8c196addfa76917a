"""Converts checkpoints between Megatron and Hugging Face: file by file, resumable, and read back before it counts."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from kilotron.apis.conversion_source import ConversionSource, read_source
from kilotron.apis.conversion_target import ConversionTarget, Facts, HuggingFaceTarget, MegatronTarget
from kilotron.checkpoints.open_checkpoint import open_checkpoint
from kilotron.checkpoints.output_tensor import DigestingStream, OutputTensor, bytes_of
from kilotron.checkpoints.safetensors_file import TORCH_NAME_OF_DTYPE
from kilotron.checkpoints.unfinished_folder import (
    FreeBytes,
    UnfinishedFolder,
    check_free,
    explain_full_disk,
    free_bytes,
)
from kilotron.errors import BrokenCheckpointError, CheckpointError
from kilotron.models.megatron_args import find_megatron_gaps
from kilotron.models.parameters import (
    VOCABULARY_PARAMETERS,
    VOCABULARY_TABLES,
    Parameter,
    ParameterLayout,
    ParameterReader,
    SharedRead,
    list_parameters,
)
from kilotron.models.registry import read_transformer_config
from kilotron.models.structure import differences
from kilotron.tokenization import Tokenizer, load_tokenizer

MOST_NAMED = 5
FORMAT_NAMES = {"megatron": "Megatron", "huggingface": "Hugging Face"}

OnProgress = Callable[[str, int, int], None]
"""Called with what is being done, bytes done and bytes in all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionOptions:
    """How a checkpoint is to be converted."""

    to: Literal["megatron", "huggingface"] | None = None
    """None: to the other one."""
    architecture: str | None = None
    """Of the Hugging Face checkpoint; None chooses it by what the model needs."""
    vocab_size: int | None = None
    """Rows that count in a padded vocabulary; None asks config and tokenizer."""
    tokenizer: str | None = None
    """Folder of the tokenizer, or `null:N`; None looks beside the source."""
    transformer_impl: Literal["transformer_engine", "local"] = "transformer_engine"
    """Which of Megatron's implementations the names are for; they differ in mixtures of experts."""
    max_shard_bytes: int = 5 * 10**9
    overwrite: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionReport:
    """What was written."""

    folder: Path
    source_format: str
    format: str
    architecture: str
    num_tensors: int
    num_parameters: int
    num_bytes: int
    num_files: int
    num_files_kept: int
    """Of these, how many an earlier run had written."""
    notes: list[str] = field(default_factory=list)

    def describe(self) -> dict[str, Any]:
        """As plain values that JSON can hold."""
        return asdict(self) | {"folder": str(self.folder)}


class _Shard(NamedTuple):
    """One file of weights: each parameter, and the tensors it is stored as."""

    name: str
    parts: list[tuple[SharedRead, list[OutputTensor]]]

    @property
    def outputs(self) -> list[OutputTensor]:
        return [output for _, outputs in self.parts for output in outputs]

    @property
    def labels(self) -> list[str]:
        return [reading.parameter.label for reading, _ in self.parts]

    @property
    def num_bytes(self) -> int:
        return sum(output.num_bytes for output in self.outputs)


def convert_checkpoint(
    source: str | Path,
    output: str | Path,
    options: ConversionOptions | None = None,
    *,
    on_progress: OnProgress | None = None,
    measure_free: FreeBytes = free_bytes,
) -> ConversionReport:
    """Writes the checkpoint `source` to the folder `output` in the other format.

    Weights keep their dtype and every bit. The folder has its name only once everything was read back and compared;
    until then it is OUTPUT.unfinished, and the same call goes on where an earlier one was stopped.

    Raises:
        CheckpointError: the source cannot be read or expressed in the other format, OUTPUT is there already or of
            another conversion, or the disk is too small.
    """
    options = options or ConversionOptions()
    final = Path(output).expanduser().absolute()
    check_free(final, overwrite=options.overwrite)
    with open_checkpoint(source) as checkpoint:
        if final.resolve() in (folder := checkpoint.folder.resolve(), *folder.parents):
            raise CheckpointError(f"{final} holds the source itself; choose another output")
        opened = read_source(checkpoint, options.tokenizer)
        job = _Job(opened, final, options, on_progress or (lambda *_: None))
        return job.run(measure_free)


class _Job:
    """One conversion."""

    def __init__(
        self, source: ConversionSource, final: Path, options: ConversionOptions, on_progress: OnProgress
    ) -> None:
        self.source = source
        self.final = final
        self.options = options
        self.on_progress = on_progress
        self.reader = ParameterReader(source.checkpoint, source.config, source.names)
        self.parameters = list(list_parameters(source.config))
        self.reader.check(self.parameters)
        self.notes: list[str] = []
        self.target = self._choose_target()
        self.shards = self._plan_shards()
        self.digests: dict[str, str] = {}

    def run(self, measure_free: FreeBytes) -> ConversionReport:
        """Writes, reads back, and gives the folder its name."""
        self.notes += self._leftovers()
        with UnfinishedFolder.open(self.final, work=self._work(), overwrite=self.options.overwrite) as folder:
            num_files_kept = self._fill(folder, measure_free)
            folder.finish()
        outputs = [output for shard in self.shards for output in shard.outputs]
        return ConversionReport(
            folder=self.final,
            source_format=self.source.format,
            format=self.target.format,
            architecture=self.target.architecture,
            num_tensors=len(outputs),
            num_parameters=sum(prod(output.shape) for output in outputs),
            num_bytes=sum(output.num_bytes for output in outputs),
            num_files=len(self.shards),
            num_files_kept=num_files_kept,
            notes=self.notes,
        )

    def _fill(self, folder: UnfinishedFolder, measure_free: FreeBytes) -> int:
        """Writes all that is not there yet and reads everything back; how many files were there."""
        done = {shard.name: facts for shard in self.shards if (facts := _facts_of(folder, shard)) is not None}
        folder.require_free(sum(shard.num_bytes for shard in self.shards if shard.name not in done), measure_free)
        files = self._write_all(folder, done)
        try:
            self.target.complete(folder, files)
        except OSError as error:
            raise explain_full_disk(error, folder.path) from error
        self._verify(folder.path)
        return len(done)

    def _check_tied_output(self, left: Sequence[str]) -> None:
        """An output weight beside a tied table must be a copy of it, for it would be lost.

        Raises:
            CheckpointError: it is not, so that the configuration is wrong.
        """
        checkpoint = self.source.checkpoint
        table, output = (
            self.source.names.source_of(name, checkpoint.tensors).stacks[0][0] for name in VOCABULARY_TABLES
        )
        if output in left and not torch.equal(checkpoint.read(output), checkpoint.read(table)):
            raise CheckpointError(
                f"{checkpoint.folder}: {output} differs from {table}, though the configuration ties them; if the model "
                'was trained untied, set "tie_word_embeddings": false in config.json'
            )

    def _choose_target(self) -> ConversionTarget:
        source, options = self.source, self.options
        if source.tokenizer is None:
            self.notes.append("no tokenizer was found beside the source; --tokenizer FOLDER adds one")
        to = options.to or ("megatron" if source.format == "huggingface" else "huggingface")
        if to == source.format:
            raise CheckpointError(f"{source.checkpoint.folder} is a {FORMAT_NAMES[to]} checkpoint already")
        if to == "megatron":
            if options.architecture is not None or options.vocab_size is not None:
                raise CheckpointError("architecture and vocab_size are for conversions to Hugging Face")
            gaps = find_megatron_gaps(source.config)
            if gaps:
                self.notes.append(
                    f"megatron-core has no option for {', '.join(gaps)}: it cannot run this checkpoint. Kilotron can, "
                    "and can convert it back"
                )
            return MegatronTarget.of(source, self.final, options.transformer_impl)
        tokenizer = None if source.tokenizer is None else load_tokenizer(source.tokenizer)
        config = replace(
            source.config,
            vocab_size=self._choose_vocab_size(tokenizer),
            params_dtype=getattr(torch, TORCH_NAME_OF_DTYPE[self.reader.dtype_of(self.parameters[0])]),
        )
        if tokenizer is not None and not config.eos_token_ids:
            ends = () if tokenizer.eos_id is None else (tokenizer.eos_id,)
            config = replace(config, eos_token_ids=ends, bos_token_id=tokenizer.bos_id)
        return HuggingFaceTarget.of(source, config, options.architecture)

    def _choose_vocab_size(self, tokenizer: Tokenizer | None) -> int:
        """How many rows of the padded tables count."""
        source, rows = self.source, self.source.config.vocab_size
        sizes = {
            "--vocab-size": self.options.vocab_size,
            "the kept config.json": _kept_vocab_size(source),
            "the tokenizer": None if tokenizer is None else tokenizer.vocab_size,
        }
        name, size = next(((name, size) for name, size in sizes.items() if size), ("", rows))
        if not 0 < size <= rows:
            raise CheckpointError(
                f"{name} says {size} tokens, and the embedding has {rows} rows; give the right number with --vocab-size"
            )
        if not name:
            self.notes.append(
                f"nobody says how many of the {rows} rows of the vocabulary are real (no tokenizer was found), so all "
                "are kept; --vocab-size cuts them"
            )
        elif size < rows:
            self.notes.append(f"the vocabulary is cut from {rows} padded rows to {size}, as {name} says")
        return size

    def _plan_shards(self) -> list[_Shard]:
        """Parameters in order, in files of at most the wanted size (a larger parameter has its own)."""
        layout = ParameterLayout(self.target.config, self.target.names)
        files: list[list[tuple[SharedRead, list[OutputTensor]]]] = [[]]
        size = 0
        for parameter in self.parameters:
            written = self._cut(parameter)
            reading = SharedRead(self.reader, parameter, num_rows=written.shape[0], on_read=self._on_read)
            outputs = layout.outputs_of(written, self.reader.dtype_of(parameter), reading)
            num_bytes = sum(output.num_bytes for output in outputs)
            if files[-1] and size + num_bytes > self.options.max_shard_bytes:
                files.append([])
                size = 0
            files[-1].append((reading, outputs))
            size += num_bytes
        self.target.prepare([output for parts in files for _, outputs in parts for output in outputs])
        return [_Shard(self.target.file_name(index, len(files)), parts) for index, parts in enumerate(files)]

    def _cut(self, parameter: Parameter) -> Parameter:
        if parameter.name not in VOCABULARY_PARAMETERS:
            return parameter
        rows = self.target.config.vocab_size
        return Parameter(parameter.name, None, 0, (rows, *parameter.shape[1:]), (rows,))

    def _work(self) -> dict[str, Any]:
        """All that decides what is written; equal for a run that may go on with what another has begun."""
        options = {name: value for name, value in asdict(self.options).items() if name != "overwrite"}
        return {
            "source": str(self.source.checkpoint.folder.resolve()),
            "source contents": self.source.fingerprint(),
            "target": repr(self.target.config),
            "architecture of the result": self.target.architecture,
            **options,
        }

    def _write_all(
        self, folder: UnfinishedFolder, done: Mapping[str, Facts]
    ) -> dict[str, tuple[Sequence[OutputTensor], Facts]]:
        self.progress = _Progress(self.on_progress, "converting", sum(shard.num_bytes for shard in self.shards))
        files: dict[str, tuple[Sequence[OutputTensor], Facts]] = {}
        for shard in self.shards:
            facts = done.get(shard.name)
            if facts is None:
                facts = folder.write_file(shard.name, partial(self._write_shard, shard=shard))
            else:
                self.progress.add(shard.num_bytes)
            self.digests |= facts["digests"]
            files[shard.name] = (shard.outputs, facts)
        return files

    def _write_shard(self, stream: DigestingStream, *, shard: _Shard) -> Facts:
        facts = self.target.write_weights(stream, shard.outputs)
        return {**facts, "digests": {label: self.digests[label] for label in shard.labels}}

    def _on_read(self, parameter: Parameter, value: torch.Tensor) -> None:
        self.digests[parameter.label] = _digest(value)
        self.progress.add(value.nbytes)

    def _verify(self, folder: Path) -> None:
        """Reads the result as anybody would and compares each parameter with what was read from the source.

        Raises:
            BrokenCheckpointError: one is not what it was.
        """
        progress = _Progress(self.on_progress, "verifying", sum(shard.num_bytes for shard in self.shards))
        config = self.target.config
        with self.target.open_result(folder) as result:
            if differing := differences(read_transformer_config(result.config, result.tensors), config):
                raise BrokenCheckpointError(f"{folder}: it is read as another model: {'; '.join(differing)}")
            reader = ParameterReader(result, config, self.target.names)
            parameters = [self._cut(parameter) for parameter in self.parameters]
            reader.check(parameters)
            for parameter in parameters:
                value = reader.read(parameter)
                if _digest(value) != self.digests[parameter.label]:
                    raise BrokenCheckpointError(
                        f"{folder}: {parameter.label} came back from the disk otherwise than it was written: the disk "
                        "or memory is faulty, or another program wrote there; remove that folder and try again"
                    )
                progress.add(value.nbytes)

    def _leftovers(self) -> list[str]:
        """What of the source is not converted, as notes."""
        used = {name for parameter in self.parameters for name in self.reader.stored_names(parameter)}
        tensors = self.source.checkpoint.tensors
        left = sorted(name for name in tensors if name not in used and not self.source.names.is_ignored(name))
        self._check_tied_output(left)
        if not left:
            return []
        named = ", ".join(left[:MOST_NAMED]) + (f" and {len(left) - MOST_NAMED} more" if len(left) > MOST_NAMED else "")
        return [f"{len(left)} tensors that the model does not use are left out: {named}"]


class _Progress:
    """Counts bytes for whoever wants to know."""

    def __init__(self, on_progress: OnProgress, doing: str, bytes_total: int) -> None:
        self._on_progress = on_progress
        self._doing = doing
        self._bytes_total = bytes_total
        self._bytes_done = 0

    def add(self, num_bytes: int) -> None:
        self._bytes_done += num_bytes
        self._on_progress(self._doing, self._bytes_done, self._bytes_total)


def _facts_of(folder: UnfinishedFolder, shard: _Shard) -> Facts | None:
    """What an earlier run noted of a file that needs not be written again."""
    facts = folder.facts_of(shard.name)
    if facts is None or not isinstance(facts.get("digests"), dict) or facts["digests"].keys() != set(shard.labels):
        return None
    return facts


def _digest(value: torch.Tensor) -> str:
    return hashlib.sha256(bytes_of(value)).hexdigest()


def _kept_vocab_size(source: ConversionSource) -> int | None:
    if source.kept_config is None:
        return None
    size = json.loads(source.kept_config).get("vocab_size")
    return size if isinstance(size, int) else None
