"""Embeddings as transformers gives them, resumed, shared among processes, and refused where they do not belong."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_dual_encoders import TEXT_LENGTH, write_tiny_clip, write_tiny_encoder, write_tiny_siglip
from tiny_model_folder import write_model_folder
from tqdm.auto import tqdm

from vicha_hf.concepts import ConceptCorpus, DualEncoder, EmbeddingStore, embed_captions, embed_concepts, embed_images
from vicha_hf.data.image_files import ImageReadError, open_image
from vicha_hf.models.concept_selector import ConceptIndex


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def unit(features):
    return torch.nn.functional.normalize(features.pooler_output.float(), dim=-1)


def test_clip_gives_what_transformers_gives(clip, corpus, tmp_path):
    store = embed_images(corpus, clip, tmp_path / "images", batch_size=4)
    images = [open_image(*corpus.image(number)) for number in range(corpus.num_images)]
    with torch.no_grad():
        inputs = clip.processor.image_processor(images=images, return_tensors="pt")
        expected = unit(clip.model.get_image_features(**inputs))
    assert np.allclose(store.read_all(), expected, atol=1e-3)
    assert len(store) == corpus.num_images == 23 and store.width == 24
    assert store.manifest["encoder"]["digest"] == clip.digest()


def test_prompts_are_averaged(clip, tmp_path):
    prompts = ("a photo of a {}", "two {} and a tree")
    store = embed_concepts({"dog": 3, "cat": 1}, clip, tmp_path / "concepts", prompts=prompts)
    texts = [prompt.format(word) for word in ("dog", "cat") for prompt in prompts]
    with torch.no_grad():
        embeds = unit(clip.model.get_text_features(**clip.processor(text=texts, padding=True, return_tensors="pt")))
    expected = torch.nn.functional.normalize(embeds.view(2, 2, -1).mean(dim=1), dim=-1)
    assert np.allclose(store.read_all(), expected, atol=1e-3)
    assert store.vocabulary() == {"dog": 3, "cat": 1}


def test_siglip_reads_texts_padded_as_in_its_training(tmp_path):
    model = write_tiny_siglip(tmp_path / "siglip")
    encoder = DualEncoder.from_pretrained(str(tmp_path / "siglip"), device="cpu")
    inputs = encoder.processor(text=["dog", "cat"], padding="max_length", return_tensors="pt")
    assert inputs["input_ids"].shape[1] == TEXT_LENGTH
    with torch.no_grad():
        expected = unit(model.get_text_features(**inputs))
    assert torch.allclose(encoder.encode_texts(["dog", "cat"]), expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["altclip", "chinese_clip", "metaclip_2", "siglip2", "siglip2 of one size"])
def test_other_dual_encoders(kind, corpus, tmp_path):
    model = write_tiny_encoder(tmp_path / "encoder", kind)
    encoder = DualEncoder.from_pretrained(str(tmp_path / "encoder"), device="cpu")
    store = embed_images(corpus, encoder, tmp_path / "images", batch_size=4)
    images = [open_image(*corpus.image(number)) for number in range(corpus.num_images)]
    length = encoder.model.config.get_text_config().max_position_embeddings - 2 * (kind == "altclip")
    texts = ["dog", "a red car next to a tree", "dog " * 100]
    padded = {"padding": "max_length"} if kind.startswith("siglip") else {"padding": True}
    with torch.no_grad():
        expected = unit(model.get_image_features(**encoder.processor.image_processor(images, return_tensors="pt")))
        inputs = encoder.processor(text=texts, truncation=True, max_length=length, return_tensors="pt", **padded)
        expected_texts = unit(model.get_text_features(**inputs))
    assert inputs["input_ids"].shape[1] == length
    assert np.allclose(store.read_all(), expected, atol=1e-3)
    assert torch.allclose(encoder.encode_texts(texts), expected_texts, atol=1e-6)
    assert torch.allclose(torch.cat([encoder.encode_texts([text]) for text in texts]), expected_texts, atol=1e-6)


def test_a_model_of_this_package_is_an_encoder(tmp_path, corpus):
    write_model_folder(tmp_path / "model")
    encoder = DualEncoder.from_pretrained(str(tmp_path / "model"), device="cpu")
    store = embed_images(corpus, encoder, tmp_path / "images")
    assert len(store) == corpus.num_images
    assert np.allclose(np.linalg.norm(store.read_all().astype(np.float32), axis=1), 1, atol=1e-3)


def test_captions(clip, corpus, tmp_path):
    store = embed_captions(corpus, clip, tmp_path / "captions")
    assert len(store) == 25
    assert np.allclose(store.read_all()[-1], clip.encode_texts(["a small dog"])[0], atol=1e-3)


def test_no_encoder_of_images_and_texts(tmp_path):
    with pytest.raises(ValueError, match="has no get_image_features and no get_text_features"):
        DualEncoder(torch.nn.Linear(2, 2), None, "linear")


def test_a_processor_that_does_not_fit_its_model(clip_folder, corpus, tmp_path):
    folder = shutil.copytree(clip_folder, tmp_path / "clip")
    encoder = DualEncoder.from_pretrained(str(folder), device="cpu")
    encoder.processor.image_processor.size = {"shortest_edge": 224}
    encoder.processor.image_processor.crop_size = {"height": 224, "width": 224}
    with pytest.raises(ValueError, match=r"/clip: what its processor makes of an image does not fit its model \("):
        embed_images(corpus, encoder, tmp_path / "images")


def test_no_progress_means_no_bar_at_all(clip_folder, corpus_file, tmp_path):
    command = ["concepts", "embed", "--encoder", clip_folder, "--corpus", corpus_file, "--output", tmp_path / "images"]
    ran = subprocess.run(
        [sys.executable, "-m", "vicha_hf.cli", *map(str, command), "--no-progress"], capture_output=True, text=True
    )
    assert ran.returncode == 0 and "%|" not in ran.stderr


def test_shards_are_small_and_the_rest_is_done_once(clip, corpus, tmp_path, monkeypatch):
    whole = embed_images(corpus, clip, tmp_path / "whole", batch_size=2)
    assert len(whole.manifest["shards"]) == 12
    folder = tmp_path / "stopped"
    seen = []
    encode = clip.encode_prepared

    def stopping(inputs):
        seen.append(len(inputs["pixel_values"]))
        if len(seen) == 5:
            raise KeyboardInterrupt
        return encode(inputs)

    monkeypatch.setattr(clip, "encode_prepared", stopping)
    with pytest.raises(KeyboardInterrupt):
        embed_images(corpus, clip, folder, batch_size=2)
    with pytest.raises(ValueError, match="unfinished embeddings"):
        EmbeddingStore(folder)
    embed_images(corpus, clip, folder, batch_size=2)
    # Twelve batches, the one that was under way once more.
    assert len(seen) == 13
    assert files_of(folder) == files_of(tmp_path / "whole")
    embed_images(corpus, clip, folder, batch_size=2)
    assert len(seen) == 13


@pytest.mark.parametrize("number", [1000, 20_000])
def test_a_stop_costs_two_percent_of_the_work_at_most(clip, tmp_path, monkeypatch, number):
    words, done, last = [f"word{place}" for place in range(number)], [], number * 7 // 10

    def encode(batch, prompts):
        done.extend(batch)
        # At the worst moment: a shard is nearly made.
        if f"word{last}" in batch and len(done) <= last + 8:
            raise KeyboardInterrupt
        return torch.ones(len(batch), 4)

    monkeypatch.setattr(clip, "encode_concepts", encode)
    last = next(place for place in range(last, number) if place % shard_size(number, 8) >= shard_size(number, 8) - 8)
    with pytest.raises(KeyboardInterrupt):
        embed_concepts(words, clip, tmp_path / "words", batch_size=8)
    embed_concepts(words, clip, tmp_path / "words", batch_size=8)
    assert set(done) == set(words) and 0 < len(done) - number <= 0.02 * number


def shard_size(number: int, batch_size: int) -> int:
    """Of so many items, as the shards of a whole run have it."""
    return max(1, min(-(-number // (128 * batch_size)), 4096 // batch_size)) * batch_size


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are killed after a fork")
def test_killed_ten_times_is_never_stopped(clip, corpus, tmp_path):
    embed_images(corpus, clip, tmp_path / "first", batch_size=2)
    # The first run of a process takes longer than those of its children, which start with everything that it has loaded.
    started = time.perf_counter()
    embed_images(corpus, clip, tmp_path / "whole", batch_size=2)
    seconds = time.perf_counter() - started
    rng, folder, killed_at_work = random.Random(0), tmp_path / "killed", 0
    for _ in range(10):
        child = os.fork()
        if child == 0:
            # Processes share the lock of progress bars: one killed while it holds the lock would stop this one for ever.
            tqdm.set_lock(threading.RLock())
            try:
                embed_images(corpus, clip, folder, batch_size=2)
            finally:
                # Whatever happened: two processes must not go on with the tests.
                os._exit(0)
        time.sleep(rng.random() * seconds / 3)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        killed_at_work += not (folder / "manifest.json").exists()
    assert killed_at_work
    embed_images(corpus, clip, folder, batch_size=2)
    assert files_of(folder) == files_of(tmp_path / "whole")


def test_a_process_killed_at_its_first_file_can_begin_again(clip, corpus, tmp_path):
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed/.job.json.1.unfinished").write_text("{")
    embed_images(corpus, clip, tmp_path / "killed", batch_size=2)
    embed_images(corpus, clip, tmp_path / "whole", batch_size=2)
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds no embeddings"):
        embed_images(corpus, clip, tmp_path / "other", batch_size=2)


def test_two_processes_make_the_files_of_one(corpus_file, clip_folder, tmp_path):
    worker = str(Path(__file__).with_name("embed_worker.py"))
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    for name, prefix in (("one", []), ("two", launcher)):
        (tmp_path / name).mkdir()
        command = [sys.executable, *prefix, worker, str(corpus_file), str(clip_folder), str(tmp_path / name)]
        environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        completed = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
        assert completed.returncode == 0, completed.stderr[-3000:]
    reports = [json.loads((tmp_path / f"two/report_{rank}.json").read_text()) for rank in range(2)]
    assert [report["num_processes"] for report in reports] == [2, 2]
    for kind in ("images", "concepts"):
        assert files_of(tmp_path / "one" / kind) == files_of(tmp_path / "two" / kind)


def test_loader_processes_change_nothing(clip, corpus, tmp_path):
    embed_images(corpus, clip, tmp_path / "none", batch_size=4)
    embed_images(corpus, clip, tmp_path / "two", batch_size=4, num_workers=2)
    assert files_of(tmp_path / "none") == files_of(tmp_path / "two")


def test_others_may_read_the_files(clip, corpus, tmp_path):
    before = os.umask(0o022)
    try:
        embed_images(corpus, clip, tmp_path / "images")
        ConceptIndex.build(["dog"], clip, ["a {}"]).save_pretrained(tmp_path / "concept_index")
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.suffix in (".json", ".safetensors")}
    assert modes == {0o644}


def test_unreadable_images(clip, corpus_file, tmp_path):
    (corpus_file.parent / "3.png").write_bytes(b"<html>")
    (corpus_file.parent / "7.png").write_bytes((corpus_file.parent / "7.png").read_bytes()[:200])
    with pytest.raises(ImageReadError, match="record 3"):
        embed_images(ConceptCorpus(str(corpus_file)), clip, tmp_path / "raised", batch_size=2)
    skipping = ConceptCorpus(str(corpus_file), on_bad_record="skip")
    store = embed_images(skipping, clip, tmp_path / "skipped", batch_size=2)
    assert len(store) == 21
    assert [entry["item"] for entry in store.manifest["unreadable"]] == [3, 7]
    assert "3.png" in store.manifest["unreadable"][0]["problem"]
    items = np.concatenate([items for items, _ in store.shards()])
    assert items.tolist() == [number for number in range(23) if number not in (3, 7)]


def test_a_shard_without_any_readable_image(clip, corpus_file, tmp_path):
    for number in (2, 3):
        (corpus_file.parent / f"{number}.png").write_bytes(b"")
    corpus = ConceptCorpus(str(corpus_file), on_bad_record="skip")
    store = embed_images(corpus, clip, tmp_path / "images", batch_size=2)
    assert len(store) == 21 and store.width == 24 and store.read_all().shape == (21, 24)


class TestRefusals:
    """Nothing is changed in a folder that holds something else."""

    @pytest.fixture
    def folder(self, clip, corpus, tmp_path):
        embed_images(corpus, clip, tmp_path / "images", batch_size=4)
        return tmp_path / "images"

    def refused(self, folder, problem, corpus, encoder, **options):
        before = files_of(folder)
        with pytest.raises((ValueError, FileExistsError), match=problem):
            embed_images(corpus, encoder, folder, **{"batch_size": 4} | options)
        assert files_of(folder) == before

    def test_another_encoder(self, folder, corpus, tmp_path):
        write_tiny_clip(tmp_path / "other", seed=1)
        other = DualEncoder.from_pretrained(str(tmp_path / "other"), device="cpu")
        self.refused(folder, "what differs: the encoder", corpus, other)

    def test_another_batch_size(self, folder, corpus, clip):
        self.refused(folder, "what differs: the batch size", corpus, clip, batch_size=2)

    def test_a_changed_image(self, folder, corpus_file, clip):
        image = corpus_file.parent / "3.png"
        image.write_bytes((corpus_file.parent / "4.png").read_bytes())
        self.refused(
            folder, r"the images of the corpus \(other ones, or changed files\)", ConceptCorpus(str(corpus_file)), clip
        )

    def test_a_folder_of_something_else(self, corpus, clip, tmp_path):
        (tmp_path / "notes").mkdir()
        (tmp_path / "notes" / "mine.txt").write_text("mine")
        self.refused(tmp_path / "notes", "is there and holds no embeddings", corpus, clip)

    def test_a_half_written_shard_is_named_and_made_again(self, folder, corpus, clip):
        whole = files_of(folder)
        shard = sorted(folder.glob("*.safetensors"))[2]
        shard.write_bytes(shard.read_bytes()[:-5])
        with pytest.raises(ValueError, match=f"{shard.name} has .* it was cut or half written"):
            EmbeddingStore(folder)
        embed_images(corpus, clip, folder, batch_size=4)
        assert files_of(folder) == whole

    def test_a_missing_shard_is_named(self, folder):
        shard = sorted(folder.glob("*.safetensors"))[0]
        shard.unlink()
        with pytest.raises(ValueError, match=f"{shard.name} is missing"):
            EmbeddingStore(folder)

    @pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0{}"])
    def test_a_file_that_is_no_shard(self, folder, content):
        shard = sorted(folder.glob("*.safetensors"))[0]
        shard.write_bytes(content)
        with pytest.raises(ValueError, match=f"{shard.name} is no whole shard"):
            EmbeddingStore(folder)

    @pytest.mark.parametrize("another_is_missing", [False, True])
    @pytest.mark.parametrize("damage", ["bytes", "another shard"])
    def test_a_shard_whose_bytes_changed(self, folder, corpus, clip, damage, another_is_missing):
        whole = files_of(folder)
        first, shard, *_ = sorted(folder.glob("*.safetensors"))
        content = bytearray((shard if damage == "bytes" else first).read_bytes())
        content[-100] ^= damage == "bytes"
        shard.write_bytes(content)
        with pytest.raises(ValueError, match=f"{shard.name} has changed since it was written: delete it"):
            EmbeddingStore(folder).read_all()
        if another_is_missing:
            first.unlink()
        # Nothing that is there is taken for good because something else is made anew.
        embed_images(corpus, clip, folder, batch_size=4)
        assert files_of(folder) == whole

    def test_a_number_of_loader_processes_that_cannot_be(self, corpus, clip, tmp_path):
        with pytest.raises(ValueError, match="num_workers=-1 must be at least 0"):
            embed_images(corpus, clip, tmp_path / "new", num_workers=-1)
        assert not (tmp_path / "new").exists()

    @pytest.mark.parametrize("change", [[], {}, {"rows": None}, {"shards": {}}, {"shards": [{"file": "a"}]}])
    def test_a_manifest_changed_by_hand(self, folder, corpus, clip, change):
        whole, path = files_of(folder), folder / "manifest.json"
        path.write_text(json.dumps((json.loads(path.read_text()) | change) if change else change))
        with pytest.raises(
            ValueError, match=r"not readable as JSON|holds no embeddings|manifest\.json was changed by hand"
        ):
            EmbeddingStore(folder)
        path.unlink()
        embed_images(corpus, clip, folder, batch_size=4)
        assert files_of(folder) == whole

    def test_embeddings_of_another_kind(self, folder):
        with pytest.raises(ValueError, match="holds embeddings of images, not of concepts"):
            EmbeddingStore(folder, "concepts")

    def test_weights_that_give_nan(self, corpus, clip_folder, tmp_path):
        broken = DualEncoder.from_pretrained(str(clip_folder), device="cpu")
        with torch.no_grad():
            broken.model.visual_projection.weight[0, 0] = float("nan")
        with pytest.raises(ValueError, match="embeddings that are not finite, for image 0, 1"):
            embed_images(corpus, broken, tmp_path / "new", batch_size=2)


def test_prompts_need_a_place_for_the_word(clip, tmp_path):
    for prompts in ((), ("a photo",), ("{} and {}",)):
        with pytest.raises(ValueError, match="prompt"):
            embed_concepts(["dog"], clip, tmp_path / "concepts", prompts=prompts)
