"""Settings of the data: where pictures come from, what is said of them, and how they become pixels."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from finetune.config.section import Around, Fraction, Said, Section, Template
from finetune.errors import NEXT

Caption = Annotated[
    Template | None, Field(description="one caption for all pictures; {name} is a picture's file name in words, {folder} its folder's")
]
Column = Annotated[str | None, Field(description="name of the column, of a table or dataset (the usual names are found)")]
Split = Annotated[str | None, Field(description="split of a dataset (train)")]
Masks = Literal["none", "alpha", "file"]
MASK = "what of a picture counts: all, what its transparency shows, or what is white in name-masklabel.png or name.mask.png beside it"
Pixels = Annotated[int, Field(ge=16, le=4096)]


class Source(Section):
    """One of several places that pictures come from; what is not given here is as in `data`."""

    path: str = Field(description="folder, .tar or .parquet file, folder of `save_to_disk`, or Hub dataset id with optional @revision")
    repeats: Annotated[int, Field(ge=1, le=1000)] = Field(1, description="how often an epoch shows each picture")
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None, description="share of the draws, in proportion to the other sources' weights"
    )
    caption: Caption = None
    prefix: Around | None = Field(None, description="put in front of every caption")
    suffix: Around | None = Field(None, description="put behind every caption")
    image_column: Column = None
    caption_column: Column = None
    split: Split = None
    mask: Masks | None = Field(None, description=MASK)


class Data(Section):
    path: str | None = Field(
        None, description="folder of pictures with captions; or a .tar or .parquet file, a folder of `save_to_disk`, a Hub dataset id"
    )
    sources: tuple[Source, ...] = Field((), description="several places instead of one, each with a path, repeats or a weight")
    image_column: Column = None
    caption_column: Column = None
    split: Split = None
    caption: Caption = None
    trigger: Said | None = Field(None, description="word put in front of every caption; say it to summon what was learned")
    prefix: Around = Field("", description="put in front of every caption")
    suffix: Around = Field("", description="put behind every caption")
    caption_lines: Literal["one", "each"] = Field("one", description="whether a caption file is one caption, or each of its lines one")
    shuffle_tags: bool = Field(False, description="put a caption's tags, which commas part, in other orders too")
    keep_tags: Annotated[int, Field(ge=0)] = Field(0, description="tags at the front that keep their place and are never dropped")
    tag_dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="share of tags that are left out")
    wildcards: bool = Field(False, description="read {red|blue} in captions as one of these words")
    caption_variants: Annotated[int, Field(ge=1, le=1000)] = Field(
        8, description="forms of each caption, where tags are shuffled or dropped or wildcards drawn; each is encoded once"
    )
    resolution: Pixels | None = Field(
        None, description="side in pixels of the square that pictures have about as many pixels as (the base's own)"
    )
    resolutions: tuple[Pixels, ...] = Field((), description="further resolutions, at each of which every picture is shown too")
    buckets: bool = Field(True, description="keep pictures' proportions, in steps; else all are cut square")
    bucket_step: Annotated[int, Field(ge=8, le=512)] | None = Field(
        None, description="pixels between buckets (64; an eighth of a resolution below 512)"
    )
    bucket_min: Pixels | None = Field(None, description="shortest side of a bucket (half the resolution)")
    bucket_max: Pixels | None = Field(None, description="longest side of a bucket (twice the resolution)")
    bucket_merge: bool = Field(
        True, description="cut shapes of fewer pictures than a batch like the nearest other, where that keeps 70 % of each"
    )
    enlarge: bool = Field(True, description="enlarge pictures that are smaller than their bucket; else their buckets have fewer pixels")
    background: str = Field("white", description="colour that transparent pictures are composited on")
    mask: Masks = Field("none", description=MASK)
    inpaint_mask: Literal["both", "file", "drawn"] = Field(
        "both",
        description="of a base that repaints: masks that are drawn, those in name.inpaint.png beside a picture, white where it is to be "
        "repainted, or in turn both",
    )
    flip: bool = Field(False, description="show pictures mirrored too; not for what has a left and a right")
    random_crop: bool = Field(False, description="cut at other places than the middle too")
    colour_jitter: Annotated[float, Field(ge=0, le=0.5)] = Field(
        0.0, description="largest random change of brightness, contrast and saturation, as a share"
    )
    variants: Annotated[int, Field(ge=1, le=64)] = Field(
        4, description="crops, tints and inpainting masks of each picture, where they are random; each is encoded once"
    )
    caption_dropout: Fraction = Field(0.1, description="share of draws trained without caption, for classifier-free guidance")
    template: Literal["object", "style", "none"] = Field(
        "object", description="sentences that new tokens are said in where a picture has no caption"
    )
    holdout: str | None = Field(
        None, description="fraction of the pictures, or a folder, kept out of training to measure on; auto: a tenth, from 20 pictures on"
    )

    @property
    def places(self) -> tuple[Source, ...]:
        """Every source with all that holds for it; `path` alone is one."""
        settings = {"prefix": self.prefix, "suffix": self.suffix, "mask": self.mask, "caption": self.caption}
        settings |= {name: getattr(self, name) for name in ("image_column", "caption_column", "split")}
        sources = self.sources or ((Source(path=self.path),) if self.path else ())
        return tuple(s.model_copy(update={k: v for k, v in settings.items() if getattr(s, k) is None}) for s in sources)

    @field_validator("holdout")
    @classmethod
    def _holdout(cls, value: str | None) -> str | None:
        try:
            fraction = float(value) if value is not None else None
        except ValueError:
            return value  # a folder
        if fraction is not None and not 0 < fraction < 1:
            raise ValueError("a fraction must lie between 0 and 1")
        return value

    @field_validator("background")
    @classmethod
    def _background(cls, value: str) -> str:
        from PIL import ImageColor

        ImageColor.getrgb(value)
        return value

    @model_validator(mode="after")
    def _together(self) -> "Data":
        if wrong := [text for holds, text in self._contradictions() if holds]:
            raise ValueError(NEXT.join(wrong))
        return self

    def _contradictions(self) -> list[tuple[bool, str]]:
        weights = [source.weight for source in self.sources]
        varied = self.shuffle_tags or self.tag_dropout or self.wildcards
        return [
            (not self.places, "--data: missing; give a folder of pictures"),
            (bool(self.path and self.sources), "data.path and data.sources: give one of them"),
            (any(weights) and not all(weights), "data.sources: give every source a weight, or none"),
            (
                any(weights) and any(source.repeats > 1 for source in self.sources),
                "data.sources: weights and repeats both say how often a picture is shown; give one of them",
            ),
            (self.keep_tags > 0 and not (self.shuffle_tags or self.tag_dropout), "data.keep_tags: no tags are shuffled or dropped"),
            (self.caption_variants != 8 and not varied, "data.caption_variants: no tags are shuffled or dropped, and no wildcards drawn"),
            (
                not self.buckets and any((self.bucket_step, self.bucket_min, self.bucket_max)),
                "data.bucket_step, bucket_min and bucket_max: need data.buckets",
            ),
            (
                bool(self.bucket_min and self.bucket_max) and (self.bucket_min or 0) > (self.bucket_max or 0),
                f"data.bucket_min {self.bucket_min}: is larger than data.bucket_max {self.bucket_max}",
            ),
        ]
