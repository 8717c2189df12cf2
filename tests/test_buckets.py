"""Buckets: the published lists, the nearest proportions, and what is cropped away."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.buckets import Buckets, kept, largest_step, sizes
from finetune.data.crop import PLAIN, View, box
from finetune.data.sample import Sample, Size


def test_the_lists_are_the_published_ones() -> None:
    # kohya's sd-scripts 0.10.1 for the same numbers: 17 buckets for 512, 41 for 1024, run and counted.
    listed = sizes(512, 64, 256, 1024)
    landscape = [(832, 256), (896, 256), (960, 256), (1024, 256), (704, 320), (768, 320), (640, 384), (576, 448)]
    assert {(s.width, s.height) for s in listed} == {(512, 512), *landscape, *((h, w) for w, h in landscape)} and len(listed) == 17
    large = sizes(1024, 64, 256, 2048)
    assert len(large) == 41 and {Size(1536, 640), Size(1344, 768), Size(1216, 832), Size(1152, 896), Size(1088, 960)} <= set(large)
    assert Size(1024, 1088) not in large
    assert len(sizes(768, 64, 256, 1024)) == 19


def bucket_set(side: int = 512, step: int = 64, **more: bool) -> Buckets:
    return Buckets((side,), step, side // 2, side * 2, **more)


def sample(original: Size, size: Size) -> Sample:
    return Sample("x", "x", ("x",), bytes, original, size=size)


SIDES = st.integers(16, 8000)


@given(SIDES, SIDES, st.sampled_from([(512, 64), (1024, 64), (64, 8), (16, 4)]))
def test_a_bucket_is_the_nearest_and_a_portrait_mirrors_its_landscape(width: int, height: int, base: tuple[int, int]) -> None:
    made = bucket_set(*base)
    chosen, other = made.choose(Size(height, width), base[0]), made.choose(Size(width, height), base[0])
    assert chosen == Size(other.width, other.height)
    off = abs(math.log(width / height) - math.log(chosen.width / chosen.height))
    assert all(off <= abs(math.log(width / height) - math.log(o.width / o.height)) + 1e-8 for o in made.options(base[0]))
    assert chosen.width % base[1] == chosen.height % base[1] == 0 and chosen.width * chosen.height <= base[0] ** 2


@given(SIDES, SIDES)
def test_without_enlarging_a_bucket_is_no_larger_than_its_picture(width: int, height: int) -> None:
    chosen = bucket_set(enlarge=False).choose(Size(height, width), 512)
    smallest = min(width, height) < 256 or chosen in sizes(256, 64, 256, 1024)
    assert (chosen.width <= width and chosen.height <= height) or smallest
    square = bucket_set(enlarge=False, square=True).choose(Size(height, width), 512)
    assert square.width == square.height and (square.width <= min(width, height) or square.width == 256)


@given(SIDES, SIDES, st.floats(0, 1), st.floats(0, 1))
def test_a_crop_covers_its_bucket_and_lies_inside(width: int, height: int, across: float, down: float) -> None:
    original, size = Size(height, width), bucket_set().choose(Size(height, width), 512)
    (left, top, right, bottom), crop = box(original, size, View(across=across, down=down))
    assert 0 <= left < right <= width + 1e-6 and 0 <= top < bottom <= height + 1e-6
    assert (crop.height, crop.width) == size and crop.top >= 0 and crop.left >= 0 and crop[:2] == (height, width)
    stretch = ((right - left) / size.width) / ((bottom - top) / size.height)
    assert abs(math.log(stretch)) < 2 / min(size) + 2 / min(width, height), "no more than a pixel of stretch"


def test_what_a_square_takes_away_and_a_bucket_keeps() -> None:
    landscape = Size(1080, 1920)
    assert kept(sample(landscape, Size(512, 512))) == pytest.approx(1080 / 1920)
    wide = bucket_set().choose(landscape, 512)
    assert wide == Size(384, 640) and kept(sample(landscape, wide)) == pytest.approx(0.9375)  # the published example
    assert box(landscape, wide, PLAIN)[1] == (1080, 1920, 0, 22, 384, 640)  # of 683 pixels, 43 go; kohya cuts at 21


def test_small_bases_have_steps_of_their_own() -> None:
    assert [largest_step(r, m) for r, m in ((1024, 8), (512, 8), (512, 64), (64, 4), (16, 4), (64, 8))] == [64, 64, 64, 8, 4, 8]
