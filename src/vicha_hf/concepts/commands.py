"""The commands `vicha-hf concepts ...`."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path


# Of the paper.
DEFAULT_K = 15


def register(commands) -> None:
    """Adds `vicha-hf concepts` with its subcommands."""
    parser = commands.add_parser(
        "concepts",
        help="find visual concepts: vocabulary, embeddings, selection, filter, inspection",
        description="Make a corpus with visual concepts out of images with captions, with CLIP or any other encoder of images "
        "and texts.",
    )
    commands = parser.add_subparsers(dest="concepts_command", required=True, metavar="COMMAND")
    _add(
        commands,
        "vocabulary",
        _vocabulary,
        "count the nouns of captions",
        "Count the nouns of a corpus's captions, by their part of speech. The result is the same for any number of "
        "processes. It is not done again while captions and options stay the same.",
        _add_vocabulary_arguments,
    )
    _add(
        commands,
        "embed",
        _embed,
        "embed a vocabulary, or the images or captions of a corpus",
        "Embed with an encoder of images and texts: CLIP, SigLIP and others of transformers, or a model of this package. "
        "Run it under `accelerate launch` for several processes. A run that was stopped goes on where it was.",
        _add_embed_arguments,
    )
    _add(
        commands,
        "select",
        _select,
        "write the nearest concepts of every image into annotations",
        "Write a corpus with the nearest concepts of every image and their cosines.",
        _add_select_arguments,
    )
    _add(
        commands,
        "filter",
        _filter,
        "keep the pairs of image and caption that fit together best",
        "Keep the best pairs by the cosine of image and caption, of the whole corpus or of each image.",
        _add_filter_arguments,
    )
    _add(
        commands,
        "inspect",
        _inspect,
        "write a page with images and their concepts",
        "Write an HTML page with images, captions, concepts and scores, and how often each concept occurs.",
        _add_inspect_arguments,
    )
    _add(
        commands,
        "build",
        _build,
        "do vocabulary, embed, select and inspect in one go",
        "Make a corpus with concepts out of images with captions. A step whose inputs have not changed is not done again.",
        _add_build_arguments,
    )
    _add(
        commands,
        "index",
        _index,
        "give a model folder its concept index",
        "Embed a vocabulary and store it in a model folder, so that the model finds the concepts of an image by itself.",
        _add_index_arguments,
    )
    _add(
        commands,
        "show",
        _show,
        "print the concepts of images, or what an index holds",
        "Print the concepts that a model folder's index gives for images; without images, what the index holds.",
        _add_show_arguments,
    )


def _add(
    commands, name: str, run: Callable, help_text: str, description: str, add_arguments: Callable[..., None]
) -> None:
    parser = commands.add_parser(name, help=help_text, description=description)
    add_arguments(parser)
    parser.set_defaults(run=run)


def _add_vocabulary_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("corpus", nargs="+", metavar="CORPUS", help="annotations with captions")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="*.json or *.parquet")
    _add_noun_arguments(parser)
    parser.add_argument("--stop-words", type=Path, metavar="FILE", help="words to leave out, one a line or as JSON")
    _add_bad_record_argument(parser)
    _add_common_arguments(parser)


def _vocabulary(arguments: argparse.Namespace) -> None:
    from .building import make_vocabulary
    from .vocabulary import read_stop_words

    _require_output(arguments)
    stop_words = read_stop_words(arguments.stop_words) if arguments.stop_words else ()
    vocabulary, was_there = make_vocabulary(
        arguments.corpus, arguments.output, stop_words=stop_words, **_noun_options(arguments), **_common(arguments)
    )
    best = ", ".join(f"{word} {count}" for word, count in list(vocabulary.items())[:8])
    print(f"{len(vocabulary)} concepts ({best}, ...)")
    print(_written(arguments.output, was_there))


def _add_embed_arguments(parser: argparse.ArgumentParser) -> None:
    _add_encoder_arguments(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--vocabulary", type=Path, metavar="FILE", help="embed these words")
    what.add_argument("--corpus", nargs="+", metavar="FILE", help="embed the images of these annotations")
    what.add_argument("--captions", nargs="+", metavar="FILE", help="embed the captions of these annotations")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="new, or left by a stopped run")
    _add_corpus_arguments(parser)
    _add_speed_arguments(parser)


def _embed(arguments: argparse.Namespace) -> None:
    from .embedding import embed_captions, embed_concepts, embed_images, new_accelerator
    from .vocabulary import read_vocabulary

    # What is cheap to check comes before the encoder is loaded.
    words = read_vocabulary(arguments.vocabulary) if arguments.vocabulary else None
    sources = arguments.corpus or arguments.captions
    corpus = None if words else _read_corpus(arguments, sources)
    accelerator = new_accelerator(arguments.mixed_precision)
    encoder = _load_encoder(arguments, accelerator)
    options = {
        "batch_size": arguments.batch_size,
        "accelerator": accelerator,
        "progress": not arguments.no_progress,
    }
    if words:
        store = embed_concepts(words, encoder, arguments.output, prompts=_prompts(arguments), **options)
    elif arguments.captions:
        store = embed_captions(corpus, encoder, arguments.output, **options)
    else:
        store = embed_images(corpus, encoder, arguments.output, num_workers=arguments.num_workers, **options)
    if accelerator.is_main_process:
        print(f"{len(store)} {store.manifest['kind']} of width {store.width} embedded in {arguments.output}")
        _print_unreadable(store.manifest["unreadable"])


def _add_select_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="embeddings of the corpus's images")
    parser.add_argument("--concepts", type=Path, required=True, metavar="DIR", help="embeddings of the vocabulary")
    parser.add_argument("--corpus", nargs="+", required=True, metavar="FILE", help="annotations")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="*.jsonl or *.parquet")
    _add_k_argument(parser)
    parser.add_argument(
        "--method",
        choices=("exact", "approximate"),
        default="exact",
        help="approximate: by an inverted index of FAISS (default: %(default)s)",
    )
    _add_corpus_arguments(parser)
    _add_common_arguments(parser)


def _select(arguments: argparse.Namespace) -> None:
    from .embedding_store import EmbeddingStore
    from .selection import select_for_corpus

    _require_output(arguments)
    result = select_for_corpus(
        EmbeddingStore(arguments.images, "images"),
        EmbeddingStore(arguments.concepts, "concepts"),
        _read_corpus(arguments, arguments.corpus),
        arguments.output,
        k=arguments.k,
        method=arguments.method,
        **_common(arguments),
    )
    left_out = f", {result.num_unreadable} left out (unreadable images)" if result.num_unreadable else ""
    print(f"{result.num_records} records with concepts{left_out}")
    print(_written(arguments.output, result.was_current))


def _add_filter_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="embeddings of the corpus's images")
    parser.add_argument("--captions", type=Path, required=True, metavar="DIR", help="embeddings of its captions")
    parser.add_argument("--corpus", nargs="+", required=True, metavar="FILE", help="annotations")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="*.jsonl or *.parquet")
    parser.add_argument("--keep", type=float, required=True, metavar="PERCENT", help="share of the pairs that stays")
    parser.add_argument(
        "--scope",
        choices=("corpus", "image"),
        default="corpus",
        help="the best pairs of all, or the best captions of each image (default: %(default)s)",
    )
    _add_corpus_arguments(parser)
    _add_common_arguments(parser)


def _filter(arguments: argparse.Namespace) -> None:
    from .embedding_store import EmbeddingStore
    from .filtering import filter_pairs

    _require_output(arguments)
    result = filter_pairs(
        EmbeddingStore(arguments.images, "images"),
        EmbeddingStore(arguments.captions, "captions"),
        _read_corpus(arguments, arguments.corpus),
        arguments.output,
        keep=arguments.keep,
        scope=arguments.scope,
        overwrite=arguments.overwrite,
    )
    print(result.histogram())
    print(f"{result.num_kept} of {result.num_pairs} pairs kept, cosine from {result.threshold:.3f} on")
    print(_written(arguments.output, result.was_current))


def _add_inspect_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("corpus", nargs="+", metavar="CORPUS", help="annotations with concepts")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.html")
    parser.add_argument("--vocabulary", type=Path, metavar="FILE", help="to list concepts that were never selected")
    parser.add_argument("--num-images", type=int, default=48, help="images shown (default: %(default)s)")
    _add_corpus_arguments(parser)
    _add_common_arguments(parser)


def _inspect(arguments: argparse.Namespace) -> None:
    from .inspection import inspect_concepts
    from .vocabulary import read_vocabulary

    _require_output(arguments)
    use = inspect_concepts(
        _read_corpus(arguments, arguments.corpus),
        arguments.output,
        vocabulary=list(read_vocabulary(arguments.vocabulary)) if arguments.vocabulary else (),
        num_images=arguments.num_images,
        overwrite=arguments.overwrite,
    )
    print(f"{use.num_records} records use {len(use.counts)} concepts, {len(use.unused)} were never selected")
    print(f"written to {arguments.output}")


def _add_build_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("corpus", nargs="+", metavar="CORPUS", help="annotations with captions")
    _add_encoder_arguments(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="new, or of an earlier build")
    parser.add_argument("--vocabulary", type=Path, metavar="FILE", help="of your own, instead of the captions' nouns")
    _add_noun_arguments(parser)
    _add_k_argument(parser)
    _add_corpus_arguments(parser)
    _add_speed_arguments(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace files that this command did not make")


def _build(arguments: argparse.Namespace) -> None:
    from ..whole_files import require_writable
    from .building import build_concepts
    from .embedding import new_accelerator
    from .vocabulary import read_vocabulary

    if arguments.vocabulary:
        read_vocabulary(arguments.vocabulary)
    require_writable(arguments.output, "--output")
    accelerator = new_accelerator(arguments.mixed_precision)
    files, result = build_concepts(
        arguments.corpus,
        _load_encoder(arguments, accelerator),
        arguments.output,
        vocabulary=arguments.vocabulary,
        image_root=arguments.image_root,
        allow_outside_root=arguments.allow_outside_root,
        prompts=_prompts(arguments),
        k=arguments.k,
        batch_size=arguments.batch_size,
        num_workers=arguments.num_workers,
        accelerator=accelerator,
        **_noun_options(arguments),
        **_common(arguments),
    )
    if accelerator.is_main_process:
        print(f"{result.num_records} records with concepts: {files.annotations}")
        if result.num_unreadable:
            print(f"{result.num_unreadable} records left out (unreadable images)")
        print(f"page: {files.page}\nindex for a model folder: {files.index}")


def _add_index_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL", help="folder of a model with its processor")
    parser.add_argument(
        "--vocabulary", type=Path, metavar="FILE", help="default: words, prompts and k of the index that MODEL has"
    )
    _add_encoder_arguments(parser, "the model that looks for concepts (default: MODEL itself)")
    _add_k_argument(parser, None)


def _index(arguments: argparse.Namespace) -> None:
    from ..families import find_model_folder, without_load_report
    from ..models.concept_selector import CONCEPT_INDEX_FOLDER, ConceptIndex, DualEncoder
    from .vocabulary import read_vocabulary

    if not (arguments.model / "config.json").is_file():
        raise FileNotFoundError(f"{arguments.model} is no model folder: it has no config.json")
    folder = arguments.model / CONCEPT_INDEX_FOLDER
    if arguments.vocabulary is not None:
        words, prompts, k = list(read_vocabulary(arguments.vocabulary)), _prompts(arguments), DEFAULT_K
    elif folder.is_dir():
        earlier = ConceptIndex.from_pretrained(folder)
        words, k = list(earlier.concepts), earlier.k
        prompts = _prompts(arguments) if arguments.prompt else earlier.prompts
    else:
        raise ValueError(
            f"{arguments.model} has no {CONCEPT_INDEX_FOLDER}/ yet: give its words with --vocabulary FILE"
        )
    k = k if arguments.k is None else arguments.k
    own = arguments.encoder is None
    with without_load_report():
        encoder = DualEncoder.from_pretrained(
            str(arguments.model) if own else find_model_folder(arguments.encoder), revision=arguments.revision
        )
    ConceptIndex.build(words, encoder, prompts, k, own=own).save_pretrained(folder)
    print(f"{len(words)} concepts embedded by {'the model itself' if own else arguments.encoder}: {folder}")


def _add_show_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="MODEL", help="folder or Hub name of a model with concept_index/, or the index"
    )
    parser.add_argument("images", nargs="*", default=[], metavar="IMAGE")
    parser.add_argument("--k", type=int, help="concepts per image (default: the index's)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the concepts there too")


def _show(arguments: argparse.Namespace) -> None:
    from ..families import find_model_folder
    from ..models.concept_selector import OWN_ENCODER, ConceptIndex, ConceptSelector
    from ..whole_files import require_result_file, write_whole_file

    if not Path(arguments.model).is_dir():
        # An image in its place, a folder that is not there, or a name on the Hub.
        find_model_folder(arguments.model)
    if not arguments.images:
        index = ConceptIndex.from_pretrained(arguments.model)
        encoder = "the model itself" if index.encoder == OWN_ENCODER else index.encoder
        print(f"{len(index.concepts)} concepts, width {index.embeds.shape[1]}, {index.k} per image, by {encoder}")
        print(f"prompts: {', '.join(map(repr, index.prompts))}")
        print(f"first concepts: {', '.join(index.concepts[:12])}")
        return
    if arguments.json is not None:
        require_result_file(arguments.json, inputs=arguments.images)
    images = [_open(path) for path in arguments.images]
    found = ConceptSelector.from_pretrained(arguments.model).select(images, arguments.k)
    for path, row in zip(arguments.images, found, strict=True):
        print(f"{path}: {', '.join(f'{word} {score:.3f}' for word, score in row)}")
    if arguments.json is not None:
        content = [
            {"image": path, "concepts": [word for word, _ in row], "concept_scores": [score for _, score in row]}
            for path, row in zip(arguments.images, found, strict=True)
        ]
        write_whole_file(arguments.json, json.dumps(content, ensure_ascii=False, indent=2) + "\n")


def _open(path: str):
    from ..data.image_files import ImageReadError, open_image

    try:
        return open_image(path, "")
    except ImageReadError as error:
        raise ValueError(f"cannot read the image {path} ({error.cause})") from error


def _add_noun_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--min-count", type=int, default=2, help="nouns seen less often are left out (default: %(default)s)"
    )
    parser.add_argument("--language-model", default="en_core_web_sm", help="of spaCy (default: %(default)s)")
    parser.add_argument(
        "--compounds", action="store_true", help='neighbouring nouns count together too: "fire hydrant"'
    )
    parser.add_argument("--num-processes", type=int, default=1, help="that tag captions (default: %(default)s)")


def _noun_options(arguments: argparse.Namespace) -> dict:
    return {
        "min_count": arguments.min_count,
        "language_model": arguments.language_model,
        "compounds": arguments.compounds,
        "num_processes": arguments.num_processes,
        "on_bad_record": arguments.on_bad_record,
    }


def _add_encoder_arguments(parser: argparse.ArgumentParser, help_text: str | None = None) -> None:
    parser.add_argument(
        "--encoder",
        required=help_text is None,
        metavar="MODEL",
        help=help_text or "folder or Hub name, such as openai/clip-vit-base-patch16",
    )
    parser.add_argument("--revision", help="of the encoder's Hub repository")
    parser.add_argument(
        "--prompt",
        action="append",
        metavar="TEXT",
        help='text with {} where the word goes; several are averaged (default: "a photo of a {}")',
    )


def _add_speed_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch-size", type=int, default=64, help="default: %(default)s")
    parser.add_argument(
        "--num-workers", type=int, default=1, help="processes that decode images (default: %(default)s)"
    )
    parser.add_argument(
        "--mixed-precision", choices=("no", "fp16", "bf16"), default="no", help="of the encoder (default: %(default)s)"
    )
    parser.add_argument("--no-progress", action="store_true", help="show no progress bar")


def _add_k_argument(parser: argparse.ArgumentParser, default: int | None = DEFAULT_K) -> None:
    parser.add_argument("--k", type=int, default=default, help=f"concepts per image (default: {DEFAULT_K})")


def _add_corpus_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--image-root", help="folder of the images (default: the annotation file's)")
    parser.add_argument(
        "--allow-outside-root", action="store_true", help="absolute image paths may lead out of that folder"
    )
    _add_bad_record_argument(parser)


def _add_bad_record_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--on-bad-record",
        choices=("raise", "skip"),
        default="raise",
        help="bad records and unreadable images end the command, or are left out and counted (default: %(default)s)",
    )


def _add_common_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--overwrite", action="store_true", help="replace a file that this command did not make")
    parser.add_argument("--no-progress", action="store_true", help="show no progress bar")


def _common(arguments: argparse.Namespace) -> dict:
    return {"overwrite": arguments.overwrite, "progress": not arguments.no_progress}


def _require_output(arguments: argparse.Namespace) -> None:
    from ..whole_files import require_writable_file

    require_writable_file(arguments.output, inputs=arguments.corpus)


def _prompts(arguments: argparse.Namespace) -> tuple[str, ...]:
    from ..models.concept_selector import check_prompts
    from .embedding import DEFAULT_PROMPTS

    prompts = tuple(arguments.prompt or DEFAULT_PROMPTS)
    check_prompts(prompts)
    return prompts


def _read_corpus(arguments: argparse.Namespace, sources: list[str]):
    from .corpus import ConceptCorpus

    return ConceptCorpus(sources, arguments.image_root, arguments.on_bad_record, arguments.allow_outside_root)


def _load_encoder(arguments: argparse.Namespace, accelerator):
    from ..families import find_model_folder, read_config, without_load_report
    from ..models.concept_selector import DualEncoder
    from ..weight_files import require_weights_of_folder

    encoder = find_model_folder(arguments.encoder)
    read_config(encoder, revision=arguments.revision)
    require_weights_of_folder(encoder)
    with without_load_report():
        return DualEncoder.from_pretrained(encoder, revision=arguments.revision, device=str(accelerator.device))


def _written(path: Path, was_there: bool) -> str:
    return f"{path} is up to date" if was_there else f"written to {path}"


def _print_unreadable(unreadable: list[dict]) -> None:
    if unreadable:
        print(f"{len(unreadable)} unreadable, left out:")
    for entry in unreadable[:10]:
        print(f"  {entry['problem']}")
