"""Concepts written into annotations, pairs filtered, the page, and everything in one go, through the command line too."""

import json
import re
import shutil

import numpy as np
import pyarrow.parquet
import pytest
from numbered_shards import write_tar
from safetensors.numpy import load_file, save_file
from tiny_dual_encoders import write_tiny_clip

from vicha_hf.cli import main
from vicha_hf.concepts import (
    ConceptCorpus,
    ConceptSelector,
    DualEncoder,
    EmbeddingStore,
    embed_captions,
    embed_concepts,
    embed_images,
    filter_pairs,
    inspect_concepts,
    select_for_corpus,
)
from vicha_hf.concepts.manifests import digest_of_file
from vicha_hf.data.annotation_fields import ImageFinder
from vicha_hf.data.annotations import ImageTextParser, read_image_text_records
from vicha_hf.data.image_files import open_image
from vicha_hf.data.raw_records import AnnotationError
from vicha_hf.data.stream_shards import stream_shards


WORDS = ["dog", "cat", "zebra", "ball", "tree", "car", "grass", "boy"]


@pytest.fixture
def stores(clip, corpus, tmp_path):
    images = embed_images(corpus, clip, tmp_path / "images", batch_size=2)
    return images, embed_concepts(WORDS, clip, tmp_path / "concepts")


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_annotations_with_concepts(stores, corpus, tmp_path):
    output = tmp_path / "out" / "train.jsonl"
    result = select_for_corpus(*stores, corpus, output, k=3)
    records = read_lines(output)
    assert result.num_records == len(records) == 24
    cosines = stores[0].read_all().astype(np.float64) @ stores[1].read_all().astype(np.float64).T
    for record, (number, original) in zip(records, corpus.numbered_records(), strict=True):
        best = np.argsort(-cosines[number], kind="stable")[:3]
        assert record["concepts"] == [WORDS[index] for index in best]
        assert record["concept_scores"] == pytest.approx(cosines[number][best].tolist(), abs=1e-3)
        assert record["caption"] == original.fields["caption"] and record["source"] == original.fields["source"]
    # The file may stand anywhere: images are named relative to it.
    read = read_image_text_records(str(output))
    assert [record.image for record in read] == [record.image for record in corpus.records]
    assert read[0].concepts == tuple(records[0]["concepts"])


def test_parquet(stores, corpus, tmp_path):
    from datasets import load_dataset

    for name in ("a.jsonl", "a.parquet"):
        select_for_corpus(*stores, corpus, tmp_path / name, k=3)
    lines = read_lines(tmp_path / "a.jsonl")
    # A column has one type: a text is a list of one.
    assert {type(line["caption"]) for line in lines} == {str, list}
    rows = load_dataset(
        "parquet", data_files=str(tmp_path / "a.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert [row["concepts"] for row in rows] == [line["concepts"] for line in lines]
    texts = [[line["caption"]] if isinstance(line["caption"], str) else line["caption"] for line in lines]
    assert [row["caption"] for row in rows] == texts


def copy_of_records(corpus_file, name, **fields):
    """The images of a corpus under new names, with further fields."""
    folder = corpus_file.parent / name
    folder.mkdir()
    records = json.loads(corpus_file.read_text())[:4]
    for number, record in enumerate(records):
        shutil.copy(corpus_file.parent / record["image"], folder / f"{number}.png")
        record |= {"image": f"{name}/{number}.png", "image_id": number, **fields}
    path = corpus_file.with_name(f"{name}.json")
    path.write_text(json.dumps(records))
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_sources_that_use_the_same_image_ids(clip, corpus_file, tmp_path, suffix):
    paths = [str(copy_of_records(corpus_file, name)) for name in ("coco", "vg")]
    assert [record.image_id for record in read_image_text_records(paths)] == list(range(8))
    corpus = ConceptCorpus(paths)
    images, captions = embed_images(corpus, clip, tmp_path / "i"), embed_captions(corpus, clip, tmp_path / "c")
    selected, best = tmp_path / f"selected.{suffix}", tmp_path / f"best.{suffix}"
    select_for_corpus(images, embed_concepts(WORDS, clip, tmp_path / "w"), corpus, selected)
    filter_pairs(images, captions, corpus, best, keep=100)
    fixed = tmp_path / "fixed.jsonl"
    # The two corpora show the same images, which it reports.
    assert main(["data", "check", *paths, "--fix", str(fixed), "--num-workers", "1"]) == 1
    for merged in (selected, best, fixed):
        assert [record.image_id for record in read_image_text_records(str(merged))] == list(range(8))
    assert [record["image_id"] for record in read_lines(fixed)][3:5] == ["1:3", "2:0"]
    # One source keeps its ids.
    one = ConceptCorpus(paths[0])
    filter_pairs(
        embed_images(one, clip, tmp_path / "i1"), embed_captions(one, clip, tmp_path / "c1"), one, best, keep=100
    )
    if suffix == "jsonl":
        assert [record["image_id"] for record in read_lines(best)] == list(range(4))


def write_shard(corpus_file):
    """A tar shard with four images of a corpus, which have no files of their own."""
    path = corpus_file.with_name("shard.tar")
    members = []
    for number, record in enumerate(json.loads(corpus_file.read_text())[:4]):
        members.append((f"{number}.png", (corpus_file.parent / record["image"]).read_bytes()))
        members.append(
            (f"{number}.json", json.dumps({"caption": record["caption"], "image_id": f"n{number}"}).encode())
        )
    write_tar(path, members)
    return path


def test_build_of_images_inside_shards(clip_folder, corpus_file, tmp_path, capsys):
    shard, built = write_shard(corpus_file), tmp_path / "built"
    build = [
        "concepts",
        "build",
        str(shard),
        "--encoder",
        str(clip_folder),
        "--output",
        str(built),
        "--min-count",
        "1",
    ]
    assert main([*build, "--num-workers", "0", "--no-progress"]) == 0
    assert "4 records with concepts: " in capsys.readouterr().out
    records = read_image_text_records(str(built / "annotations.parquet"))
    assert [record.image.read_bytes() for record in records] == [
        record.image.read_bytes() for record in read_image_text_records(str(shard))
    ]
    assert all(record.concepts for record in records) and (built / "inspect.html").is_file()


def test_parquet_of_files_and_shards(clip, corpus_file, tmp_path):
    sources = [str(corpus_file), str(write_shard(corpus_file)), str(copy_of_records(corpus_file, "more"))]
    corpus = ConceptCorpus(sources)
    stores = embed_images(corpus, clip, tmp_path / "images"), embed_concepts(WORDS, clip, tmp_path / "concepts")
    output = tmp_path / "out" / "all.parquet"
    with pytest.raises(ValueError, match=r"shard.tar.*record 0: its image is stored inside .* write \*.parquet"):
        select_for_corpus(*stores, corpus, output.with_suffix(".jsonl"))
    assert select_for_corpus(*stores, corpus, output).num_records == 24 + 4 + 4
    before, after = read_image_text_records(sources), read_image_text_records(str(output))
    assert [open_image(record.image, "").tobytes() for record in after] == [
        open_image(record.image, "").tobytes() for record in before
    ]
    assert [record.captions for record in after] == [record.captions for record in before]
    assert len({record.image_id for record in after}) == len({record.image_id for record in before})


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_concepts_are_streamed_from_beside_their_images(stores, corpus, tmp_path, suffix):
    output = tmp_path / "elsewhere" / f"train.{suffix}"
    select_for_corpus(*stores, corpus, output, k=3)
    (shard,) = stream_shards(str(output))
    parse = ImageTextParser(ImageFinder())
    streamed = [parse(raw.value, raw) for raw in shard.records()]
    read = read_image_text_records(str(output))
    assert [(one.image, one.concepts) for one in streamed] == [(one.image, one.concepts) for one in read]


def test_nothing_is_looked_for_in_vain(stores, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("vicha_hf.concepts.selection._select", None)
    with pytest.raises(ValueError, match=r"written as \*.jsonl or \*.parquet"):
        select_for_corpus(*stores, corpus, tmp_path / "train.csv")


def test_parquet_of_fields_that_come_late(stores, corpus_file, tmp_path, monkeypatch):
    monkeypatch.setattr("vicha_hf.concepts.annotation_writer._ROWS_AT_A_TIME", 4)
    records = json.loads(corpus_file.read_text())
    records[3] |= {"weight": 1, "note": None}
    records[20] |= {"weight": 0.5, "note": "late"}
    corpus_file.write_text(json.dumps(records))
    output = tmp_path / "train.parquet"
    select_for_corpus(*stores, ConceptCorpus(str(corpus_file)), output)
    rows = pyarrow.parquet.read_table(output).to_pylist()
    assert [rows[place]["weight"] for place in (0, 3, 20)] == [None, 1.0, 0.5]
    assert (rows[3]["note"], rows[20]["note"]) == (None, "late")


@pytest.mark.parametrize(
    "values, problem",
    [
        ([1, "two"], r"record 1: field 'note': no value for one column .*got str 'two' after int 1.*write \*.jsonl"),
        ([{}], r"record 0: field 'note': no value for one column .*got dict {}"),
        (["\ud83d"], r"record 0: field 'note': no value for one column"),
    ],
)
def test_values_that_parquet_cannot_hold(stores, corpus_file, tmp_path, values, problem):
    records = json.loads(corpus_file.read_text())
    for record, value in zip(records, values, strict=False):
        record["note"] = value
    corpus_file.write_text(json.dumps(records))
    corpus, output = ConceptCorpus(str(corpus_file)), tmp_path / "out" / "train.parquet"
    with pytest.raises(ValueError, match=problem):
        select_for_corpus(*stores, corpus, output)
    assert not output.parent.exists()
    # JSONL holds everything, half characters too.
    select_for_corpus(*stores, corpus, output.with_suffix(".jsonl"))
    assert [record.get("note") for record in read_lines(output.with_suffix(".jsonl"))][: len(values)] == values


def test_sharded_equals_unsharded(clip, corpus, tmp_path):
    concepts = embed_concepts(WORDS, clip, tmp_path / "concepts")
    sharded = embed_images(corpus, clip, tmp_path / "sharded", batch_size=2)
    # The same rows in one file.
    whole = shutil.copytree(tmp_path / "sharded", tmp_path / "whole")
    manifest = json.loads((whole / "manifest.json").read_text())
    first = manifest["shards"][0]["file"]
    items = np.concatenate([items for items, _ in sharded.shards()])
    save_file({"embeddings": sharded.read_all(), "items": items}, whole / first, metadata={"vicha_hf": "{}"})
    manifest["shards"] = [{"file": first, "rows": len(items), "content": "", "digest": digest_of_file(whole / first)}]
    (whole / "manifest.json").write_text(json.dumps(manifest))
    for store, name in ((sharded, "a.jsonl"), (EmbeddingStore(whole), "b.jsonl")):
        select_for_corpus(store, concepts, corpus, tmp_path / name)
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


def test_an_approximate_search_keeps_the_form(stores, corpus, tmp_path):
    select_for_corpus(*stores, corpus, tmp_path / "exact.jsonl", k=3)
    select_for_corpus(*stores, corpus, tmp_path / "approximate.jsonl", k=3, method="approximate")
    exact, approximate = read_lines(tmp_path / "exact.jsonl"), read_lines(tmp_path / "approximate.jsonl")
    # With so few concepts there is one list, and nothing is missed.
    assert [record["concepts"] for record in exact] == [record["concepts"] for record in approximate]


def test_nothing_is_done_twice_and_nothing_is_lost(stores, corpus, tmp_path):
    output = tmp_path / "train.jsonl"
    select_for_corpus(*stores, corpus, output)
    before = output.stat().st_mtime_ns
    assert select_for_corpus(*stores, corpus, output).was_current
    assert output.stat().st_mtime_ns == before
    assert not select_for_corpus(*stores, corpus, output, k=2).was_current
    output.write_text("mine")
    with pytest.raises(FileExistsError, match="was changed since it was made"):
        select_for_corpus(*stores, corpus, output, k=2)
    assert output.read_text() == "mine"
    select_for_corpus(*stores, corpus, output, k=2, overwrite=True)
    assert len(read_lines(output)) == 24


@pytest.mark.parametrize("method", ["exact", "approximate"])
def test_a_shard_without_any_readable_image(clip, corpus_file, tmp_path, method):
    for number in (2, 3):
        (corpus_file.parent / f"{number}.png").write_bytes(b"")
    corpus = ConceptCorpus(str(corpus_file), on_bad_record="skip")
    images = embed_images(corpus, clip, tmp_path / "images", batch_size=2)
    assert any(len(items) == 0 for items, _ in images.shards())
    concepts = embed_concepts(WORDS, clip, tmp_path / "concepts")
    result = select_for_corpus(images, concepts, corpus, tmp_path / "train.jsonl", k=3, method=method)
    assert (result.num_records, result.num_unreadable) == (22, 2)


def test_no_readable_image(clip, corpus_file, tmp_path):
    for path in corpus_file.parent.glob("*.png"):
        path.write_bytes(b"")
    corpus = ConceptCorpus(str(corpus_file), on_bad_record="skip")
    stores = embed_images(corpus, clip, tmp_path / "images"), embed_concepts(WORDS, clip, tmp_path / "concepts")
    with pytest.raises(ValueError, match="images: none of its 23 images could be read; mend them"):
        select_for_corpus(*stores, corpus, tmp_path / "train.jsonl")


def test_concepts_that_are_not_finite(stores, corpus, tmp_path):
    (shard,) = (tmp_path / "concepts").glob("*.safetensors")
    tensors = load_file(shard)
    tensors["embeddings"][2, 3] = np.inf
    save_file(tensors, shard, metadata={"vicha_hf": "{}"})
    manifest = json.loads((tmp_path / "concepts" / "manifest.json").read_text())
    manifest["shards"][0]["digest"] = digest_of_file(shard)
    (tmp_path / "concepts" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"/concepts: concept embeddings that are not finite, rows 2"):
        select_for_corpus(stores[0], EmbeddingStore(tmp_path / "concepts"), corpus, tmp_path / "train.jsonl")


def test_concepts_of_another_encoder(stores, corpus, tmp_path):
    for name, options in (("weights", {"seed": 1}), ("width", {"projection_dim": 16})):
        write_tiny_clip(tmp_path / name, **options)
        other = DualEncoder.from_pretrained(str(tmp_path / name), device="cpu")
        concepts = embed_concepts(WORDS, other, tmp_path / f"concepts_{name}")
        with pytest.raises(ValueError, match="embeddings of different encoders cannot be compared"):
            select_for_corpus(stores[0], concepts, corpus, tmp_path / "train.jsonl")
        assert not (tmp_path / "train.jsonl").exists()


def test_a_corpus_that_changed(stores, corpus_file, tmp_path):
    records = json.loads(corpus_file.read_text())
    shutil.copy(corpus_file.parent / "0.png", corpus_file.parent / "new.png")
    corpus_file.write_text(json.dumps([*records, {"image": "new.png", "caption": "a dog"}]))
    with pytest.raises(ValueError, match="was not made from the images of this corpus, or they have changed since"):
        select_for_corpus(*stores, ConceptCorpus(str(corpus_file)), tmp_path / "train.jsonl")


def test_images_that_were_only_copied_are_known(stores, corpus_file, tmp_path):
    copied = shutil.copytree(corpus_file.parent, tmp_path / "copy", copy_function=shutil.copyfile)
    result = select_for_corpus(*stores, ConceptCorpus(str(copied / "train.json")), tmp_path / "train.jsonl")
    assert result.num_records == 24


def test_an_image_that_changed(stores, corpus_file, tmp_path):
    shutil.copyfile(corpus_file.parent / "1.png", corpus_file.parent / "2.png")
    with pytest.raises(ValueError, match="have changed since"):
        select_for_corpus(*stores, ConceptCorpus(str(corpus_file)), tmp_path / "train.jsonl")


def test_embeddings_that_are_not_finite(stores, corpus, tmp_path):
    shard = sorted((tmp_path / "images").glob("*.safetensors"))[1]
    tensors = load_file(shard)
    tensors["embeddings"][1, 3] = np.nan
    save_file(tensors, shard, metadata={"vicha_hf": "{}"})
    manifest = json.loads((tmp_path / "images" / "manifest.json").read_text())
    manifest["shards"][1]["digest"] = digest_of_file(shard)
    (tmp_path / "images" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="images 2 to 3: image embeddings that are not finite, rows 1"):
        select_for_corpus(EmbeddingStore(tmp_path / "images"), stores[1], corpus, tmp_path / "train.jsonl")
    assert not (tmp_path / "train.jsonl").exists()


def test_filter_of_the_corpus(stores, clip, corpus, tmp_path):
    captions = embed_captions(corpus, clip, tmp_path / "captions")
    result = filter_pairs(stores[0], captions, corpus, tmp_path / "best.jsonl", keep=40)
    texts = captions.read_all().astype(np.float64)
    images = stores[0].read_all().astype(np.float64)
    numbers = [number for number, record in corpus.numbered_records() for _ in record.captions]
    cosines = np.array([images[number] @ text for number, text in zip(numbers, texts, strict=True)])
    assert (result.num_pairs, result.num_kept) == (25, 10)
    assert result.threshold == pytest.approx(np.sort(cosines)[-10], abs=1e-3)
    kept = [score for record in read_lines(tmp_path / "best.jsonl") for score in record["caption_scores"]]
    assert sorted(kept) == pytest.approx(np.sort(cosines)[-10:].tolist(), abs=1e-3)
    assert sum(result.counts) == 25 and "#" in result.histogram()


def test_filter_of_each_image(stores, clip, corpus, tmp_path):
    captions = embed_captions(corpus, clip, tmp_path / "captions")
    result = filter_pairs(stores[0], captions, corpus, tmp_path / "best.jsonl", keep=50, scope="image")
    records = read_lines(tmp_path / "best.jsonl")
    # Image 0 has three captions in two records, the others one.
    assert result.num_kept == 22 + 2
    of_first = [
        score for record in records if record["image"].endswith("/0.png") for score in record["caption_scores"]
    ]
    assert len(of_first) == 2
    for keep in (0, 101, float("nan")):
        with pytest.raises(ValueError, match="must be a percentage"):
            filter_pairs(stores[0], captions, corpus, tmp_path / "other.jsonl", keep=keep)


def test_page(stores, corpus, tmp_path):
    select_for_corpus(*stores, corpus, tmp_path / "train.jsonl", k=2)
    selected = ConceptCorpus(str(tmp_path / "train.jsonl"))
    use = inspect_concepts(selected, tmp_path / "page.html", vocabulary=[*WORDS, "<unseen>"], num_images=5)
    page = (tmp_path / "page.html").read_text()
    assert page.count("<article>") == page.count("data:image/jpeg") == 5
    assert "&lt;unseen&gt;" in page and "<unseen>" not in page
    record = read_lines(tmp_path / "train.jsonl")[0]
    assert f"<li>{record['concepts'][0]} <span>{record['concept_scores'][0]:.3f}</span></li>" in page
    assert sum(use.counts.values()) == 48 and "<unseen>" in use.unused


@pytest.mark.parametrize(
    "fields, problem",
    [
        ({"concepts": "dog"}, "record 1.*field 'concepts': wrong type"),
        ({"concepts": ["dog", 3]}, "record 1.*field 'concepts': wrong type"),
        ({"concepts": ["dog"], "concept_scores": ["high"]}, "record 1.*field 'concept_scores': wrong type"),
        ({"concepts": ["dog"], "concept_scores": [0.5, 0.2]}, "record 1.*'concept_scores': not one for each concept"),
    ],
)
def test_page_of_broken_concepts(corpus_file, tmp_path, fields, problem):
    records = json.loads(corpus_file.read_text())[:2]
    broken = corpus_file.with_name("broken.json")
    broken.write_text(json.dumps([records[0] | {"kwords": ["dog"]}, records[1] | fields]))
    with pytest.raises(AnnotationError, match=problem):
        inspect_concepts(ConceptCorpus(str(broken)), tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_page_without_concepts(corpus, tmp_path):
    with pytest.raises(ValueError, match="no record of the annotations has concepts"):
        inspect_concepts(corpus, tmp_path / "page.html")


def test_build_and_step_by_step_give_the_same(corpus_file, clip_folder, tmp_path, capsys):
    built, steps = tmp_path / "built", tmp_path / "steps"
    build = ["concepts", "build", str(corpus_file), "--encoder", str(clip_folder), "--output", str(built)]
    assert main([*build, "--k", "4", "--num-workers", "0", "--no-progress"]) == 0
    quiet, encoder = ["--no-progress"], ["--encoder", str(clip_folder), "--num-workers", "0"]
    vocabulary, corpus = str(steps / "vocabulary.json"), ["--corpus", str(corpus_file)]
    stores = ["--images", str(steps / "images"), "--concepts", str(steps / "concepts")]
    commands = [
        ["vocabulary", str(corpus_file), "--output", vocabulary],
        ["embed", *encoder, "--vocabulary", vocabulary, "--output", str(steps / "concepts")],
        ["embed", *encoder, *corpus, "--output", str(steps / "images")],
        ["select", *stores, *corpus, "--output", str(steps / "annotations.jsonl"), "--k", "4"],
        [
            "inspect",
            str(steps / "annotations.jsonl"),
            "--vocabulary",
            vocabulary,
            "--output",
            str(steps / "inspect.html"),
        ],
    ]
    for command in commands:
        assert main(["concepts", *command, *quiet]) == 0, capsys.readouterr().err
    for name in ("vocabulary.json", "annotations.jsonl", "inspect.html"):
        assert (built / name).read_bytes() == (steps / name).read_bytes()
    times = {
        path: path.stat().st_mtime_ns
        for path in built.rglob("*")
        if path.is_file() and path.parent.name != "concept_index"
    }
    assert main([*build, "--k", "4", "--num-workers", "0", "--no-progress"]) == 0
    assert times == {path: path.stat().st_mtime_ns for path in times}
    # The index finds for an image what the corpus got.
    record = read_lines(built / "annotations.jsonl")[0]
    found = ConceptSelector.from_pretrained(built / "concept_index", device="cpu").select(corpus_file.parent / "0.png")
    assert [word for word, _ in found[0]] == record["concepts"]
    assert [score for _, score in found[0]] == pytest.approx(record["concept_scores"], abs=1e-3)


def test_a_build_whose_captions_have_other_words_changes_nothing(corpus_file, clip_folder, tmp_path, capsys):
    built = tmp_path / "built"
    build = ["concepts", "build", str(corpus_file), "--encoder", str(clip_folder), "--output", str(built), "--k", "1"]
    build += ["--num-workers", "0", "--no-progress", "--min-count", "1"]
    assert main(build) == 0, capsys.readouterr().err
    before = {path: path.read_bytes() for path in built.rglob("*") if path.is_file()}
    records = json.loads(corpus_file.read_text())
    records[0]["caption"] = "a zebra by a lighthouse"
    corpus_file.write_text(json.dumps(records))
    assert main(build) == 1
    assert "embeddings of other words than the captions have now. Nothing was changed" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in built.rglob("*") if path.is_file()}
    shutil.rmtree(built / "concepts")
    assert main(build) == 0, capsys.readouterr().err
    assert {"zebra", "lighthouse"} <= json.loads((built / "vocabulary.json").read_text()).keys()


def test_the_commands_filter_and_show(stores, corpus_file, clip_folder, tmp_path, capsys):
    common = ["--corpus", str(corpus_file), "--no-progress"]
    embed = [
        "embed",
        "--encoder",
        str(clip_folder),
        "--captions",
        str(corpus_file),
        "--output",
        str(tmp_path / "captions"),
    ]
    assert main(["concepts", *embed, "--no-progress"]) == 0
    stored = ["--images", str(tmp_path / "images"), "--captions", str(tmp_path / "captions")]
    assert (
        main(["concepts", "filter", *stored, *common, "--keep", "40", "--output", str(tmp_path / "best.jsonl")]) == 0
    )
    assert re.search(r"10 of 25 pairs kept, cosine from -?0\.\d+ on", capsys.readouterr().out)
    words = tmp_path / "words.txt"
    words.write_text("dog\ncat\ntree\n")
    assert (
        main(["concepts", "index", str(clip_folder), "--vocabulary", str(words), "--prompt", "a {}", "--k", "2"]) == 0
    )
    image = str(corpus_file.parent / "0.png")
    try:
        assert main(["concepts", "show", str(clip_folder)]) == 0
        assert "3 concepts, width 24, 2 per image, by the model itself" in capsys.readouterr().out
        assert main(["concepts", "show", str(clip_folder), image, "--json", str(tmp_path / "found.json")]) == 0
    finally:
        shutil.rmtree(clip_folder / "concept_index")
    (found,) = json.loads((tmp_path / "found.json").read_text())
    assert found["image"] == image and len(found["concepts"]) == 2


@pytest.mark.parametrize(
    "command, problem",
    [
        (["vocabulary", "{none}.json", "--output", "v.json"], "annotation file not found"),
        (["vocabulary", "{corpus}", "--output", "v.txt"], r"written as \*.json or \*.parquet"),
        (["embed", "--encoder", "{clip}", "--vocabulary", "{bad}", "--output", "new"], "bad.txt, line 2"),
        (["embed", "--encoder", "{none}", "--corpus", "{corpus}", "--output", "new"], "{none}"),
        (
            ["select", "--images", "{none}", "--concepts", "{none}", "--corpus", "{corpus}", "--output", "a.jsonl"],
            "holds no embeddings",
        ),
        (["inspect", "{corpus}", "--output", "page.html"], "no record of the annotations has concepts"),
        (["inspect", "{corpus}", "--output", "page.html", "--num-images", "-1"], "num_images=-1 must be at least 0"),
        (["show", "{clip}"], "holds no concept_index"),
        (["index", "{none}", "--vocabulary", "{good}"], "is no model folder"),
    ],
)
def test_mistakes_are_one_line(corpus_file, clip_folder, tmp_path, monkeypatch, capsys, command, problem):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.txt").write_text("dog\ndog\n")
    (tmp_path / "good.txt").write_text("dog\n")
    places = {
        "corpus": corpus_file,
        "clip": clip_folder,
        "none": tmp_path / "nothing",
        "bad": tmp_path / "bad.txt",
        "good": tmp_path / "good.txt",
    }
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert main(["concepts", *(part.format(**places) for part in command)]) == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(problem.format(**places), message), message
    assert before == {path for path in tmp_path.rglob("*") if path.is_file()}
