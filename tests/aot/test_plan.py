"""Programs for TPUs that are not here. Those marked `aot` compile, and need libtpu:

make aot
"""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from lumina_jax import libtpu
from lumina_jax.aot import plan as planning
from lumina_jax.aot.memory import Memory
from lumina_jax.aot.plan import DoesNotFitError, Plan, abstract_batch, devices_of, needed_bytes, plan_mesh
from lumina_jax.aot.report import plan_words, remedies
from lumina_jax.chips import parse_topology
from lumina_jax.commands import aot
from lumina_jax.config import Config, ModelConfig
from lumina_jax.config_files import load_config
from lumina_jax.data.batches import row_tokens
from lumina_jax.failures import message
from lumina_jax.flags import parse_config
from lumina_jax.kernels.flash.blocks import known_chip
from lumina_jax.parallel.mesh import make_mesh
from lumina_jax.training.state import abstract_state
from lumina_jax.training.step import train_step

ROOT = Path(__file__).parents[2]
MEMORY_KINDS = [field.name for field in dataclasses.fields(Memory)]
TINY = Config(model=ModelConfig(layers=2, heads=4, width=32, channels=3, text_width=8, mlp_multiple_of=8))


def command(*words):
    """python -m lumina_jax aot WORDS in its own process, as users run it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX", "TPU"))}
    run = [sys.executable, "-m", "lumina_jax", "aot", *words]
    return subprocess.run(run, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)


def test_the_program_does_not_grow_with_depth():
    mesh = make_mesh(devices=jax.devices()[:1])
    lines = []
    for layers in (2, 9):
        config = TINY.replace(model={"layers": layers})
        load = Plan(config=config, topology=parse_topology("v5e:4x4")).load
        arguments = abstract_state(config, mesh), abstract_batch(config, load, mesh)
        lines.append(train_step(config, mesh).lower(*arguments).as_text().count("\n"))
    assert lines[0] == lines[1] > 100


@pytest.mark.parametrize("weights", ["bfloat16", "float32"])
def test_a_sampler_is_compiled_for_the_weights_that_draw(weights):
    asked = {} if weights == "bfloat16" else {"sample": {"weights": weights}}
    config = TINY.replace(model={"layers": 1}, data={"batch_rows": 1}, **asked)
    plan = Plan(config=config, topology=parse_topology("v6e:1x1"), sampler=True)
    traced, trees = planning._trace_sampler(plan, make_mesh(devices=jax.devices()[:1]))
    parameters = trees["parameters"]
    kernels = parameters["blocks"]["mlp"]["up"]["kernel"], parameters["time_embedding"]["inner"]["kernel"]
    assert [str(kernel.dtype) for kernel in kernels] == [weights, "float32"]
    leaves = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(parameters)]
    assert [(leaf.shape, leaf.dtype) for leaf in traced.jaxpr.in_avals[: len(leaves)]] == leaves
    assert f"30 midpoint steps of sampling with {weights} weights: 1 rows" in plan_words(plan)


def test_the_load_of_a_plan_is_what_training_would_feed_it():
    config = load_config(ROOT / "configs" / "t2i_5b_1024.py")
    load = Plan(config=config, topology=parse_topology("v5e:16x16")).load
    latents = config.data.replace(image_size=1024 // 8)
    assert load.tokens == row_tokens(latents, config.model) > 64 * 64
    assert (load.rows, load.samples, load.text_tokens) == (config.data.batch_rows, 1, 128)


@pytest.fixture
def environment(monkeypatch, tmp_path):
    """The folder of an environment without libtpu."""
    monkeypatch.setattr(libtpu.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", "mine")
    return tmp_path


def test_missing_libtpu_names_what_installs_it_in_the_version_of_jax(environment):
    words = rf"`make aot-setup`, or .* --target {environment / 'aot'} '?libtpu==[0-9.*]+'?`"
    with pytest.raises(ValueError, match=words):
        devices_of(parse_topology("v5e:4x4"))


def test_libtpu_is_found_in_a_folder_beside_the_environment_here_and_in_processes_started_later(environment):
    (environment / "aot" / "libtpu").mkdir(parents=True)
    libtpu.add_libtpu()
    assert sys.path[-1] == str(environment / "aot")
    assert os.environ["PYTHONPATH"] == f"mine{os.pathsep}{environment / 'aot'}"


class Chip:
    """A device that only has coordinates."""

    def __init__(self, number, coords):
        self.id, self.coords, self.core_on_chip, self.process_index, self.slice_index = number, coords, 0, 0, 0


def chips(*extent):
    return [
        Chip(number, (*coordinates, *[0] * (3 - len(extent)))) for number, coordinates in enumerate(np.ndindex(*extent))
    ]


@pytest.mark.parametrize(
    ("flags", "fsdp"),
    [(["--sampler"], 1), (["--sampler", "--mesh.tensor", "2"], None), (["--sampler", "--mesh.fsdp=4"], 4), ([], None)],
)
def test_without_flags_a_batch_is_drawn_with_all_weights_on_every_device_as_by_the_command_that_draws(
    monkeypatch, flags, fsdp
):
    compiled = []
    monkeypatch.setattr(aot, "run", lambda arguments, config, name: compiled.append(config) or 0)
    monkeypatch.setattr(aot.os, "environ", dict(os.environ))
    assert aot.main([str(ROOT / "configs" / "next_dit_2b.py"), "--topology", "v6e:2x2", *flags]) == 0
    assert compiled[0].mesh.fsdp == fsdp


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mesh": {"fsdp": 3}}, "a multiple of 3 devices, but this run has 16"),
        ({"mesh": {"fsdp": 32}}, "at least 32 devices, but this run has 16"),
        ({"mesh": {"tensor": 8}}, r"mesh.tensor=8 must divide"),
        ({"data": {"batch_rows": 20}, "mesh": {"fsdp": 16}}, "rows of a batch must be a multiple of the 16"),
        (
            {"data": {"batch_rows": 4, "image_size": 36}, "mesh": {"sequence": 4}},
            "tokens of a row must be a multiple of",
        ),
    ],
)
def test_what_does_not_fit_the_topology_is_refused_before_anything_is_compiled(changes, message):
    plan = Plan(config=TINY.replace(**changes), topology=parse_topology("v5e:4x4"))
    with pytest.raises(ValueError, match=message):
        plan_mesh(plan, chips(4, 4))


def test_the_mesh_that_a_configuration_recommends_suits_the_topology_that_it_names():
    found = []
    for file in sorted((ROOT / "configs").glob("*.py")):
        for topology, flags in re.findall(r"^Recommended on (\S+): (.+)$", file.read_text(), re.MULTILINE):
            target = parse_topology(topology)
            config = parse_config([str(file), *flags.split()], "")
            assert config.mesh.fsdp * config.mesh.sequence * config.mesh.tensor == target.chips
            plan_mesh(Plan(config=config, topology=target), chips(*target.extent))
            found.append(file.stem)
    assert len(found) == 12


@pytest.mark.parametrize(
    ("message", "needed"),
    [
        (
            "Ran out of memory in memory space hbm. Used 35.25G of 15.75G hbm. Exceeded hbm capacity by 19.5G.",
            35.25 * 2**30,
        ),
        ("the total memory required for HLO temporaries (168.13G) exceeds available HBM (31.25G).", 168.13 * 2**30),
        ("something else", None),
    ],
)
def test_the_compiler_says_how_much_a_program_needs(message, needed):
    assert needed_bytes(message) == needed


class Refused:
    """A lowered program that the compiler refuses."""

    def __init__(self, message):
        self.message = message

    def compile(self):
        raise jax.errors.JaxRuntimeError(self.message)


def test_a_lack_of_hbm_is_told_from_that_of_a_kernel_and_from_other_errors():
    with pytest.raises(DoesNotFitError) as error:
        planning._compile(Refused("RESOURCE_EXHAUSTED: Ran out of memory. Used 35.25G of 15.75G hbm."), quick=True)
    assert error.value.needed == 35.25 * 2**30
    of_core = Refused("RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem")
    with pytest.raises(ValueError, match=r"VMEM.*leave out --quick"):
        planning._compile(of_core, quick=True)
    with pytest.raises(jax.errors.JaxRuntimeError) as failure:
        planning._compile(of_core, quick=False)
    assert "LUMINA_TPU_OPTIONS=none" in message(failure.value)
    assert "--quick" not in message(failure.value)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        planning._compile(Refused("INTERNAL: something else"), quick=False)


def test_what_would_help_is_what_is_not_done_yet():
    plan = Plan(config=TINY.replace(model={"remat": "none"}, mesh={"fsdp": 4}), topology=parse_topology("v5e:4x4"))
    helps = "\n".join(remedies(plan))
    for word in ("--model.remat full", "--optimizer.accumulate 2", "--mesh.fsdp 16", "--rows 16", "a topology of more"):
        assert word in helps
    done = plan.config.replace(model={"remat": "full"}, mesh={"fsdp": 16}, optimizer={"accumulate": 32})
    helps = "\n".join(remedies(dataclasses.replace(plan, config=done)))
    assert "--model.remat full" not in helps
    assert "--model.remat offload" in helps
    assert "--mesh.fsdp 16" not in helps


def test_kernels_of_a_program_for_one_device_hear_of_that_device():
    class Device:
        device_kind, num_cores = "TPU v6 lite", 1

    assert known_chip() is None
    with planning.answering_for([Device]):
        assert known_chip().name == "v6e"
        assert (jax.default_backend(), jax.device_count()) == ("tpu", 1)
    with planning.answering_for([Device, Device]):
        assert known_chip() is None
    assert jax.default_backend() == "cpu"


def test_single_chips_are_those_that_can_be_rented(monkeypatch):
    asked = []

    class Found:
        devices = ()

    def described(**words):
        asked.append(words)
        return Found

    monkeypatch.setattr(planning.topologies, "get_topology_desc", described)
    monkeypatch.setattr(planning, "add_libtpu", lambda: None)
    for name in ("v6e:1x1", "v5e:1x1", "v5p:1x1x1", "v6e:2x2"):
        devices_of(parse_topology(name))
    one = {"chips_per_host_bounds": (1, 1, 1)}
    assert asked == [
        {"platform": "tpu", "topology_name": "v6e:1x1"} | one,
        {"platform": "tpu", "topology_name": "v5e:1x1"} | one,
        {"platform": "tpu", "topology_name": "v5p:1x1x1"},
        {"platform": "tpu", "topology_name": "v6e:2x2"},
    ]


@pytest.mark.aot
def test_a_quick_check_of_a_configuration_fits_and_is_written_down(tmp_path):
    file = tmp_path / "found.json"
    done = command(
        "configs/imagenet_600m.py", "--topology", "v5e:4x4", "--mesh.fsdp", "16", "--quick", "--json", str(file)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(file.read_text())
    assert found["fits"]
    assert found["compile_seconds"] > 0
    assert found["memory"]["total"] < found["hbm_bytes"]
    assert {one["kind"] for one in found["collectives"]} & {"all-gather", "reduce-scatter"}
    done_flops = sum(found["work"][f"{kind}_flops"] for kind in ("product", "batched", "kernel"))
    assert 1 < done_flops * found["devices"] / found["model_flops"] < 1.6
    assert "MFU" in done.stdout


@pytest.mark.aot
def test_what_does_not_fit_says_by_how_much_and_what_would_help():
    done = command("configs/imagenet_600m.py", "--topology", "v5e:2x2", "--rows", "4096", "--quick", "--mesh.fsdp", "1")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "does NOT fit" in done.stdout
    assert "GB too much" in done.stdout
    assert "--mesh.fsdp 4" in done.stdout


@pytest.mark.aot
def test_errors_of_the_command_are_one_line():
    done = command("configs/imagenet_600m.py", "--topology", "v5e:3x5", "--mesh.fsdp", "15", "--quick")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
