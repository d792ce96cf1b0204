"""The optimiser against its formula in float64 numpy, and the schedules against their closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file

from lumina_jax.config import OptimizerConfig
from lumina_jax.training.optimizer import ema_decay, ema_update, learning_rate, optimizer

GOLDEN = "tests/golden/lumina_t2i_train.safetensors"


def numpy_adamw(parameters, gradients, config: OptimizerConfig, rates):
    """Algorithm 2 of arXiv 1711.05101 after clipping, in float64; the parameters after each step."""
    x = {name: value.astype(np.float64) for name, value in parameters.items()}
    m, v = ({name: np.zeros_like(value) for name, value in x.items()} for _ in range(2))
    for count, (step_gradients, rate) in enumerate(zip(gradients, rates), start=1):
        norm = math.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in step_gradients.values()))
        scale = config.clip_norm / norm if config.clip_norm is not None and norm > config.clip_norm else 1.0
        for name, gradient in step_gradients.items():
            g = gradient.astype(np.float64) * scale
            m[name] = config.beta1 * m[name] + (1 - config.beta1) * g
            v[name] = config.beta2 * v[name] + (1 - config.beta2) * g**2
            corrected_m = m[name] / (1 - config.beta1**count)
            corrected_v = v[name] / (1 - config.beta2**count)
            step = corrected_m / (np.sqrt(corrected_v) + config.eps) + config.weight_decay * x[name]
            x[name] = x[name] - rate * step
    return x


def trained(parameters, gradients, config: OptimizerConfig, total_steps: int):
    transform = optimizer(config, total_steps)

    @jax.jit
    def update(parameters, state, gradients):
        updates, state = transform.update(gradients, state, parameters)
        return optax.apply_updates(parameters, updates), state

    state = transform.init(parameters)
    for step_gradients in gradients:
        parameters, state = update(parameters, state, step_gradients)
    return parameters, state


@pytest.mark.parametrize("clip_norm", [None, 2.0, 100.0])
@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_updates_equal_adamw_with_clipping_and_decoupled_decay(clip_norm, schedule):
    random = np.random.default_rng(0)
    shapes = {"matrix": (5, 7), "norm": (7,), "gate": (2,)}
    parameters = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    gradients = [
        {name: (10.0 ** random.integers(-4, 2) * random.normal(size=shape)).astype(np.float32)}
        | {other: random.normal(size=shapes[other]).astype(np.float32) for other in shapes if other != name}
        for name, shape in list(shapes.items()) * 3
    ]
    config = OptimizerConfig(
        learning_rate=3e-3, schedule=schedule, warmup_steps=3, weight_decay=0.1, clip_norm=clip_norm, beta2=0.98
    )
    rates = [float(learning_rate(config, len(gradients))(step)) for step in range(len(gradients))]
    got, _ = trained(parameters, gradients, config, len(gradients))
    expected = numpy_adamw(parameters, gradients, config, rates)
    for name in shapes:
        np.testing.assert_allclose(got[name], expected[name], rtol=2e-5, atol=1e-6)


def test_gradients_of_the_released_training_run_give_the_update_of_the_formula():
    golden = load_file(GOLDEN)
    parameters = {name[6:]: value for name, value in golden.items() if name.startswith("param/")}
    gradients = {name[5:]: value for name, value in golden.items() if name.startswith("grad/")}
    norm = float(optax.tree.norm(gradients))
    np.testing.assert_allclose(norm, golden["out/train/grad_norms"][0], rtol=1e-5)
    config = OptimizerConfig(learning_rate=1e-3, weight_decay=0.01, clip_norm=2.0)
    names = sorted(gradients)[::8]
    parameters, gradients = ({name: tree[name] for name in names} for tree in (parameters, gradients))
    got, _ = trained(parameters, [gradients], config, 5)
    expected = numpy_adamw(parameters, [gradients], config, [1e-3])
    for name in names:
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-5, atol=1e-7, err_msg=name)


def test_gradients_within_the_clip_norm_are_untouched():
    gradient = {"x": np.float32([3.0, 4.0])}
    parameters = {"x": np.zeros(2, np.float32)}
    first = {}
    for clip_norm in (5.0, 5.1, None):
        _, state = trained(parameters, [gradient], OptimizerConfig(clip_norm=clip_norm), 1)
        first[clip_norm] = np.asarray(optax.tree.get(state, "mu")["x"])
    np.testing.assert_array_equal(first[5.1], first[None])
    np.testing.assert_allclose(first[5.0], np.float32([0.3, 0.4]), rtol=1e-6)


def test_moments_are_float32():
    _, state = trained({"x": jnp.ones(3, jnp.bfloat16)}, [{"x": jnp.ones(3, jnp.float32)}], OptimizerConfig(), 1)
    assert optax.tree.get(state, "mu")["x"].dtype == jnp.float32


def test_warmup_rises_linearly_from_the_first_step_to_the_full_rate():
    rate = learning_rate(OptimizerConfig(learning_rate=0.5, warmup_steps=5), 100)
    np.testing.assert_allclose([rate(step) for step in range(7)], [0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.5], rtol=1e-6)


@pytest.mark.parametrize(
    ("schedule", "shape"),
    [("constant", lambda u: 1.0), ("linear", lambda u: 1 - u), ("cosine", lambda u: (1 + math.cos(math.pi * u)) / 2)],
)
def test_schedules_follow_their_closed_form_to_zero_after_the_last_step(schedule, shape):
    rate = learning_rate(OptimizerConfig(learning_rate=2.0, warmup_steps=10, schedule=schedule), 50)
    for step in range(10, 51):
        np.testing.assert_allclose(rate(step), 2.0 * shape((step - 10) / 40), atol=1e-6)


def test_a_warmup_as_long_as_the_run_is_refused_for_a_decaying_schedule():
    config = OptimizerConfig(warmup_steps=10, schedule="cosine")
    with pytest.raises(ValueError, match=r"optimizer.warmup_steps=10 must be less than run.steps=10"):
        learning_rate(config, 10)
    assert float(learning_rate(OptimizerConfig(warmup_steps=10, learning_rate=1.0), 10)(4)) == pytest.approx(0.5)


def test_the_average_is_the_exponentially_weighted_sum_of_parameters():
    config = OptimizerConfig(ema_decay=0.9)
    values = np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)
    ema = {"x": jnp.asarray(values[0])}
    for step, value in enumerate(values[1:]):
        ema = ema_update(ema, {"x": value}, ema_decay(config, jnp.int32(step)))
    weights = [0.9**5] + [0.1 * 0.9 ** (5 - index) for index in range(1, 6)]
    np.testing.assert_allclose(ema["x"], np.einsum("n,nd->d", weights, values), rtol=1e-5)


def test_warmup_of_the_average_starts_quickly_and_ends_at_the_full_decay():
    config = OptimizerConfig(ema_decay=0.99, ema_warmup=True)
    decays = [float(ema_decay(config, jnp.int32(step))) for step in (0, 8, 890, 10_000)]
    np.testing.assert_allclose(decays, [0.1, 0.5, 0.99, 0.99], rtol=1e-6)
