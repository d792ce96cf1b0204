"""Seconds on links against counts by hand, what limits a step, and the chips that the numbers are for."""

import itertools
import re

import pytest

from lumina_jax.aot.links import link_seconds
from lumina_jax.aot.roofline import attention_efficiency, estimate_step
from lumina_jax.aot.traffic import Collective, Work
from lumina_jax.chips import CHIPS, parse_topology

V5P, V5E = parse_topology("v5p:4x4x4"), parse_topology("v5e:16x16")
LINK = V5P.chip.link_bandwidth


def coordinates(topology):
    """Coordinates of devices numbered with the last axis fastest."""
    return list(itertools.product(*(range(side) for side in topology.extent)))


def among(kind, operand_bytes, group):
    return Collective(kind, operand_bytes, "bf16", (tuple(group),), 1)


Z, Y = range(4), range(0, 16, 4)
"""Four neighbours along the last, and along the middle axis of v5p:4x4x4."""


@pytest.mark.parametrize(
    ("kind", "seconds"),
    [
        ("all-gather", 3 * 1e9 / (2 * LINK)),  # three shards arrive, half of them over each of two links
        ("reduce-scatter", 0.75 * 1e9 / (2 * LINK)),
        ("all-reduce", 1.5 * 1e9 / (2 * LINK)),
        ("all-to-all", 4 / 8 * 1e9 / LINK),  # a quarter GB goes 1, 2 and 1 hops: 1 GB over two links
    ],
)
def test_a_collective_along_a_ring_keeps_the_links_of_that_axis_busy(kind, seconds):
    assert link_seconds(among(kind, 1e9, Z), coordinates(V5P), V5P) == pytest.approx([0, 0, seconds])
    assert link_seconds(among(kind, 1e9, Y), coordinates(V5P), V5P) == pytest.approx([0, seconds, 0])


def test_an_axis_that_does_not_close_has_one_way_only():
    """v5e closes at 16 chips; a group of every second chip shares its links with the other half."""
    line = parse_topology("v5e:8x16")
    along_x, along_y = range(0, 128, 16), range(16)
    ring, open_ = (
        link_seconds(among("all-gather", 1e9, group), coordinates(line), line) for group in (along_y, along_x)
    )
    assert open_[0] / 7 == pytest.approx(2 * ring[1] / 15)
    every_second = link_seconds(among("all-gather", 1e9, range(0, 16, 2)), coordinates(line), line)
    assert every_second[1] / 7 == pytest.approx(2 * ring[1] / 15)


def test_a_group_over_all_axes_uses_all_links():
    found = link_seconds(Collective("all-reduce", 64e9, "f32", (), 1), coordinates(V5P), V5P)
    assert found == pytest.approx([2 * 63e9 / (6 * LINK)] * 3)


def test_a_permute_takes_as_long_as_its_longest_way_round():
    pairs = tuple((device, (device + 1) % 4) for device in range(4))
    neighbours = Collective("collective-permute", 1e9, "bf16", pairs, 1)
    assert link_seconds(neighbours, coordinates(V5P), V5P) == pytest.approx([0, 0, 1e9 / LINK])
    line = parse_topology("v5e:4x4")
    assert link_seconds(neighbours, coordinates(line), line) == pytest.approx([0, 3e9 / line.chip.link_bandwidth])


def test_a_step_takes_as_long_as_its_timeline_and_at_least_as_long_as_what_limits_it():
    done = Work(459e12, 459e12 * 0.3, 459e12 * 0.45, 0, 2765e9 * 1.5, 1.75e9, 0)
    gathers = [Collective("all-gather", 2 * LINK / 3, "bf16", (tuple(Z),), 2)]  # a second, twice
    made = {"model_flops": 64 * 459e12, "head_width": 96}
    found = estimate_step(done, gathers, coordinates(V5P), V5P, in_order=4.0, **made)
    assert found.arithmetic == pytest.approx(1 + 0.75 / 0.75)
    assert (found.memory, found.links) == pytest.approx((1.5, 2))
    assert found.compiled == pytest.approx(1 + 0.45 / 0.75)
    assert (found.expected, found.mfu) == pytest.approx((4, 1 / 4))
    assert (found.at_least, found.mfu_at_most) == pytest.approx((2, 1 / 2))
    assert found.mfu_one_after_another == pytest.approx(1 / 5.5)


def test_a_step_is_not_expected_to_be_faster_than_its_limits():
    done = Work(459e12, 0.0, 0.0, 0, 0.0, 0.0, 0)
    found = estimate_step(done, [], coordinates(V5P), V5P, in_order=0.5, model_flops=1.0, head_width=128)
    assert found.expected == found.at_least == pytest.approx(1)


@pytest.mark.parametrize(
    ("head_width", "topology", "share"),
    [(48, "v5e:16x16", 0.375), (96, "v5p:4x4x4", 0.75), (128, "v5p:4x4x4", 1), (128, "v6e:16x16", 0.5)],
)
def test_narrow_heads_leave_part_of_a_matrix_unit_idle(head_width, topology, share):
    assert attention_efficiency(head_width, parse_topology(topology)) == share


def test_topologies_are_read_by_name():
    assert (V5P.chips, V5E.chips, parse_topology("v5p:8x8x8").devices) == (64, 256, 512)
    assert parse_topology("tpu7x:2x2x1").devices == 8
    assert [V5E.wraps(axis) for axis in (0, 1)] == [True, True]
    assert [parse_topology("v5p:2x4x8").wraps(axis) for axis in range(3)] == [False, True, True]


@pytest.mark.parametrize("name", ["v5p", "v9:4x4", "v5p:4x4", "v5e:4x4x4", "v5e:0x4", "v5p-128"])
def test_a_topology_that_does_not_exist_is_refused_with_an_example(name):
    with pytest.raises(ValueError, match=re.escape(repr(name))):
        parse_topology(name)


def test_a_program_may_use_no_more_memory_than_a_chip_has():
    assert all(chip.hbm_usable < 1.01 * chip.hbm_bytes for chip in CHIPS.values())
