"""Every code block of the documents runs as it stands, on stand-ins for the demo's model and data."""

import configparser
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from markdown_blocks import Block, commands, read_blocks
from script_modules import load_script
from test_architecture import LAYERS

from vicha_hf import ViChaForRetrieval
from vicha_hf.cli import build_parser
from vicha_hf.cli import main as vicha_hf_command
from vicha_hf.data.annotations import read_image_text_records
from vicha_hf.data.annotations_entailment import read_entailment_records
from vicha_hf.data.annotations_grounding import read_grounding_records
from vicha_hf.data.annotations_reasoning import read_reasoning_records
from vicha_hf.data.annotations_vqa import read_question_records
from vicha_hf.models.configuration_simla import SIMLA_REFERENCE_QUIRKS
from vicha_hf.models.configuration_vicha import VICHA_REFERENCE_QUIRKS


# By a field that only the task's records have.
READERS = {
    "caption": read_image_text_records,
    "question": read_question_records,
    "images": read_reasoning_records,
    "sentence": read_entailment_records,
    "text": read_grounding_records,
}
ROOT = Path(__file__).parents[2]
# Commands that name one of these need the papers' corpora or a download: their options are parsed.
PUBLISHED_SIZE = {"openai/clip-vit-base-patch16", *(f"{name}.jsonl" for name in ("coco", "sbu", "vg", "refcoco_plus"))}
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [block for document in DOCUMENTS for block in read_blocks(document)]
# What makes the README's pretraining command a matter of seconds; the command itself is run.
SMALL = [
    "--data.tokenizer=tokenizer",
    "--model.vision_config={hidden_size: 32, intermediate_size: 48, num_hidden_layers: 3, num_attention_heads: 4, image_size: 32}",
    "--model.text_config={hidden_size: 32, intermediate_size: 48, num_hidden_layers: 4, num_attention_heads: 4, fusion_layer: 2}",
    *("--model.config.hierarchical_itc_levels=2", "--model.config.mim_decoder_hidden_size=32"),
    *("--model.config.mim_decoder_heads=4", "--model.config.queue_size=8", "--model.config.projection_dim=16"),
    *("--per_device_batch_size=2", "--max_steps=2", "--num_workers=0", "--trackers=[]"),
]


def of_language(*languages: str) -> list:
    return [pytest.param(block, id=block.name) for block in BLOCKS if block.language in languages]


def test_every_block_has_a_language_that_is_checked():
    assert {block.language for block in BLOCKS} <= {"python", "bash", "json", "bibtex"}
    assert len([block for block in BLOCKS if block.file.name == "README.md"]) >= 8


@pytest.mark.parametrize("block", of_language("python"))
def test_python(block: Block, checkout, monkeypatch, metric_cache):
    monkeypatch.chdir(checkout)
    exec(compile(block.code, block.name, "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("block", of_language("json"))
def test_annotations_are_read_as_documented(block: Block, tmp_path):
    content = json.loads(block.code)
    records = content if isinstance(content, list) else [content]
    annotations = tmp_path / "annotations.json"
    annotations.write_text(json.dumps(records))
    field = next(name for name in READERS if name in records[0])
    read = READERS[field](annotations, check_images=False)
    concepts = [json.loads(json.dumps(record.concepts)) for record in read]
    assert concepts == [record.get("concepts", []) for record in records]


@pytest.fixture(scope="module")
def pretrained(checkout):
    """Runs the README's own-data command, shortened, so that the commands after it find its output."""
    block = next(block for block in BLOCKS if block.file.name == "README.md" and "accelerate launch" in block.code)
    (words,) = commands(block)
    words[words.index("--config_file") + 1] = "examples/accelerate_configs/cpu.yaml"
    command = [sys.executable, "-m", "accelerate.commands.launch", *words[2:], *SMALL]
    process = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr[-4000:]
    return checkout / words[words.index("--output_dir") + 1]


def test_pretraining_on_own_images(pretrained):
    assert (pretrained / "model" / "config.json").is_file()
    assert "r1_i2t" in json.loads((pretrained / "metrics.json").read_text())


@pytest.mark.parametrize("block", of_language("bash"))
def test_shell(block: Block, checkout, pretrained, monkeypatch):
    monkeypatch.chdir(checkout)
    # Scripts find their neighbours, as they do when they are run.
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    found = commands(block)
    assert found
    for words in found:
        if words[0] == "make":
            run_make("--dry-run", words[1])
        elif words[:2] == ["accelerate", "launch"]:
            check_launch(words)
        elif words[:2] == ["python", "examples/demo.py"]:
            assert load_script(words[1]).parse_arguments(words[2:]).config.is_file()
        elif words[:2] == ["python", "examples/ablation.py"]:
            assert load_script(words[1]).parse_arguments(words[2:]).recipe.is_file()
        elif words[:2] == ["pip", "install"]:
            assert set(re.fullmatch(r"vicha_hf\[([\w,-]+)\]", words[2])[1].split(",")) <= extras()
        elif words[0] == "vicha-hf" and PUBLISHED_SIZE & set(words):
            build_parser().parse_args(words[1:])
        elif words[0] == "vicha-hf":
            assert vicha_hf_command(words[1:]) == 0
        else:
            # The installation: exactly what the Makefile does.
            recipe = [line.split() for line in run_make("--dry-run", "--always-make", "venv").splitlines()]
            assert words in [[word.strip('"') for word in line] for line in recipe], words


def extras() -> set[str]:
    """Names of the package's extras."""
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    return set(setup["options.extras_require"])


def run_make(*arguments: str) -> str:
    process = subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return process.stdout


def check_launch(words: list[str]) -> None:
    """The files exist and the script's options parse; that the script runs is another test's matter."""
    (position,) = [index for index, word in enumerate(words) if word.startswith("examples/") and word.endswith(".py")]
    assert Path(words[words.index("--config_file") + 1]).is_file()
    with pytest.raises(SystemExit) as stop:
        load_script(words[position]).main([*words[position + 1 :], "--print_config"])
    assert not stop.value.code


def test_the_converted_checkpoint_loads(checkout, monkeypatch):
    monkeypatch.chdir(checkout)
    assert vicha_hf_command(["convert", "checkpoint.pth", "again", "--head", "retrieval"]) == 0
    assert isinstance(ViChaForRetrieval.from_pretrained("again"), ViChaForRetrieval)


def test_links_lead_somewhere():
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)]+)\)", document.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                path, _, heading = target.partition("#")
                linked = document.parent / path if path else document
                assert linked.exists(), f"{document.name}: {target}"
                assert not heading or heading in _anchors(linked), f"{document.name}: {target}"


def test_the_index_leads_to_every_page():
    index = ROOT / "docs/index.md"
    linked = set(re.findall(r"\]\(([\w.]+\.md)\)", index.read_text(encoding="utf-8")))
    assert {page.name for page in index.parent.glob("*.md")} - {index.name} == linked


def _anchors(document):
    """What GitHub calls a document's headings."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_quirks_table_is_complete():
    text = (ROOT / "docs/reference_quirks.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|", text, flags=re.MULTILINE)
    assert sorted(rows) == sorted({*VICHA_REFERENCE_QUIRKS, *SIMLA_REFERENCE_QUIRKS})


def test_the_drawing_of_the_packages_is_true(monkeypatch):
    """It is made by docs/site/draw_packages.py from the layers that the rule of imports has."""
    script = load_script("docs/site/draw_packages.py")
    folders = {path.parent.name for path in (ROOT / "src/vicha_hf").glob("*/__init__.py")}
    assert folders <= {*script.CONTENTS}
    assert script.DRAWING.read_text(encoding="utf-8") == script.draw(list(LAYERS))
