"""Evaluate a model on any of the five tasks, on one process or several, with metrics and predictions as JSON.

Copy one of these (the demo corpus, after the fine-tuning scripts):

    accelerate launch --config_file examples/accelerate_configs/cpu.yaml examples/evaluate.py --task retrieval \
        --model outputs/demo/model --data outputs/demo_corpus/test.json --output_dir outputs/evaluation/retrieval
    accelerate launch --config_file examples/accelerate_configs/cpu.yaml examples/evaluate.py --task vqa \
        --model outputs/vqa/best_model --data outputs/demo_corpus/vqa_test.json --output_dir outputs/evaluation/vqa

and the same with `--task entailment`, `reasoning` or `grounding`. The folder's configuration says which family the model
is of. `--text_only_model` puts the figures of a model that was fine-tuned without images beside the others;
`--help` lists the rest. Several processes share the samples, and no sample counts twice.
"""

import logging
from collections.abc import Sequence

from accelerate import Accelerator

from vicha_hf.arguments import parse_arguments
from vicha_hf.evaluation.task_evaluation import EvaluationArguments, evaluate_task, format_metrics
from vicha_hf.evaluation.task_result import ResultFiles, TaskResult


def main(argv: Sequence[str] | None = None) -> TaskResult:
    arguments, _ = parse_arguments(EvaluationArguments, argv, description=__doc__.splitlines()[0])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("accelerate").setLevel(logging.WARNING)
    accelerator = Accelerator()
    files = ResultFiles(arguments.output_dir)
    result = evaluate_task(arguments, accelerator=accelerator)
    if accelerator.is_main_process:
        print(format_metrics(arguments.task, result.metrics))
        files.write(result, task=arguments.task, model=arguments.model, num_processes=accelerator.num_processes)
        if arguments.output_dir is not None:
            print(f"Written to {arguments.output_dir}")
    accelerator.end_training()
    return result


if __name__ == "__main__":
    main()
