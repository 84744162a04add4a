"""An index of images: against scoring everything, stopped and continued, grown, and refused where it cannot be right."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_model_folder import write_gallery, write_model_folder, write_simla_folder
from transformers import AutoProcessor

from vicha_hf.cli import main
from vicha_hf.data.image_files import ImageReadError
from vicha_hf.families import load_finetuned
from vicha_hf.search import ImageIndex, build_index, building
from vicha_hf.search.approximate import EXACT_BELOW, ApproximateSearch
from vicha_hf.search.image_index import nearest_rows
from vicha_hf.search.index_files import SearchIndexError


QUERY = "two dogs running in the snow"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Five images with captions and concepts, and models of both families."""
    root = tmp_path_factory.mktemp("search")
    write_model_folder(root / "vicha", rerank_similarity_weight=0.5)
    write_model_folder(root / "other", seed=1)
    write_simla_folder(root / "simla")
    (root / "images").mkdir()
    write_gallery(root / "images")
    return root


@pytest.fixture(scope="module")
def index_folder(root) -> Path:
    """An index of the annotation file, with captions."""
    report = build_index(root / "images/annotations.json", root / "vicha", root / "index", progress=False)
    assert (report.embedded, report.kept, report.texts, report.left_out) == (5, 0, 8, [])
    return root / "index"


@pytest.fixture(scope="module")
def scored(root):
    """Similarity and re-ranked scores of all images and captions by the model itself."""
    model, processor = load_finetuned("retrieval", str(root / "vicha")), AutoProcessor.from_pretrained(root / "vicha")
    records = json.loads((root / "images/annotations.json").read_text())
    captions = [caption for record in records for caption in record["caption"]]
    with torch.no_grad():
        images = model.encode_images(
            **processor(
                images=[str(root / "images" / record["image"]) for record in records],
                concepts=[record["concepts"] for record in records],
                padding=True,
                return_tensors="pt",
            )
        )
        texts = model.encode_texts(**processor(text=captions, padding=True, return_tensors="pt"))
    return images.embeds @ texts.embeds.T, model.rerank(images, texts, k=100).scores_i2t, captions, images.embeds


def names(hits):
    return [Path(hit.image).name for hit in hits]


def test_a_text_finds_images_as_the_model_ranks_them(index_folder, scored):
    similarity, reranked, captions, _ = scored
    column = captions.index(QUERY)
    index = ImageIndex(index_folder)
    hits = index.search(QUERY)
    order = reranked[:, column].argsort(descending=True).tolist()
    assert names(hits) == [f"{number}.png" for number in order]
    assert [hit.rank for hit in hits] == [1, 2, 3, 4, 5]
    for hit, number in zip(hits, order, strict=True):
        assert hit.score == pytest.approx(reranked[number, column].item(), abs=1e-4)
        assert hit.similarity == pytest.approx(similarity[number, column].item(), abs=1e-5)
    by_similarity = similarity[:, column].argsort(descending=True).tolist()
    first_stage = index.search(QUERY, top=3, rerank=0)
    assert names(first_stage) == [f"{number}.png" for number in by_similarity[:3]]
    assert all(hit.score is None for hit in first_stage)
    # Two candidates are ordered by the head, the others follow by similarity.
    some = index.search(QUERY, rerank=2)
    assert {*names(some[:2])} == {f"{number}.png" for number in by_similarity[:2]}
    assert names(some[2:]) == [f"{number}.png" for number in by_similarity[2:]]
    assert [hit.score is None for hit in some] == [False, False, True, True, True]


def test_an_image_finds_images_and_captions(index_folder, scored, root, tmp_path):
    similarity, _, captions, embeds = scored
    index = ImageIndex(index_folder)
    image = root / "images/2.png"
    with_itself = index.search(str(image), top=2)
    # Image 2 has no concepts: the query is embedded just as the index was.
    assert names(with_itself)[0] == "2.png" and with_itself[0].similarity == pytest.approx(1.0, abs=1e-5)
    assert names(with_itself)[1] == f"{(embeds @ embeds[2]).topk(2).indices[1].item()}.png"
    assert index.search(image) == index.search(Image.open(image)) == index.search(str(image))
    found = index.search(str(image), target="texts", rerank=0)
    assert [hit.text for hit in found] == [
        captions[column] for column in similarity[2].argsort(descending=True).tolist()
    ]
    assert {hit.text for hit in found} == set(captions)
    for hit in index.search(str(image), target="texts"):
        assert hit.score is not None and Path(hit.image).is_file()
    similar = index.search("a man", target="texts", top=1)
    assert similar[0].text == "a man" and similar[0].score is None


def test_captions_beside_the_images_of_a_folder_are_indexed(root, tmp_path):
    shutil.copytree(root / "images", tmp_path / "images", ignore=shutil.ignore_patterns("*.json"))
    folder, output = tmp_path / "images", tmp_path / "index"
    assert build_index(folder, root / "vicha", output, progress=False).texts == 0
    (folder / "0.txt").write_text("a red bird\nthe bird sits\n")
    report = build_index(folder, root / "vicha", output, progress=False)
    # The other four have no captions, which is no mistake.
    assert (report.embedded, report.kept, report.texts, report.left_out) == (1, 4, 2, [])
    hits = ImageIndex(output).search("the bird sits", target="texts", top=1)
    assert hits[0].text == "the bird sits" and hits[0].image.endswith("0.png")
    assert len(ImageIndex(output)) == 5
    report = build_index(folder, root / "vicha", output, progress=False)
    assert (report.embedded, report.kept) == (0, 5)


def test_links_are_followed_once_and_one_that_leads_nowhere_is_listed(root, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "linked").symlink_to(root / "images")
    (folder / "again.png").symlink_to(root / "images/0.png")
    (folder / "circle").symlink_to(folder)
    (folder / "dead.png").symlink_to("nowhere.png")
    report = build_index(folder, root / "vicha", tmp_path / "index", progress=False)
    assert report.embedded == 5 and len(ImageIndex(tmp_path / "index").images) == 5
    ((path, cause),) = report.left_out
    assert path.endswith("nowhere.png") and "file not found" in cause


def test_both_families_and_folders_without_captions(root, tmp_path):
    shutil.copytree(root / "images", tmp_path / "images", ignore=shutil.ignore_patterns("*.json"))
    report = build_index(tmp_path / "images", root / "simla", tmp_path / "index", progress=False, num_workers=1)
    assert report.embedded == 5 and report.texts == 0
    index = ImageIndex(tmp_path / "index")
    assert len(index.search(QUERY)) == 5
    with pytest.raises(ValueError, match="holds no captions"):
        index.search(QUERY, target="texts")


def test_concepts_are_found_where_they_are_asked_for(root, tmp_path):
    shutil.copytree(root / "vicha", tmp_path / "model")
    (tmp_path / "words.txt").write_text("dog\ncat\ngrass\nsnow\n")
    assert (
        main(["concepts", "index", str(tmp_path / "model"), "--vocabulary", str(tmp_path / "words.txt"), "--k", "2"])
        == 0
    )
    for concepts in ("auto", "none"):
        build_index(root / "images", tmp_path / "model", tmp_path / concepts, concepts=concepts, progress=False)
    found, without = ImageIndex(tmp_path / "auto"), ImageIndex(tmp_path / "none")
    model, processor = (
        load_finetuned("retrieval", str(tmp_path / "model")),
        AutoProcessor.from_pretrained(tmp_path / "model"),
    )
    for row, image in enumerate(found.images):
        inputs = processor(images=image.path, concepts="auto", return_tensors="pt")
        expected = model.encode_images(**inputs).embeds[0]
        torch.testing.assert_close(found.image_embeds[row], expected, atol=1e-5, rtol=0)
    assert not torch.allclose(found.image_embeds, without.image_embeds, atol=1e-3)
    # A query is embedded as the index was.
    assert found.search(root / "images/0.png", top=1)[0].similarity == pytest.approx(1.0, abs=1e-5)
    assert len(found.search(QUERY)) == 5
    with pytest.raises(OSError, match="concept"):
        build_index(root / "images", root / "vicha", tmp_path / "new", concepts="auto", progress=False)


def test_images_without_concepts_for_a_model_that_reads_them_are_told(root, tmp_path, caplog):
    shutil.copytree(root / "images", tmp_path / "images", ignore=shutil.ignore_patterns("*.json"))
    for concepts in ("none", "given"):
        assert "reads visual concepts" not in caplog.text
        build_index(tmp_path / "images", root / "vicha", tmp_path / concepts, concepts=concepts, progress=False)
    assert f"{root / 'vicha'} reads visual concepts, and none of the 5 images has any" in caplog.text
    caplog.clear()
    records = [{"image": f"images/{number}.png", "caption": "a", "concepts": ["dog"]} for number in range(2)]
    (tmp_path / "some.json").write_text(json.dumps(records))
    build_index(tmp_path / "some.json", root / "vicha", tmp_path / "some", image_root=str(root), progress=False)
    build_index(root / "images", root / "simla", tmp_path / "other", progress=False)
    assert "reads visual concepts" not in caplog.text


def test_an_index_grows_shrinks_and_is_mended(root, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(root / "images", images, ignore=shutil.ignore_patterns("*.json"))
    folder, model = tmp_path / "index", root / "vicha"

    def run(**options):
        report = build_index(images, model, folder, progress=False, **options)
        return report.embedded, report.kept, report.removed, len(report.left_out)

    assert run(shard_size=2) == (5, 0, 0, 0)
    assert len(list(folder.glob("shard-*"))) == 3
    assert run() == (0, 5, 0, 0)
    (images / "deeper").mkdir()
    shutil.copy(images / "0.png", images / "deeper/5.JPG")
    (images / "broken.jpg").write_bytes(b"no image")
    assert run() == (1, 5, 0, 1)
    assert run() == (0, 6, 0, 1)
    (images / "broken.jpg").unlink()
    before = names(ImageIndex(folder).search(QUERY, rerank=0))
    # Another content under the same name, and one image less.
    shutil.copy(images / "4.png", images / "1.png")
    os.utime(images / "1.png")
    (images / "3.png").unlink()
    assert run() == (1, 4, 1, 0)
    index = ImageIndex(folder)
    after = index.search(QUERY, rerank=0)
    assert set(names(after)) == set(before) - {"3.png"} and len(after) == 5
    of = {Path(hit.image).name: hit.similarity for hit in after}
    assert of["1.png"] == pytest.approx(of["4.png"], abs=1e-6)
    # What is back is found again.
    shutil.copy(root / "images/3.png", images / "3.png")
    assert run()[0] == 1 and len(ImageIndex(folder).search(QUERY)) == 6
    with pytest.raises(building.ImageReadError, match=r"broken\.jpg"):
        (images / "broken.jpg").write_bytes(b"no image")
        run(on_bad_image="raise")


def test_a_stopped_run_goes_on_to_the_same_index(root, tmp_path, caplog):
    images = tmp_path / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    for number in range(60):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(images / f"{number:03d}.png")
    build_index(images, root / "vicha", tmp_path / "whole", progress=False, shard_size=4)
    script = (
        "from vicha_hf.search import build_index; import sys;"
        "build_index(sys.argv[1], sys.argv[2], sys.argv[3], progress=False, shard_size=4, batch_size=2)"
    )
    command = [sys.executable, "-c", script, str(images), str(root / "vicha"), str(tmp_path / "stopped")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "stopped").glob("shard-*"))) < 3 and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read().decode()[-2000:]
        time.sleep(0.002)
    process.kill()
    process.wait()
    left = len(list((tmp_path / "stopped").glob("shard-*")))
    assert 3 <= left < 15
    ImageIndex(tmp_path / "stopped")
    assert "stopped is not whole: a run that was to embed" in caplog.text
    report = build_index(images, root / "vicha", tmp_path / "stopped", progress=False, shard_size=4)
    caplog.clear()
    assert report.kept == 4 * left and report.embedded == 60 - 4 * left
    one, other = ImageIndex(tmp_path / "whole"), ImageIndex(tmp_path / "stopped")
    assert "not whole" not in caplog.text
    assert one.images == other.images
    torch.testing.assert_close(one.image_embeds, other.image_embeds, atol=1e-6, rtol=0)


def test_an_index_knows_its_model(root, index_folder, tmp_path):
    with pytest.raises(SearchIndexError, match="is not the model that"):
        ImageIndex(index_folder, model=str(root / "other")).search(QUERY)
    with pytest.raises(SearchIndexError, match="is not the model that"):
        build_index(root / "images", root / "other", index_folder, progress=False)
    with pytest.raises(SearchIndexError, match="made with concepts='given', not 'none'"):
        build_index(root / "images", root / "vicha", index_folder, concepts="none", progress=False)
    # The same model elsewhere is the same model.
    shutil.copytree(root / "vicha", tmp_path / "moved")
    assert ImageIndex(index_folder, model=str(tmp_path / "moved")).search(QUERY, top=1)
    with pytest.raises(SearchIndexError, match="is no index and not empty"):
        build_index(root / "images", root / "vicha", root / "images", progress=False)


@pytest.mark.parametrize("lost", ["gone", "empty"])
def test_an_image_that_is_gone_or_damaged_is_left_out_with_a_warning(root, tmp_path, caplog, lost):
    shutil.copytree(root / "images", tmp_path / "images")
    build_index(tmp_path / "images", root / "vicha", tmp_path / "index", progress=False)
    image = tmp_path / "images/0.png"
    image.unlink() if lost == "gone" else image.write_bytes(b"")
    index = ImageIndex(tmp_path / "index")
    hits = index.search(QUERY)
    assert sorted(names(hits)) == ["1.png", "2.png", "3.png", "4.png"] and all(hit.score is not None for hit in hits)
    assert "gone or cannot be read since they were indexed: 1, such as" in caplog.text and "0.png" in caplog.text
    assert f"run `vicha-hf index {tmp_path / 'images'}` again" in caplog.text
    # The one that is left out is the only one that would be re-ranked.
    first = index.search(QUERY, rerank=0)[0].image
    if first.endswith("0.png"):
        assert len(index.search(QUERY, rerank=1)) == 4
    if lost == "empty":
        with pytest.raises(ImageReadError, match=r"the query.*0\.png"):
            index.search(str(image))
    shutil.rmtree(tmp_path / "images")
    with pytest.raises(FileNotFoundError, match="since they were indexed: 5"):
        index.search(QUERY)


def test_two_writers_are_refused(root, index_folder):
    with building._only_writer(index_folder), pytest.raises(SearchIndexError, match="written by another process"):
        build_index(root / "images", root / "vicha", index_folder, progress=False)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "index.json").unlink(), "holds no index"),
        (lambda folder: (folder / "index.json").write_text("{"), r"index\.json cannot be read"),
        (
            lambda folder: (folder / "index.json").write_text('{"model": "m", "unknown": 1}'),
            r"index\.json cannot be read",
        ),
        (lambda folder: cut(next(folder.glob("shard-*"))), r"shard-00000\.safetensors cannot be read"),
        (lambda folder: next(folder.glob("shard-*")).unlink(), "holds no image"),
    ],
)
def test_a_damaged_index_is_named(index_folder, tmp_path, damage, message):
    shutil.copytree(index_folder, tmp_path / "index")
    damage(tmp_path / "index")
    with pytest.raises(SearchIndexError, match=message):
        ImageIndex(tmp_path / "index")


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def test_equal_similarities_come_in_the_order_of_the_index(index_folder):
    index = ImageIndex(index_folder)
    index.image_embeds = torch.ones(5, 2)
    assert index.nearest(torch.ones(2), 3)[0] == [0, 1, 2]


@pytest.mark.parametrize(("rows", "number"), [(1, 1), (63, 5), (64, 1), (1000, 10), (1000, 1000), (5000, 40)])
def test_the_nearest_rows_are_those_of_a_full_sort(rows, number):
    generator = torch.Generator().manual_seed(rows)
    # Whole numbers: many are equal.
    embeds, query = torch.randint(-3, 4, (rows, 3), generator=generator).float(), torch.tensor([1.0, 2.0, -1.0])
    products = (embeds @ query).tolist()
    expected = sorted(range(rows), key=lambda row: (-products[row], row))[:number]
    assert nearest_rows(embeds, query, number) == (expected, [products[row] for row in expected])


def test_faiss_finds_what_comparing_with_everything_finds(index_folder, tmp_path):
    exact, approximate = ImageIndex(index_folder), ImageIndex(index_folder, approximate=True)
    assert [hit.image for hit in approximate.search(QUERY)] == [hit.image for hit in exact.search(QUERY)]
    assert (index_folder / "images.faiss").is_file()
    # Above the size where cells pay: embeddings around some centres, as those of real images are.
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(200, 32, generator=generator)
    spread = 0.5 * torch.randn(EXACT_BELOW, 32, generator=generator)
    embeds = torch.nn.functional.normalize(centres.repeat(EXACT_BELOW // 200, 1) + spread, dim=1)
    (tmp_path / "index.json").write_text("{}")
    search = ApproximateSearch(embeds, tmp_path / "images.faiss")
    shared = 0
    for row in range(0, 2000, 50):
        best = (embeds @ embeds[row]).topk(10).indices.tolist()
        found, similarities = search.nearest(embeds[row], 10)
        assert found[0] == row and similarities[0] == pytest.approx(1.0, abs=1e-4)
        shared += len(set(best) & set(found))
    assert shared / 400 > 0.9
    again = ApproximateSearch(embeds, tmp_path / "images.faiss")
    assert again.nearest(embeds[0], 5) == search.nearest(embeds[0], 5)


def test_commands_print_tables_json_and_pages(root, index_folder, tmp_path, capsys):
    assert main(["index", str(root / "images"), str(root / "vicha"), "--output", str(tmp_path / "index")]) == 0
    assert "5 images embedded, 0 as before" in capsys.readouterr().out
    command = ["search", str(index_folder), QUERY, "--top", "3"]
    assert main([*command, "--json", str(tmp_path / "out/hits.json"), "--html", str(tmp_path / "hits.html")]) == 0
    table = capsys.readouterr().out.splitlines()
    written = json.loads((tmp_path / "out/hits.json").read_text())
    assert written["query"] == QUERY and [hit["rank"] for hit in written["results"]] == [1, 2, 3]
    assert len(table) == 4 and all(
        hit["image"] in line for hit, line in zip(written["results"], table[1:], strict=True)
    )
    page = (tmp_path / "hits.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 3 and QUERY in page
    assert main([*command, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out) == written
    assert main(["search", str(index_folder), str(root / "images/0.png"), "--target", "texts", "--top", "8"]) == 0
    found = capsys.readouterr().out
    assert found.splitlines()[0].endswith("text") and f"{QUERY}  (" in found


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["search", "{root}/nowhere", "a dog"], 1, "holds no index"),
        (["search", "{index}", "  "], 1, "query is empty"),
        (["search", "{index}", "a dog", "--top", "0"], 2, "at least 1"),
        (["search", "{index}", "a dog", "--rerank", "-1"], 1, "rerank=-1"),
        (["search", "{index}", "a dog", "--json", "{index}"], 1, "is a folder"),
        (["search", "{index}", "{root}/vicha/config.json"], 1, "config.json"),
        (["index", "{root}/vicha", "{root}/vicha", "--output", "{root}/none"], 1, "holds no image"),
        (["index", "{root}/nowhere", "{root}/vicha", "--output", "{root}/none"], 1, "nowhere"),
        (["index", "{root}/images", "{root}/nowhere", "--output", "{root}/none"], 1, "nowhere"),
    ],
)
def test_mistakes_are_one_line(root, index_folder, capsys, arguments, status, message):
    words = [word.format(root=root, index=index_folder) for word in arguments]
    try:
        found = main(words)
    except SystemExit as stop:
        found = stop.code
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert found == status and message in error and error.startswith("vicha-hf ")
