"""Weights packed at one start and mapped at the next: the same answers, and never those of another checkpoint."""

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from kilotron.apis.assembly import BUNDLED_MODEL
from kilotron.apis.llm import MegatronLLM
from kilotron.inference_request import InferenceRequest
from kilotron.sampling_params import SamplingParams
from parity.tiny_models import make_tiny_model
from unit.kernels.cpu_backends import needs_native

PARAMS = SamplingParams(temperature=0.0, num_tokens_to_generate=5, return_log_probs=True)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the cache is to be; nothing is there yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "kilotron" / "packed"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BUNDLED_MODEL, tmp_path / "model"))


def start(model: Path, weight_cache: str = "auto", **options: Any) -> tuple[InferenceRequest, bool]:
    """An answer, and whether its weights were mapped."""
    with MegatronLLM(model, buffer_size_gb=0.01, weight_cache=weight_cache, **options) as llm:
        (answer,) = llm.generate([[5, 6, 7, 8]], PARAMS)
        return answer, any(phase.name == "packed weights mapped" for phase in llm.load_phases)


def files_in(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.exists() else []


def assert_same(found: InferenceRequest, expected: InferenceRequest) -> None:
    assert found.generated_tokens == expected.generated_tokens
    assert found.generated_log_probs == expected.generated_log_probs
    assert found.prompt_log_probs == expected.prompt_log_probs


@needs_native
@pytest.mark.parametrize("options", [{}, {"quantization": "int8"}, {"quantization": "int4"}, {"dtype": "float32"}])
def test_the_second_start_maps_what_the_first_packed(options: dict[str, Any], model: Path, folder: Path) -> None:
    packed, was_mapped = start(model, "write", **options)
    assert not was_mapped
    mapped, is_mapped = start(model, **options)
    assert is_mapped
    assert_same(mapped, packed)
    assert len(files_in(folder)) == 1
    assert folder.stat().st_mode & 0o777 == 0o700


@needs_native
@pytest.mark.parametrize("case", ["qwen3-moe-some-dense", "gemma2", "gpt2", "deepseek-v3"])
def test_every_kind_of_layer_is_kept(case: str, tmp_path: Path) -> None:
    make_tiny_model(case, tmp_path / "tiny")
    packed, _ = start(tmp_path / "tiny", "write")
    mapped, is_mapped = start(tmp_path / "tiny")
    assert is_mapped
    assert_same(mapped, packed)


@needs_native
def test_options_do_not_share_a_file(model: Path, folder: Path) -> None:
    choices: list[dict[str, Any]] = [{}, {"dtype": "float32"}, {"quantization": "int8"}, {"quantization": "int4"}]
    choices.append({"quantization": "int4", "quantization_group_size": 32})
    for count, options in enumerate(choices, 1):
        assert not start(model, "write", **options)[1]
        assert len(files_in(folder)) == count
    assert all(start(model, **options)[1] for options in choices)


@needs_native
@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_changed_checkpoint_is_read_again(file: str, model: Path) -> None:
    start(model, "write")
    path = model / file
    if file == "config.json":
        path.write_text(path.read_text().replace('"rms_norm_eps": ', '"rms_norm_eps": 1'))
    else:
        content = bytearray(path.read_bytes())
        content[-4096:] = b"\0" * 4096
        path.write_bytes(content)
    changed, is_mapped = start(model)
    assert not is_mapped
    assert_same(changed, start(model, "off")[0])


@needs_native
def test_weights_written_anew_at_another_time_are_others(model: Path) -> None:
    start(model, "write")
    os.utime(model / "model.safetensors", (1e9, 1e9))
    assert not start(model)[1]


def test_nothing_is_written_or_used_unless_asked_for(model: Path, folder: Path) -> None:
    start(model)
    start(model, "off")
    assert not folder.exists()


@needs_native
def test_off_leaves_a_file_alone(model: Path, folder: Path) -> None:
    start(model, "write")
    assert not start(model, "off")[1]
    assert len(files_in(folder)) == 1


@needs_native
def test_a_damaged_file_is_told_and_replaced(model: Path, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    start(model, "write")
    (file,) = files_in(folder)
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with caplog.at_level(logging.WARNING):
        assert not start(model)[1]
    assert f"the kept weights are not used: {file} is no file of packed weights" in caplog.text
    assert not start(model, "write")[1]
    assert file.read_bytes() == whole
    assert start(model)[1]


@needs_native
@pytest.mark.parametrize("is_folder", [False, True])
def test_what_others_may_write_to_is_not_trusted(
    is_folder: bool, model: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start(model, "write")
    (file,) = files_in(folder)
    (folder if is_folder else file).chmod(0o777)
    with caplog.at_level(logging.WARNING):
        assert not start(model)[1]
    assert "others than its owner may write to it" in caplog.text


@needs_native
def test_where_no_file_can_be_made_the_model_runs_all_the_same(
    model: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder.parent.mkdir(parents=True)
    folder.touch()
    with caplog.at_level(logging.WARNING):
        answer, _ = start(model, "write")
    assert answer.error is None
    assert "the weights are not kept" in caplog.text


def test_kernels_that_pack_nothing_say_so(model: Path, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        start(model, "write", kernels="reference")
    assert "these kernels keep no weights in files" in caplog.text
    assert not folder.exists()
