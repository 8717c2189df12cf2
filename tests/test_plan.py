"""The order of the data, as properties: nothing lost, nothing twice before its turn, the same for any split of the work."""

from collections import Counter
from fractions import Fraction
from math import ceil, floor

import tiny
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.index_plan import IndexPlan
from finetune.data.sample import Size

SIZES = [Size(64, 64), Size(48, 80), Size(80, 48), Size(96, 40)]
TIMES = st.sampled_from([Fraction(1), Fraction(1), Fraction(3), Fraction(7, 5), Fraction(13, 4)])


@st.composite
def plans(draw: st.DrawFn, groups: int = 1) -> IndexPlan:
    counts = [draw(st.integers(1, 24)) for _ in range(draw(st.integers(1, groups)))]
    samples = [
        tiny.sample(f"{i}", f"{draw(st.integers(0, 10))}-{i // 2}", ("x",), times=draw(TIMES), size=draw(st.sampled_from(SIZES)))
        for i in range(sum(counts))
    ]
    each = draw(st.integers(1, 6))
    return IndexPlan(samples, each * len(counts), draw(st.integers(0, 9)), counts)


def epoch(plan: IndexPlan, group: int, number: int) -> list[list[int]]:
    """Batches of one epoch of one group, taken step by step from the plan's slots."""
    made = plan.groups[group]
    start = sum(made.count(e) for e in range(number))
    width = len(plan.groups)
    return [[s.sample for s in plan.slots(start + i)[group::width]] for i in range(made.count(number))]


@given(plans(groups=2), st.integers(0, 9))
def test_epochs_draw_every_sample_as_often_as_they_should(plan: IndexPlan, last: int) -> None:
    for g, group in enumerate(plan.groups):
        batches = [batch for number in range(last + 1) for batch in epoch(plan, g, number)]
        drawn = Counter(i for batch in batches for i in batch)
        for i, s in enumerate(group.samples, group.first):
            assert drawn[i] >= (last + 1) * floor(s.times), "no picture is lost"
        wanted = sum(group.draws(size, number) for size in group.cells for number in range(last + 1))
        fills = sum(drawn.values()) - wanted
        most = group.batch * len(group.cells) if len(group.cells) > 1 else sum(group.fills(number) for number in range(last + 1)) + 1
        assert 0 <= fills < most, "of several sizes, at most one part of a batch for each"
        assert all(len(batch) == group.batch and len({plan.samples[i].size for i in batch}) == 1 for batch in batches)


@given(plans(), st.integers(1, 40))
def test_pictures_of_rare_shapes_are_drawn_as_often_as_the_others(plan: IndexPlan, epochs: int) -> None:
    group = plan.groups[0]
    if len(group.cells) == 1:
        return
    drawn = Counter(i for number in range(epochs) for batch in group.batches(number).tolist() for i in batch)
    for size, cells in group.cells.items():
        ahead = -(-group.batch // group.draws(size, 0))  # epochs that its last batch reaches into the next ones
        for i in (i for cell in cells.values() for i in cell if group.samples[i].times == 1):
            assert epochs <= drawn[i] <= epochs + ahead


@given(plans(), st.integers(0, 30))
def test_no_batch_holds_a_picture_twice_where_there_are_enough(plan: IndexPlan, number: int) -> None:
    group = plan.groups[0]
    for batch in group.batches(number).tolist() if group.count(number) else []:
        own = [i for cell in group.cells[group.samples[batch[0]].size].values() for i in cell]
        if len(own) >= group.batch and all(group.samples[i].times == 1 for i in own):
            assert len(set(batch)) == len(batch)


@given(plans())
def test_before_any_fill_every_sample_is_drawn_once(plan: IndexPlan) -> None:
    group = plan.groups[0]
    for size in group.cells:
        once = [i for i in group.order(size, 0) if group.samples[i].times == 1]
        assert len(once) == len(set(once)) == sum(s.times == 1 for s in group.samples if s.size == size)
        several = Counter(i for i in group.order(size, 0) if group.samples[i].times != 1)
        assert all(floor(group.samples[i].times) <= n <= ceil(group.samples[i].times) for i, n in several.items())


@given(plans(groups=2), st.integers(0, 60), st.sampled_from([1, 2, 3, 4]), st.integers(1, 3))
def test_the_order_is_the_same_for_any_number_of_processes(plan: IndexPlan, step: int, world: int, size: int) -> None:
    plan = IndexPlan(plan.samples, world * size * 2 * len(plan.groups), plan.groups[0].seed, [len(g.samples) for g in plan.groups])
    shares = [slot for rank in range(world) for micro in plan.micro_batches(step, size, rank, world) for slot in micro]
    assert sorted(shares, key=lambda s: s.slot) == plan.slots(step)


@given(plans(groups=2), st.lists(st.integers(0, 80), min_size=1, max_size=5))
def test_a_step_does_not_depend_on_what_was_asked_before(plan: IndexPlan, steps: list[int]) -> None:
    fresh = [IndexPlan(plan.samples, plan.batch, plan.groups[0].seed, [len(g.samples) for g in plan.groups]).slots(s) for s in steps]
    assert [plan.slots(s) for s in steps] == fresh, "a resumed run needs the step alone"


@given(st.lists(st.integers(1, 30), min_size=2, max_size=4), st.data())
def test_weights_are_the_shares_of_the_draws(counts: list[int], data: st.DataObject) -> None:
    from finetune.data.captions import Wording
    from finetune.data.scan import Origin, weigh

    weights = [data.draw(st.sampled_from([0.2, 1.0, 3.0])) for _ in counts]
    parts = [[tiny.sample(f"{k}-{i}", f"{k}-{i}", ("x",)) for i in range(n)] for k, n in enumerate(counts)]
    made = weigh(parts, [Origin("", Wording(), weight=w) for w in weights])
    assert min(s.times for s in made) == 1, "no source is shown less than once an epoch"
    total = sum((s.times for s in made), Fraction())
    for k, weight in enumerate(weights):
        share = sum((s.times for s in made if s.name.startswith(f"{k}-")), Fraction()) / total
        assert abs(share - Fraction(str(weight)) / sum(Fraction(str(w)) for w in weights)) < Fraction(1, 10**9)


@given(plans())
def test_fractions_of_draws_are_carried_over(plan: IndexPlan) -> None:
    group = plan.groups[0]
    for size, cells in group.cells.items():
        wanted = sum((group.samples[cell[0]].times * len(cell) for cell in cells.values()), Fraction())
        assert sum(group.draws(size, e) for e in range(20)) == sum(
            int(20 * group.samples[cell[0]].times * len(cell)) for cell in cells.values()
        )
        assert abs(sum(group.draws(size, e) for e in range(20)) - 20 * wanted) < len(cells)


def test_rows_of_one_picture_are_shuffled_apart_and_their_names_do_not_matter() -> None:
    rows = [tiny.sample(f"{p}.{k}", f"{p}", (f"caption {k}",), size=SIZES[0]) for p in range(6) for k in range(5)]
    batches = IndexPlan(rows, 5, 0).groups[0].batches(0)
    assert max(Counter(i // 5 for i in batch).most_common(1)[0][1] for batch in batches) < 5
    other = IndexPlan(rows[::-1], 5, 0).groups[0].batches(0)
    assert [[rows[::-1][i] for i in b] for b in other] == [[rows[i] for i in b] for b in batches]
