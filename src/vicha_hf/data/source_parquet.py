"""Parquet files on this machine as one table, and those among them that cannot be read."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from .raw_records import AnnotationError


PARQUET_SUFFIX = ".parquet"


def load_parquet(paths: Sequence[Path]):
    """
    The rows of Parquet files as one dataset, and the files that are damaged, `{path: error}`.

    Raises:
        AnnotationError: files with other columns, two columns of one name, or none that can be read.
    """
    import pyarrow.parquet

    schemas, damaged = _for_each(paths, pyarrow.parquet.read_schema)
    for path, schema in schemas.items():
        refuse_repeated_columns(schema, str(path))
    _require_one(schemas, damaged)
    try:
        return _one_table(schemas), damaged
    except AnnotationError:
        # A file may be damaged behind its schema: which one, only reading them tells.
        read, damaged_behind = _for_each(list(schemas), _read_through)
        if not damaged_behind:
            raise
    damaged |= damaged_behind
    _require_one(read, damaged)
    return _one_table({path: schemas[path] for path in read}), damaged


def refuse_repeated_columns(schema, name: str) -> None:
    """Raises `AnnotationError` for two columns of one name: a row as a dict holds the last."""
    again = next((column for column in schema.names if schema.names.count(column) > 1), None)
    if again is not None:
        raise AnnotationError(f"{name}: the column {again!r} stands there twice; give each its own name")


def _for_each(paths: Sequence[Path], read) -> tuple[dict[Path, object], dict[Path, Exception]]:
    import pyarrow

    results, errors = {}, {}
    for path in paths:
        try:
            results[path] = read(path)
        except (OSError, pyarrow.ArrowException) as error:
            errors[path] = error
    return results, errors


def _require_one(readable: Mapping[Path, object], damaged: Mapping[Path, Exception]) -> None:
    if not readable:
        path, error = next(iter(damaged.items()))
        raise AnnotationError(f"{path}: not readable as Parquet ({error}); write or download it again") from error


def _read_through(path: Path) -> None:
    import pyarrow.parquet

    for _ in pyarrow.parquet.ParquetFile(path).iter_batches():
        pass


def _one_table(schemas: Mapping[Path, object]):
    import datasets
    import pyarrow

    first, *others = schemas.values()
    features = None
    try:
        if any(schema != first for schema in others):
            # A file whose lists are all empty does not know what they would hold.
            unified = pyarrow.unify_schemas(
                [schema.remove_metadata() for schema in schemas.values()], promote_options="permissive"
            )
            features = datasets.Features.from_arrow_schema(unified)
        files = [str(path) for path in schemas]
        return datasets.load_dataset(PARQUET_SUFFIX[1:], data_files=files, split="train", features=features)
    except (datasets.exceptions.DatasetGenerationError, pyarrow.ArrowException, OSError) as error:
        raise AnnotationError(
            f"{next(iter(schemas))} and {len(schemas) - 1} more: not readable as one Parquet table "
            f"({error.__cause__ or error}); check that all files have the same columns"
        ) from error
