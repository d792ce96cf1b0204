"""Changed settings that a continued run reports, and those that it refuses."""

import jax.numpy as jnp
import pytest

from lumina_jax.config import Part
from lumina_jax.training.checkpoint import Checkpoints
from lumina_jax.training.loop import changes, check_newest
from lumina_jax.training.optimizer import learning_rate
from tests.training.tiny import config

COSINE = {"learning_rate": 5e-4, "schedule": "cosine"}


def test_a_longer_run_says_how_its_learning_rate_jumps():
    saved = config(run={"steps": 10}, optimizer=COSINE)
    longer = config(run={"steps": 100}, optimizer=COSINE)
    before, now = (float(learning_rate(one.optimizer, one.run.steps)(9)) for one in (saved, longer))
    assert now > 30 * before
    assert changes(saved, longer, 9) == [
        "run.steps was 10 and is 100",
        f"the learning rate of step 10 was {before:.3g} and is {now:.3g}",
    ]


def test_a_longer_run_of_a_constant_rate_has_nothing_to_say():
    assert changes(config(run={"steps": 10}), config(run={"steps": 100}), 10) == []


@pytest.mark.parametrize("optimizer", [{"warmup_steps": 20}, {"learning_rate": 1e-3}])
def test_other_settings_of_the_optimizer_are_said_with_both_rates(optimizer):
    found = changes(config(), config(optimizer=optimizer), 2)
    ((name, value),) = optimizer.items()
    assert any(line.startswith(f"optimizer.{name} was") and line.endswith(f"is {value!r}") for line in found)
    assert any(line.startswith("the learning rate of step 3 was 0.01 and is 0.001") for line in found)


def test_other_rows_of_a_batch_are_said_and_another_mixture_that_its_order_is_another():
    assert changes(config(), config(data={"batch_rows": 8}), 2) == ["data.batch_rows was 4 and is 8"]
    mixtures = [{"mixture": (Part(weight=weight), Part())} for weight in (1.0, 2.0)]
    found = changes(*(config(data=mixture) for mixture in mixtures), 2)
    assert found[0].startswith("data.mixture was")
    assert "another order" in found[1]


def test_another_seed_is_refused_with_both_seeds_and_the_remedy(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"x": jnp.zeros(1)}, {}, config(run={"seed": 3}).to_json())
        checkpoints.wait()
        assert check_newest(config(run={"seed": 3}), checkpoints) == 1
        with pytest.raises(ValueError, match=r"run.seed was 3 and is 4; set it to 3, or choose another run.name"):
            check_newest(config(run={"seed": 4}), checkpoints)
