"""Twelve plain images with annotations of every task, and a tiny pretrained folder to fine-tune on them."""

import json
from pathlib import Path

from colour_images import write_colour_images
from tiny_model_folder import tiny_processor
from tiny_models import tiny_pretraining_model


NUM_IMAGES = 12
COLOURS = ("red", "green", "blue")
LABELS = ("entailment", "neutral", "contradiction")


def write_task_files(folder: Path) -> Path:
    """Writes `pretrained/`, and TASK.json of as many records as there are images; returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pretrained").mkdir()
    tiny_processor(folder / "pretrained").save_pretrained(folder / "pretrained")
    # The published size of the queue would dwarf everything else.
    tiny_pretraining_model(mim_weight=0.5).save_pretrained(folder / "pretrained")
    colours = write_colour_images(folder, NUM_IMAGES, COLOURS)
    records = {"retrieval": [], "vqa": [], "entailment": [], "reasoning": [], "grounding": []}
    for index, colour in enumerate(colours):
        other = COLOURS[(index + 1) % len(COLOURS)]
        image = {"image": f"{index}.png", "concepts": [colour, "dog"][: index % 3]}
        captions = [f"a {colour} dog on the grass", f"{colour} dog sitting"]
        records["retrieval"].append(image | {"caption": captions, "image_id": index})
        records["vqa"].append(
            image
            | {"question_id": 100 + index, "question": "is the dog red?", "question_type": ("is", "what")[index % 2]}
            | {"answer": ["red" if colour == "red" else "white tree"] * 10}
        )
        records["entailment"].append(
            image | {"sentence": f"a {other} dog is standing", "label": LABELS[index % len(LABELS)]}
        )
        records["reasoning"].append(
            {
                "images": [f"{index}.png", f"{(index + 1) % NUM_IMAGES}.png"],
                "sentence": f"two {colour} dogs",
                "label": str(index % 2 == 0),
                "concepts": [[colour], ["dog"][: index % 2]],
            }
        )
        records["grounding"].append(
            image
            | {"ref_id": index, "text": f"{colour} dog", "split": ("val", "testA")[index % 2]}
            | {"bbox": [4, 4, 20, 20], "boxes": [[5, 5, 20, 20], [0, 0, 8, 8], [20, 10, 20, 25]]}
        )
    for task, content in records.items():
        (folder / f"{task}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder
