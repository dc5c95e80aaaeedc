"""GLM's objective: spans are cut out of a text and generated again, one after the other.

    text       a b c d e f g          spans  [5, 7) and [2, 3), in the order they were shuffled to

    part       A A A A A A  B   B B   B   B
    input      a b M d e M  sop f g   sop c
    target                  f   g eop c   eop      the target of sop is the first token: no shift
    position   0 1 2 3 4 5  5   5 5   2   2        the position of the mask that is filled
    block      0 0 0 0 0 0  1   2 3   1   2        the position within the span

A token of A attends to all of A, in both directions, and to nothing of B; a token of B attends to A
and to earlier tokens of B (`glmtune.kernels.packed_attention`). So A does not reveal how long a
blank is, and every blank may use those filled before it.

The objectives differ in what is cut out: short spans (token level), complete sentences, or the rest
of the text (document level). One is sampled for each batch, by weight. Two rules are easy to get
wrong: token spans are never adjacent, and the id that ends a document is never cut out, so no span
crosses it.

Source: spec glm_pretraining; GLM, https://arxiv.org/abs/2103.10360, section 2.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from glmtune.data.batches import MicroBatch
from glmtune.errors import DataError
from glmtune.recipe.sections import ObjectiveSection
from glmtune.template.base import IGNORE

Ids = NDArray[np.int64]
Level = Literal["token", "sentence", "document", "causal"]

SENTENCE_ENDS = frozenset(".?!;:。？！；…\n")
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # a piece that encodes one byte
_LEAST_CONTEXT = 2  # tokens that document level leaves at least


@dataclass(frozen=True, slots=True)
class Infilling:
    """A text with blanks, and the spans that fill them.

    Attributes:
        input_ids: A, then B, (seq,).
        targets: what each position predicts, already shifted; `IGNORE` on A.
        position_ids: on A 0, 1, 2, ...; on B the position of the span's mask.
        block_position_ids: 0 on A; 1, 2, ... within each span.
        prefix_length: tokens of A.
    """

    input_ids: Ids
    targets: Ids
    position_ids: Ids
    block_position_ids: Ids
    prefix_length: int

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True, slots=True)
class Marks:
    """The ids of a tokenizer that the objective needs.

    Attributes:
        mask, sentence_mask, document_mask: the id of a blank, by level.
        sop, eop: the id in front of a span, and the one predicted at its end.
        end: the id that ends a document.
        ends_sentence: bool, (vocab,): whether a token ends a sentence.
    """

    mask: int
    sentence_mask: int
    document_mask: int
    sop: int
    eop: int
    end: int
    ends_sentence: NDArray[np.bool_]


def marks_of(tokenizer: Any) -> Marks:
    """Look up the ids in a tokenizer.

    Raises:
        DataError: it is not a ChatGLM tokenizer.
    """
    names = ("[MASK]", "[sMASK]", "[gMASK]", "sop", "eop")
    ids = [tokenizer.convert_tokens_to_ids(name) for name in names]
    if missing := [
        n for n, i in zip(names, ids, strict=True) if i in (None, tokenizer.unk_token_id)
    ]:
        raise DataError(
            f"the tokenizer has no token {', '.join(missing)}, which GLM's objective needs. "
            "Use a tokenizer of ChatGLM2 or ChatGLM3, or one that `glmtune tokenizer train` made."
        )
    pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    ends_sentence = np.array([not SENTENCE_ENDS.isdisjoint(_text_of(piece)) for piece in pieces])
    mask, sentence_mask, document_mask, sop, eop = ids
    end = tokenizer.eos_token_id
    return Marks(mask, sentence_mask, document_mask, sop, eop, end, ends_sentence)


def _text_of(piece: str) -> str:
    byte = _BYTE.fullmatch(piece)
    return chr(int(byte[1], 16)) if byte else piece


def cut_out(tokens: Ids, spans: Ids, mask: int, marks: Marks) -> Infilling:
    """Cut spans out of a text, to be generated in the given order.

    Args:
        tokens: (seq,).
        spans: (spans, 2): start and end of each; they do not overlap.
        mask: the id that replaces each of them in A.
        marks: the other ids.
    """
    starts, ends = spans[:, 0], spans[:, 1]
    borders = np.zeros(len(tokens) + 1, dtype=np.int64)
    borders[starts] += 1
    borders[ends] -= 1
    is_in_a = borders[:-1].cumsum() == 0
    is_in_a[starts] = True
    with_masks = tokens.copy()
    with_masks[starts] = mask
    mask_positions = is_in_a.cumsum()[starts] - 1

    lengths = ends - starts + 1  # of the span and its sop
    begins = lengths.cumsum() - lengths
    step = np.arange(lengths.sum()) - begins.repeat(lengths)  # 0 at each sop
    source = starts.repeat(lengths) + step  # where in the text the next token is
    targets = tokens.take(source, mode="clip")
    targets[begins + lengths - 1] = marks.eop
    inputs = tokens[source - 1]
    inputs[begins] = marks.sop
    return _join(with_masks[is_in_a], inputs, targets, mask_positions.repeat(lengths), step + 1)


def cut_off(tokens: Ids, length: int, mask: int, marks: Marks) -> Infilling:
    """Cut off the end of a text, whose own last token ends it: there is no eop.

    Args:
        tokens: (seq,).
        length: how many of them are generated; at least one.
        mask: the id that replaces them.
        marks: the other ids.
    """
    context, rest = np.split(tokens, [len(tokens) - length])
    return _join(
        np.append(context, mask),
        np.insert(rest[:-1], 0, marks.sop),
        rest,
        np.full(length, len(context)),
        np.arange(1, length + 1),
    )


def _join(context: Ids, inputs: Ids, targets: Ids, positions: Ids, steps: Ids) -> Infilling:
    """Concatenate A and B."""
    size = len(context)
    return Infilling(
        input_ids=np.concatenate((context, inputs)),
        targets=np.concatenate((np.full(size, IGNORE), targets)),
        position_ids=np.concatenate((np.arange(size), positions)),
        block_position_ids=np.concatenate((np.zeros(size, dtype=np.int64), steps)),
        prefix_length=size,
    )


def in_one_dimension(example: Infilling) -> Infilling:
    """Replace the positions by those of ChatGLM3: 0, 1, 2, ..., and no block positions."""
    order = np.arange(len(example))
    return Infilling(
        example.input_ids, example.targets, order, np.zeros_like(order), example.prefix_length
    )


def span_weights(mean: float, longest: int) -> NDArray[np.float64]:
    """Compute the Poisson probabilities of the lengths 1 to `longest`."""
    return np.array(
        [math.exp(k * math.log(mean) - mean - math.lgamma(k + 1)) for k in range(1, longest + 1)]
    )


def place_spans(lengths: Ids, draws: Ids, offset: int = 0) -> Ids:
    """Place spans so that at least one token remains between any two.

    Args:
        lengths: of the spans, in text order.
        draws: as many integers, each from 0 to the number of free tokens; see `num_free_tokens`.
        offset: the position where the text begins.

    Returns:
        (spans, 2): start and end of each, in text order.
    """
    before = (lengths + 1).cumsum() - (lengths + 1)
    starts = offset + np.sort(draws) + before
    return np.stack((starts, starts + lengths), axis=1)


def num_free_tokens(lengths: Ids, num_tokens: int) -> int:
    """Count the tokens outside the spans and the gaps between them; negative if they do not fit."""
    return num_tokens - int(lengths.sum()) - len(lengths) + 1


@dataclass(frozen=True, slots=True)
class Draw:
    """What was sampled for all texts of a batch.

    Attributes:
        level: the objective.
        length: of the span of document level, where a text is long enough.
    """

    level: Level
    length: int = 0


class BlankInfilling:
    """GLM's objective with its settings.

    All samples come from the generators passed to its methods, so the same generators give the
    same examples.
    """

    def __init__(self, section: ObjectiveSection, marks: Marks) -> None:
        self.section = section
        self.marks = marks
        cumulated = span_weights(section.mean_span_length, section.longest_span).cumsum()
        self._up_to = cumulated / cumulated[-1]  # (longest_span,): P(length <= index + 1)

    def batch(self, texts: Sequence[Ids], generator: np.random.Generator) -> list[Infilling]:
        """Sample an objective and make an example of every text by it."""
        draw = self.draw([len(text) for text in texts], generator)
        return [self.example(text, draw, generator) for text in texts]

    def draw(self, lengths: Sequence[int], generator: np.random.Generator) -> Draw:
        """Sample the objective of a batch.

        Args:
            lengths: of its texts, in tokens.
            generator: of this batch.
        """
        levels, weights = zip(*self.section.weights().items(), strict=True)
        level: Level = levels[generator.choice(len(levels), p=np.array(weights) / sum(weights))]
        if level != "document":
            return Draw(level)
        longest = max(lengths) - _LEAST_CONTEXT
        shortest = min(int(self.section.shortest_document_share * min(lengths)), longest)
        return Draw(level, int(generator.integers(shortest, longest, endpoint=True)))

    def example(self, tokens: Ids, draw: Draw, generator: np.random.Generator) -> Infilling:
        """Make an example of one text.

        A text that is too short for a span at token level has no targets.

        Args:
            tokens: at least one, (seq,).
            draw: what was sampled for its batch.
            generator: of this text.
        """
        match draw.level:
            case "causal":  # `[gMASK] sop text` with positions 0, 1, 2, ...: as for ChatGLM3
                example = cut_off(tokens, len(tokens), self._mask("document"), self.marks)
                return in_one_dimension(example)
            case "document":
                example = self._document(tokens, draw.length, generator)
            case "token" | "sentence":
                find = self._token_spans if draw.level == "token" else self._sentences
                spans = find(tokens, generator)
                if self.section.shuffle_spans:
                    spans = generator.permutation(spans)
                example = cut_out(tokens, spans, self._mask(draw.level), self.marks)
        return example if self.section.two_dimensional else in_one_dimension(example)

    def _mask(self, level: Level) -> int:
        if not self.section.task_masks or level == "token":
            return self.marks.mask
        return self.marks.sentence_mask if level == "sentence" else self.marks.document_mask

    def _documents(self, tokens: Ids) -> Ids:
        """Find the documents of a text, without the ids that end them: (documents, 2)."""
        ends = np.append(np.flatnonzero(tokens == self.marks.end), len(tokens))
        starts = np.append(0, ends[:-1] + 1)
        found = np.stack((starts, ends), axis=1)
        return found[ends > starts]

    def _token_spans(self, tokens: Ids, generator: np.random.Generator) -> Ids:
        """Sample short spans in text order; none if they do not fit."""
        lengths = self._span_lengths(len(tokens), generator)
        documents = self._documents(tokens)
        spans = [np.empty((0, 2), dtype=np.int64)]
        by_size = documents[np.argsort(documents[:, 1] - documents[:, 0], kind="stable")]
        for index, (start, end) in enumerate(by_size.tolist()):
            count = len(lengths)
            if index + 1 < len(by_size):  # the longest document takes the rest
                share = int(self.section.masked_share * (end - start))
                count = int(lengths.cumsum().searchsorted(share, side="right"))
            room = num_free_tokens(lengths[:count], end - start)
            if room < 0:
                return spans[0]
            draws = generator.integers(0, room, size=count, endpoint=True)
            spans.append(place_spans(lengths[:count], draws, start))
            lengths = lengths[count:]
        found = np.concatenate(spans)
        return found[found[:, 0].argsort()]

    def _span_lengths(self, num_tokens: int, generator: np.random.Generator) -> Ids:
        """Sample lengths until their sum reaches the share; the last may exceed it."""
        wanted = int(self.section.masked_share * num_tokens)
        lengths = self._up_to.searchsorted(generator.random(wanted), side="right") + 1
        count = int(lengths.cumsum().searchsorted(wanted)) + 1 if wanted else 0
        return generator.permutation(lengths[:count])

    def _sentences(self, tokens: Ids, generator: np.random.Generator) -> Ids:
        """Sample complete sentences, at least one, until they reach the share, in text order."""
        is_end = tokens == self.marks.end
        after = np.flatnonzero(self.marks.ends_sentence[tokens] | is_end) + 1
        borders = np.unique(np.concatenate(([0], after, np.flatnonzero(is_end), [len(tokens)])))
        sentences = np.stack((borders[:-1], borders[1:]), axis=1)
        sentences = generator.permutation(sentences[~is_end[sentences[:, 0]]])
        wanted = int(self.section.masked_share * len(tokens))
        count = (sentences[:, 1] - sentences[:, 0]).cumsum().searchsorted(wanted) + 1
        chosen = sentences[:count]
        return chosen[chosen[:, 0].argsort()]

    def _document(self, tokens: Ids, length: int, generator: np.random.Generator) -> Infilling:
        """Cut off the end of a text, or one long span out of it."""
        mask, size = self._mask("document"), len(tokens)
        if self.section.shortest_document_share == 1:
            length = size
        else:
            length = max(min(length, size - _LEAST_CONTEXT), 1)
        documents = self._documents(tokens)
        if len(documents) != 1 or generator.random() < self.section.prefix_share:
            return cut_off(tokens, length, mask, self.marks)
        [[first, last]] = documents.tolist()
        length = min(length, last - first)
        start = int(generator.integers(first, last - length, endpoint=True))
        return cut_out(tokens, np.array([[start, start + length]]), mask, self.marks)


def pack_infillings(examples: Sequence[Infilling], rows: Sequence[int] = ()) -> MicroBatch:
    """Concatenate examples of GLM's objective, and make tensors of them, (1, seq) each.

    Targets are aligned with the tokens that predict them. Labels come one position later, so the
    pack ends with one more token, which holds the label of the last one:

        input    a M sop b | c M sop d  eop       of two texts; the last eop is there for its label
        target   . . b eop | . . d eop
        label    . . . b   eop . . d    eop
    """
    last = examples[-1]
    is_learned = last.targets[-1] != IGNORE
    closing = last.targets[-1:] if is_learned else last.input_ids[-1:]  # any valid id would do
    ends = np.cumsum([0, *map(len, examples)])
    ends[-1] += 1

    def join(*parts: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(np.concatenate(parts))[None]

    blocks = join(*(e.block_position_ids for e in examples), last.block_position_ids[-1:])
    return MicroBatch(
        input_ids=join(*(e.input_ids for e in examples), closing),
        labels=join(np.array([IGNORE]), *(e.targets for e in examples)),
        position_ids=join(*(e.position_ids for e in examples), last.position_ids[-1:]),
        cu_seq_lens=torch.from_numpy(ends.astype(np.int32)),
        rows=tuple(rows),
        prefix_lengths=torch.tensor([e.prefix_length for e in examples], dtype=torch.int32),
        block_position_ids=blocks if blocks.any() else None,
    )
