"""What is said of a picture: variants that are finite, keep what must stay, and never lose the trigger."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from finetune.data.captions import Wording, in_words
from finetune.data.sample import Item

TAGS = st.lists(st.text("abcdefgh xyz", min_size=1, max_size=8).map(str.strip).filter(bool), min_size=1, max_size=8, unique=True)


def item(name: str = "red_fox-01.png", folder: str = "animals") -> Item:
    return Item(name, bytes, "", words=in_words(name.rpartition(".")[0]), concept=folder)


def said(own: str | list[str], content: str = "c", **wording: Any) -> tuple[str, ...]:
    return Wording(**wording).every(item(), [own] if isinstance(own, str) else own, content)


@given(TAGS, st.integers(0, 3), st.integers(1, 12), st.booleans(), st.sampled_from([0.0, 0.5]), st.integers(0, 99))
def test_variants_are_finite_and_made_of_the_captions_own_tags(
    tags: list[str], keep: int, variants: int, shuffle: bool, drop: float, seed: int
) -> None:
    wording: dict[str, Any] = {"shuffle": shuffle, "keep": keep, "drop": drop, "variants": variants, "seed": seed}
    made = said(", ".join(tags), **wording)
    assert made == said(", ".join(tags), **wording), "the same key, the same words"
    assert len(made) == (variants if shuffle or drop else 1) and made[0] == ", ".join(tags)
    for caption in made:
        parts = caption.split(", ")
        assert parts[: min(keep, len(tags))] == tags[: min(keep, len(parts))] and set(parts) <= set(tags)
        assert len(parts) == len(set(parts)) >= 1
        assert drop or sorted(parts) == sorted(tags)
        assert shuffle or [t for t in tags if t in parts] == parts


@given(TAGS, st.integers(0, 99))
def test_the_trigger_is_in_front_of_every_variant(tags: list[str], seed: int) -> None:
    made = said(", ".join(tags), trigger="ohwx", shuffle=True, drop=0.7, variants=6, seed=seed)
    assert all(caption.startswith("ohwx, ") for caption in made)


def test_another_seed_and_another_picture_give_other_orders() -> None:
    tags = "a, b, c, d, e, f, g, h"
    orders = {said(tags, content, shuffle=True, variants=3, seed=seed)[1:] for content in "xyz" for seed in range(3)}
    assert len(orders) == 9


def test_a_pictures_variants_differ() -> None:
    assert len(set(said("a, b, c, d, e, f, g, h", shuffle=True, variants=9))) == 9
    assert len(set(said("a, b, c, d, e, f, g, h", drop=0.5, variants=9))) > 6


def test_half_of_the_tags_stay_on_average() -> None:
    tags = ", ".join(f"t{i}" for i in range(10))
    counts = [len(c.split(", ")) for n in range(50) for c in said(tags, str(n), drop=0.5, variants=8)[1:]]
    assert 4.7 < sum(counts) / len(counts) < 5.3


def test_wildcards_are_words_of_their_choice() -> None:
    made = said("a {red|blue} {cat|{big|small} dog}", wildcards=True, variants=40)
    assert made[0] == "a red cat"
    assert set(made) == {f"a {c} {w}" for c in ("red", "blue") for w in ("cat", "big dog", "small dog")}
    assert said("a {red|blue} cat") == ("a {red|blue} cat",), "unless asked for, braces are braces"


def test_several_captions_prefix_suffix_and_names() -> None:
    assert said(["one", "two"]) == ("one", "two")
    assert said("a fox", prefix="photo of", suffix=", 4k", trigger="tok") == ("tok, photo of a fox, 4k",)
    assert said("ignored", caption="{name} among {folder}") == ("red fox among animals",)
    assert said("a tok fox", trigger="tok") == ("a tok fox",)
    assert said([], trigger="tok", templates=("{}", "a {}"), prefix="drawn:") == ("drawn: tok", "drawn: a tok")
    assert said([]) == ()
    assert said("a, b , c", shuffle=True, keep=3, variants=2) == ("a, b , c", "a, b, c")


def test_names_as_words() -> None:
    assert [in_words(n) for n in ("red_fox-01", "IMG (3)", "2024", "a-b_c  d", "fox12")] == ["red fox", "IMG", "2024", "a b c d", "fox"]
