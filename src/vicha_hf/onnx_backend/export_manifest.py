"""The file that says what an exported folder holds."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path


EXPORT_FILE = "export.json"


@dataclass
class ExportManifest:
    """
    Facts about an exported folder.

    Attributes:
        format: "onnx" or "torch_export".
        task: "retrieval" or "vqa", what the parts serve together.
        parts: names of the parts, each a file.
        int8: whether weights of linear layers are kept in 8 bits.
        temperature: of the similarity; None where there is none.
        files: all files of the export, which a later one replaces.
    """

    format: str
    task: str
    parts: list[str]
    int8: bool = False
    temperature: float | None = None
    files: list[str] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        """Writes the folder's manifest."""
        (folder / EXPORT_FILE).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def of(cls, folder: str | Path) -> "ExportManifest | None":
        """
        The manifest of a folder; None where it is no export.

        Raises:
            ValueError: a manifest that cannot be read.
        """
        path = Path(folder).expanduser() / EXPORT_FILE
        if not path.is_file():
            return None
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{path} cannot be read ({error}): export the model again, into a new folder.") from error
