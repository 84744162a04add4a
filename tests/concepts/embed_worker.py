"""A process that embeds a corpus, alone or under `accelerate launch`: its folder and how many processes there were."""

import json
import sys
from pathlib import Path

from vicha_hf.concepts import ConceptCorpus, DualEncoder, embed_concepts, embed_images
from vicha_hf.concepts.embedding import new_accelerator


def main(corpus: str, encoder: str, output: str) -> None:
    accelerator = new_accelerator()
    encoder = DualEncoder.from_pretrained(encoder, device=str(accelerator.device))
    options = {"batch_size": 2, "accelerator": accelerator}
    embed_images(ConceptCorpus(corpus), encoder, Path(output) / "images", **options)
    embed_concepts(["dog", "cat", "tree", "ball", "sky"], encoder, Path(output) / "concepts", **options)
    report = Path(output) / f"report_{accelerator.process_index}.json"
    report.write_text(json.dumps({"num_processes": accelerator.num_processes}))


if __name__ == "__main__":
    main(*sys.argv[1:])
