"""The code of a folder is that which runs, also beside another folder of the same name."""

import json
import subprocess
import sys
from pathlib import Path

from tiny_models import tiny_model

import vicha_hf
from vicha_hf import ViChaModel


SCRIPT = """
import json, sys
sys.modules["vicha_hf"] = None  # importing it is an error from here on
from transformers import AutoConfig, AutoModel
models = [AutoModel.from_pretrained(folder, trust_remote_code=True) for folder in sys.argv[1:]]
print(json.dumps([getattr(model, "told_apart", None) for model in models]))
"""


def test_two_folders_of_one_name_run_their_own_code(tmp_path):
    first, second = tmp_path / "a" / "model", tmp_path / "b" / "model"
    tiny_model().save_pretrained(first)
    package = tmp_path / "other" / "vicha_hf"
    # The same package with a changed file, as another version of it would be.
    script = f"""
import shutil, sys
shutil.copytree({str(Path(vicha_hf.__file__).parent)!r}, {str(package)!r})
changed = {str(package / "models" / "modeling_vicha.py")!r}
text = open(changed).read().replace("class ViChaModel(", "class ViChaModel(_ToldApart, ", 1)
text = text.replace("class ViChaModel(", "class _ToldApart:\\n    told_apart = True\\n\\n\\nclass ViChaModel(", 1)
open(changed, "w").write(text)
sys.path.insert(0, {str(package.parent)!r})
from vicha_hf import ViChaModel
assert ViChaModel.told_apart
ViChaModel.from_pretrained({str(first)!r}).save_pretrained({str(second)!r})
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)
    configurations = [(folder / "configuration_vicha.py").read_text() for folder in (first, second)]
    assert configurations[0] != configurations[1]
    assert [text.rpartition("\n# All code")[0] for text in configurations] == [
        configurations[0].rpartition("\n# All code")[0]
    ] * 2
    for folders, expected in (((first, second), [None, True]), ((second, first), [True, None])):
        command = [sys.executable, "-c", SCRIPT, *map(str, folders)]
        output = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path).stdout
        assert json.loads(output) == expected


def test_saving_again_marks_the_code_once(tmp_path):
    model = tiny_model()
    for _ in range(2):
        model.save_pretrained(tmp_path)
    once = (tmp_path / "configuration_vicha.py").read_text()
    assert once.count("# All code that was saved with this file: sha256 ") == 1
    ViChaModel.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "configuration_vicha.py").read_text() == once
