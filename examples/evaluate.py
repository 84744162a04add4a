"""Evaluate a model on any of the five tasks, on one process or several, with metrics and predictions as JSON.

Copy one of these (the demo corpus, after the fine-tuning scripts):

    accelerate launch --quiet --config_file examples/accelerate_configs/cpu.yaml examples/evaluate.py --task retrieval \
        --model outputs/demo/model --data outputs/demo_corpus/test.json --output_dir outputs/evaluation/retrieval
    accelerate launch --quiet --config_file examples/accelerate_configs/cpu.yaml examples/evaluate.py --task vqa \
        --model outputs/vqa/best_model --data outputs/demo_corpus/vqa_test.json --output_dir outputs/evaluation/vqa

and the same with `--task entailment`, `reasoning` or `grounding`. The folder's configuration says which family the model
is of. `--text_only_model` puts the figures of a model that was fine-tuned without images beside the others;
`--help` lists the rest. `vicha-hf evaluate MODEL DATA` takes the same options. Several processes share the samples, and no sample counts twice.
"""

import sys
from collections.abc import Sequence

from vicha_hf.evaluation.commands import run_evaluation
from vicha_hf.evaluation.task_result import TaskResult
from vicha_hf.mistakes import run_script


def main(argv: Sequence[str] | None = None) -> TaskResult:
    return run_evaluation(argv)


if __name__ == "__main__":
    sys.exit(run_script(main))
