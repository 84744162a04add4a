"""Files that a command reads stay as they are, and a device that is not there is one clear line."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_model_folder import write_gallery, write_model_folder

from vicha_hf.cli import main
from vicha_hf.concepts import ConceptIndex, DualEncoder
from vicha_hf.concepts.manifests import OutputFile
from vicha_hf.devices import choose_device
from vicha_hf.families import read_config
from vicha_hf.mistakes import describe
from vicha_hf.models.concept_selector import CONCEPT_INDEX_FOLDER
from vicha_hf.search import build_index
from vicha_hf.whole_files import OutputFolderError, require_writable_file


@pytest.fixture
def corpus(tmp_path):
    Image.new("RGB", (32, 32), "red").save(tmp_path / "1.png")
    path = tmp_path / "corpus.json"
    path.write_text(json.dumps([{"image": "1.png", "caption": "a red square"}]))
    return path


@pytest.mark.parametrize("option", ["--json", "--html", "--fix"])
def test_a_check_never_replaces_what_it_reads(corpus, option, capsys):
    before = corpus.read_bytes()
    assert main(["data", "check", str(corpus), option, str(corpus), "--num-workers", "0"]) == 1
    assert " as it is" in capsys.readouterr().err
    assert corpus.read_bytes() == before


@pytest.mark.parametrize(
    "command",
    [
        ["data", "import", "albef", "CORPUS", "--output", "THERE"],
        ["data", "check", "CORPUS", "--num-workers", "0", "--fix", "THERE"],
        ["convert", "CHECKPOINT", "FOLDER"],
        ["visual-tokenizer", "--data", "CORPUS", "--output", "FOLDER", "--patch-size", "8", "--image-size", "32"],
        ["visual-tokens", "--tokenizer", "TOKENIZER", "--data", "CORPUS", "--output", "THERE"],
    ],
    ids=lambda command: " ".join(command[: 1 + (command[0] == "data")]),
)
def test_what_is_there_is_replaced_only_when_asked(command, corpus, capsys):
    there, folder = corpus.with_name("mine.jsonl"), corpus.parent / "mine"
    there.write_text("work of mine")
    folder.mkdir()
    (folder / "config.json").write_text("work of mine")
    checkpoint = Path(__file__).parent / "golden/data/simla_ve/original.pth"
    places = {"CORPUS": corpus, "THERE": there, "FOLDER": folder, "CHECKPOINT": checkpoint}
    command = [str(places.get(word, word)) for word in command]
    assert main(command) == 1
    assert "is there already: name another output, or give --overwrite" in capsys.readouterr().err
    assert there.read_text() == "work of mine" and (folder / "config.json").read_text() == "work of mine"
    if command[0] in ("data", "convert"):
        assert main([*command, "--overwrite"]) == 0
        replaced = there if command[0] == "data" else folder / "config.json"
        assert replaced.read_text() != "work of mine"


@pytest.mark.parametrize(
    "command",
    [
        ["data", "check", "CORPUS", "--num-workers", "0", "--json", "THERE"],
        ["data", "check", "CORPUS", "--num-workers", "0", "--html", "THERE"],
        ["evaluate", "MODEL", "GALLERY", "--json", "THERE"],
        ["report", "MODEL", "--data", "GALLERY", "--output", "THERE"],
        ["concepts", "show", "MODEL", "IMAGE", "--json", "THERE"],
        ["search", "INDEX", "a dog", "--json", "THERE"],
        ["search", "INDEX", "a dog", "--html", "THERE"],
        ["ground", "MODEL", "IMAGE", "a dog", "--output", "PHOTO"],
        ["ground", "MODEL", "IMAGE", "a dog", "--output", "new.png", "--json", "THERE"],
    ],
    ids=" ".join,
)
def test_a_result_takes_the_place_of_an_earlier_one_and_of_nothing_else(command, corpus, shown, monkeypatch, capsys):
    monkeypatch.chdir(corpus.parent)
    Path("THERE").write_text('[{"image": "mine.png", "caption": "work of mine"}]')
    shutil.copy("1.png", "PHOTO.png")
    before = Path("THERE").read_bytes(), Path("PHOTO.png").read_bytes()
    places = {"CORPUS": corpus.name, "IMAGE": "1.png", "PHOTO": "PHOTO.png", **shown}
    command = [places.get(word, word) for word in command]
    assert main(command) == 1
    assert "is there already and no earlier result: name another file" in capsys.readouterr().err
    assert (Path("THERE").read_bytes(), Path("PHOTO.png").read_bytes()) == before
    Path("THERE").unlink()
    Path("PHOTO.png").unlink()
    assert main(command) == 0
    assert main(command) == 0


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """A model's folder with a concept index, its images and an index of them."""
    root = tmp_path_factory.mktemp("shown")
    gallery = write_gallery(root)
    write_model_folder(root / "model")
    encoder = DualEncoder.from_pretrained(str(root / "model"))
    ConceptIndex.build(["dog"], encoder, ("{}",), 1, own=True).save_pretrained(root / "model" / CONCEPT_INDEX_FOLDER)
    build_index(str(gallery), str(root / "model"), root / "index")
    return {"MODEL": str(root / "model"), "GALLERY": str(gallery), "INDEX": str(root / "index")}


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_a_step_of_the_concepts_never_replaces_what_it_reads(corpus, overwrite, capsys):
    corpus = corpus.with_name("selected.jsonl")
    corpus.write_text('{"image": "1.png", "caption": "a red square", "concepts": ["square"]}\n')
    OutputFile(corpus, "select", {}).finish()
    before = corpus.read_bytes()
    assert main(["concepts", "inspect", str(corpus), "--output", str(corpus), *overwrite]) == 1
    assert "is read by this command, which leaves it as it is" in capsys.readouterr().err
    another = corpus.with_name("another.jsonl")
    another.write_bytes(before)
    assert main(["concepts", "inspect", str(another), "--output", str(corpus), *overwrite]) == (0 if overwrite else 1)
    if not overwrite:
        assert "was not made by this command" in capsys.readouterr().err and corpus.read_bytes() == before


def test_an_input_is_known_by_another_spelling(corpus, monkeypatch):
    monkeypatch.chdir(corpus.parent)
    with pytest.raises(OutputFolderError, match="name another file"):
        require_writable_file(corpus, inputs=({"no": "path"}, None, f"./{corpus.name}"))
    require_writable_file(corpus.with_name("other.json"), inputs=(corpus,))


def test_jsonl_is_not_written_under_another_ending(corpus, capsys):
    output = corpus.with_name("imported.json")
    assert main(["data", "import", "albef", str(corpus), "--output", str(output), "--no-progress"]) == 1
    assert "name it *.jsonl" in capsys.readouterr().err and not output.exists()
    assert main(["data", "check", str(corpus), "--fix", str(output), "--num-workers", "0"]) == 1
    assert "name it *.jsonl" in capsys.readouterr().err and not output.exists()


def test_a_corpus_without_records_does_not_pass_the_check(tmp_path, capsys):
    (tmp_path / "none.json").write_text("[]")
    assert main(["data", "check", str(tmp_path / "none.json")]) == 1
    assert "no records in" in capsys.readouterr().out


def test_devices():
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match=r"device='foo' cannot be used here .*: choose cpu"):
        choose_device("foo")
    with pytest.raises(ValueError, match="device='cuda:99' cannot be used here"):
        choose_device("cuda:99")


@pytest.mark.parametrize("command", ["evaluate", "index"])
def test_a_device_is_judged_before_the_model_is_read(corpus, tmp_path, command, capsys):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    own = (str(tmp_path / "model"), str(corpus)) if command == "evaluate" else (str(corpus), str(tmp_path / "model"))
    output = () if command == "evaluate" else ("--output", str(tmp_path / "index"))
    task = ("--task", "retrieval") if command == "evaluate" else ()
    assert main([command, *own, *output, *task, "--device", "foo"]) == 1
    assert "device='foo' cannot be used here" in capsys.readouterr().err


def test_a_name_that_is_nowhere(monkeypatch):
    def unreachable(*_, **__):
        raise OSError("no connection")

    monkeypatch.setattr("vicha_hf.families.AutoConfig.from_pretrained", unreachable)
    with pytest.raises(OSError, match="nobody/nothing is no folder here, and cannot be had from the Hub"):
        read_config("nobody/nothing")


@pytest.mark.parametrize(
    "command",
    [
        ("index", "IMAGES", "nothing", "--output", "OUT"),
        ("ask", "nobody/nothing", "a.png", "what is it?"),
        ("ground", "nobody/nothing", "a.png", "a dog", "--output", "OUT.png"),
        ("evaluate", "nobody/nothing", "IMAGES", "--task", "retrieval"),
        ("export", "nothing", "OUT"),
    ],
)
def test_the_hub_is_asked_once_for_a_name_that_is_nowhere(corpus, tmp_path, monkeypatch, capsys, command):
    asked = []

    def unreachable(self, model, timeout):
        asked.append(model)
        raise ConnectionError("no connection")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    monkeypatch.setattr("vicha_hf.families.AutoConfig.from_pretrained", lambda *_, **__: pytest.fail("asked again"))
    places = {"IMAGES": str(corpus), "OUT": str(tmp_path / "out"), "OUT.png": str(tmp_path / "out.png")}
    assert main([places.get(word, word) for word in command]) == 1
    name = next(word for word in command if word.endswith("nothing"))
    assert f"{name} is no folder here, and cannot be had from the Hub: no connection" in capsys.readouterr().err
    assert asked == [name]


def test_bare_errors_of_the_system_say_what_to_do(tmp_path):
    for act, said in (
        ((tmp_path / "none").read_text, "none: not found; check the path"),
        (tmp_path.read_text, "is a folder; name a file"),
        (tmp_path.mkdir, "is there already; choose another name"),
    ):
        with pytest.raises(OSError) as error:
            act()
        assert said in describe(error.value)


def test_concepts_are_not_built_among_other_things(corpus):
    from vicha_hf.concepts import build_concepts

    with pytest.raises(FileExistsError, match=r"no earlier build .*choose a new --output"):
        build_concepts(str(corpus), None, corpus.parent)
    assert sorted(path.name for path in corpus.parent.iterdir()) == ["1.png", "corpus.json"]
