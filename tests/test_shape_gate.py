"""The shape gate is itself held to examples: bad sources must be caught, good ones let through."""

import ast

import pytest

from shape_gate import CHECKS, RANKS, check_file, complexity_of, needless_waivers, unwaived

CHARTER = '"""Owns an example."""\n'


def lines_of_code(count: int, indent: str = "    ") -> str:
    return "".join(f"{indent}x{number} = {number}\n" for number in range(count))


def attributes(count: int) -> str:
    return ", ".join(f"self.a{number}" for number in range(count))


def branches(count: int) -> str:
    return "def choose(x):\n" + "".join(f"    if x == {number}:\n        x += 1\n" for number in range(count))


def indented(source: str) -> str:
    return "".join(f"    {line}\n" for line in source.splitlines())


# (check that must speak, path, source)
BAD = [
    ("home", "toolbox/hammer.py", ""),
    ("home", "assets/build.py", ""),
    ("relative-import", "engines/static_engine.py", "from . import abstract_engine"),
    ("relative-import", "engines/static_engine.py", "from ..errors import KilotronError"),
    ("import-rank", "scheduling/scheduler.py", "import kilotron.engines.static_engine"),
    ("import-rank", "scheduling/scheduler.py", "from kilotron.engines.static_engine import StaticInferenceEngine"),
    ("import-rank", "scheduling/scheduler.py", "from kilotron import engines"),
    ("import-rank", "scheduling/scheduler.py", "from kilotron import errors, engines"),
    ("import-rank", "scheduling/scheduler.py", "def plan():\n    from kilotron.engines import static_engine"),
    ("import-rank", "scheduling/scheduler.py", "if TYPE_CHECKING:\n    from kilotron.contexts import dynamic_context"),
    ("import-rank", "scheduling/scheduler.py", "import importlib\nimportlib.import_module('kilotron.engines')"),
    ("import-rank", "scheduling/scheduler.py", "import kilotron\nkilotron.engines.static_engine.run()"),
    ("import-rank", "scheduling/scheduler.py", "import kilotron as k\nk.engines.static_engine.run()"),
    ("import-rank", "memory/kv_storage.py", "from kilotron.parallel import layout"),
    ("import-rank", "errors.py", "from kilotron import config"),
    ("import-rank", "cli/env.py", "from kilotron import __version__"),
    ("import-rank", "cli/env.py", "from kilotron import MegatronLLM"),
    ("import-rank", "cli/env.py", "from kilotron import *"),
    ("purity", "scheduling/scheduler.py", "import torch"),
    ("purity", "scheduling/scheduler.py", "from torch import Tensor"),
    ("purity", "scheduling/scheduler.py", "if TYPE_CHECKING:\n    import torch"),
    ("purity", "errors.py", "import asyncio"),
    ("purity", "config.py", "import zmq.asyncio"),
    ("purity", "inference_request.py", "def lazily():\n    import torch.nn.functional as F"),
    ("purity", "sampling_params.py", "__import__('torch')"),
    ("devices", "engines/dynamic_engine.py", "import torch.cuda as c"),
    ("devices", "engines/dynamic_engine.py", "from torch import cuda"),
    ("devices", "engines/dynamic_engine.py", "from torch.cuda import Stream"),
    ("devices", "engines/dynamic_engine.py", "import torch\ntorch.cuda.synchronize()"),
    ("devices", "engines/dynamic_engine.py", "import torch as t\nt.cuda.synchronize()"),
    ("devices", "models/gpt_model.py", "import triton.language as tl"),
    ("devices", "models/gpt_model.py", "def lazily():\n    from triton import jit"),
    ("devices", "models/gpt_model.py", "hidden = hidden.cuda()"),
    ("devices", "models/gpt_model.py", "device = 'cuda:0'"),
    ("devices", "models/gpt_model.py", "device = f'cuda:{rank}'"),
    ("devices", "models/gpt_model.py", "def build(use_cuda_graph): ..."),
    ("devices", "models/gpt_model.py", "build(cuda_graph=True)"),
    ("devices", "models/gpt_model.py", "class AmxLinear: ..."),
    ("devices", "models/gpt_model.py", "from kilotron.kernels.cuda import graphs"),
    ("devices", "parallel/launch.py", "environment['CUDA_VISIBLE_DEVICES'] = '0'"),
    ("file-size", "engines/static_engine.py", lines_of_code(600, indent="")),
    ("name", "engines/utils.py", ""),
    ("name", "engines/_utils.py", ""),
    ("name", "engines/helpers/batch.py", ""),
    ("name", "common/batch.py", ""),
    ("name", "misc.py", ""),
    ("function-size", "engines/static_engine.py", "def long():\n" + lines_of_code(60)),
    ("function-size", "engines/static_engine.py", "async def long():\n" + lines_of_code(60)),
    ("function-size", "engines/static_engine.py", "class Engine:\n  def long(self):\n" + lines_of_code(60)),
    ("function-size", "engines/static_engine.py", "if True:\n  def outer():\n   def long():\n" + lines_of_code(60)),
    ("complexity", "engines/static_engine.py", branches(10)),
    ("complexity", "engines/static_engine.py", f"class Engine:\n{indented(branches(10))}"),
    ("class-width", "engines/static_engine.py", f"class Wide:\n  def f(self):\n    {attributes(16)} = range(16)"),
    ("class-width", "engines/static_engine.py", f"class Wide:\n  def f(self):\n    for {attributes(16)} in x: pass"),
    ("class-width", "engines/static_engine.py",
     "class Wide:\n  def f(self):\n" + "".join(f"    self.a{n}: int = 0\n    self.b{n} += 1\n" for n in range(8))),
    ("class-width", "engines/static_engine.py",
     f"class Wide:\n  def f(self):\n    {attributes(15)} = x\n    def g():\n      self.last = 1"),
    ("unsafe", "checkpoints/megatron_dist.py", "import pickle"),
    ("unsafe", "checkpoints/megatron_dist.py", "from pickle import loads"),
    ("unsafe", "checkpoints/megatron_dist.py", "def lazily():\n    import marshal"),
    ("unsafe", "checkpoints/megatron_dist.py", "import shelve, dill"),
    ("unsafe", "checkpoints/megatron_dist.py", "import torch\ntorch.load(path, weights_only=True)"),
    ("unsafe", "checkpoints/megatron_dist.py", "import torch as t\nt.load(path)"),
    ("unsafe", "checkpoints/megatron_dist.py", "from torch import load"),
    ("unsafe", "checkpoints/megatron_dist.py", "read = torch.load"),
    ("unsafe", "checkpoints/megatron_dist.py", "numpy.load(path, allow_pickle=True)"),
    ("unsafe", "tokenization/tokenizer.py", "load(path, trust_remote_code=True)"),
    ("unsafe", "tokenization/tokenizer.py", "load(path, trust_remote_code=flag)"),
    ("unsafe", "tokenization/tokenizer.py", "load(path, **{'trust_remote_code': True})"),
    ("unsafe", "cli/serve.py", "yaml.load(text)"),
    ("unsafe", "cli/serve.py", "eval(text)"),
    ("unsafe", "cli/serve.py", "exec(text)"),
    ("unsafe", "cli/serve.py", "import builtins\nbuiltins.eval(text)"),
    ("unsafe", "coordinator/wire.py", "socket.recv_pyobj()"),
    ("unsafe", "parallel/collectives.py", "dist.broadcast_object_list(plans)"),
    ("assert", "apis/llm.py", "def generate(prompts):\n    assert prompts"),
    ("assert", "config.py", "assert limit > 0"),
    ("assert", "text_generation_server/app.py", "assert body"),
    ("docstring", "engines/static_engine.py", None),
    ("docstring", "engines/__init__.py", None),
    ("broad-except", "scheduling/scheduler.py", "try: x()\nexcept Exception: pass"),
    ("broad-except", "scheduling/scheduler.py", "try: x()\nexcept (ValueError, BaseException): pass"),
    ("broad-except", "scheduling/scheduler.py", "try: x()\nexcept: pass"),
    ("broad-except", "scheduling/scheduler.py", "with contextlib.suppress(Exception): x()"),
    ("unfinished", "engines/static_engine.py", "x = 1  # TODO: two"),
    ("unfinished", "engines/static_engine.py", "def step():\n    '''FIXME'''"),
    ("unfinished", "engines/static_engine.py", "def step():\n    raise NotImplementedError"),
    ("syntax", "engines/static_engine.py", "def step(:"),
]  # fmt: skip

GOOD = [
    ("scheduling/scheduler.py", "from kilotron.errors import KilotronError\nimport kilotron.memory.kv_storage"),
    ("scheduling/scheduler.py", "from kilotron.scheduling.step_plan import StepPlan"),
    ("scheduling/scheduler.py", "from kilotron import inference_request\nimport torchlike, heapq"),
    ("engines/dynamic_engine.py", "import kilotron"),
    ("engines/dynamic_engine.py", "import torch\ntorch.empty(1)\ntry: x()\nexcept Exception: raise"),
    ("engines/dynamic_engine.py", "def f():\n    '''Whether cuda or amx runs is not known here.'''  # nor of triton"),
    ("__main__.py", "from kilotron.cli.app import main"),
    ("kernels/cuda/graphs.py", "import torch\nimport triton\nassert torch.cuda.is_available()\nname = 'cuda'"),
    ("config.py", "DEVICES = ('cpu', 'cuda')"),
    ("checkpoints/restricted_unpickler.py", "import pickle\nclass RestrictedUnpickler(pickle.Unpickler): ..."),
    ("models/gpt_model.py", "model.eval()\nassert hidden.dim() == 2\nself.load(path)"),
    ("tokenization/tokenizer.py", "load(path, trust_remote_code=False)"),
    ("engines/static_engine.py", lines_of_code(599, indent="")),
    ("engines/static_engine.py", "@decorator\ndef long():\n" + lines_of_code(59)),
    ("engines/static_engine.py", branches(9)),
    ("engines/static_engine.py", f"class Wide:\n  def f(self):\n    {attributes(15)} = x\n    y = self.read_only"),
    ("engines/static_engine.py",
     f"class Wide:\n  def f(self):\n    {attributes(15)} = x\n  class Inner:\n    def f(self): self.own = 1"),
    ("engines/static_engine.py", "try: x()\nexcept (ValueError, OSError): pass\nreturn_value = NotImplemented"),
    ("sampling/sampler.py", "import contextlib\nwith contextlib.suppress(KeyError): x()"),
]  # fmt: skip


def checks_that_speak(path: str, source: str) -> set[str]:
    return {violation.check for violation in check_file(path, source)}


@pytest.mark.parametrize(("check", "path", "source"), BAD)
def test_bad_source_is_caught(check: str, path: str, source: str | None) -> None:
    assert check in checks_that_speak(path, "" if source is None else CHARTER + source)


@pytest.mark.parametrize(("path", "source"), GOOD)
def test_good_source_passes(path: str, source: str) -> None:
    assert check_file(path, CHARTER + source) == []


def test_every_check_has_a_bad_example() -> None:
    assert {check for check, _, _ in BAD} == set(CHECKS) | {"syntax"}


def test_every_home_may_import_all_below_it_and_none_beside_or_above_it() -> None:
    homes = [(rank, home) for rank, line in enumerate(RANKS) for home in line]
    for rank, home in homes:
        for other_rank, other in homes:
            speaks = "import-rank" in checks_that_speak(f"{home}/a.py", f"{CHARTER}import kilotron.{other}.b")
            assert speaks == (other_rank >= rank and other != home)


def test_violation_names_file_line_symbol_and_check() -> None:
    source = f"{CHARTER}class Engine:\n    def step(self):\n        import pickle\n"

    (violation,) = check_file("engines/static_engine.py", source)

    assert str(violation).startswith("engines/static_engine.py:4: Engine.step [unsafe] ")


@pytest.mark.parametrize("where", ["models/gpt_model.py", "models/gpt_model.py::choose"])
def test_waiver_excuses_only_what_it_names(where: str) -> None:
    violations = check_file("models/gpt_model.py", CHARTER + branches(10) + "\nimport pickle")

    left = unwaived(violations, {(where, "complexity"): "a test"})

    assert [violation.check for violation in left] == ["unsafe"]


def test_needless_waiver_is_named() -> None:
    violations = check_file("models/gpt_model.py", CHARTER + branches(10))
    waivers = {("models/gpt_model.py", "complexity"): "needed", ("models/t5_model.py", "complexity"): "needless"}

    assert needless_waivers(violations, waivers) == [("models/t5_model.py", "complexity")]


@pytest.mark.parametrize(
    ("body", "complexity"),
    [
        ("pass", 1),
        ("if a: pass\n elif b: pass\n else: pass", 3),
        ("for a in b: pass\n else: pass", 2),
        ("while a and b or c: pass", 2),
        ("try: pass\n except A: pass\n except B: pass\n else: pass\n finally: pass", 4),
        ("match a:\n  case 1: pass\n  case 2: pass\n  case _: pass", 3),
        ("x = [a for a in b if a] if c else d", 1),
        ("def inner():\n  if a: pass", 3),
        ("async for a in b: pass", 2),
    ],
)
def test_complexity_counts_decisions(body: str, complexity: int) -> None:
    function = ast.parse(f"async def f():\n {body}").body[0]
    assert isinstance(function, ast.AsyncFunctionDef)

    assert complexity_of(function) == complexity
