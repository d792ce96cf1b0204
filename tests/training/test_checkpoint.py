"""Checkpoints give back every bit, survive kills and full disks, and name what is wrong."""

import os
import re
import shutil
import signal
import subprocess
import sys
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumina_jax.config import Config, ModelConfig
from lumina_jax.run import checkpoints_of
from lumina_jax.training.checkpoint import Checkpoints, check_same_model, is_begun

CONFIG = Config(model=ModelConfig(layers=2, heads=2, width=8))


class State(NamedTuple):
    step: Any
    parameters: Any
    ema: Any
    moments: tuple[Any, ...]
    key: Any


def make_state(seed=0, step=3):
    normal = jax.random.normal(jax.random.key(seed), (64, 8))
    parameters = {"blocks": {"kernel": normal, "bias": normal[0]}, "list": {0: normal[1], 1: normal[2]}}
    ema = jax.tree.map(lambda x: x * 0.5, parameters)
    moments = (jax.tree.map(lambda x: x.astype(jnp.bfloat16) / 3, parameters), jnp.int32(step))
    return State(jnp.int32(step), parameters, ema, moments, jax.random.key(seed + 9))


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def assert_same_bits(got, expected):
    chex.assert_trees_all_equal(*(jax.tree.map(plain, tree) for tree in (got, expected)), strict=True)


def plain(leaf):
    """Random keys as their words, which can be compared."""
    return jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def saved(folder, steps, **settings):
    """A folder with checkpoints of these steps, the state of each made from its number."""
    checkpoints = Checkpoints(folder, **settings)
    for step in steps:
        checkpoints.save(step, make_state(step, step), {"next": 10 * step}, CONFIG.to_json())
    checkpoints.close()
    return folder


def run_script(script, *arguments):
    """Run a Python program that may kill itself; the module of this test is importable as `test_checkpoint`."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.getcwd()}
    return subprocess.run([sys.executable, "-c", script, *arguments], env=environment, capture_output=True, text=True)


def test_a_restored_state_has_every_bit_key_and_type(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    state = make_state()
    checkpoints.save(5, state, {"next": 7, "seen": [1, 2]}, CONFIG.to_json())
    checkpoints.wait()
    restored = checkpoints.restore(5, abstract(state))
    assert_same_bits(restored, state)
    np.testing.assert_array_equal(jax.random.normal(restored.key, (4,)), jax.random.normal(state.key, (4,)))
    assert checkpoints.restore_data(5) == {"next": 7, "seen": [1, 2]}
    assert checkpoints.restore_config(5) == CONFIG


def test_a_state_may_be_donated_while_it_is_saved(tmp_path):
    large = jax.random.normal(jax.random.key(0), (1000, 1000))
    expected = np.array(large)
    donating = jax.jit(lambda x: x + 1, donate_argnums=0)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"x": large}, {}, CONFIG.to_json())
    for _ in range(3):
        large = donating(large)
    checkpoints.wait()
    restored = checkpoints.restore(1, abstract({"x": large}))["x"]
    np.testing.assert_array_equal(restored, expected)


def test_the_average_is_read_alone_and_onto_the_structure_of_the_model(tmp_path):
    checkpoints = Checkpoints(saved(tmp_path, [1]), read_only=True)
    expected = make_state(1, 1).ema
    assert_same_bits(checkpoints.restore_subtree(1, "ema", abstract(expected)), expected)


def test_arrays_are_stored_under_readable_names(tmp_path):
    import orbax.checkpoint as ocp

    saved(tmp_path, [1])
    names = ocp.PyTreeCheckpointer().metadata(tmp_path / "1" / "state").item_metadata.tree.keys()
    assert {"step", "key", "parameters.blocks.kernel", "ema.list.0", "moments.0.blocks.bias"} <= set(names)


def test_the_newest_and_every_so_many_steps_are_kept(tmp_path):
    checkpoints = Checkpoints(saved(tmp_path, range(1, 9), keep=2, keep_every=3))
    assert checkpoints.steps() == [3, 6, 7, 8]
    assert checkpoints.latest() == 8
    assert_same_bits(checkpoints.restore(3, abstract(make_state())), make_state(3, 3))


def test_an_empty_folder_has_no_latest_step(tmp_path):
    checkpoints = Checkpoints(tmp_path / "new" / "folder")
    assert checkpoints.latest() is None
    assert checkpoints.steps() == []


def test_saving_a_step_again_leaves_it_as_it_is(tmp_path):
    checkpoints = Checkpoints(saved(tmp_path, [1]), keep=2)
    checkpoints.save(1, make_state(5, 5), {}, CONFIG.to_json())
    checkpoints.wait()
    assert_same_bits(checkpoints.restore(1, abstract(make_state())), make_state(1, 1))


KILLED = """
import os, signal, sys, threading, time
from tests.training import test_checkpoint as shared
from lumina_jax.training.checkpoint import Checkpoints

folder = sys.argv[1]
checkpoints = Checkpoints(folder, keep=3)
checkpoints.save(1, shared.make_state(1, 1), {}, shared.CONFIG.to_json())
checkpoints.wait()

def kill_when_a_save_has_begun():
    while not any("tmp" in name for name in os.listdir(folder)):
        pass
    os.kill(os.getpid(), signal.SIGKILL)

threading.Thread(target=kill_when_a_save_has_begun, daemon=True).start()
checkpoints.save(2, shared.make_state(2, 2), {}, shared.CONFIG.to_json())
time.sleep(60)
"""


def test_a_kill_in_the_middle_of_a_save_leaves_the_previous_checkpoint(tmp_path):
    run = run_script(KILLED, str(tmp_path))
    assert run.returncode == -signal.SIGKILL, run.stderr
    assert any("tmp" in path.name for path in tmp_path.iterdir())

    reader = Checkpoints(tmp_path, read_only=True)
    assert reader.latest() == 1
    assert any("tmp" in path.name for path in tmp_path.iterdir()), "a reader must not remove what is being written"

    checkpoints = Checkpoints(tmp_path, keep=3)
    assert checkpoints.latest() == 1
    assert_same_bits(checkpoints.restore(1, abstract(make_state())), make_state(1, 1))
    assert not any("tmp" in path.name for path in tmp_path.iterdir())
    checkpoints.save(2, make_state(2, 2), {}, CONFIG.to_json())
    checkpoints.close()
    assert_same_bits(Checkpoints(tmp_path).restore(2, abstract(make_state())), make_state(2, 2))


DISK_FULL = """
import resource, signal, sys
import jax
from tests.training import test_checkpoint as shared
from lumina_jax.training.checkpoint import Checkpoints

checkpoints = Checkpoints(sys.argv[1], keep=3)
state = {"x": jax.random.normal(jax.random.key(0), (300, 300))}
checkpoints.save(1, state, {}, shared.CONFIG.to_json())
checkpoints.wait()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))  # no file may grow beyond this
checkpoints.save(2, state, {}, shared.CONFIG.to_json())
try:
    checkpoints.save(3, state, {}, shared.CONFIG.to_json())
except OSError as error:
    print(error)
print(checkpoints.latest())
"""


def test_a_disk_that_takes_no_more_is_reported_by_the_next_call_with_the_folder(tmp_path):
    run = run_script(DISK_FULL, str(tmp_path))
    error, latest = run.stdout.strip().splitlines()
    assert f"a checkpoint cannot be written to {tmp_path} (File too large)" in error
    assert "free space" in error
    assert latest == "1"


def test_a_folder_that_cannot_be_created_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=f"cannot be written to {re.escape(str(tmp_path / 'file' / 'checkpoints'))}"):
        Checkpoints(tmp_path / "file" / "checkpoints")


@pytest.mark.parametrize("damage", ["truncated", "deleted"])
@pytest.mark.parametrize("victim", ["largest array", "state/_METADATA"])
def test_a_damaged_checkpoint_is_an_error_that_names_the_folder_and_the_remedy(tmp_path, damage, victim):
    folder = saved(tmp_path, [1, 2], keep=3) / "2"
    files = [path for path in folder.rglob("*") if path.is_file() and "/d/" in str(path)]
    path = max(files, key=lambda path: path.stat().st_size) if victim == "largest array" else folder / victim
    path.unlink() if damage == "deleted" else path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    checkpoints = Checkpoints(tmp_path, keep=3)
    assert checkpoints.latest() == 2, "an older checkpoint must not be taken silently"
    message = f"{re.escape(str(folder))} cannot be read .*; delete that folder to resume from step 1"
    with pytest.raises(ValueError, match=message):
        checkpoints.restore(2, abstract(make_state()))


def test_a_checkpoint_that_its_run_removes_meanwhile_is_not_called_damaged(tmp_path):
    reader = Checkpoints(saved(tmp_path, [1, 2], keep=3), read_only=True)
    shutil.rmtree(tmp_path / "1")
    with pytest.raises(ValueError, match=r"1 was removed while it was read, .*; start the same command again"):
        reader.restore(1, abstract(make_state()))


def test_a_checkpoint_of_other_arrays_is_refused_with_their_names(tmp_path):
    checkpoints = Checkpoints(saved(tmp_path, [1]))
    state = make_state()
    state.parameters["blocks"]["kernel"] = jnp.zeros((64, 9))
    state.parameters["more"] = jnp.zeros(3)
    del state.ema["list"]
    with pytest.raises(ValueError, match="must hold the arrays of this model") as error:
        checkpoints.restore(1, abstract(state))
    assert "parameters.blocks.kernel is (64, 8) and should be (64, 9)" in str(error.value)
    assert "parameters.more is missing and should be (3,)" in str(error.value)
    assert "ema.list.0 is not wanted" in str(error.value)


def test_a_step_or_folder_that_is_not_there_is_refused(tmp_path):
    checkpoints = Checkpoints(saved(tmp_path, [4]))
    with pytest.raises(ValueError, match=r"no checkpoint of step=7 in .*; there are \[4\]"):
        checkpoints.restore(7, abstract(make_state()))
    with pytest.raises(ValueError, match="there are no checkpoints in"):
        Checkpoints(tmp_path / "nothing", read_only=True)


def test_a_url_needs_what_reads_it_and_a_run_may_keep_its_checkpoints_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"gs://bucket/run needs the package gcsfs; pip install 'lumina_jax\[gcs\]'"):
        Checkpoints("gs://bucket/run")
    assert checkpoints_of(tmp_path) == str(tmp_path / "checkpoints")
    (tmp_path / "config.json").write_text(CONFIG.to_json())
    assert checkpoints_of(tmp_path) == str(tmp_path / "checkpoints")
    (tmp_path / "config.json").write_text(CONFIG.replace(run={"checkpoints": "gs://bucket/run"}).to_json())
    assert checkpoints_of(tmp_path) == "gs://bucket/run"


RESHARDED = """
import sys
import jax, numpy as np
from tests.training import test_checkpoint as shared
from jax.sharding import NamedSharding, PartitionSpec
from lumina_jax.parallel.mesh import make_mesh
from lumina_jax.training.checkpoint import Checkpoints

mesh = make_mesh(fsdp=4)
expected = shared.make_state(1, 1)
sharding_of = lambda x: NamedSharding(mesh, PartitionSpec("fsdp") if x.shape[:1] == (64,) else PartitionSpec())
abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding_of(x)), expected)
checkpoints = Checkpoints(sys.argv[1], keep=3)
restored = checkpoints.restore(1, abstract)
shared.assert_same_bits(restored, expected)
assert {shard.data.shape for shard in restored.ema["blocks"]["kernel"].addressable_shards} == {(16, 8)}
assert all(x.sharding == a.sharding for x, a in zip(jax.tree.leaves(restored), jax.tree.leaves(abstract)))
checkpoints.save(2, restored, {}, shared.CONFIG.to_json())
checkpoints.close()
print("passed")
"""


def test_a_state_is_restored_on_another_number_of_devices_and_back(tmp_path, monkeypatch):
    saved(tmp_path, [1], keep=3)
    monkeypatch.setenv("XLA_FLAGS", f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4")
    run = run_script(RESHARDED, str(tmp_path))
    assert run.stdout.strip() == "passed", run.stderr
    assert_same_bits(Checkpoints(tmp_path).restore(2, abstract(make_state())), make_state(1, 1))


def test_another_model_is_refused_with_every_field_that_differs():
    current = CONFIG.replace(model={"width": 16, "qk_norm": False, "remat": "none", "compute_dtype": "float32"})
    with pytest.raises(ValueError, match="the rule, but model") as error:
        check_same_model(CONFIG.model, current.model, "the rule")
    assert "model.width was 8 and is 16" in str(error.value)
    assert "model.qk_norm was True and is False" in str(error.value)
    assert "remat" not in str(error.value)


def test_settings_of_execution_and_training_may_change_on_resume():
    changed = CONFIG.replace(
        model={"remat": "none", "unroll": 2, "attention": "reference", "compute_dtype": "float32"},
        optimizer={"learning_rate": 1.0},
    )
    check_same_model(CONFIG.model, changed.model, "the rule")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("foo://bucket/run", r"begin with gs:// or s3://, but 'foo://bucket/run' is neither"),
        ("file:///tmp/run", "but 'file:///tmp/run' is neither"),
        ("gs://bucket/run", r"needs the package gcsfs; pip install 'lumina_jax\[gcs\]'"),
        ("s3://bucket/run", "needs the package s3fs; pip install s3fs"),
    ],
)
def test_urls_that_nothing_reads_are_refused(url, reason, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=reason):
        is_begun(url)
