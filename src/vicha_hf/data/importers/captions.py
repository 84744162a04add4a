"""Importers of images with captions: COCO, Karpathy's splits, Flickr30k, Visual Genome, SBU and Conceptual Captions."""

import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from ..json_reading import lines_of, read_json, read_text_file
from ..raw_records import AnnotationError
from .importing import (
    Account,
    ImageLocator,
    ImportOptions,
    SplitChoice,
    entries_of,
    objects,
    usable_id,
    usable_text,
    usable_words,
)


def coco_captions(sources: Sequence[Path], options: ImportOptions, account: Account) -> Iterator[dict]:
    """`captions_*.json`: images, and annotations with `image_id` and `caption`. One record per image."""
    locator = ImageLocator(options.images, account)
    for path in sources:
        content = read_json(path, dict, 'COCO\'s {"images": [...], "annotations": [...]}')
        captions: dict[object, list[str]] = {}
        for annotation in objects(entries_of(content, "annotations", path), account):
            caption = usable_words(annotation.get("caption"))
            if caption is None:
                account.leave_out("annotation without caption")
            else:
                captions.setdefault(usable_id(annotation.get("image_id")), []).append(caption)
        for image in objects(entries_of(content, "images", path), account):
            image_id = usable_id(image.get("id"))
            own = None if image_id is None else captions.pop(image_id, None)
            if own is None:
                account.leave_out("image without caption")
            elif not usable_text(image.get("file_name")):
                account.leave_out("image without file name")
            elif (found := locator.find(image["file_name"])) is not None:
                yield {"image": found, "image_id": image_id, "caption": own}
        if captions:
            account.leave_out("annotation of an unknown image", sum(map(len, captions.values())))


def karpathy(sources: Sequence[Path], options: ImportOptions, account: Account) -> Iterator[dict]:
    """Karpathy's `dataset_coco.json`, `dataset_flickr30k.json`, `dataset_flickr8k.json`. One record per image."""
    locator, choice = ImageLocator(options.images, account), SplitChoice(options, account)
    for path in sources:
        content = read_json(path, dict, 'Karpathy\'s {"images": [...], "dataset": name}')
        for image in objects(entries_of(content, "images", path), account):
            if not choice.wants(image.get("split")):
                continue
            sentences = image.get("sentences")
            captions = [
                text
                for sentence in (sentences if isinstance(sentences, list) else [])
                if isinstance(sentence, dict) and (text := usable_words(sentence.get("raw")))
            ]
            name = usable_text(image.get("filename"))
            if not captions or name is None:
                account.leave_out("image without caption" if not captions else "image without file name")
                continue
            name = "/".join(part for part in (usable_text(image.get("filepath")), name) if part)
            if (found := locator.find(name)) is not None:
                image_id = image.get("cocoid", image.get("imgid"))
                yield {"image": found, "image_id": image_id, "caption": captions, "split": image.get("split")}
    choice.end()


def flickr30k(sources: Sequence[Path], options: ImportOptions, account: Account) -> Iterator[dict]:
    """Flickr30k's `results_20130124.token`: NAME#NUMBER, a tab, a caption. One record per image."""
    locator = ImageLocator(options.images, account)
    for path in sources:
        captions: dict[str, list[str]] = {}
        for line in lines_of(read_text_file(path)):
            if not line.strip():
                continue
            name, tab, caption = line.partition("\t")
            name, text = usable_text(name.split("#")[0]), usable_words(caption)
            if not tab or name is None or text is None:
                account.leave_out("line without a tab" if not tab else "line without caption")
            else:
                captions.setdefault(name, []).append(text)
        for name, own in captions.items():
            if (found := locator.find(name)) is not None:
                yield {"image": found, "image_id": name, "caption": own}


def visual_genome(sources: Sequence[Path], options: ImportOptions, account: Account) -> Iterator[dict]:
    """
    Visual Genome's `region_descriptions.json`, and `image_data.json` where it is given, which tells the folder of each
    image. One record per image, with the phrases of its regions.
    """
    locator = ImageLocator(options.images, account)
    addresses = visual_genome_images(sources[1]) if len(sources) > 1 else {}
    for entry in objects(read_json(sources[0], list, "Visual Genome's list of images with regions"), account):
        regions = entry.get("regions")
        regions = regions if isinstance(regions, list) else []
        phrases = []
        for region in objects(regions, account):
            phrase = usable_words(region.get("phrase"))
            if phrase is None:
                account.leave_out("region without phrase")
            else:
                phrases.append(phrase)
        of_region = next((one.get("image_id") for one in regions if isinstance(one, dict)), None)
        image_id = usable_id(entry.get("id", of_region))
        if not phrases or image_id is None:
            account.leave_out("image without phrase" if not phrases else "image without id")
        elif (found := locator.find(*visual_genome_names(image_id, addresses))) is not None:
            yield {"image": found, "image_id": image_id, "caption": list(dict.fromkeys(phrases))}


def visual_genome_images(path: Path) -> dict[object, str]:
    """`image_data.json`: folder and name of every image, by id."""
    entries = read_json(path, list, "Visual Genome's list of images")
    if not all(
        isinstance(entry, dict) and {"image_id", "id"} & entry.keys() and "url" in entry for entry in entries[:1]
    ):
        raise AnnotationError(f"{path}: the entries have no 'image_id' and 'url'; give image_data.json")
    # The first version of the file says `id`.
    return {
        usable_id(entry.get("image_id", entry.get("id"))): "/".join(_path_in(entry.get("url")).parts[-2:])
        for entry in entries
        if isinstance(entry, dict) and _path_in(entry.get("url")).name
    }


def visual_genome_names(image_id: object, addresses: dict[object, str]) -> list[str]:
    """Paths that an image of Visual Genome may have: it is published in two folders."""
    own = [addresses[image_id]] if image_id in addresses else []
    # Without image_data.json the name alone is known.
    return [*own, f"{image_id}.jpg", f"VG_100K/{image_id}.jpg", f"VG_100K_2/{image_id}.jpg"]


def sbu(sources: Sequence[Path], options: ImportOptions, account: Account) -> Iterator[dict]:
    """
    SBU as one JSON (`image_urls`, `captions`), or as the two text files of addresses and captions. Images are looked for as
    those of Conceptual Captions are.
    """
    if len(sources) == 2:
        urls, captions = (lines_of(read_text_file(path)) for path in sources)
        if any(one.startswith("http") for one in captions[:1]) and not any(one.startswith("http") for one in urls[:1]):
            urls, captions = captions, urls
    else:
        content = read_json(sources[0], dict, 'SBU\'s {"image_urls": [...], "captions": [...]}')
        urls, captions = (entries_of(content, name, sources[0]) for name in ("image_urls", "captions"))
    if len(urls) != len(captions):
        raise AnnotationError(
            f"{sources[0]}: {len(urls)} addresses and {len(captions)} captions; they belong together"
        )
    yield from _by_address(list(zip(range(len(urls)), urls, captions, strict=True)), options, account)


def conceptual_captions(sources: Sequence[Path], options: ImportOptions, account: Account) -> Iterator[dict]:
    """
    CC3M's and CC12M's TSV: a caption and an address, in either order. Images are looked for by the last part of their
    address, and by the names that the usual downloaders give: `INDEX_CHECKSUM` and img2dataset's `SHARD/INDEX.jpg`.
    """
    for path in sources:
        entries = []
        lines = [line for line in lines_of(read_text_file(path)) if line.strip()]
        # A line of names.
        has_names = bool(lines) and not any(cell.startswith("http") for cell in lines[0].split("\t"))
        # Downloaders count every line of the table, those that are no use too.
        for index, line in enumerate(lines[has_names:]):
            cells = line.split("\t")
            if len(cells) != 2 or not any(cell.startswith("http") for cell in cells):
                account.leave_out("line that is no caption and address")
                continue
            caption, url = cells if cells[1].startswith("http") else reversed(cells)
            entries.append((index, url, caption))
        yield from _by_address(entries, options, account)


def _by_address(
    entries: Sequence[tuple[int, object, object]], options: ImportOptions, account: Account
) -> Iterator[dict]:
    """Records of (number in the published table, address, caption)."""
    locator = ImageLocator(options.images, account)
    names = [_path_in(url).name for _, url, _ in entries]
    shared = Counter(names)
    for (index, url, caption), name in zip(entries, names, strict=True):
        text = usable_words(caption)
        if text is None or usable_text(url) is None:
            account.leave_out("no caption" if text is None else "no address")
            continue
        candidates = [name] if name and shared[name] == 1 else []
        candidates += [
            f"{index}_{zlib.crc32(url.encode()) & 0xFFFFFFFF}",
            f"{index // 10_000:05d}/{index:09d}.jpg",
        ]
        if (found := locator.find(*candidates)) is not None:
            yield {"image": found, "caption": text, "url": url}


def _path_in(url: object) -> PurePosixPath:
    """The path within an address; an empty one where there is none."""
    try:
        return PurePosixPath(urlsplit(url).path) if usable_text(url) else PurePosixPath()
    # Such as http://[x.
    except ValueError:
        return PurePosixPath()
