"""Which options programs for TPUs are compiled with."""

import jax
import pytest

from lumina_jax.aot.plan import abstract_batch, batch_load
from lumina_jax.chips import CHIPS, KINDS
from lumina_jax.parallel.compiler_options import compiler_options, usual_options
from lumina_jax.parallel.mesh import make_mesh
from lumina_jax.training import step
from lumina_jax.training.state import abstract_state
from tests.training.tiny import label_config

VMEM = "xla_tpu_scoped_vmem_limit_kib"


def test_cpu_and_unknown_devices_have_no_options():
    assert compiler_options("cpu", trains=True) is None
    assert compiler_options("NVIDIA H100", {"LUMINA_TPU_OPTIONS": "xla_some=1"}, trains=True) is None


def test_fusions_may_take_more_vector_memory_than_libtpu_allows_them():
    found, drawing = (
        {kind: (compiler_options(kind, {}, trains=trains) or {}).get(VMEM) for kind in KINDS}
        for trains in (True, False)
    )
    assert (found["TPU v5"], found["TPU v6 lite"], found["TPU v5 lite"]) == ("32768", "53248", "32768")
    assert (drawing["TPU v5"], drawing["TPU v6 lite"]) == ("32768", "65536")
    assert found["TPU v4"] is drawing["TPU v4"] is None  # 16 MiB are all that it has


def test_weights_are_gathered_beside_products_or_by_the_sparse_cores_of_a_v6e_that_trains():
    in_products = "xla_tpu_enable_async_collective_fusion_fuse_all_gather"
    by_sparse_cores = "xla_tpu_enable_sparse_core_collective_offload_all_gather"
    for chip in CHIPS.values():
        for trains in (True, False):
            found = usual_options(chip, trains=trains)
            expected = ("false", "true") if trains and chip.name == "v6e" else ("true", None)
            assert (found[in_products], found.get(by_sparse_cores)) == expected, chip.name


def test_a_flag_of_libtpu_in_the_environment_is_left_to_it():
    environment = {"LIBTPU_INIT_ARGS": f"--xla_other=1 --{VMEM}=49152"}
    found = compiler_options("TPU v5p", environment, trains=True) or {}
    assert VMEM not in found
    assert "xla_enable_async_all_gather" in found


def test_options_of_the_environment_replace_ours():
    given = {"LUMINA_TPU_OPTIONS": "--xla_first=1 xla_second=true"}
    assert compiler_options("TPU v5p", given, trains=True) == {"xla_first": "1", "xla_second": "true"}
    assert compiler_options("TPU v5p", {"LUMINA_TPU_OPTIONS": "none"}, trains=True) is None


@pytest.mark.parametrize("words", ["xla_first", "xla_first=", "xla_first=1 off"])
def test_a_word_that_is_no_option_is_refused(words):
    with pytest.raises(ValueError, match=r"LUMINA_TPU_OPTIONS must be NAME=VALUE .* write --xla_name=value"):
        compiler_options("TPU v5p", {"LUMINA_TPU_OPTIONS": words}, trains=True)


def test_the_train_step_is_compiled_with_the_options_of_its_devices(monkeypatch, tmp_path):
    monkeypatch.setattr(step, "compiler_options", lambda kind, trains: {"xla_no_such_option": "1"})
    config, mesh = label_config(tmp_path), make_mesh(devices=jax.devices()[:1])
    arguments = abstract_state(config, mesh), abstract_batch(config, batch_load(config), mesh)
    lowered = step.train_step(config, mesh).lower(*arguments)
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_such_option"):
        lowered.compile()
