import pytest
import torch
from tiny_tokenizer import build_tiny_tokenizer
from transformers import BertConfig, BertForMaskedLM, ViTConfig, ViTModel

from vicha_hf import ViChaForPreTraining
from vicha_hf.arguments import parse_arguments
from vicha_hf.text_tokenizers import load_tokenizer
from vicha_hf.training.own_tokenizer import load_or_make_tokenizer
from vicha_hf.training.pretraining import (
    DataArguments,
    ModelArguments,
    PretrainingArguments,
    build_pretraining_model,
    build_processor,
)


SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
OBJECTIVES = {
    "projection_dim": 16,
    "hierarchical_itc_levels": 2,
    "mim_decoder_hidden_size": 32,
    "mim_decoder_heads": 2,
    "queue_size": 8,
}


@pytest.fixture
def tokenizer(tmp_path):
    tokenizer = build_tiny_tokenizer(tmp_path)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    return tokenizer


def from_scratch(**text_config):
    return ModelArguments(
        config=OBJECTIVES,
        vision_config={**SIZES, "num_hidden_layers": 3, "image_size": 32},
        text_config={**SIZES, "num_hidden_layers": 4, "fusion_layer": 2, **text_config},
    )


def test_a_new_model_takes_its_vocabulary_from_the_tokenizer(tokenizer):
    model = build_pretraining_model(from_scratch(), tokenizer)
    text = model.config.text_config
    assert text.vocab_size == len(tokenizer)
    ids = (text.pad_token_id, text.cls_token_id, text.sep_token_id, text.mask_token_id)
    assert ids == (0, 2, 3, 4)
    assert model.training_state is not None


def test_a_vocabulary_may_be_larger_but_not_smaller(tokenizer):
    model = build_pretraining_model(from_scratch(vocab_size=128), tokenizer)
    assert model.config.text_config.vocab_size == 128
    with pytest.raises(ValueError, match=r"text_config.vocab_size=10 .*this one has"):
        build_pretraining_model(from_scratch(vocab_size=10), tokenizer)


def test_the_processor_has_the_models_image_size(tokenizer):
    model = build_pretraining_model(from_scratch(), tokenizer)
    processor = build_processor(model, tokenizer, DataArguments(train="a.json", max_text_length=9))
    assert processor.image_processor.size == {"height": 32, "width": 32}
    assert (processor.max_text_length, processor.max_concept_length) == (9, 55)


def test_separate_encoders_and_the_texts_tokenizer(tokenizer, tmp_path):
    vit = ViTModel(ViTConfig(**SIZES, num_hidden_layers=3, image_size=32, patch_size=16), add_pooling_layer=False)
    vit.save_pretrained(tmp_path / "vit")
    bert = BertForMaskedLM(
        BertConfig(**SIZES, num_hidden_layers=4, vocab_size=len(tokenizer), pad_token_id=0, max_position_embeddings=64)
    )
    bert.save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    arguments, _ = parse_arguments(
        PretrainingArguments,
        [
            "--output_dir=out",
            "--data.train=a.json",
            f"--model.vision={tmp_path / 'vit'}",
            f"--model.text={tmp_path / 'bert'}",
            "--model.vision_config.image_size=48",
            f"--model.config={OBJECTIVES}",
        ],
    )
    model = build_pretraining_model(arguments.model, load_tokenizer(arguments.tokenizer_source, "data.tokenizer"))
    assert model.config.vision_config.image_size == 48
    assert (model.config.text_config.cls_token_id, model.config.text_config.mask_token_id) == (2, 4)
    assert torch.equal(
        model.vicha.text_model.embeddings.word_embeddings.weight, bert.bert.embeddings.word_embeddings.weight
    )
    assert torch.equal(
        model.training_state.teacher["vicha"].text_model.embeddings.word_embeddings.weight,
        bert.bert.embeddings.word_embeddings.weight,
    )


def test_fields_override_those_of_a_pretrained_folder(tokenizer, tmp_path):
    first = build_pretraining_model(from_scratch(), tokenizer)
    first.save_pretrained(tmp_path / "model")
    again = build_pretraining_model(
        ModelArguments(from_pretrained=str(tmp_path / "model"), config={"queue_size": 4, "distillation_alpha": 0.0}),
        tokenizer,
    )
    assert isinstance(again, ViChaForPreTraining)
    assert (again.config.queue_size, again.config.distillation_alpha) == (4, 0.0)
    assert again.training_state.queue.size == 4
    online = dict(first.named_parameters())
    assert all(torch.equal(value, online[name]) for name, value in again.named_parameters() if name in online)


def test_pretraining_continues_at_another_image_size(tokenizer, tmp_path):
    first = build_pretraining_model(from_scratch(), tokenizer)
    first.save_pretrained(tmp_path / "model")
    arguments = ModelArguments(from_pretrained=str(tmp_path / "model"), image_size=48)
    again = build_pretraining_model(arguments, tokenizer)
    assert again.config.vision_config.image_size == 48
    teacher = again.training_state.teacher["vicha"].vision_model.embeddings.position_embeddings
    assert teacher.shape == again.vicha.vision_model.embeddings.position_embeddings.shape
    with pytest.raises(ValueError, match=r"model\.image_size"):
        ModelArguments(from_pretrained="folder", vision_config={"image_size": 48})
    with pytest.raises(ValueError, match=r"model\.vision_config\.image_size"):
        ModelArguments(image_size=48)


def test_more_tokens_than_positions_are_refused_at_the_start(tokenizer):
    model = build_pretraining_model(from_scratch(), tokenizer)
    positions = model.config.text_config.max_position_embeddings
    with pytest.raises(ValueError, match=rf"max_text_length={positions + 1} .*has {positions} text positions"):
        build_processor(model, tokenizer, DataArguments(train="a.json", max_text_length=positions + 1))


def test_weights_that_are_none_are_named(tokenizer, tmp_path):
    build_pretraining_model(from_scratch(), tokenizer).save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    for content in (b"", whole[:-100], b"<html></html>", b"version https://git-lfs.github.com/spec/v1\n"):
        weights.write_bytes(content)
        with pytest.raises(ValueError, match=r"model\.safetensors is"):
            build_pretraining_model(ModelArguments(from_pretrained=str(tmp_path)), tokenizer)


def test_a_tokenizer_without_mask_is_an_error(tokenizer, tmp_path):
    tokenizer.mask_token = None
    tokenizer.save_pretrained(tmp_path / "maskless")
    arguments = PretrainingArguments(
        output_dir="out",
        model=from_scratch(),
        data=DataArguments(train="a.json", tokenizer=str(tmp_path / "maskless")),
    )
    with pytest.raises(ValueError, match=r"data.tokenizer=.*no mask_token"):
        load_tokenizer(arguments.tokenizer_source, "data.tokenizer")


def test_a_tokenizer_that_is_not_there_names_the_option_that_gave_it(tmp_path):
    data = DataArguments(train="a.json")
    for folder, fault in ((tmp_path / "none", "is no folder here"), (tmp_path, "holds no tokenizer")):
        arguments = PretrainingArguments(output_dir="out", model=ModelArguments(text=str(folder)), data=data)
        with pytest.raises(ValueError, match=rf"^model\.text=.*{fault}"):
            load_or_make_tokenizer(arguments.tokenizer_source, data.train, arguments.tokenizer_option)


def test_the_hub_is_asked_once_for_parts_that_are_nowhere(tokenizer, monkeypatch):
    asked = []

    def unreachable(self, model, timeout):
        asked.append(model)
        raise ConnectionError("no connection")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    for loader in ("AutoTokenizer", "AutoConfig", "AutoModel"):
        monkeypatch.setattr(f"transformers.{loader}.from_pretrained", lambda *_, **__: pytest.fail("asked again"))
    with pytest.raises(ValueError, match=r"data\.tokenizer='nobody/words' is no folder here, .* id\. no connection$"):
        load_tokenizer("nobody/words", "data.tokenizer")
    with pytest.raises(OSError, match="nobody/vit is no folder here, and cannot be had from the Hub: no connection"):
        build_pretraining_model(ModelArguments(vision="nobody/vit", text_config=SIZES), tokenizer)
    assert asked == ["nobody/words", "nobody/vit"]


def weights_of(model):
    return {name: value for name, value in model.named_parameters() if not name.startswith("training_state")}


def test_a_new_model_takes_the_weights_that_another_has(tokenizer, tmp_path):
    """From an ALBEF, which has no concepts and no reconstruction, to a ViCHA."""
    albef = from_scratch()
    albef.config = OBJECTIVES | {"use_concepts": False, "hierarchical_itc_weight": 0, "mim_weight": 0}
    first = build_pretraining_model(albef, tokenizer)
    first.save_pretrained(tmp_path / "albef")
    arguments = from_scratch()
    arguments.weights_from = str(tmp_path / "albef")
    torch.manual_seed(1)
    second = build_pretraining_model(arguments, tokenizer)
    assert second.config.use_concepts and second.mim is not None
    given, taken = weights_of(first), weights_of(second)
    assert given.keys() < taken.keys()
    assert all(torch.equal(taken[name], value) for name, value in given.items())
    text = dict(first.vicha.text_model.named_parameters())
    concepts = dict(second.vicha.concept_model.named_parameters())
    assert concepts and all(torch.equal(value, text[name]) for name, value in concepts.items())
    teacher = second.training_state.teacher["vicha"]
    assert torch.equal(teacher.text_projection.weight, first.vicha.text_projection.weight)


def test_weights_of_other_sizes_or_families_are_refused(tokenizer, tmp_path):
    first = from_scratch()
    first.vision_config = {**SIZES, "num_hidden_layers": 2, "image_size": 32}
    first.config = OBJECTIVES | {"hierarchical_itc_levels": 1}
    build_pretraining_model(first, tokenizer).save_pretrained(tmp_path / "shallow")
    arguments = from_scratch()
    arguments.weights_from = str(tmp_path / "shallow")
    with pytest.raises(ValueError, match=r"model.weights_from=.*shallow.*vision_model.layers.2"):
        build_pretraining_model(arguments, tokenizer)
    with pytest.raises(ValueError, match=r"model.weights_from='a' .*from_pretrained"):
        ModelArguments(from_pretrained="b", weights_from="a")
    with pytest.raises(ValueError, match=r"model.text='b' .*weights_from='a' has both encoders"):
        ModelArguments(weights_from="a", text="b")
