"""Pictures of a Hub dataset, or of a folder that `datasets.save_to_disk` wrote, read through the package `datasets`."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.data.archives import image_bytes
from finetune.data.file import read_file, reading
from finetune.data.sample import Item, Listing
from finetune.data.tables import Columns, cell_captions
from finetune.errors import AccessError, ConfigError, DataError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


def saved(path: Path) -> bool:
    """Whether `save_to_disk` wrote this folder: of one split or of several."""
    return (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists()


def dataset_items(place: str, split: str | None, listing: Listing, columns: Columns) -> Iterator[Item]:
    """`place` is a folder of `save_to_disk`, or a Hub id with an optional @revision.

    Raises:
        DataError: no column of pictures.
        AccessError: the Hub has no such dataset, or cannot be reached.
        ConfigError: there are several splits and none is chosen.
    """
    table = _table(place, split)
    picture, caption = columns.image_of(table.column_names), columns.caption_of(table.column_names)
    if picture is None:
        raise DataError(
            f"{place}: no column of pictures; there are {', '.join(table.column_names)}", "--set data.image_column=NAME says which"
        )
    with reading(place, "cannot be read"):
        texts = table[caption] if caption else [None] * len(table)
        pictures, stamp, roots = _encoded(table, picture), table._fingerprint, _roots(place)
    if caption is None:
        listing.note(f"no caption column is known among {', '.join(table.column_names)}; data.caption_column names one", place)
    for i, text in enumerate(texts):
        name = f"{place}, row {i}"
        yield Item(f"{i:07d}", partial(_cell, pictures, i, roots, name), f"{stamp} {i}", cell_captions(text, name, listing))


def _roots(place: str) -> tuple[Path, ...]:
    """Where the files may lie that a table names: in its own folder, or in the Hub's caches."""
    import datasets
    from huggingface_hub.constants import HF_HUB_CACHE

    return tuple(Path(p).resolve() for p in (place, datasets.config.HF_DATASETS_CACHE, HF_HUB_CACHE) if Path(p).is_dir())


def _table(place: str, split: str | None) -> "Dataset":
    import datasets

    datasets.disable_progress_bars()
    if Path(place).is_dir():
        with reading(place, "not a folder that `save_to_disk` wrote"):
            return _checked(_split(place, datasets.load_from_disk(place), split))
    try:
        name, _, revision = place.partition("@")
        dataset = datasets.load_dataset(name, revision=revision or None)
    except (FileNotFoundError, ConnectionError, datasets.exceptions.DatasetsError, ValueError, OSError) as e:
        raise AccessError(f"--data {place}: no such folder, and no dataset that the Hub gives ({str(e).splitlines()[0]})", HINT) from e
    return _split(place, dataset, split)


def _checked(table: "Dataset") -> "Dataset":
    """A table whose offsets lead nowhere else: a damaged one would end the process."""
    table.data.table.validate(full=True)
    return table


def _split(place: str, dataset: "Dataset | DatasetDict", split: str | None) -> "Dataset":
    """Raises:
    ConfigError: there are several splits and none is chosen, or the chosen one is not there.
    """
    if not isinstance(dataset, dict):
        return dataset
    if split is None and len(dataset) > 1 and "train" not in dataset:
        raise ConfigError(f"--data {place}: has the splits {', '.join(dataset)}", "--set data.split=NAME chooses one")
    chosen = split or ("train" if "train" in dataset else next(iter(dataset)))
    if chosen not in dataset:
        raise ConfigError(f"data.split {chosen}: {place} has {', '.join(dataset)}")
    return dataset[chosen]


HINT = "--data takes a folder, a .tar or .parquet file, or a dataset's id such as owner/name; HF_TOKEN opens those that ask for it"


def _encoded(table: "Dataset", picture: str) -> "Dataset":
    """The picture column as bytes, not decoded by `datasets`: there is one decoder."""
    import datasets

    table = table.select_columns([picture])
    if isinstance(table.features[picture], datasets.Image):
        return table.cast_column(picture, datasets.Image(decode=False))
    return table


def _cell(table: "Dataset", row: int, roots: tuple[Path, ...], name: str) -> bytes:
    with reading(name, "cannot be read", "the dataset is damaged; fetch it again"):
        value = next(iter(table[row].values()))
    if isinstance(value, dict) and value.get("bytes") is None and value.get("path"):
        path = Path(value["path"]).resolve()
        if not any(path.is_relative_to(root) for root in roots):
            raise DataError(f"{name}: names a file outside of the dataset", "a table with the pictures' bytes inside")
        return read_file(str(path))
    return image_bytes(value, name)
