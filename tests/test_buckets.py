"""Buckets: the published lists, the nearest proportions, and what is cropped away."""

import math
from collections import Counter

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.buckets import Buckets, bucket_sizes, kept, largest_step
from finetune.data.crop import PLAIN, View, box
from finetune.data.index_plan import SampleGroup, joined, repeated
from finetune.data.sample import Sample, Size


def test_the_lists_are_the_published_ones() -> None:
    # kohya's sd-scripts 0.10.1 for the same numbers: 17 buckets for 512, 41 for 1024, run and counted.
    listed = bucket_sizes(512, 64, 256, 1024)
    landscape = [(832, 256), (896, 256), (960, 256), (1024, 256), (704, 320), (768, 320), (640, 384), (576, 448)]
    assert {(s.width, s.height) for s in listed} == {(512, 512), *landscape, *((h, w) for w, h in landscape)} and len(listed) == 17
    large = bucket_sizes(1024, 64, 256, 2048)
    assert len(large) == 41 and {Size(1536, 640), Size(1344, 768), Size(1216, 832), Size(1152, 896), Size(1088, 960)} <= set(large)
    assert Size(1024, 1088) not in large
    assert len(bucket_sizes(768, 64, 256, 1024)) == 19


def bucket_set(side: int = 512, step: int = 64, **more: bool) -> Buckets:
    return Buckets((side,), step, side // 2, side * 2, **more)


def sample(original: Size, size: Size) -> Sample:
    return tiny.sample("x", "x", ("x",), original=original, size=size)


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
    smallest = min(width, height) < 256 or chosen in bucket_sizes(256, 64, 256, 1024)
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


def shaped(*sizes: tuple[int, int]) -> list[Sample]:
    return [tiny.sample(f"{i}.jpg", f"{i}", ("x",), original=Size(h, w)) for i, (w, h) in enumerate(sizes)]


PHOTOS = shaped(*[(1200, 800)] * 6, *[(1000, 1000)] * 5, (1024, 768), (3000, 1000))


def test_a_rare_shape_is_cut_like_the_nearest_other_where_little_is_lost() -> None:
    made = bucket_set()
    joined = made.assign(PHOTOS, batch=4)
    assert [str(s.size) for s in joined] == ["640x384"] * 6 + ["512x512"] * 5 + ["640x384", "832x256"], "3:1 is like none of them"
    assert [s.name for s in made.moved(joined)] == ["11.jpg"] and 0.75 < kept(joined[11]) < 0.85
    assert not made.moved(made.assign(PHOTOS)) and not bucket_set(merge=False).moved(bucket_set(merge=False).assign(PHOTOS, batch=4))
    small = shaped((640, 384), (640, 384), (520, 400))
    assert str(made.assign(small, batch=2)[2].size) == "640x384" and bucket_set(enlarge=False).assign(small, batch=2)[2].size.width < 520


def test_of_a_few_pictures_of_as_many_shapes_no_batch_is_all_one_picture() -> None:
    sizes = [s.size for s in bucket_set().assign(shaped((1024, 768), (1000, 1000), (1200, 800)), batch=4)]
    assert len(set(sizes)) == 1


def test_what_is_left_uneven_is_said_with_names_and_a_remedy() -> None:
    made = bucket_set()
    group = SampleGroup(made.assign(PHOTOS, batch=4), 0, 4, 0)
    (cut,), (rare,) = joined(group, made).items(), repeated(group).items()
    assert "; 80% of it is kept" in cut[0] and cut[1] == ["11.jpg"]
    assert "several times in a batch" in rare[0] and "--batch" in rare[0] and rare[1] == ["12.jpg"]
    drawn = Counter(group.samples[i].name for step in range(13 * 3) for i in group.at(step))
    assert set(drawn.values()) == {12}, "13 pictures, batches of 4: after 39 steps each was drawn 12 times"
