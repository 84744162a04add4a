"""A folder that runs a page on its own, as a Space wants it: models, images, and the package's code."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from ..families import find_model_folder
from ..search.building import list_images
from ..whole_files import require_writable


REQUIREMENTS = (
    "torch>=2.9",
    "transformers>=5.23",
    "accelerate>=1.12",
    "datasets>=4.4",
    "jsonargparse[signatures]>=4.49",
    "pyyaml>=6.0",
    "pillow>=11.0",
    "gradio>=6.0",
)
APP = '''"""A page to try models on, made by `vicha-hf demo-page --export`."""

from pathlib import Path

from vicha_hf.demo_page.interface import build_page, image_folders
from vicha_hf.demo_page.models import PageModels


HERE = Path(__file__).parent
IMAGES = {images}
page = build_page(PageModels.find([str(HERE / "models" / name) for name in {models}]), IMAGES)

if __name__ == "__main__":
    page.launch(allowed_paths=image_folders(IMAGES))
'''
CARD = """---
title: {title}
sdk: gradio
sdk_version: {version}
app_file: app.py
pinned: false
---

# {title}

`pip install -r requirements.txt`, then `python app.py`. The folder holds the models, the images and the code that it needs.
"""


def export_page(models: Sequence[str], images: str | None, output: str | Path, gradio_version: str) -> Path:
    """
    Writes a folder that runs on its own and can be pushed as a Space.

    Args:
        models: folders of models, which are copied.
        images: folder or annotation file to search in, which is copied too.
        output: a new or empty folder.
        gradio_version: named in the card.

    Raises:
        ValueError, OSError: a folder that holds something, or a model that is none.
    """
    folder = Path(output)
    require_writable(folder, "--export")
    if any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: choose a new folder.")
    names = []
    for number, model in enumerate(models):
        source = Path(find_model_folder(model))
        if not source.is_dir():
            raise ValueError(f"{model} is no folder: download it first, for the page must run on its own.")
        names.append(f"{number}-{source.parent.name if source.name == 'model' else source.name}")
        shutil.copytree(source, folder / "models" / names[-1])
    package = Path(__file__).parents[1]
    shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    searched = "None" if images is None else 'str(HERE / "images" / "images.json")'
    if images is not None:
        _copy_images(images, folder / "images")
    (folder / "app.py").write_text(APP.format(images=searched, models=names), encoding="utf-8")
    (folder / "requirements.txt").write_text("\n".join(REQUIREMENTS) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(CARD.format(title="Try a model", version=gradio_version), encoding="utf-8")
    return folder


def _copy_images(images: str, folder: Path) -> None:
    folder.mkdir()
    records = []
    for number, image in enumerate(list_images(Path(images).expanduser(), None)):
        name = f"{number:06d}{Path(image.path).suffix}"
        shutil.copyfile(image.path, folder / name)
        # A caption is what an annotation file must have; the name says something where there is none.
        captions = list(image.captions) or [Path(image.path).stem]
        records.append({"image": name, "caption": captions, "concepts": list(image.concepts)})
    (folder / "images.json").write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
