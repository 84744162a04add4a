"""Time re-ranking and answer ranking against the way of the published scripts, on this machine, in one run.

    python examples/benchmarks/inference.py --size base --json inference.json

Random weights, images and token ids: only what is computed counts here, and both ways must give the same scores. What
the ratios depend on: the lengths of the captions and how much the answers have in common. Captions: as long as the text
encoder's input ("full"), or with lengths as in COCO, normal with mean 13 and deviation 2.6 tokens, [CLS] and [SEP]
included ("real"). The image encoder in 8 bits (`vicha-hf export --int8`) is timed against torch in 32 bits. Answers: 1 to 6 tokens (62, 21, 13, 3, 0.7 and 0.3 %, roughly as in VQA v2). Every token is drawn by
Zipf's law from one set of common words, and no answer comes twice. Questions have 6 to 13 tokens. Encoding images,
captions and questions is the same for both ways and is left out.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from unittest import mock

import published_inference
import torch
from exported_encoder import compare_image_encoders
from measuring import add_json_option, matmul_gflops, peak_rss_gib, timed
from random_inputs import CLS, FIRST_WORD, PAD, SEP, TEXT_TOKENS, random_texts

from vicha_hf import ViChaConfig, ViChaForRetrieval, ViChaForVQA
from vicha_hf.command_parser import CommandParser
from vicha_hf.mistakes import run_script
from vicha_hf.models.decoder_answer import QuestionEncoding


ANSWER_LENGTHS = (0.62, 0.21, 0.13, 0.03, 0.007, 0.003)


@dataclass
class Setting:
    """The sizes of one comparison."""

    image_size: int
    images: int
    captions: int
    k: int
    questions: int
    answers: int
    answers_k: int
    repeats: int
    vision_config: dict
    text_config: dict


SETTINGS = {
    "tiny": Setting(
        *(96, 6, 20, 4, 2, 200, 16, 3),
        vision_config={
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        },
        text_config={
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "fusion_layer": 2,
            "vocab_size": 4000,
        },
    ),
    "small": Setting(
        *(224, 8, 40, 8, 4, 3128, 128, 3),
        vision_config={
            "hidden_size": 384,
            "intermediate_size": 1536,
            "num_hidden_layers": 12,
            "num_attention_heads": 6,
        },
        text_config={
            "hidden_size": 384,
            "intermediate_size": 1536,
            "num_hidden_layers": 8,
            "num_attention_heads": 6,
            "fusion_layer": 4,
        },
    ),
    "base": Setting(*(384, 16, 80, 16, 4, 3128, 128, 1), vision_config={}, text_config={}),
}


def main(argv: Sequence[str] | None = None) -> dict:
    parser = CommandParser(description=__doc__.splitlines()[0], formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SETTINGS, default="small", help="default: %(default)s")
    add_json_option(parser, "inference")
    arguments = parser.parse_args(argv)

    setting = SETTINGS[arguments.size]
    torch.manual_seed(0)
    result = {
        "size": arguments.size,
        "setting": asdict(setting),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "matmul_gflops": matmul_gflops(),
    }
    print(f"{arguments.size}: {result['threads']} threads, matmul {result['matmul_gflops']:.0f} GFLOP/s")
    # This package's ways first: peak memory only rises.
    comparisons = [Reranking(setting), AnswerRanking(setting)]
    for comparison in comparisons:
        comparison.run_ours()
    result["peak_rss_gib"] = peak_rss_gib()
    for comparison in comparisons:
        result |= comparison.compare()
    result |= compare_image_encoders(build_config(setting), setting.repeats)
    result["peak_rss_gib_published"] = peak_rss_gib()
    result["max_abs_difference"] = max(result["rerank_max_abs_difference"], result["vqa_max_abs_difference"])
    print(f"peak memory {result['peak_rss_gib']:.2f} GiB, of the published way {result['peak_rss_gib_published']:.2f}")
    arguments.json.write(result)
    return result


def build_config(setting: Setting) -> ViChaConfig:
    return ViChaConfig(
        vision_config={"image_size": setting.image_size, **setting.vision_config},
        text_config=setting.text_config,
        num_concept_layers=0,
        mim_weight=0.0,
        hierarchical_itc_weight=0.0,
    )


def caption_lengths(number: int, real: bool) -> torch.Tensor:
    if not real:
        return torch.full((number,), TEXT_TOKENS)
    return torch.normal(13.0, 2.6, (number,)).round().long().clamp(8, TEXT_TOKENS)


def random_answers(number: int, vocab_size: int) -> dict[str, torch.Tensor]:
    """Different answers of realistic lengths, whose words are the commoner the sooner they were drawn."""
    words = FIRST_WORD + torch.randperm(vocab_size - FIRST_WORD)[: number * 4 // 5]
    popularity = 1.0 / torch.arange(1, len(words) + 1)
    unused = words.tolist()
    answers: dict[tuple[int, ...], None] = {}
    while len(answers) < number:
        length = 1 + int(torch.multinomial(torch.tensor(ANSWER_LENGTHS), 1))
        if length == 1 and unused:
            answers[(unused.pop(0),)] = None
        else:
            answers[tuple(words[torch.multinomial(popularity, length, replacement=True)].tolist())] = None
    rows = [[CLS, *answer, SEP] for answer in answers]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": (ids != PAD).long()}


class Reranking:
    """Both ways of the second stage of retrieval, with captions of full and of real lengths."""

    def __init__(self, setting: Setting):
        self.setting = setting
        self.model = ViChaForRetrieval(build_config(setting)).eval()
        # Logits that differ from pair to pair, so that a difference between the two ways would show.
        torch.nn.init.normal_(self.model.itm_head.weight)
        size, vocab_size = setting.image_size, self.model.config.text_config.vocab_size
        with torch.no_grad():
            images = [self.model.encode_images(torch.randn(1, 3, size, size)) for _ in range(setting.images)]
            self.images = type(images[0]).concatenate(images)
            self.texts = {
                name: self.model.encode_texts(
                    **random_texts(caption_lengths(setting.captions, name == "real"), vocab_size)
                )
                for name in ("full", "real")
            }
        # The published scripts pad every caption to 25 tokens.
        padding = [TEXT_TOKENS - self.texts["real"].hidden_states.shape[1]]
        self.padded = dict(self.texts)
        real = self.texts["real"]
        self.padded["real"] = type(real)(
            embeds=real.embeds,
            hidden_states=torch.nn.functional.pad(real.hidden_states, (0, 0, 0, *padding)),
            attention_mask=torch.nn.functional.pad(real.attention_mask, (0, *padding)),
        )

    def run_ours(self) -> None:
        self.ours = {
            name: timed(
                lambda texts=texts: self.model.rerank(self.images, texts, self.setting.k), self.setting.repeats
            )
            for name, texts in self.texts.items()
        }

    def compare(self) -> dict:
        result, differences = {}, []
        for name, suffix in (("full", ""), ("real", "_real_lengths")):
            seconds, scores = self.ours[name]
            published_seconds, published = self._run_published(self.padded[name])
            differences += [
                (ours - theirs).abs().max().item()
                for ours, theirs in zip((scores.scores_i2t, scores.scores_t2i), published, strict=True)
            ]
            result |= {
                f"rerank_seconds{suffix}": seconds,
                f"rerank_published_seconds{suffix}": published_seconds,
                f"rerank_speedup{suffix}": published_seconds / seconds,
            }
            lengths = self.texts[name].attention_mask.sum(dim=1).float()
            print(
                f"re-ranking {self.setting.images} images x {self.setting.captions} captions of "
                f"{lengths.mean():.1f} tokens, k={self.setting.k}: {seconds:.2f} s, published way "
                f"{published_seconds:.2f} s, ratio {published_seconds / seconds:.1f}"
            )
        same_attention, _ = self._run_published(self.padded["full"], attention="sdpa")
        scored = scores.scores_i2t[scores.scores_i2t > published_inference.UNSCORED]
        result |= {
            "rerank_speedup_same_attention": same_attention / self.ours["full"][0],
            "rerank_max_abs_difference": max(differences),
            "rerank_score_deviation": scored.std().item(),
        }
        print(
            f"  ratio {result['rerank_speedup_same_attention']:.1f} where the published way has fused attention too; "
            f"largest difference of a match logit {max(differences):.1e} (standard deviation of the logits "
            f"{result['rerank_score_deviation']:.2f})"
        )
        return result

    def _run_published(self, texts, attention: str = "eager"):
        """The published scripts run on the code of their day, whose attention is a matrix product, softmax, and another."""
        self.model.set_attn_implementation(attention)
        timing = timed(
            lambda: published_inference.rerank(self.model, self.images, texts, self.setting.k), self.setting.repeats
        )
        self.model.set_attn_implementation("sdpa")
        return timing


class AnswerRanking:
    """Ranking a list of answers: the best by first token both ways, and the exact rankings that the tree allows."""

    def __init__(self, setting: Setting):
        self.setting = setting
        self.model = ViChaForVQA(build_config(setting)).eval()
        text = self.model.config.text_config
        # Questions are encoded alike by both ways: random states stand for them.
        lengths = torch.randint(6, 14, (setting.questions, 1))
        mask = (torch.arange(int(lengths.max())) < lengths).long()
        states = torch.randn(*mask.shape, text.hidden_size)
        with torch.no_grad():
            self.question: QuestionEncoding = self.model.answer_decoder.project_question(states, mask)
        self.answers = random_answers(setting.answers, text.vocab_size)
        self.tree = self.model.answer_tree(self.answers)

    def rank(self, **options):
        # Only the number of questions matters where their encoding is given.
        with mock.patch.object(self.model, "encode_questions", return_value=self.question):
            return self.model.rank_answers(None, None, answers=self.answers, **options)

    def run_ours(self) -> None:
        k, repeats = self.setting.answers_k, self.setting.repeats
        self.ours = timed(lambda: self.rank(top_k=k), repeats)
        self.exact_all_seconds, _ = timed(lambda: self.rank(top_k=None), repeats)
        self.exact_best_seconds, _ = timed(lambda: self.rank(top_k=k, exact=True), repeats)
        # Random weights leave everything possible, a trained decoder does not: it knows where answers end, and some first
        # words are far likelier than others.
        bias, norm = self.model.mlm_head.decoder.bias, self.model.mlm_head.transform.LayerNorm
        with torch.no_grad():
            bias[SEP] += 20.0
            norm.weight *= 4.0
        self.exact_best_sure_seconds, _ = timed(lambda: self.rank(top_k=k, exact=True), repeats)
        with torch.no_grad():
            bias[SEP] -= 20.0
            norm.weight /= 4.0

    def compare(self) -> dict:
        setting = self.setting
        seconds, ours = self.ours
        ids, mask = self.answers["input_ids"], self.answers["attention_mask"]
        self.model.set_attn_implementation("eager")
        published_seconds, (candidates, scores) = timed(
            lambda: published_inference.rank_answers(self.model, self.question, ids, mask, setting.answers_k),
            setting.repeats,
        )
        # By candidate: answers that are equally likely up to rounding may change places.
        difference = 0.0
        for row in range(setting.questions):
            theirs = dict(zip(candidates[row].tolist(), scores[row].tolist(), strict=True))
            for answer, score in zip(ours.answer_indices[row].tolist(), ours.scores[row].tolist(), strict=True):
                difference = max(difference, abs(score - theirs.get(answer, float("inf"))))
        print(
            f"ranking {setting.answers_k} of {setting.answers} answers (longest {ids.shape[1]} tokens, "
            f"{int((self.tree.num_children > 0).sum())} common beginnings) for {setting.questions} questions: "
            f"{seconds:.2f} s, published way {published_seconds:.2f} s, ratio {published_seconds / seconds:.1f}"
        )
        print(
            f"  all {setting.answers}: {self.exact_all_seconds:.2f} s; the exact best {setting.answers_k} of them: "
            f"{self.exact_best_seconds:.2f} s, by a decoder that is sure {self.exact_best_sure_seconds:.2f} s; "
            f"largest difference of a log-likelihood {difference:.1e}"
        )
        return {
            "vqa_rank_seconds": seconds,
            "vqa_published_top128_seconds": published_seconds,
            "vqa_rank_speedup": published_seconds / seconds,
            "vqa_exact_all_seconds": self.exact_all_seconds,
            "vqa_exact_best_seconds": self.exact_best_seconds,
            "vqa_exact_best_sure_decoder_seconds": self.exact_best_sure_seconds,
            "vqa_max_abs_difference": difference,
            "vqa_longest_answer": ids.shape[1],
            "vqa_common_beginnings": int((self.tree.num_children > 0).sum()),
        }


if __name__ == "__main__":
    sys.exit(run_script(main))
