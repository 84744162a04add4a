"""Exported folders where a model is taken: pipelines, the index and the commands give what torch gives."""

import json
import subprocess
import sys

import pytest
import torch
from head_checks import ANSWERS, inference_inputs, tiny_head
from simla_models import SIMLA_HEADS, simla_model
from tiny_model_folder import tiny_processor, write_gallery, write_model_folder, write_simla_folder
from transformers import pipeline

from vicha_hf.cli import main
from vicha_hf.export.exporting import export_model
from vicha_hf.families import load_finetuned
from vicha_hf.onnx_backend.question_answering import OnnxQuestionAnswering
from vicha_hf.search import ImageIndex, build_index


pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Per family the folder of a model and that of its export; and a gallery."""
    root = tmp_path_factory.mktemp("backend")
    write_model_folder(root / "vicha")
    write_simla_folder(root / "simla")
    for family in ("vicha", "simla"):
        assert main(["export", str(root / family), str(root / f"{family}-onnx")]) == 0
    (root / "gallery").mkdir()
    write_gallery(root / "gallery")
    return root


@torch.no_grad()
@pytest.mark.parametrize("family", ["vicha", "simla"])
def test_features_scores_and_ranking(folders, family):
    torch_model = load_finetuned("retrieval", str(folders / family))
    onnx_model = load_finetuned("retrieval", str(folders / f"{family}-onnx"), backend="onnx")
    inputs = inference_inputs("retrieval", 4, concepts=family == "vicha")
    images = {name: value for name, value in inputs.items() if "concept" in name or name == "pixel_values"}
    texts = {name: inputs[name].clone() for name in ("input_ids", "attention_mask")}
    texts["attention_mask"][3] = 0
    for name, given in (("get_image_features", images), ("get_text_features", texts)):
        found, wanted = (getattr(model, name)(**given) for model in (onnx_model, torch_model.base_model))
        torch.testing.assert_close(found.pooler_output, wanted.pooler_output, atol=1e-4, rtol=0)
        torch.testing.assert_close(found.last_hidden_state, wanted.last_hidden_state, atol=1e-3, rtol=0)
    found, wanted = (
        model.rerank(model.encode_images(**images), model.encode_texts(**texts), k=2)
        for model in (onnx_model, torch_model)
    )
    torch.testing.assert_close(found.scores_i2t, wanted.scores_i2t, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(found.scores_t2i, wanted.scores_t2i, atol=1e-3, rtol=1e-4)
    pairs = [
        model.score_pairs(
            model.encode_images(**images), model.encode_texts(**texts), torch.tensor([3, 0]), torch.tensor([1, 2])
        )
        for model in (onnx_model, torch_model)
    ]
    torch.testing.assert_close(*pairs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("task", ["zero-shot-image-classification", "image-feature-extraction", "feature-extraction"])
def test_the_pipelines_of_transformers(folders, task):
    found, wanted = (
        pipeline(task, model=str(folders / folder), backend=backend, device="cpu")
        for folder, backend in (("vicha-onnx", "onnx"), ("vicha", "torch"))
    )
    image = str(folders / "gallery" / "1.png")
    if task == "zero-shot-image-classification":
        results = [pipe(image, candidate_labels=["a red ball", "a man"]) for pipe in (found, wanted)]
        results = [{entry["label"]: entry["score"] for entry in result} for result in results]
        assert results[0] == pytest.approx(results[1], abs=1e-4)
    else:
        query = image if task.startswith("image") else "a red ball"
        torch.testing.assert_close(*(pipe(query, return_tensors=True) for pipe in (found, wanted)), atol=1e-3, rtol=0)
    with pytest.raises(ValueError, match="backend='onnx' is not what runs"):
        pipeline(task, model=str(folders / "vicha"), backend="onnx", device="cpu")


def test_the_pipeline(folders):
    images = [str(folders / "gallery" / f"{number}.png") for number in range(5)]
    texts = ["a red ball on the grass", "a man riding a horse", "birds"]
    found = pipeline("image-text-retrieval", model=str(folders / "vicha-onnx"), backend="onnx", device="cpu")
    wanted = pipeline("image-text-retrieval", model=str(folders / "vicha"), device="cpu")
    assert found.model.backend == "onnx"
    for query in ((images[1], texts), (images, texts[0])):
        results = [
            [(hit["label"], hit["score"], hit["similarity"]) for hit in pipe(*query)] for pipe in (found, wanted)
        ]
        assert [hit[0] for hit in results[0]] == [hit[0] for hit in results[1]]
        torch.testing.assert_close(
            *(torch.tensor([hit[1:] for hit in hits]) for hits in results), atol=1e-3, rtol=1e-4
        )
    with pytest.raises(ValueError, match=r"backend='onnx' is not what runs .*vicha-hf export MODEL DIR"):
        pipeline("image-text-retrieval", model=str(folders / "vicha"), backend="onnx", device="cpu")


def test_an_index(folders, tmp_path, capsys):
    gallery, exported = str(folders / "gallery" / "annotations.json"), str(folders / "vicha-onnx")
    assert main(["index", gallery, exported, "--output", str(tmp_path / "onnx"), "--backend", "onnx"]) == 0
    build_index(gallery, str(folders / "vicha"), tmp_path / "torch", progress=False)
    for target in ("images", "texts"):
        found, wanted = (
            ImageIndex(tmp_path / name).search("a man on a horse", top=5, target=target) for name in ("onnx", "torch")
        )
        assert [(hit.image, hit.text) for hit in found] == [(hit.image, hit.text) for hit in wanted]
    # One made by torch is searched by the export too, and the other way round.
    assert main(["search", str(tmp_path / "torch"), "dogs", "--model", exported, "--backend", "onnx"]) == 0
    assert main(["search", str(tmp_path / "onnx"), "dogs", "--model", str(folders / "vicha")]) == 0
    capsys.readouterr()
    other = ["index", gallery, str(folders / "vicha"), "--output", str(tmp_path / "other"), "--backend", "onnx"]
    assert main(other) == 1
    assert "holds no export, which backend='onnx' needs: make one with `vicha-hf export" in capsys.readouterr().err
    assert (
        main(["ground", exported, str(folders / "gallery" / "0.png"), "a man", "--output", str(tmp_path / "a.png")])
        == 1
    )
    assert "is an export for retrieval, not for grounding" in capsys.readouterr().err


def test_without_onnxruntime_the_message_names_the_extra(folders, tmp_path):
    script = (
        "import sys; sys.modules['onnxruntime'] = None; from vicha_hf.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = ["index", str(folders / "gallery"), str(folders / "vicha-onnx"), "--output", str(tmp_path / "index")]
    process = subprocess.run([sys.executable, "-c", script, *command], capture_output=True, text=True)
    assert process.returncode == 1 and 'pip install "vicha_hf[onnx]"' in process.stderr.splitlines()[-1]


@torch.no_grad()
@pytest.mark.parametrize(
    "head",
    [
        lambda: tiny_head("vqa"),
        lambda: tiny_head("vqa", use_concepts=False, reference_quirks=["vqa_first_token_twice"]),
        lambda: simla_model(SIMLA_HEADS["vqa"]),
    ],
    ids=["vicha", "albef", "simla"],
)
def test_answers(tmp_path, head):
    torch_model = head()
    export_model(torch_model, tmp_path)
    onnx_model = OnnxQuestionAnswering(tmp_path, torch_model.config)
    inputs = inference_inputs("vqa", 4, concepts=getattr(torch_model.config, "use_concepts", False))
    question, found = torch_model.encode_questions(**inputs), onnx_model.encode_questions(**inputs)
    torch.testing.assert_close(found["question_hidden_states"], question.hidden_states, atol=1e-4, rtol=1e-4)
    for options in ({"top_k": 3}, {"top_k": None}, {"top_k": 2, "exact": True}):
        found, wanted = (
            model.rank_answers(**inputs, answers=ANSWERS, **options) for model in (onnx_model, torch_model)
        )
        assert torch.equal(found.answer_indices, wanted.answer_indices)
        torch.testing.assert_close(found.scores, wanted.scores, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found.probabilities, wanted.probabilities, atol=1e-4, rtol=0)
    assert torch.equal(onnx_model.generate(**inputs), torch_model.generate(**inputs))


def test_the_answering_pipeline_and_command(tmp_path, capsys):
    model = tiny_head("vqa", vision_config={"hidden_size": 32})
    (tmp_path / "model").mkdir()
    tiny_processor(tmp_path / "model").save_pretrained(tmp_path / "model")
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "answer_list.json").write_text(json.dumps(["a dog", "a man", "snow", "red"]))
    write_gallery(tmp_path)
    assert main(["export", str(tmp_path / "model"), str(tmp_path / "onnx")]) == 0
    answers = {}
    for name in ("model", "onnx"):
        for option in ((), ("--generate",)):
            ask = ["ask", str(tmp_path / name), str(tmp_path / "1.png"), "what is it?", "--json", "-", *option]
            capsys.readouterr()
            assert main(ask) == 0
            answers[name, option] = json.loads(capsys.readouterr().out)["answers"]
    for option in ((), ("--generate",)):
        found, wanted = answers["onnx", option], answers["model", option]
        assert [entry["answer"] for entry in found] == [entry["answer"] for entry in wanted]
        assert all(abs(one["score"] - other["score"]) < 1e-4 for one, other in zip(found, wanted, strict=True))
