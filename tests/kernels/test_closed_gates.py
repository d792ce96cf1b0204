"""The TPU kernels where some heads have no text, or closed gates."""

import numpy as np
import pytest

from tests.kernels.flash_cases import by_definition, case, relative
from tests.kernels.test_flash import ONE, PACKED, ROWS, STREAMED, WORDS, WORDS_OF_ROWS, output, output_and_gradients

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("rows", "words", "options"),
    [
        (ROWS, WORDS_OF_ROWS, {}),
        (np.concatenate([ONE, PACKED]), np.repeat(WORDS, 2, axis=0), {"blocks": STREAMED}),
    ],
)
def test_closed_heads_skip_the_text_whatever_is_in_it(rows, words, options):
    """What is no number stays none times 0: products of closed heads are not computed, not hidden."""
    of = case(rows, words, heads=4, key_heads=4)
    keys, values, _, words = of.text
    gate = np.where(np.arange(4) < 2, 0.7, 0.0)
    lost = np.where(np.arange(4) < 2, 1.0, np.nan)[:, None]
    wanted = by_definition(of._replace(text=(keys, values, gate, words)))
    found = output(of._replace(text=(keys * lost, values * lost, gate, words)), **options)
    assert relative(found, wanted) <= 2e-6


def test_text_of_the_first_heads_has_the_output_and_gradients_of_closed_gates():
    of = case(PACKED, WORDS, heads=4, key_heads=2)
    keys, values, gate, words = of.text
    gate = np.append([0.4, -0.8], gate[2:])
    gradient = np.random.default_rng(9).standard_normal(of.q.shape)
    first = of._replace(text=(keys[:, :, :1], values[:, :, :1], gate[:2], words))
    out, gradients = output_and_gradients(first, gradient)
    wanted, of_inputs = by_definition(of._replace(text=(keys, values, np.append(gate[:2], [0, 0]), words)), gradient)
    of_inputs[3:] = [of_inputs[3][:, :, :1], of_inputs[4][:, :, :1], of_inputs[5][:2]]
    assert relative(out, wanted) <= 2e-6
    assert [relative(ours, theirs) < 1e-5 for ours, theirs in zip(gradients, of_inputs)] == [True] * 6
