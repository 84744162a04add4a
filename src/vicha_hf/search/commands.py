"""The commands `vicha-hf index`, `vicha-hf search`, `vicha-hf ask` and `vicha-hf ground`."""

import argparse
import json
from pathlib import Path

from ..command_parser import CommandParser, Commands, at_least


def register(commands: Commands) -> None:
    """Adds the four commands."""
    _add_index(commands)
    _add_search(commands)
    _add_ask(commands)
    _add_ground(commands)


def _add_index(commands: Commands) -> None:
    parser = commands.add_parser(
        "index",
        help="embed a folder of images, so that they can be searched",
        description="Embed images once. Run again, it embeds what is new or changed and takes out what is gone; a run that "
        "was stopped goes on where it was.",
    )
    parser.set_defaults(run=_index)
    parser.add_argument(
        "images", metavar="IMAGES", help="folder of images, or annotation file (captions are indexed too)"
    )
    parser.add_argument("model", metavar="MODEL", help="folder or Hub id of a pretrained or retrieval model")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the index")
    parser.add_argument("--image-root", metavar="DIR", help="folder that the paths of an annotation file start from")
    parser.add_argument("--batch-size", type=at_least(1), default=32, help="default: %(default)s")
    parser.add_argument(
        "--num-workers", type=at_least(0), default=0, help="processes that load images (default: %(default)s)"
    )
    parser.add_argument(
        "--concepts",
        choices=("given", "auto", "none"),
        default="given",
        help="visual concepts of the images: the annotation file's, those that the model's concept index finds, or none "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--on-bad-image",
        choices=("skip", "raise"),
        default="skip",
        help="leave out and list what cannot be read, or stop there (default: %(default)s)",
    )
    _add_device(parser)
    _add_backend(parser)


def _index(arguments: argparse.Namespace) -> None:
    from .building import build_index

    report = build_index(
        arguments.images,
        arguments.model,
        arguments.output,
        image_root=arguments.image_root,
        batch_size=arguments.batch_size,
        num_workers=arguments.num_workers,
        device=arguments.device,
        backend=arguments.backend,
        concepts=arguments.concepts,
        on_bad_image=arguments.on_bad_image,
    )
    for path, cause in report.left_out:
        print(f"left out: {path}: {cause}")
    print(
        f"{report.embedded} images embedded, {report.kept} as before, {report.removed} gone, {len(report.left_out)} left "
        f"out; {report.texts} captions: {arguments.output}"
    )


def _add_search(commands: Commands) -> None:
    parser = commands.add_parser(
        "search",
        help="find images by a text or an image",
        description="Find the images of an index, or its captions, that fit a text or an image best. Similarity finds "
        "candidates, the matching head orders the best of them.",
    )
    parser.set_defaults(run=_search)
    parser.add_argument("index", type=Path, metavar="DIR", help="folder that `vicha-hf index` wrote")
    parser.add_argument("query", metavar="QUERY", help="a text, or the path or URL of an image")
    parser.add_argument("--top", type=at_least(1), default=10, help="results (default: %(default)s)")
    parser.add_argument(
        "--target", choices=("images", "texts"), default="images", help="what to find (default: %(default)s)"
    )
    parser.add_argument(
        "--kind",
        choices=("auto", "text", "image"),
        default="auto",
        help="what the query is; auto takes the path of a file for an image (default: %(default)s)",
    )
    parser.add_argument(
        "--rerank",
        type=int,
        default=32,
        help="candidates that the matching head orders; 0 for none (default: %(default)s)",
    )
    parser.add_argument(
        "--approximate", action="store_true", help="find candidates by FAISS (pip install vicha_hf[faiss])"
    )
    parser.add_argument("--model", help="the index's model, where it has moved")
    _add_json(parser)
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with thumbnails there")
    _add_device(parser)
    _add_backend(parser)


def _search(arguments: argparse.Namespace) -> None:
    from ..whole_files import require_result_file, write_whole_file
    from .image_index import ImageIndex
    from .page import results_page

    for path in filter(None, (_json_file(arguments), arguments.html)):
        require_result_file(path, inputs=(arguments.query,))
    index = ImageIndex(arguments.index, arguments.model, arguments.device, arguments.approximate, arguments.backend)
    hits = index.search(
        arguments.query, arguments.top, target=arguments.target, kind=arguments.kind, rerank=arguments.rerank
    )
    if arguments.html is not None:
        page = results_page(arguments.query, hits, f"{len(index)} images, {arguments.index}")
        write_whole_file(arguments.html, page)
    _print_or_write(arguments, {"query": arguments.query, "results": [hit.to_dict() for hit in hits]}, _table(hits))


def _table(hits) -> str:
    lines = [f"{'rank':>4s} {'score':>8s} {'cosine':>8s}  {'image' if hits[0].text is None else 'text'}"]
    for hit in hits:
        score = "" if hit.score is None else f"{hit.score:.3f}"
        found = hit.image if hit.text is None else f"{hit.text}  ({hit.image})"
        lines.append(f"{hit.rank:4d} {score:>8s} {hit.similarity:8.4f}  {found}")
    return "\n".join(lines)


def _add_ask(commands: Commands) -> None:
    parser = commands.add_parser("ask", help="ask a model a question about an image")
    parser.set_defaults(run=_ask)
    parser.add_argument("model", metavar="MODEL", help="folder or Hub id of a model for question answering")
    parser.add_argument("image", metavar="IMAGE", help="path or URL")
    parser.add_argument("question", metavar="QUESTION")
    parser.add_argument("--top", type=at_least(1), default=5, help="answers (default: %(default)s)")
    parser.add_argument(
        "--answer-list", type=Path, metavar="FILE", help="JSON list to choose from (default: the model's)"
    )
    parser.add_argument("--generate", action="store_true", help="have the model write its answer")
    _add_concepts(parser)
    _add_json(parser)
    _add_device(parser)
    _add_backend(parser)


def _ask(arguments: argparse.Namespace) -> None:
    from ..data.answer_list import read_answer_list

    options = {}
    if arguments.answer_list is not None:
        options["answers"] = read_answer_list(arguments.answer_list)
    ask = _pipeline(arguments, "visual-question-answering", "vqa")
    answers = ask(
        arguments.image,
        arguments.question,
        top_k=arguments.top,
        generate=arguments.generate,
        **_concepts(arguments),
        **options,
    )
    table = "\n".join(f"{entry['score']:7.3f}  {entry['answer']}" for entry in answers)
    _print_or_write(arguments, {"image": arguments.image, "question": arguments.question, "answers": answers}, table)


def _add_ground(commands: Commands) -> None:
    parser = commands.add_parser(
        "ground",
        help="find what a phrase names in an image",
        description="Find the place that a phrase names. The image is written with the heat map over it and the best box.",
    )
    parser.set_defaults(run=_ground)
    parser.add_argument(
        "model", metavar="MODEL", help="folder or Hub id of a grounding, retrieval or pretrained model"
    )
    parser.add_argument("image", metavar="IMAGE", help="path or URL")
    parser.add_argument("phrase", metavar="PHRASE")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.png", help="where the image goes")
    parser.add_argument("--method", choices=("itm", "itc"), help="Grad-CAM (default: the model's own)")
    parser.add_argument("--layer", type=int, help="layer that grounds (default: the model's)")
    _add_concepts(parser)
    _add_json(parser)
    _add_device(parser)


def _ground(arguments: argparse.Namespace) -> None:
    from PIL import Image

    from ..whole_files import require_result_file, write_whole_file
    from .grounded_image import draw_grounding, encode_result

    if arguments.output.suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"{arguments.output}: name a file with the ending of an image, such as .png.")
    require_result_file(arguments.output, inputs=(arguments.image,))
    ground = _pipeline(arguments, "visual-grounding", "grounding")
    image = ground.processor.image_processor.fetch_images(arguments.image)
    found = ground(image, arguments.phrase, method=arguments.method, layer=arguments.layer, **_concepts(arguments))
    drawn = draw_grounding(image, found)
    write_whole_file(arguments.output, encode_result(drawn, arguments.output.suffix))
    box = found["box"]
    place = "nowhere: the map has no heat" if box is None else "x {xmin} to {xmax}, y {ymin} to {ymax}".format(**box)
    result = {name: found[name] for name in ("label", "score", "box")}
    _print_or_write(
        arguments,
        {"image": arguments.image, **result, "output": str(arguments.output)},
        f"{arguments.phrase}: {place} (score {found['score']:.3f})\nwritten to {arguments.output}",
    )


def _pipeline(arguments: argparse.Namespace, name: str, task: str):
    from transformers import pipeline

    from ..devices import choose_device
    from ..families import find_model_folder, load_finetuned, load_processor
    from ..whole_files import require_result_file

    if _json_file(arguments) is not None:
        require_result_file(_json_file(arguments), inputs=(arguments.image,))
    device = choose_device(arguments.device)
    folder = find_model_folder(arguments.model)
    model = load_finetuned(task, folder, backend=getattr(arguments, "backend", None))
    processor = load_processor(folder)
    return pipeline(name, model=model, processor=processor, device=device)


def _add_device(parser: CommandParser) -> None:
    parser.add_argument("--device", help="cpu, cuda, ... (default: a GPU where there is one)")


def _add_backend(parser: CommandParser) -> None:
    parser.add_argument(
        "--backend",
        choices=("torch", "onnx"),
        help="what runs the model; onnx runs a folder that `vicha-hf export` wrote (default: what the folder is for)",
    )


def _add_concepts(parser: CommandParser) -> None:
    parser.add_argument("--concepts", nargs="+", metavar="WORD", help="visual concepts of the image; auto finds them")


def _concepts(arguments: argparse.Namespace) -> dict:
    if arguments.concepts is None:
        return {}
    return {"concepts": "auto" if arguments.concepts == ["auto"] else arguments.concepts}


def _add_json(parser: CommandParser) -> None:
    parser.add_argument("--json", metavar="FILE", help="write the result there; - prints it in place of the table")


def _json_file(arguments: argparse.Namespace) -> Path | None:
    return None if arguments.json in (None, "-") else Path(arguments.json)


def _print_or_write(arguments: argparse.Namespace, result: dict, table: str) -> None:
    from ..whole_files import write_whole_file

    text = json.dumps(result, ensure_ascii=False, indent=2)
    print(text if arguments.json == "-" else table)
    if _json_file(arguments) is not None:
        write_whole_file(_json_file(arguments), text + "\n")
