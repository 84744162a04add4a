import dataclasses

from vicha_hf.training.arguments import TrainingArguments
from vicha_hf.training.finetuning import FinetuningDataArguments, FinetuningModelArguments
from vicha_hf.training.pretraining import DataArguments, ModelArguments
from vicha_hf.training.run_settings import FREE_ARGUMENTS, changed_settings


GROUPS = {
    "": (TrainingArguments,),
    "data.": (DataArguments, FinetuningDataArguments),
    "model.": (ModelArguments, FinetuningModelArguments),
}


def test_only_arguments_that_exist_are_free_to_change():
    names = {
        prefix + field.name
        for prefix, classes in GROUPS.items()
        for kind in classes
        for field in dataclasses.fields(kind)
    }
    assert names >= FREE_ARGUMENTS
    assert {"learning_rate", "data.crop_scale", "model.freeze"} <= names - FREE_ARGUMENTS


def test_differences_are_named_with_both_values():
    before, present = {"a": 1, "b": [1, 2], "gone": True}, {"a": 1, "b": [1, 3], "new": None, "late": "x"}
    assert changed_settings(before, present) == [
        "b was [1, 2] and is [1, 3]",
        "gone was True and is not set",
        "late was not set and is 'x'",
    ]
