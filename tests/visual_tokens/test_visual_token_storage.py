"""Visual tokens on the fly and stored: the same tokens, of the right images, and errors that name what does not fit."""

import pickle
import shutil

import numpy as np
import pytest
import torch
from datasets import Dataset as HubDataset
from datasets import Image as ImageFeature
from PIL import Image
from safetensors import safe_open
from torch.utils.data import DataLoader

from vicha_hf.cli import main
from vicha_hf.data.annotations import read_image_text_records
from vicha_hf.data.collators import PretrainingCollator
from vicha_hf.data.datasets_pretraining import PretrainingDataset
from vicha_hf.data.image_files import ImageReadError
from vicha_hf.data.transforms import EvaluationTransform, PretrainingTransform
from vicha_hf.models.objective_image_token_reconstruction import require_fitting_tokenizer
from vicha_hf.training.pretraining import DataArguments
from vicha_hf.visual_tokens.code_usage import CodeUsage
from vicha_hf.visual_tokens.configuration import PatchVisualTokenizerConfig
from vicha_hf.visual_tokens.distinct_images import DistinctImages
from vicha_hf.visual_tokens.fitting import fit_patch_tokenizer
from vicha_hf.visual_tokens.loading import load_visual_tokenizer
from vicha_hf.visual_tokens.patches import PatchVisualTokenizer
from vicha_hf.visual_tokens.storage import VisualTokenStore, write_visual_tokens


@pytest.fixture
def tokenizer():
    return PatchVisualTokenizer(PatchVisualTokenizerConfig(patch_size=8, vocab_size=64))


@pytest.fixture
def annotations_file(write_json, image_records):
    # The first image has a second record.
    return write_json([*image_records, {"image": "images/0.png", "caption": "again"}])


@pytest.fixture
def annotations(annotations_file):
    return read_image_text_records(annotations_file)


@pytest.fixture
def store_path(image_folder, tokenizer, annotations, tiny_processor):
    path = image_folder / "train.visual_tokens.safetensors"
    write_visual_tokens(path, tokenizer, annotations, tiny_processor.image_processor, batch_size=4, progress=False)
    return path


def still_transform(tiny_processor):
    return EvaluationTransform.from_image_processor(tiny_processor.image_processor)


def test_stored_tokens_are_those_of_each_records_own_image(store_path, tokenizer, annotations, tiny_processor):
    store, transform = VisualTokenStore(store_path), still_transform(tiny_processor)
    assert len(store) == 6 and len(annotations) == 7
    assert (store.image_size, store.patch_size, store.vocab_size) == ((32, 32), 8, 64)
    for record in annotations:
        expected = tokenizer(transform(record.load_image())[None])[0]
        stored = store.tokens_of(record)
        assert stored.dtype == torch.int64
        assert torch.equal(stored, expected)
    assert not torch.equal(store.tokens_of(annotations[0]), store.tokens_of(annotations[1]))


def test_the_file_is_two_bytes_per_token(store_path):
    with safe_open(store_path, framework="numpy") as file:
        assert file.get_tensor("tokens").dtype == np.uint16
        assert file.get_tensor("tokens").shape == (6, 16)
        assert (np.diff(file.get_tensor("keys").astype(object)) > 0).all()
    assert sorted(path.name for path in store_path.parent.iterdir()) == ["images", "train.json", store_path.name]


def test_usage_counts_every_token(image_folder, tokenizer, annotations, tiny_processor):
    usage = write_visual_tokens(
        image_folder / "t.safetensors", tokenizer, annotations, tiny_processor.image_processor, progress=False
    )
    assert usage.counts.sum() == 6 * 16
    assert 1 <= usage.perplexity <= usage.num_used <= 64
    assert "96 tokens" in usage.summary()


class TestDataset:
    def test_items_and_batches_hold_the_stored_tokens(self, store_path, annotations, tiny_processor, tokenizer):
        dataset = PretrainingDataset(
            annotations,
            PretrainingTransform(32, scale=None, hflip=False, randaugment=False),
            stored_visual_tokens=VisualTokenStore(store_path),
        )
        batch = PretrainingCollator(tiny_processor)([dataset[index] for index in range(7)])
        assert batch["visual_token_ids"].dtype == torch.int64
        assert torch.equal(batch["visual_token_ids"], tokenizer(batch["pixel_values"]))

    def test_worker_processes(self, store_path, annotations, tiny_processor):
        dataset = PretrainingDataset(
            annotations, still_transform(tiny_processor), stored_visual_tokens=VisualTokenStore(store_path)
        )
        collator = PretrainingCollator(tiny_processor)
        loader = DataLoader(dataset, batch_size=7, num_workers=1, collate_fn=collator)
        batch = next(iter(loader))
        assert torch.equal(batch["visual_token_ids"], collator(list(dataset))["visual_token_ids"])

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"hflip": False, "randaugment": False}, r"changed at random \(scale=\(0.2, 1.0\)\)"),
            ({"scale": None, "randaugment": False}, r"changed at random \(hflip\)"),
            ({"scale": None, "hflip": False}, r"changed at random \(randaugment\)"),
            ({}, "hflip, randaugment"),
        ],
    )
    def test_a_random_transform_is_an_error(self, options, words, store_path, annotations):
        with pytest.raises(ValueError, match=words):
            PretrainingDataset(
                annotations, PretrainingTransform(32, **options), stored_visual_tokens=VisualTokenStore(store_path)
            )

    def test_a_transform_that_does_not_say(self, store_path, annotations):
        with pytest.raises(ValueError, match="function does not say whether it draws"):
            PretrainingDataset(
                annotations,
                lambda image, rng: torch.zeros(3, 32, 32),
                stored_visual_tokens=VisualTokenStore(store_path),
            )

    def test_another_image_size(self, store_path, annotations):
        with pytest.raises(ValueError, match="made from images of 32 x 32 pixels, but the dataset gives 64 x 64"):
            PretrainingDataset(annotations, EvaluationTransform(64), stored_visual_tokens=VisualTokenStore(store_path))

    def test_an_image_without_tokens_is_named(self, image_folder, store_path, write_json, tiny_processor):
        Image.new("RGB", (9, 9)).save(image_folder / "images" / "new.png")
        more = write_json([{"image": "images/new.png", "caption": "new"}], name="more.json")
        with pytest.raises(ValueError, match=r"more.json.*holds no visual tokens of the image .*new.png; run"):
            PretrainingDataset(
                read_image_text_records(more),
                still_transform(tiny_processor),
                stored_visual_tokens=VisualTokenStore(store_path),
            )


class TestWithoutTokens:
    def test_without_tokenizer_and_store_there_are_none(self, annotations, tiny_processor):
        dataset = PretrainingDataset(annotations, PretrainingTransform(32))
        assert "visual_token_ids" not in dataset[0]
        assert "visual_token_ids" not in PretrainingCollator(tiny_processor)([dataset[0]])


class TestStore:
    def test_a_corpus_moves_with_its_store(self, image_folder, store_path, tmp_path_factory, annotations):
        elsewhere = tmp_path_factory.mktemp("elsewhere") / "corpus"
        expected = [VisualTokenStore(store_path).tokens_of(record) for record in annotations]
        shutil.move(image_folder, elsewhere)
        store = VisualTokenStore(elsewhere / store_path.name)
        moved = read_image_text_records(elsewhere / "train.json")
        assert all(
            torch.equal(store.tokens_of(record), tokens) for record, tokens in zip(moved, expected, strict=True)
        )

    def test_images_inside_a_dataset(self, image_folder, tmp_path, tokenizer, tiny_processor):
        def embedded(contents):
            table = {
                "image": [{"bytes": content, "path": None} for content in contents],
                "caption": ["x"] * len(contents),
            }
            return read_image_text_records(HubDataset.from_dict(table).cast_column("image", ImageFeature()))

        contents = [path.read_bytes() for path in sorted((image_folder / "images").iterdir())]
        annotations = embedded([*contents, contents[0]])
        path = tmp_path / "other" / "tokens.safetensors"
        write_visual_tokens(path, tokenizer, annotations, tiny_processor.image_processor, progress=False)
        store, transform = VisualTokenStore(path), still_transform(tiny_processor)
        assert len(store) == 6
        dataset = PretrainingDataset(annotations, transform, stored_visual_tokens=store)
        for index, record in enumerate(annotations):
            expected = tokenizer(transform(record.load_image())[None])[0]
            assert torch.equal(dataset[index]["visual_token_ids"], expected)
        unknown = embedded([contents[0] + b" "])
        with pytest.raises(KeyError, match="holds no visual tokens of the image in column 'image', row 0"):
            store.tokens_of(unknown[0])

    def test_pickled(self, store_path, annotations):
        store = VisualTokenStore(store_path)
        again = pickle.loads(pickle.dumps(store))
        assert torch.equal(again.tokens_of(annotations[2]), store.tokens_of(annotations[2]))

    def test_fits_the_model_or_says_why_not(self, store_path, tiny_processor):
        store = VisualTokenStore(store_path)
        image_processor = tiny_processor.image_processor
        require_fitting_tokenizer(store, image_size=32, patch_size=8, vocab_size=64, image_processor=image_processor)
        with pytest.raises(ValueError, match=r"4 x 4 tokens.*2 x 2 patches"):
            require_fitting_tokenizer(store, image_size=32, patch_size=16)

    def test_no_file(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="make them with `vicha-hf visual-tokens`"):
            VisualTokenStore(tmp_path / "none.safetensors")

    @pytest.mark.parametrize("content", [b"", b"no tokens at all, but long enough to be read"])
    def test_a_broken_file(self, tmp_path, content):
        path = tmp_path / "broken.safetensors"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"broken.safetensors holds no visual tokens"):
            VisualTokenStore(path)

    def test_weights_are_no_tokens(self, tmp_path, tokenizer):
        tokenizer.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=r"model.safetensors holds no visual tokens"):
            VisualTokenStore(tmp_path / "model.safetensors")

    def test_too_many_codes(self, tmp_path, annotations, tiny_processor):
        large = PatchVisualTokenizer(PatchVisualTokenizerConfig(patch_size=8, code_size=1, vocab_size=65537))
        with pytest.raises(ValueError, match="room for 65536 codes; the visual tokenizer has 65537"):
            write_visual_tokens(tmp_path / "t.safetensors", large, annotations, tiny_processor.image_processor)

    def test_another_normalisation(self, tmp_path, annotations, tiny_processor):
        other = PatchVisualTokenizer(PatchVisualTokenizerConfig(image_mean=(0.0, 0.0, 0.0)))
        with pytest.raises(ValueError, match="image_mean"):
            write_visual_tokens(tmp_path / "t.safetensors", other, annotations, tiny_processor.image_processor)

    def test_an_image_that_cannot_be_read_leaves_the_old_file(
        self, image_folder, store_path, annotations, tokenizer, tiny_processor
    ):
        before = store_path.read_bytes()
        (image_folder / "images" / "3.png").write_bytes(b"no image")
        with pytest.raises(ImageReadError, match=r"3\.png"):
            write_visual_tokens(store_path, tokenizer, annotations, tiny_processor.image_processor, progress=False)
        assert store_path.read_bytes() == before


class TestDistinctImages:
    def test_each_image_once(self, annotations, tiny_processor):
        images = DistinctImages(annotations, still_transform(tiny_processor))
        assert [row for row, _ in images] == [0, 1, 2, 3, 4, 5]

    def test_a_sample_is_spread(self, annotations, tiny_processor):
        images = DistinctImages(annotations, still_transform(tiny_processor), max_images=3)
        assert [row for row, _ in images] == [0, 2, 4]
        with pytest.raises(ValueError, match="max_images=0"):
            DistinctImages(annotations, still_transform(tiny_processor), max_images=0)


def test_a_fitted_tokenizer_has_the_image_processors_normalisation(annotations, tiny_processor):
    image_processor = tiny_processor.image_processor
    tokenizer = fit_patch_tokenizer(annotations, image_processor, patch_size=8, vocab_size=16)
    require_fitting_tokenizer(tokenizer, image_size=32, patch_size=8, vocab_size=16, image_processor=image_processor)
    transform = still_transform(tiny_processor)
    ids = tokenizer(torch.stack([transform(record.load_image()) for record in annotations]))
    assert len(ids.unique()) == 16


class TestCodeUsage:
    def test_perplexity(self):
        usage = CodeUsage.empty(8)
        usage.add(torch.tensor([[0, 1], [2, 3]]))
        usage.add(torch.tensor([0, 1, 2, 3]))
        assert usage.num_used == 4
        assert usage.perplexity == pytest.approx(4)
        usage.add(torch.full((1000000,), 5))
        assert usage.perplexity == pytest.approx(1, abs=1e-3)
        assert usage.summary().endswith("the most frequent code 100.0 %")


class TestCommands:
    def test_fit_then_tokenize(self, image_folder, annotations_file, capsys):
        folder, store_path = image_folder / "visual_tokenizer", image_folder / "tokens.safetensors"
        data = ["--data", str(annotations_file), "--image-size", "32"]
        options = ["--patch-size", "8", "--vocab-size", "16", "--output", str(folder)]
        assert main(["visual-tokenizer", *data, *options]) == 0
        assert "16 codes of 8 x 8 pixels" in capsys.readouterr().out
        tokens = ["--tokenizer", str(folder), "--output", str(store_path), "--device", "cpu", "--no-progress"]
        assert main(["visual-tokens", *data, *tokens]) == 0
        output = capsys.readouterr().out
        assert "96 tokens, 16 of 16 codes used" in output
        assert f"4 x 4 tokens per image written to {store_path}" in output
        record = read_image_text_records(annotations_file)[4]
        pixels = EvaluationTransform(32)(record.load_image())[None]
        assert torch.equal(
            VisualTokenStore(store_path).tokens_of(record), load_visual_tokenizer(str(folder))(pixels)[0]
        )

    def test_mistakes_are_one_line(self, image_folder, annotations_file, tokenizer, capsys):
        tokenizer.save_pretrained(image_folder / "tokenizer")
        capsys.readouterr()
        output = ["--output", str(image_folder / "out"), "--image-size", "32"]
        data = ["--data", str(annotations_file)]
        good = ["--tokenizer", str(image_folder / "tokenizer"), "--no-progress"]

        def mistake(command, *arguments):
            assert main([command, *output, *map(str, arguments)]) == 1
            error = capsys.readouterr().err
            # Before it there may be progress bars.
            message = error[error.index(f"vicha-hf {command}: ") :]
            assert message.count("\n") == 1
            return message

        assert "no-such-file.json" in mistake("visual-tokens", *good, "--data", "no-such-file.json")
        assert "patch_size=16" in mistake("visual-tokens", *good, *data, "--patch-size", 16)
        assert "different patches" in mistake("visual-tokenizer", *data, "--patch-size", 32, "--vocab-size", 50)
        (image_folder / "images" / "3.png").write_bytes(b"no image")
        assert "3.png" in mistake("visual-tokens", *good, *data)

    @pytest.mark.parametrize("command", ["visual-tokens", "visual-tokenizer"])
    def test_help(self, command, capsys):
        with pytest.raises(SystemExit) as stopped:
            main([command, "--help"])
        assert stopped.value.code == 0
        assert "--image-size" in capsys.readouterr().out


def test_pretraining_can_do_without_a_crop_as_stored_tokens_need():
    data = DataArguments(train="train.json", crop_scale=None, hflip=False, randaugment=False)
    transform = PretrainingTransform(32, scale=data.crop_scale, hflip=data.hflip, randaugment=data.randaugment)
    assert transform.random_operations == ()
