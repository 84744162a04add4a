"""A model folder that finds concepts by itself: through the processor, pipelines, evaluation, and after more training."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_dual_encoders import write_tiny_clip
from tiny_model_folder import write_gallery, write_model_folder
from transformers import AutoModel, AutoProcessor, pipeline
from transformers.utils import hub

from vicha_hf import ViChaForRetrieval, ViChaForVQA, ViChaProcessor
from vicha_hf.cli import main
from vicha_hf.concepts import ConceptIndex, ConceptSelector, DualEncoder


WORDS = ["dog", "cat", "tree", "ball", "grass", "sky", "car"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A retrieval model that is its own encoder, and a gallery beside it."""
    root = tmp_path_factory.mktemp("own")
    write_model_folder(root / "model")
    (root / "words.txt").write_text("\n".join(WORDS))
    write_gallery(root)
    command = ["concepts", "index", str(root / "model"), "--vocabulary", str(root / "words.txt"), "--prompt", "a {}"]
    assert main([*command, "--k", "3"]) == 0
    return root


def images(number=3):
    noise = np.random.default_rng(0).integers(0, 256, (number, 40, 48, 3), dtype=np.uint8)
    return [Image.fromarray(array) for array in noise]


def test_it_ranks_the_vocabulary_by_its_own_projections(folder):
    selector = ConceptSelector.from_pretrained(folder / "model", device="cpu")
    found = selector.select(images())
    model = AutoModel.from_pretrained(folder / "model").eval()
    processor = AutoProcessor.from_pretrained(folder / "model")
    with torch.no_grad():
        texts = model.encode_texts(**processor(text=[f"a {word}" for word in WORDS], return_tensors="pt")).embeds
        pixels = processor(images=images(), return_tensors="pt")["pixel_values"]
        cosines = model.encode_images(pixels).embeds @ texts.T
    for row, cosine in zip(found, cosines, strict=True):
        assert [word for word, _ in row] == [WORDS[index] for index in cosine.topk(3).indices]
        assert [score for _, score in row] == pytest.approx(cosine.topk(3).values.tolist(), abs=2e-3)
    assert [len(row) for row in selector.select(images(), k=2)] == [2, 2, 2]
    assert selector.select(images()[0]) == found[:1]


def test_the_processor_finds_concepts(folder):
    processor = ViChaProcessor.from_pretrained(folder / "model")
    words = processor.concept_selector.words(images())
    automatic = processor(images=images(), concepts="auto", return_tensors="pt")
    given = processor(images=images(), concepts=words, return_tensors="pt")
    assert automatic.keys() == given.keys()
    assert all(torch.equal(automatic[name], given[name]) for name in given)
    assert "concept_input_ids" not in processor(images=images())
    # A batch in one array, and a single image.
    batch = np.stack([np.asarray(image) for image in images()])
    assert processor(images=batch, concepts="auto")["concept_input_ids"] == automatic["concept_input_ids"].tolist()
    assert len(processor(images=images()[0], concepts="auto")["concept_input_ids"]) == 1


def test_a_processor_that_cannot_find_them(folder, tmp_path):
    processor = ViChaProcessor.from_pretrained(folder / "model")
    with pytest.raises(ValueError, match='concepts="auto" needs images'):
        processor(text="a dog", concepts="auto")
    apart = ViChaProcessor(processor.image_processor, processor.tokenizer)
    with pytest.raises(ValueError, match="needs a processor loaded from a model folder"):
        apart(images=images(), concepts="auto")
    apart.save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no concept_index"):
        ViChaProcessor.from_pretrained(tmp_path)(images=images(), concepts="auto")
    # Writing a processor neither loads nor writes the selector.
    assert "concept" not in json.dumps(list(json.loads((tmp_path / "processor_config.json").read_text()))).replace(
        "max_concept_length", ""
    ).replace("concept_separator", "")


def test_pipelines_find_concepts(folder):
    rank = pipeline("image-text-retrieval", model=str(folder / "model"), device="cpu")
    texts = ["a dog on the grass", "a car", "a tree"]
    words = rank.processor.concept_selector.words(images()[:1])[0]
    automatic, given, without = (rank(images()[0], texts, concepts=concepts) for concepts in ("auto", words, None))
    assert automatic == given != without


def test_the_evaluation_finds_concepts(folder, tmp_path):
    """As if a selection had been written into the annotations beforehand."""
    model, gallery = str(folder / "model"), str(folder / "annotations.json")
    common = ["--k", "3", "--device", "cpu"]
    automatic = tmp_path / "automatic.json"
    assert main(["evaluate", model, gallery, *common, "--concepts", "auto", "--json", str(automatic)]) == 0
    selector = ConceptSelector.from_pretrained(model, device="cpu")
    records = json.loads((folder / "annotations.json").read_text())
    for record in records:
        record["concepts"] = selector.words(folder / record["image"])[0]
    (folder / "annotated.json").write_text(json.dumps(records))
    annotated = tmp_path / "annotated.json"
    assert main(["evaluate", model, str(folder / "annotated.json"), *common, "--json", str(annotated)]) == 0
    assert json.loads(automatic.read_text()) == json.loads(annotated.read_text())


def test_two_images_of_a_record(folder, tmp_path):
    from tiny_task_files import write_task_files

    from vicha_hf.data.annotations_reasoning import read_reasoning_records
    from vicha_hf.evaluation.found_concepts import find_concepts

    write_task_files(tmp_path)
    annotations = read_reasoning_records(str(tmp_path / "reasoning.json"))
    selector = ConceptSelector.from_pretrained(folder / "model", device="cpu")
    found = find_concepts(annotations, selector, batch_size=2, progress=False)
    assert len(found) == len(annotations)
    for record in found:
        assert [list(words) for words in record.concepts] == selector.words(list(record.images))


def test_the_index_is_kept_and_renewed(folder, tmp_path):
    model = ViChaForRetrieval.from_pretrained(folder / "model")
    assert model.concept_index.concepts == tuple(WORDS)
    with torch.no_grad():
        model.vicha.text_projection.weight.add_(torch.randn_like(model.vicha.text_projection.weight))
    model.save_pretrained(tmp_path)
    ViChaProcessor.from_pretrained(folder / "model").save_pretrained(tmp_path)
    # Trained further, its vocabulary is embedded again.
    renewed = ConceptSelector.from_pretrained(tmp_path, device="cpu")
    texts = renewed.encoder.encode_concepts(WORDS, ["a {}"])
    assert torch.equal(renewed.index.embeds, texts.half())
    assert not torch.equal(renewed.index.embeds, model.concept_index.embeds)
    model.concept_index = None
    model.save_pretrained(tmp_path)
    assert not (tmp_path / "concept_index").exists()


def test_a_head_without_joint_space_names_the_model_that_has_one(folder, tmp_path):
    head = ViChaForVQA.from_pretrained(folder / "model")
    head.save_pretrained(tmp_path)
    ViChaProcessor.from_pretrained(folder / "model").save_pretrained(tmp_path)
    selector = ConceptSelector.from_pretrained(tmp_path, device="cpu")
    assert selector.index.encoder == str(folder / "model")
    own = ConceptSelector.from_pretrained(folder / "model", device="cpu")
    assert selector.select(images()) == own.select(images())


def test_a_head_that_left_its_encoder_behind(folder, tmp_path, capsys):
    """Elsewhere it says what to give, and takes it: for once, or for good."""
    write_model_folder(tmp_path / "base")
    words = tmp_path / "words.json"
    words.write_text(json.dumps(WORDS))
    command = [
        "concepts",
        "index",
        str(tmp_path / "base"),
        "--vocabulary",
        str(words),
        "--prompt",
        "one {}",
        "--k",
        "2",
    ]
    assert main(command) == 0
    head = tmp_path / "head"
    ViChaForVQA.from_pretrained(tmp_path / "base").save_pretrained(head)
    ViChaProcessor.from_pretrained(tmp_path / "base").save_pretrained(head)
    found = ConceptSelector.from_pretrained(head, device="cpu").select(images())
    (tmp_path / "base").rename(tmp_path / "moved")
    show = ["concepts", "show", str(head), str(folder / "1.png")]
    capsys.readouterr()
    assert main(show) == 1
    told = capsys.readouterr().err
    assert f"`vicha-hf concepts index {head} --encoder FOLDER_OR_HUB_NAME`" in told and told.count("\n") == 1
    again = ConceptSelector.from_pretrained(head, encoder=str(tmp_path / "moved"), device="cpu")
    assert again.select(images()) == found
    write_tiny_clip(tmp_path / "clip")
    with pytest.raises(ValueError, match="whose weights are not those of"):
        ConceptSelector.from_pretrained(head, encoder=str(tmp_path / "clip"), device="cpu")
    assert main(["concepts", "index", str(head), "--encoder", str(tmp_path / "moved")]) == 0
    index = ConceptIndex.from_pretrained(head)
    assert (index.concepts, index.prompts, index.k) == (tuple(WORDS), ("one {}",), 2)
    assert ConceptSelector.from_pretrained(head, device="cpu").select(images()) == found
    assert main(show) == 0


def test_a_push_warns_of_an_encoder_that_stays_behind(folder, caplog, monkeypatch):
    """Who gets the head does not have that folder."""
    # The client is not asked: only what comes before the upload counts here.
    repository = SimpleNamespace(create_repo=lambda *args, **kwargs: SimpleNamespace(repo_id="org/name"))
    monkeypatch.setattr(hub, "hf_api", lambda: repository)
    monkeypatch.setattr(hub.PushToHubMixin, "_upload_modified_files", lambda self, *args, **kwargs: None)
    for head, warns in ((ViChaForVQA, True), (ViChaForRetrieval, False)):
        model = head.from_pretrained(folder / "model")
        caplog.clear()
        model.push_to_hub("org/name")
        told = "on this machine alone" in caplog.text and str(folder / "model") in caplog.text
        assert told == warns


def test_words_for_a_model_without_an_index(tmp_path, capsys):
    write_model_folder(tmp_path)
    assert main(["concepts", "index", str(tmp_path)]) == 1
    assert "has no concept_index/ yet: give its words with --vocabulary FILE" in capsys.readouterr().err


def test_an_encoder_from_the_cache_of_the_hub_keeps_its_name(folder, tmp_path):
    cached = tmp_path / "models--org--base" / "snapshots" / "0123abc"
    cached.parent.mkdir(parents=True)
    shutil.copytree(folder / "model", cached)
    head = ViChaForVQA.from_pretrained(cached)
    assert (head.concept_index.encoder, head.concept_index.encoder_revision) == ("org/base", "0123abc")
    encoder = DualEncoder.from_pretrained(str(cached), device="cpu")
    assert (encoder.name, encoder.revision) == ("org/base", "0123abc")


def test_an_index_by_another_encoder(folder, tmp_path):
    clip = write_tiny_clip(tmp_path / "clip")
    encoder = DualEncoder.from_pretrained(str(tmp_path / "clip"), device="cpu")
    model = ViChaForRetrieval.from_pretrained(folder / "model")
    model.concept_index = ConceptIndex.build(WORDS, encoder, ["a photo of a {}"], k=4)
    model.save_pretrained(tmp_path / "model")
    ViChaProcessor.from_pretrained(folder / "model").save_pretrained(tmp_path / "model")
    found = ConceptSelector.from_pretrained(tmp_path / "model", device="cpu").select(images())
    assert found == ConceptSelector(model.concept_index, encoder).select(images())
    assert [len(row) for row in found] == [4, 4, 4]
    with torch.no_grad():
        clip.visual_projection.weight.mul_(2)
    clip.save_pretrained(tmp_path / "clip")
    with pytest.raises(ValueError, match="whose weights are not those of"):
        ConceptSelector.from_pretrained(tmp_path / "model", device="cpu")


@pytest.mark.parametrize(
    "name, content",
    [
        ("vocabulary.json", '["dog"]'),
        ("concept_index.json", "{}"),
        ("embeddings.safetensors", "x"),
        ("vocabulary.json", "["),
    ],
)
def test_a_broken_index(folder, tmp_path, name, content):
    ConceptIndex.from_pretrained(folder / "model").save_pretrained(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=r"is no whole concept index.*; make it anew with `vicha-hf concepts index"):
        ConceptIndex.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["vocabulary.json", "embeddings.safetensors"])
def test_an_index_without_one_of_its_files(folder, tmp_path, name):
    index = ConceptIndex.from_pretrained(folder / "model")
    for place in (tmp_path, tmp_path / "model" / "concept_index"):
        index.save_pretrained(place)
        (place / name).unlink()
        with pytest.raises(ValueError, match=f"is no whole concept index: {name} is missing; make it anew"):
            ConceptIndex.from_pretrained(tmp_path if place == tmp_path else tmp_path / "model")


@pytest.mark.parametrize("k", [0, "15", 1.5])
def test_an_index_with_an_impossible_k(folder, tmp_path, k):
    ConceptIndex.from_pretrained(folder / "model").save_pretrained(tmp_path)
    description = tmp_path / "concept_index.json"
    description.write_text(json.dumps(json.loads(description.read_text()) | {"k": k}))
    with pytest.raises(ValueError, match=f"k={k!r}: it must be a whole number, at least 1"):
        ConceptIndex.from_pretrained(tmp_path)
