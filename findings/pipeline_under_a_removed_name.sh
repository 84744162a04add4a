#!/usr/bin/env bash
# transformers 5.24.0, torch 2.13.0 (seen 2026-11-28, Python 3.11, Linux, CPU): PIPELINE_REGISTRY.register_pipeline takes a
# task named "visual-question-answering", lists it among the supported tasks, and gives no warning. pipeline() with that
# task then raises KeyError ("has been removed from transformers"), with pipeline_class= too: the table of removed tasks is
# asked before the registry. The same registration under a name that transformers never had works. A folder's own
# `custom_pipelines` may use the removed name, for they are looked at first.
# Output seen:
#   listed: True
#   registered: KeyError
#   given by pipeline_class: KeyError
#   under another name: made
#   in a folder's custom_pipelines: made
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0
cd "$folder"

cat > own_pipeline.py <<'PYTHON'
from transformers import Pipeline


class OwnPipeline(Pipeline):
    def _sanitize_parameters(self, **options):
        return {}, {}, {}

    def preprocess(self, inputs):
        return inputs

    def _forward(self, inputs):
        return inputs

    def postprocess(self, outputs):
        return outputs
PYTHON

cat > show.py <<'PYTHON'
import json
import shutil
from pathlib import Path

from own_pipeline import OwnPipeline
from transformers import AutoModel, BertConfig, BertModel, pipeline
from transformers.pipelines import PIPELINE_REGISTRY

TASK = "visual-question-answering"
sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "vocab_size": 10}
BertModel(BertConfig(**sizes)).save_pretrained("model")


def tried(*arguments, **options):
    try:
        return "made" if type(pipeline(*arguments, **options)).__name__ == "OwnPipeline" else "another pipeline"
    except KeyError as error:
        assert "has been removed from transformers" in str(error)
        return "KeyError"


for task in (TASK, "visual-question-answering-of-ours"):
    PIPELINE_REGISTRY.register_pipeline(task, OwnPipeline, pt_model=AutoModel)
print("listed:", TASK in PIPELINE_REGISTRY.get_supported_tasks())
print("registered:", tried(TASK, model="model"))
print("given by pipeline_class:", tried(TASK, model="model", pipeline_class=OwnPipeline))
print("under another name:", tried("visual-question-answering-of-ours", model="model"))
shutil.copy("own_pipeline.py", "model")
config = json.loads(Path("model/config.json").read_text())
config["custom_pipelines"] = {TASK: {"impl": "own_pipeline.OwnPipeline", "pt": ["AutoModel"]}}
Path("model/config.json").write_text(json.dumps(config))
print("in a folder's custom_pipelines:", tried(TASK, model="model", trust_remote_code=True))
PYTHON

"$folder/venv/bin/python" show.py 2> errors.txt > seen.txt || { cat errors.txt >&2; exit 1; }
diff - seen.txt <<'EXPECTED'
listed: True
registered: KeyError
given by pipeline_class: KeyError
under another name: made
in a folder's custom_pipelines: made
EXPECTED
echo "as described"
