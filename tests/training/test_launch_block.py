"""Facts and warnings of a run before its first step."""

import pytest
from tiny_model_folder import write_gallery

from vicha_hf.data.annotations import read_image_text_records
from vicha_hf.data.corpus_summary import CorpusSummary, summarize_corpus
from vicha_hf.data.tokenizer_building import build_tokenizer
from vicha_hf.evaluation.beside_chance import chance_of, changing, describe_figures
from vicha_hf.training.arguments import TrainingArguments
from vicha_hf.training.launch_block import LaunchBlock


def block(**changes):
    arguments = {name: changes.pop(name) for name in ("warmup_steps", "max_steps", "num_epochs") if name in changes}
    facts = {"num_samples": 640, "samples_per_step": 32, "num_processes": 1, "total_steps": 100, "steps_per_epoch": 20}
    return LaunchBlock(
        **facts | changes, arguments=TrainingArguments(output_dir="out", **{"warmup_steps": 10} | arguments)
    )


def test_what_is_right_gives_no_warning():
    assert block(device="cuda", num_local_processes=4, num_cores=2).warnings() == []
    assert block(queue_size=256, queue_start=50).warnings() == []
    text = "\n".join(block(queue_size=256, queue_start=50, max_steps=100).lines())
    for fact in ("640 an epoch", "100 (5.0 epochs of 20 steps; max_steps decides)", "counts from step 50", "10 steps"):
        assert fact in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"warmup_steps": 100}, "the warm-up takes 100 steps, and the run has 100"),
        ({"queue_size": 64, "queue_start": 100}, "queue_warmup_batches"),
        ({"queue_size": 641}, "queue of 641"),
        ({"num_local_processes": 4, "num_cores": 2}, "4 processes train on the CPU and share 2 of its cores"),
        (
            {"steps_per_epoch": 9},
            "few for this recipe: an epoch has 9 steps, and the run 11.1 epochs. Lower per_device_batch_size",
        ),
        ({"steps_per_epoch": 1}, "an epoch has 1 step, and the run 100.0 epochs. Lower per_device_batch_size"),
        (
            {"total_steps": 20 * 201},
            "few for this recipe: an epoch has 20 steps, and the run 201.0 epochs. Lower num_epochs",
        ),
        ({"corpus": CorpusSummary(10, 10, 0, 10, 100, 0, 51)}, "vicha-hf tokenizer"),
        ({"corpus": CorpusSummary(10, 10, 0, 10, 100, 0, 0), "reads_concepts": True}, "and no record has any"),
    ],
)
def test_what_cannot_be_right_is_told(changes, message):
    (warning,) = block(**changes).warnings()
    assert message in warning


def test_the_texts_of_a_corpus_are_counted(tmp_path):
    records = read_image_text_records(write_gallery(tmp_path))
    texts = [caption for record in records for caption in record.captions]
    whole = build_tokenizer(texts)
    summary = summarize_corpus(records, whole, max_text_length=100)
    assert (summary.num_records, summary.num_texts) == (len(records), len(texts))
    assert summary.num_with_concepts == sum(bool(record.concepts) for record in records)
    assert (summary.num_cut_words, summary.num_split_words) == (0, 0)
    cut = summarize_corpus(records, whole, max_text_length=3)
    assert cut.num_words - cut.num_cut_words == len(texts)
    foreign = build_tokenizer(["zz"], vocab_size=110)
    assert summarize_corpus(records, foreign, max_text_length=100).splits_most_words


def test_figures_stand_beside_chance_and_constants_are_no_charts():
    metrics = {"r1_i2t": 12.0, "chance_r1_i2t": 0.5, "r_mean": 34.2, "num_images": 7, "vqa_rules": 2021}
    metrics["rerank_similarity_weight"] = 0.5
    assert describe_figures(metrics, "r_mean") == "r_mean 34.2, r1_i2t 12.0 (chance 0.5)"
    chances = {f"chance_r{k}_{way}": k * size for k in (1, 5, 10) for way, size in (("i2t", 1.5), ("t2i", 0.5))}
    assert chance_of(chances, "r_mean_t2i") == pytest.approx(16 / 6) and chance_of({}, "r_mean") is None
    assert describe_figures({"r_mean": 34.2} | chances, "r_mean") == "r_mean 34.2 (chance 5.3)"
    assert changing(metrics) == {"r1_i2t": 12.0, "r_mean": 34.2}
