"""Datasets of the Hub: one question to it, quick and quiet, where the `datasets` library would ask for half a minute."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

from ..families import HUB_SECONDS
from .raw_records import AnnotationError


def load_hub_dataset(path: str, name: str | None, split: str | None, *, streaming: bool = False):
    """
    One split of a dataset of the Hub. Where the Hub cannot be reached, the copy in the cache is taken.

    Args:
        path: "organisation/name".
        name: configuration of the dataset.
        split: the split that is wanted; None takes "train", or the only one that there is.
        streaming: an `IterableDataset`, which reads rows when they are needed.

    Raises:
        AnnotationError: no such dataset, configuration or split, or neither Hub nor copy.
    """
    import datasets

    shown = ":".join(part for part in (path, name) if part)
    is_reached = _ask_hub(path)
    with nullcontext() if is_reached else _without_network():
        try:
            known = datasets.get_dataset_split_names(path, name)
            return datasets.load_dataset(path, name, split=split_name(known, split, shown), streaming=streaming)
        except AnnotationError:
            raise
        # Unknown configurations are a ValueError.
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            if not is_reached:
                raise AnnotationError(
                    f"{shown} is no file or folder here, and as a dataset of the Hub it cannot be had: the Hub cannot be "
                    "reached, and the cache holds no copy; check the path, or the network"
                ) from error
            raise AnnotationError(
                f"{shown} is no file or folder here, nor a dataset of the Hub that can be read ({error}); check the path"
            ) from error


def split_name(known: Sequence[str], split: str | None, shown: str) -> str:
    """The split to take among those that are known. Raises `AnnotationError` where there is none of that name."""
    if split is None:
        split = known[0] if len(known) == 1 else "train"
    # `datasets` also takes parts, such as train[:10%].
    if split.split("[")[0] not in known:
        raise AnnotationError(f"dataset {shown}: no split {split!r}; choose among {sorted(known)}")
    return split


def _ask_hub(path: str) -> bool:
    """Whether the Hub can be reached. Raises `AnnotationError` for what it can have no dataset of."""
    import datasets
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

    no_dataset = f"{path} is no file or folder here, nor a dataset of the Hub; check the path"
    # Without data files the library's own modules, such as "parquet", would take whatever lies in the current folder.
    if path in _PACKAGED_DATASETS_MODULES:
        raise AnnotationError(no_dataset)
    try:
        HfApi(endpoint=datasets.config.HF_ENDPOINT).dataset_info(path, timeout=HUB_SECONDS)
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise AnnotationError(no_dataset) from error
    # The connection's, or that of a Hub which is out of order.
    except Exception:
        return False
    return True


@contextmanager
def _without_network() -> Iterator[None]:
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before
