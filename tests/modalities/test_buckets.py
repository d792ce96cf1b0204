"""Sizes by hand, and the properties of any crop."""

import random

import numpy as np
import pytest
from PIL import Image

from lumina_jax.modalities.decoding.buckets import (
    bucket_crop,
    center_square,
    choose_size,
    covering_steps,
    crop_sizes,
    random_box,
)


def test_four_patches_give_the_staircase_worked_out_by_hand():
    assert crop_sizes(4, 2) == [(8, 2), (6, 2), (4, 2), (4, 4), (2, 4), (2, 6), (2, 8)]


@pytest.mark.parametrize("patches", [1, 7, 64, 256])
def test_sizes_never_exceed_the_patches_nor_the_ratio_and_come_with_their_transpose(patches):
    sizes = crop_sizes(patches, 1)
    assert all(width * height <= patches for width, height in sizes)
    assert all(max(size) <= 4 * min(size) for size in sizes)
    assert {size[::-1] for size in sizes} == set(sizes)
    assert len(set(sizes)) == len(sizes)


def test_of_equally_good_sizes_the_larger_comes_first():
    assert choose_size((100, 100), [(16, 16), (32, 32), (48, 16)], random.Random(0), top_k=1) == (32, 32)


def test_only_the_best_sizes_are_chosen_and_each_of_them():
    sizes = crop_sizes(64, 16)
    chosen = {choose_size((300, 100), sizes, random.Random(seed), top_k=4) for seed in range(100)}
    assert len(chosen) == 4
    assert all(2 < width / height < 4.5 for width, height in chosen)


def test_a_picture_far_too_large_is_halved_first():
    assert covering_steps((1000, 700), (100, 100)) == [
        ((500, 350), Image.Resampling.BOX),
        ((250, 175), Image.Resampling.BOX),
        ((143, 100), Image.Resampling.BICUBIC),
    ]


def test_every_place_of_a_box_is_drawn_left_before_upper():
    boxes = {random_box((12, 11), (10, 10), random.Random(seed)) for seed in range(100)}
    assert {(left, upper) for left, upper, _, _ in boxes} == {(x, y) for x in range(3) for y in range(2)}

    calls = []

    class Recorder(random.Random):
        def randint(self, lowest, highest):
            calls.append(highest)
            return lowest

    random_box((30, 17), (10, 10), Recorder())
    assert calls == [20, 7]


@pytest.mark.parametrize("size", [(5, 5), (33, 1000), (640, 480), (16, 16), (4000, 31)])
def test_crops_have_exactly_the_size_asked_for(size):
    image = Image.new("RGB", size)
    sizes = crop_sizes(16, 8)
    assert bucket_crop(image, sizes, random.Random(1)).size in sizes
    assert center_square(image, 32).size == (32, 32)


def test_the_square_is_the_middle_of_the_picture():
    pixels = np.zeros((32, 96, 3), np.uint8)
    pixels[:, 32:64] = 200
    assert (np.asarray(center_square(Image.fromarray(pixels), 32)) == 200).all()
