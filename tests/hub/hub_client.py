"""A user's process beside the local Hub: pushes or pulls models and prints what it saw as one line of JSON.

    python hub_client.py push MODEL_FOLDER REPO PRIVATE_REPO
    python hub_client.py pull REPO {package,remote-code}
    python hub_client.py save-again REPO FOLDER
    python hub_client.py push-training-state MODEL_FOLDER REPO NEW_FOLDER
    python hub_client.py embed SOURCE...
    python hub_client.py datasets PARQUET_FILE REPO

It runs on its own because huggingface_hub reads its environment once, and because `remote-code` must not be able to
import the package.
"""

import json
import sys


def two_images():
    """Two images that every process makes alike."""
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (2, 40, 48, 3), dtype=np.uint8)
    return [Image.fromarray(array) for array in noise]


CONCEPTS = [["dog", "grass"], []]
TEXTS = ["a dog on the grass", "two birds in a tree", "a man"]


WORDS = ["dog", "cat", "tree", "grass", "sky", "ball", "car"]


def found_concepts(processor) -> dict:
    """What the concept index finds in the two images, and the tokens that the processor makes of it."""
    encoded = processor(images=two_images(), concepts="auto")
    return {"words": processor.concept_selector.words(two_images()), "tokens": encoded["concept_input_ids"]}


def similarities(model, processor) -> list[list[float]]:
    """Cosine over temperature of the two images with the three texts."""
    import torch

    concepts = {"concepts": CONCEPTS} if "concept_input_ids" in processor.model_input_names else {}
    inputs = processor(images=two_images(), text=TEXTS, **concepts, padding=True, return_tensors="pt")
    with torch.no_grad():
        return model.eval()(**inputs).logits_per_image.tolist()


def push(folder: str, repo: str, private_repo: str) -> dict:
    from vicha_hf import ViChaForPreTraining, ViChaForRetrieval, ViChaProcessor
    from vicha_hf.concepts import ConceptIndex, ConceptSelector, DualEncoder

    model = ViChaForRetrieval.from_pretrained(folder, training_state=True)
    processor = ViChaProcessor.from_pretrained(folder)
    model.concept_index = ConceptIndex.build(WORDS, DualEncoder(model, processor), ["a {}"], k=3, own=True)
    model.push_to_hub(repo)
    processor.push_to_hub(repo)
    other_head = ViChaForPreTraining.from_pretrained(folder)
    other_head.concept_index = model.concept_index
    other_head.push_to_hub(private_repo, private=True)
    processor.push_to_hub(private_repo, private=True)
    processor.concept_selector = ConceptSelector(model.concept_index, DualEncoder(model, processor))
    return {"logits": similarities(model.vicha, processor), "concepts": found_concepts(processor)}


def pull(source: str, trust_remote_code: bool) -> dict:
    if trust_remote_code:
        sys.modules["vicha_hf"] = None  # any import of the package is now an ImportError
    else:
        import vicha_hf  # noqa: F401
    import transformers

    options = {"trust_remote_code": True} if trust_remote_code else {}
    config = transformers.AutoConfig.from_pretrained(source, **options)
    processor = transformers.AutoProcessor.from_pretrained(source, **options)
    model, report = transformers.AutoModel.from_pretrained(source, output_loading_info=True, **options)
    classes = {
        name: type(getattr(transformers, name).from_pretrained(source, **options)).__name__
        for name in (*config.auto_map, "AutoProcessor", "AutoImageProcessor")
    }
    pipeline = transformers.pipeline("zero-shot-image-classification", model=source, **options)
    answers = pipeline(two_images()[0], candidate_labels=TEXTS, hypothesis_template="{}")
    return {
        "auto_map": config.auto_map,
        "classes": classes,
        "module": type(model).__module__,
        "missing_keys": sorted(report["missing_keys"]),
        "weights": weight_names(source),
        "logits": similarities(model, processor),
        "concepts": found_concepts(processor) if getattr(model, "concept_index", None) is not None else None,
        "pipeline": {answer["label"]: answer["score"] for answer in answers},
    }


def save_again(source: str, folder: str) -> dict:
    """Loads with the code from the Hub, saves, and loads what was saved."""
    first = pull(source, trust_remote_code=True)
    import transformers

    transformers.AutoModel.from_pretrained(source, trust_remote_code=True).save_pretrained(folder)
    transformers.AutoProcessor.from_pretrained(source, trust_remote_code=True).save_pretrained(folder)
    return {"first": first, "again": pull(folder, trust_remote_code=True)}


def push_training_state(folder: str, repo: str, new_folder: str) -> dict:
    """Saves and pushes in one call, and loads teacher and queue from the Hub."""
    import torch

    from vicha_hf import ViChaForRetrieval

    model = ViChaForRetrieval.from_pretrained(folder, training_state=True)
    model.training_state.queue.num_filled.fill_(3)
    with torch.no_grad():
        model.training_state.teacher["vicha"].temperature.fill_(0.4)
    model.save_pretrained(new_folder, training_state=True, push_to_hub=True, repo_id=repo)
    pulled = ViChaForRetrieval.from_pretrained(repo, training_state=True).training_state
    return {
        "num_filled": pulled.queue.num_filled.item(),
        "teacher_temperature": pulled.teacher["vicha"].temperature.item(),
    }


def embed(*sources: str) -> list[dict]:
    """Embeds as sentence-transformers does, where the package cannot be imported."""
    sys.modules["vicha_hf"] = None
    from sentence_transformers import SentenceTransformer

    embedded = []
    for source in sources:
        model = SentenceTransformer(source, device="cpu", trust_remote_code=True)
        features = {"texts": model.encode(TEXTS).tolist(), "images": model.encode(two_images()).tolist()}
        embedded.append({"module": type(model[0].model).__module__} | features)
    return embedded


def datasets_of_the_hub(file: str, repo: str) -> dict:
    """Pushes a file as both splits of a dataset, and reads them; then again where the Hub is gone."""
    import datasets
    from huggingface_hub import HfApi

    HfApi().create_repo(repo, repo_type="dataset")
    for split in ("train", "test"):
        HfApi().upload_file(
            path_or_fileobj=file, path_in_repo=f"data/{split}-0-of-1.parquet", repo_id=repo, repo_type="dataset"
        )
    online = read_datasets(repo)
    datasets.config.HF_ENDPOINT = "http://127.0.0.1:9"
    return {"online": online, "offline": read_datasets(repo), "switched": datasets.config.HF_HUB_OFFLINE}


def read_datasets(repo: str) -> dict:
    """What each source gives as a table and as a stream, by name: captions and images, or the message."""
    from vicha_hf.data.annotations import read_image_text_records
    from vicha_hf.data.raw_records import AnnotationError
    from vicha_hf.data.stream_shards import stream_shards

    def table(source):
        return [[record.captions[0], record.image.read_bytes().hex()] for record in read_image_text_records(source)]

    def stream(source):
        raws = [raw.value for shard in stream_shards(source | {"streaming": True}) for raw in shard.records()]
        return [[value["caption"], value["image"].read_bytes().hex()] for value in raws]

    columns = {"columns": {"caption": "text"}}
    sources = {
        "default": {"path": repo, **columns},
        "test": {"path": repo, "split": "test", **columns},
        "split": {"path": repo, "split": "tset"},
        "configuration": {"path": repo, "name": "large"},
        "column": {"path": repo, "columns": {"caption": "title"}},
        "absent": {"path": f"{repo}z"},
    }
    found = {}
    for name, source in sources.items():
        for read in (table, stream):
            try:
                found[f"{name} {read.__name__}"] = read(source)
            except AnnotationError as error:
                found[f"{name} {read.__name__}"] = str(error)
    return found


def weight_names(source: str) -> list[str]:
    from safetensors import safe_open
    from transformers.utils import cached_file

    with safe_open(cached_file(source, "model.safetensors"), "pt") as weights:
        return sorted(weights.keys())


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    if command == "push":
        result = push(*arguments)
    elif command == "pull":
        result = pull(arguments[0], trust_remote_code=arguments[1] == "remote-code")
    elif command == "embed":
        result = embed(*arguments)
    elif command == "datasets":
        result = datasets_of_the_hub(*arguments)
    elif command == "push-training-state":
        result = push_training_state(*arguments)
    else:
        result = save_again(*arguments)
    print(json.dumps(result))
