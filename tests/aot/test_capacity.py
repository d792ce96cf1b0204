"""Programs of which only a part of the parameters trains, and how many rows fit a given memory, by estimate."""

import dataclasses
import json

import pytest

from lumina_jax.aot.capacity import Capacity, capacities, capacity_lines, parsed_memory, recommended
from lumina_jax.aot.plan import Plan
from lumina_jax.aot.report import plan_words, remedies
from lumina_jax.aot.search import MEMORY_SHARE, held_parameters
from lumina_jax.chips import parse_topology
from lumina_jax.commands import aot
from lumina_jax.config import Config, FinetuneConfig
from lumina_jax.models.presets import preset
from lumina_jax.training.state import parameter_count
from tests.aot.test_plan import TINY, command
from tests.training.processes import here

LARGE = Config(model=preset("5B"), finetune=FinetuneConfig(rank=16))


def test_a_base_in_fewer_bits_leaves_memory_for_rows():
    found = {(one.base, one.remat): one.rows for one in capacities(LARGE, 16.9e9)}
    assert found["float32", "offload"] == 0
    assert 0 < found["int8", "full"] < found["nf4", "full"]
    assert (
        found["int8", "dots"]
        < found["int8", "feed_forward"]
        < found["int8", "attention"]
        < found["int8", "full"]
        < found["int8", "offload"]
    )
    assert recommended(capacities(LARGE, 16.9e9), 1)[:2] == ("bfloat16", "none")
    assert recommended(capacities(LARGE, 4e9), 1) is None
    rows = found["nf4", "full"]
    assert Capacity("nf4", "full", rows).flags in {one.flags for one in capacities(LARGE, 16.9e9)}


def test_what_is_held_of_a_base_is_its_codes_and_scales_and_of_adapters_what_rank_predicts():
    count = parameter_count(LARGE.model)
    sizes = {base: held_parameters(LARGE.replace(finetune={"base": base})) for base in ("float32", "int8", "nf4")}
    assert {held.parameters for held in sizes.values()} == {count}
    assert sizes["float32"].base == 4 * count
    assert count < sizes["int8"].base < 1.02 * count
    assert 4.25 / 8 * count < sizes["nf4"].base < 0.545 * count
    model = LARGE.model
    matrices = [(model.width, model.width)] * 2 + [(model.width, model.key_heads * model.head_width)] * 2
    matrices += [(model.width, model.mlp_width)] * 2 + [(model.mlp_width, model.width)]
    matrices += [(model.text_width, model.key_heads * model.head_width)] * 2
    matrices += [(model.condition_width, 6 * model.width)]
    expected = model.layers * 16 * sum(inputs + outputs for inputs, outputs in matrices)
    assert sizes["int8"].trained == expected
    whole = held_parameters(LARGE.replace(finetune={"rank": None}))
    assert (whole.trained, whole.base) == (count, 0.0)


def test_memory_is_a_size_of_which_a_share_is_used():
    assert (parsed_memory("12GB"), parsed_memory("1.5 GiB")) == (12e9, 1.5 * 2**30)
    for words in ("12", "GB", "-3GB", "0GB", "twelve GB"):
        with pytest.raises(ValueError, match=r"memory must be a size such as 12GB or 15.75GiB, but is"):
            parsed_memory(words)
    assert MEMORY_SHARE < 1


def test_the_command_says_what_fits_without_a_compiler(monkeypatch):
    words = ["t2i_5b_512", "--memory", "24GB", "--finetune.rank", "16", "--rows", "8"]
    done = here(aot.main, *words)
    assert done.returncode == 0, done.stderr
    assert "for 8 rows: --finetune.base bfloat16 --model.remat feed_forward --data.batch-rows 8" in done.stdout
    done = here(aot.main, "t2i_5b_512", "--memory", "8GB")
    assert done.returncode == 1
    assert "1 rows do not fit; train adapters, --finetune.rank 16, or fewer" in done.stdout
    done = here(aot.main, "t2i_5b_512", "--memory", "8GB", "--topology", "v5e:1x1")
    assert "give --topology, to compile for TPUs, or --memory" in done.stderr
    assert any("all train" in line for line in capacity_lines(LARGE.replace(finetune={"rank": None}), 1e9, 1))


def test_what_would_help_adapters_and_sampling_is_a_base_in_fewer_bits():
    config = TINY.replace(finetune={"rank": 2})
    plan = Plan(config=config, topology=parse_topology("v5e:1x1"))
    assert remedies(plan)[0].startswith("--finetune.base int8: ")
    halved = dataclasses.replace(plan, config=config.replace(finetune={"base": "int8"}))
    assert remedies(halved)[0].startswith("--finetune.base nf4: ")
    assert remedies(dataclasses.replace(plan, sampler=True))[0].startswith("--sample.weights int8: ")
    assert not any("finetune" in line for line in remedies(dataclasses.replace(plan, config=TINY)))
    assert "train step of adapters of 10 matrices" in plan_words(plan)


@pytest.mark.aot
@pytest.mark.parametrize("base", ["int8", "nf4"])
def test_a_step_on_a_quantised_base_compiles_without_the_matrices_of_all_layers(base, tmp_path):
    """With "dots" the backward pass has its products, but not the matrices that they were made with."""
    size = ("--model.layers", "16", "--model.width", "512", "--model.heads", "4", "--model.compute-dtype", "bfloat16")
    words = ("--topology", "v5e:1x1", "--finetune.rank", "4", "--finetune.base", base, "--model.remat", "dots")
    run = command("emoji", *words, *size, "--rows", "1", "--quick", "--json", str(tmp_path / "found.json"))
    assert run.returncode == 0, run.stdout + run.stderr
    memory = json.loads((tmp_path / "found.json").read_text())["memory"]
    values = 16 * (4 * 512 * 512 + 3 * 512 * 1376 + 2 * 384 * 512 + 6 * 512 * 512)
    share = {"int8": 1.0, "nf4": 4.25 / 8}[base]
    assert share * values < memory["base"] < share * values + 8e6
    assert memory["temporaries"] + memory["activations"] < 0.5 * 2 * values
