"""Tests of converting: what is resumed, what is refused, what a full disk leaves."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import kilotron
from kilotron.apis.convert import ConversionOptions, ConversionReport, convert_checkpoint
from kilotron.checkpoints.megatron import MegatronCheckpoint
from kilotron.checkpoints.open_checkpoint import open_checkpoint
from kilotron.errors import CheckpointError
from kilotron.models.registry import read_transformer_config
from unit.cli.tiny_checkpoint import write_tiny_checkpoint

MEGATRON = Path(__file__).parents[2] / "data" / "megatron"
SMALL_FILES = ConversionOptions(max_shard_bytes=30_000)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def megatron(source: Path) -> Path:
    folder = source.parent / "megatron"
    convert_checkpoint(source, folder, SMALL_FILES)
    return folder


def same_weights(one: Path, other: Path) -> bool:
    """Whether two Hugging Face folders hold the same tensors, bit for bit."""
    with open_checkpoint(one) as first, open_checkpoint(other) as second:
        names = set(first.tensors)
        return names == set(second.tensors) and all(
            torch.equal(first.read(name).view(torch.uint8), second.read(name).view(torch.uint8)) for name in names
        )


class Stopping:
    """A progress listener that raises once so many bytes are done."""

    def __init__(self, error: BaseException, share: float) -> None:
        self.error = error
        self.share = share

    def __call__(self, doing: str, bytes_done: int, bytes_total: int) -> None:
        if doing == "converting" and bytes_done >= self.share * bytes_total:
            raise self.error


def stop(source: Path, output: Path, error: BaseException, share: float = 0.6) -> BaseException:
    with pytest.raises((type(error), CheckpointError)) as raised:
        convert_checkpoint(source, output, SMALL_FILES, on_progress=Stopping(error, share))
    return raised.value


def test_a_round_trip_gives_back_weights_configuration_and_tokenizer(
    source: Path, megatron: Path, tmp_path: Path
) -> None:
    convert_checkpoint(megatron, tmp_path / "back", SMALL_FILES)

    assert same_weights(source, tmp_path / "back")
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "back" / name).read_bytes() == (source / name).read_bytes()
    assert (tmp_path / "back" / "model.safetensors.index.json").exists()


def test_a_megatron_result_has_megatrons_files_and_arguments(megatron: Path) -> None:
    assert (megatron / "latest_checkpointed_iteration.txt").read_text() == "release"
    assert json.loads((megatron / "release" / "metadata.json").read_text())["sharded_backend"] == "torch_dist"
    with MegatronCheckpoint.open(megatron) as checkpoint:
        assert checkpoint.format == "torch_dist"
        assert checkpoint.args["num_query_groups"] == 2
        assert checkpoint.args["swiglu"] is True
        assert checkpoint.args["tokenizer_model"] == str(megatron / "release" / "tokenizer")


def test_an_interrupted_conversion_goes_on_where_it_was(source: Path, megatron: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"

    stop(source, output, KeyboardInterrupt())

    assert not output.exists()
    report = convert_checkpoint(source, output, SMALL_FILES)
    assert 0 < report.num_files_kept < report.num_files
    assert not (tmp_path / "out.unfinished").exists()
    with MegatronCheckpoint.open(output) as result, MegatronCheckpoint.open(megatron) as whole:
        assert all(torch.equal(result.read(name), whole.read(name)) for name in whole.tensors)
    assert not list(output.rglob("*.part"))


def test_a_finished_file_that_has_changed_is_written_again(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    stop(source, output, KeyboardInterrupt())
    file = tmp_path / "out.unfinished" / "release" / "__0_0.distcp"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    whole = len(list(file.parent.glob("*.distcp")))

    report = convert_checkpoint(source, output, SMALL_FILES)

    assert report.num_files_kept == whole - 1


def test_a_full_disk_is_told_and_keeps_what_is_done(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"

    error = stop(source, output, OSError(errno.ENOSPC, "No space left on device"))

    assert isinstance(error, CheckpointError)
    assert "disk is full" in str(error)
    assert "run the same command again" in str(error)
    assert convert_checkpoint(source, output, SMALL_FILES).num_files_kept > 0


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(source: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"0\.07 GB are needed and 0\.01 GB are free"):
        convert_checkpoint(source, tmp_path / "out", measure_free=lambda folder: 10_000_000)

    assert not list((tmp_path / "out.unfinished").rglob("*.distcp"))


def test_an_unfinished_folder_of_another_conversion_is_not_touched(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    stop(source, output, KeyboardInterrupt())
    before = sorted(path.name for path in (tmp_path / "out.unfinished").rglob("*"))

    with pytest.raises(CheckpointError, match=r"out\.unfinished is of an earlier conversion.*max_shard_bytes.*remove"):
        convert_checkpoint(source, output, ConversionOptions(max_shard_bytes=40_000))

    assert sorted(path.name for path in (tmp_path / "out.unfinished").rglob("*")) == before


def test_a_source_that_changed_meanwhile_is_noticed(source: Path, tmp_path: Path) -> None:
    changing = shutil.copytree(source, tmp_path / "changing")
    stop(changing, tmp_path / "out", KeyboardInterrupt())
    weights = load_file(changing / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, changing / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(CheckpointError, match="source contents"):
        convert_checkpoint(changing, tmp_path / "out", SMALL_FILES)


def test_an_existing_folder_is_kept_unless_it_may_be_overwritten(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "precious.txt").write_text("mine")

    with pytest.raises(CheckpointError, match="--overwrite"):
        convert_checkpoint(source, output)
    assert (output / "precious.txt").read_text() == "mine"

    convert_checkpoint(source, output, ConversionOptions(overwrite=True))
    assert not (output / "precious.txt").exists()
    assert (output / "latest_checkpointed_iteration.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not (output / "conversion.json").exists()


@pytest.mark.parametrize("where", ["", "/..", "/../.."])
def test_a_source_is_never_overwritten(source: Path, where: str) -> None:
    with pytest.raises(CheckpointError, match="holds the source itself"):
        convert_checkpoint(source, f"{source}{where}", ConversionOptions(overwrite=True))


def test_a_checkpoint_that_has_the_format_already_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a Hugging Face checkpoint already"):
        convert_checkpoint(source, tmp_path / "out", ConversionOptions(to="huggingface"))


def test_a_quantized_checkpoint_is_refused_with_a_remedy(source: Path, tmp_path: Path) -> None:
    quantized = shutil.copytree(source, tmp_path / "quantized")
    config = json.loads((quantized / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False}
    (quantized / "config.json").write_text(json.dumps(config))

    with pytest.raises(CheckpointError, match="convert the plain checkpoint"):
        convert_checkpoint(quantized, tmp_path / "out")


@pytest.mark.parametrize("architecture", [None, "T5ForConditionalGeneration"])
def test_megatrons_own_encoder_decoder_is_refused(tmp_path: Path, architecture: str | None) -> None:
    with pytest.raises(CheckpointError, match="Megatron's own T5 is neither"):
        convert_checkpoint(MEGATRON / "t5/torch_dist", tmp_path / "out", ConversionOptions(architecture=architecture))


def test_a_missing_tensor_is_named_before_anything_is_written(source: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(source, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    del weights["model.layers.1.self_attn.k_proj.weight"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.self_attn\.k_proj\.weight.*is missing"):
        convert_checkpoint(broken, tmp_path / "out")

    assert not (tmp_path / "out.unfinished").exists()


def test_tensors_without_a_place_in_the_model_are_named(source: Path, tmp_path: Path) -> None:
    larger = shutil.copytree(source, tmp_path / "larger")
    weights = load_file(larger / "model.safetensors") | {"vision.weight": torch.ones(2)}
    save_file(weights, larger / "model.safetensors", metadata={"format": "pt"})

    report = convert_checkpoint(larger, tmp_path / "out")

    assert any("vision.weight" in note for note in report.notes)


@pytest.mark.parametrize("is_copy", [True, False])
def test_an_output_weight_beside_a_tied_table_may_only_be_a_copy(source: Path, tmp_path: Path, is_copy: bool) -> None:
    tied = shutil.copytree(source, tmp_path / "tied")
    weights = load_file(tied / "model.safetensors")
    table = weights["model.embed_tokens.weight"]
    save_file(weights | {"lm_head.weight": table + (not is_copy)}, tied / "model.safetensors")

    if is_copy:
        assert any("lm_head.weight" in note for note in convert_checkpoint(tied, tmp_path / "out").notes)
        return
    with pytest.raises(CheckpointError, match="though the configuration ties them"):
        convert_checkpoint(tied, tmp_path / "out")


def test_a_padded_vocabulary_is_cut_to_the_size_asked_for(megatron: Path, tmp_path: Path) -> None:
    report = convert_checkpoint(megatron, tmp_path / "back", ConversionOptions(vocab_size=250))

    weights = load_file(tmp_path / "back" / "model.safetensors")
    assert weights["model.embed_tokens.weight"].shape[0] == 250
    assert json.loads((tmp_path / "back" / "config.json").read_text())["vocab_size"] == 250
    assert any("258 padded rows to 250" in note for note in report.notes)


def test_more_tokens_than_rows_are_refused(megatron: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="--vocab-size says 9999 tokens, and the embedding has 258 rows"):
        convert_checkpoint(megatron, tmp_path / "back", ConversionOptions(vocab_size=9999))


def test_the_architecture_can_be_chosen_and_must_fit(megatron: Path, tmp_path: Path) -> None:
    def convert(architecture: str) -> ConversionReport:
        return convert_checkpoint(megatron, tmp_path / architecture, ConversionOptions(architecture=architecture))

    assert convert("MistralForCausalLM").architecture == "MistralForCausalLM"
    with pytest.raises(CheckpointError, match="GPT2LMHeadModel cannot express this model"):
        convert("GPT2LMHeadModel")
    with pytest.raises(CheckpointError, match="LamaForCausalLM"):
        convert("LamaForCausalLM")


@pytest.mark.parametrize(
    ("manifest", "told"),
    [
        ("", "valid JSON"),
        ('{"version": 99, "work": {}, "files": {}}', "another version"),
        ('{"version": 1, "work": {}, "files": []}', "no list of files"),
        ('{"version": 1, "work": {}, "files": {"../../etc": {"num_bytes": -1}}}', "no list of files"),
    ],
)
def test_a_broken_manifest_is_refused_by_name(source: Path, tmp_path: Path, manifest: str, told: str) -> None:
    unfinished = tmp_path / "out.unfinished"
    unfinished.mkdir()
    (unfinished / "conversion.json").write_text(manifest)

    with pytest.raises(CheckpointError, match=rf"out\.unfinished.*{told}.*remove that folder"):
        convert_checkpoint(source, tmp_path / "out")


def test_a_manifest_that_does_not_fit_its_files_is_not_believed(source: Path, tmp_path: Path) -> None:
    stop(source, tmp_path / "out", KeyboardInterrupt())
    file = tmp_path / "out.unfinished" / "conversion.json"
    manifest = json.loads(file.read_text())
    for note in manifest["files"].values():
        note["facts"] = {"entries": [["nothing", 0, 0]], "digests": {}}
    file.write_text(json.dumps(manifest))

    report = convert_checkpoint(source, tmp_path / "out", SMALL_FILES)

    assert report.num_files_kept == 0


def test_what_is_on_the_disk_must_be_what_was_read(source: Path, tmp_path: Path) -> None:
    stop(source, tmp_path / "out", KeyboardInterrupt())
    file = tmp_path / "out.unfinished" / "conversion.json"
    manifest = json.loads(file.read_text())
    digests = next(iter(manifest["files"].values()))["facts"]["digests"]
    digests[next(iter(digests))] = "0" * 64
    file.write_text(json.dumps(manifest))

    with pytest.raises(CheckpointError, match="otherwise than it was written"):
        convert_checkpoint(source, tmp_path / "out", SMALL_FILES)

    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_killed_conversion_goes_on(source: Path, tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\n"
        "from kilotron.apis.convert import ConversionOptions, convert_checkpoint\n"
        "def die(doing, done, total):\n"
        "    if 2 * done > total: os.kill(os.getpid(), signal.SIGKILL)\n"
        "options = ConversionOptions(max_shard_bytes=30_000)\n"
        "convert_checkpoint(sys.argv[1], sys.argv[2], options, on_progress=die)\n"
    )
    arguments = [sys.executable, "-c", script, str(source), str(tmp_path / "out")]
    package = str(Path(kilotron.__file__).parents[1])

    killed = subprocess.run(arguments, check=False, env={**os.environ, "PYTHONPATH": package})

    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert convert_checkpoint(source, tmp_path / "out", SMALL_FILES).num_files_kept > 0


def test_sampling_defaults_and_end_tokens_go_with_the_weights(source: Path, megatron: Path) -> None:
    with open_checkpoint(megatron) as converted, open_checkpoint(source) as original:
        assert converted.generation_config == original.generation_config
        assert read_transformer_config(converted.config).eos_token_ids == (257,)


def test_two_conversions_into_one_folder_are_one_too_many(source: Path, tmp_path: Path) -> None:
    refused: list[str] = []

    def convert_too(*_: object) -> None:
        if not refused:
            with pytest.raises(CheckpointError, match="another process is converting to") as raised:
                convert_checkpoint(source, tmp_path / "out", SMALL_FILES)
            refused.append(str(raised.value))

    convert_checkpoint(source, tmp_path / "out", SMALL_FILES, on_progress=convert_too)

    assert "out.unfinished" in refused[0]
    assert not (tmp_path / "out" / "conversion.lock").exists()
    with open_checkpoint(tmp_path / "out") as checkpoint:
        assert checkpoint.tensors
