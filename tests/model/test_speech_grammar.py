"""Speech tokens: their ids and order, which of them audio can have, and the grammar that they follow."""

import itertools
import random

import pytest
import torch

from modeling_taae.quantization_taae import BOTTLENECK_PRESETS
from modeling_taae.speech_grammar_taae import SpeechGrammar, SpeechReader
from modeling_taae.speech_vocabulary_taae import LAYOUTS, SpeechVocabulary

FIRST_ID = 50  # ids below are text
LATER_TEXT = 7  # and so many above, as of tokens added to a tokenizer afterwards
every_vocabulary = pytest.mark.parametrize(
    "vocabulary",
    [SpeechVocabulary(*names, FIRST_ID) for names in itertools.product(BOTTLENECK_PRESETS, LAYOUTS)],
    ids=lambda vocabulary: f"{vocabulary.bottleneck}, {vocabulary.layout}",
)
residual_vocabulary = pytest.mark.parametrize(
    "vocabulary",
    [SpeechVocabulary(*names, FIRST_ID) for names in itertools.product([*BOTTLENECK_PRESETS][1:], LAYOUTS)],
    ids=lambda vocabulary: f"{vocabulary.bottleneck}, {vocabulary.layout}",
)


def stages_in_order(stages: int, frames: int, delay: int) -> list[tuple[int, int]]:
    """(stage, frame) of each token of a span, straight from the layouts' description."""
    steps = range(frames + delay * (stages - 1))
    return [(k, s - delay * k) for s in steps for k in range(stages) if 0 <= s - delay * k < frames]


def codes_of_audio(vocabulary: SpeechVocabulary, frames: int, seed: int = 0) -> torch.Tensor:
    """Codes (stages, frames) of random latents, loud ones and rounding ties among them."""
    generator = torch.Generator().manual_seed(seed)
    latents = 3 * torch.randn(1, 6, frames, generator=generator, dtype=torch.float64)
    ties = torch.atanh(torch.randint(-16, 17, latents.shape, generator=generator) / 16)
    tied = torch.rand(latents.shape, generator=generator) < 0.3
    return vocabulary.quantizer.encode(torch.where(tied, ties.double(), latents))[0]


def random_codes(vocabulary: SpeechVocabulary, frames: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.stack(
        [torch.randint(size, (frames,), generator=generator) for size in vocabulary.quantizer.codebook_sizes]
    )


def read(vocabulary: SpeechVocabulary, ids: list[int] | torch.Tensor, errors: str = "strict") -> tuple[list, list[str]]:
    reader = SpeechReader(vocabulary, torch.as_tensor(ids), errors)
    return [(kind, piece.tolist()) for kind, piece in reader.read()], reader.repairs


def allowed(vocabulary: SpeechVocabulary, *sequences: list[int]) -> torch.Tensor:
    """Which ids the grammar lets follow each of the sequences, which are padded on the left; (batch, ids) bool."""
    grammar = SpeechGrammar(vocabulary, vocabulary.ranges[-1].stop + LATER_TEXT)
    longest = max(map(len, sequences))
    padded = [[0] * (longest - len(sequence)) + sequence for sequence in sequences]
    ids = torch.tensor(padded, dtype=torch.int64)
    return grammar(ids, torch.zeros(len(ids), grammar.num_tokens + 13)) == 0


@every_vocabulary
def test_ids_are_consecutive_and_tell_stage_and_code(vocabulary):
    sizes = vocabulary.quantizer.codebook_sizes
    assert [len(ids) for ids in vocabulary.ranges] == list(sizes)
    ids = torch.cat([torch.tensor(ids) for ids in vocabulary.ranges])
    assert ids.tolist() == list(range(FIRST_ID + 3, FIRST_ID + 3 + sum(sizes)))
    assert len(set(vocabulary.tokens)) == len(vocabulary.tokens) == 3 + sum(sizes)
    stages = vocabulary.stages_of(ids)
    codes = vocabulary.codes_of(ids, stages)
    names = [f"<|taae_{k}_{code}|>" for k, code in zip(stages.tolist(), codes.tolist(), strict=True)]
    assert names == vocabulary.tokens[3:]
    others = torch.tensor([0, *range(FIRST_ID, FIRST_ID + 3), ids[-1] + 1])
    assert vocabulary.stages_of(others).tolist() == [-1] * 5


@every_vocabulary
@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 40])
def test_a_span_lists_the_tokens_as_the_layout_says_and_is_read_back(vocabulary, frames):
    codes = codes_of_audio(vocabulary, frames)
    ids = vocabulary.span(codes).tolist()
    order = stages_in_order(vocabulary.stages, frames, LAYOUTS[vocabulary.layout])
    expected = [vocabulary.ranges[stage][codes[stage, frame]] for stage, frame in order]
    assert ids == [vocabulary.begin_id, *expected, vocabulary.end_id]
    assert read(vocabulary, ids) == ([("speech", codes.tolist())], [])


@every_vocabulary
def test_sequences_of_text_and_speech_are_read_back(vocabulary):
    generator = random.Random(0)
    for trial in range(20):
        ids, pieces = [], []
        for part in range(generator.randrange(6)):
            if pieces[-1:] and pieces[-1][0] != "text" and generator.random() < 0.5:
                pieces.append(("text", generator.choices(range(FIRST_ID), k=generator.randrange(1, 4))))
                ids += pieces[-1][1]
            else:
                codes = codes_of_audio(vocabulary, generator.randrange(1, 6), seed=100 * trial + part)
                pieces.append(("speech", codes.tolist()))
                ids += vocabulary.span(codes).tolist()
        assert read(vocabulary, ids) == (pieces, [])


def test_presets_and_layouts_that_there_are_not_are_refused():
    with pytest.raises(ValueError, match="24,137,569 tokens.*same audio in small"):
        SpeechVocabulary("native")
    with pytest.raises(ValueError, match="1x46656_400bps, 2x15625_700bps, 4x729_1000bps, not '3x3'"):
        SpeechVocabulary("3x3")
    with pytest.raises(ValueError, match="no layout 'parallel'; choose one of interleaved, delay"):
        SpeechVocabulary("2x15625_700bps", "parallel")


@pytest.mark.parametrize(
    "codes, message",
    [
        (torch.zeros(3, 2, dtype=torch.int64), r"are \(2, frames\).*not \(3, 2\). Transpose what is \(frames, 2\)"),
        (torch.zeros(2, 0, dtype=torch.int64), "at least one frame"),
        (torch.zeros(1, 2, 3, dtype=torch.int64), "of one clip"),
        (torch.zeros(2, 3), "integers, not torch.float32"),
        ([[0, 1], [0, 15625]], "Code 15625 of stage 1 is out of range: .* 0 to 15624"),
        ([[0, -1], [0, 0]], "Code -1 of stage 0"),
    ],
)
def test_codes_that_are_not_a_clip_of_the_preset_are_refused(codes, message):
    with pytest.raises(ValueError, match=message):
        SpeechVocabulary("2x15625_700bps").span(codes)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_codes_may_be_of_any_integer_type(dtype):
    vocabulary = SpeechVocabulary("2x15625_700bps", first_id=FIRST_ID)
    codes = codes_of_audio(vocabulary, 9).clamp(max=200)
    assert torch.equal(vocabulary.span(codes.to(dtype).numpy()), vocabulary.span(codes))


# Counted on real latents: how many of the combinations of one dimension's digits over the stages occur.
@pytest.mark.parametrize(
    "preset, combinations", [("1x46656_400bps", (6, 6)), ("2x15625_700bps", (21, 25)), ("4x729_1000bps", (31, 81))]
)
def test_how_many_combinations_of_digits_audio_has(preset, combinations):
    valid = SpeechVocabulary(preset).valid_codes.is_valid
    assert (int(valid.sum()), len(valid)) == combinations


@residual_vocabulary
def test_codes_of_audio_are_told_from_others(vocabulary):
    valid = vocabulary.valid_codes
    assert valid.contains(codes_of_audio(vocabulary, 20_000)).all()
    share = valid.contains(random_codes(vocabulary, 100_000)).double().mean().item()
    combinations = {2: 21 / 25, 4: 31 / 81}[vocabulary.stages]
    assert share == pytest.approx(combinations**6, rel=0.15)


@residual_vocabulary
def test_codes_that_no_audio_has_become_the_nearest(vocabulary):
    codes = random_codes(vocabulary, 500)
    codes[:, 7] = codes_of_audio(vocabulary, 1)[:, 0]
    possible = vocabulary.valid_codes.contains(codes)
    with pytest.raises(ValueError, match=f"{500 - possible.sum()} frames have codes that no audio has"):
        read(vocabulary, vocabulary.span(codes))
    ((_, repaired),), repairs = read(vocabulary, vocabulary.span(codes), "repair")
    repaired = torch.tensor(repaired)
    assert len(repairs) == 1
    assert torch.equal(repaired[:, possible], codes[:, possible])
    before, after = (vocabulary.quantizer.decode(each[None]) for each in (codes, repaired))
    assert torch.equal(after, before.clamp(-1, 1))
    assert read(vocabulary, vocabulary.span(repaired)) == ([("speech", repaired.tolist())], [])


@every_vocabulary
def test_the_grammar_lets_follow_what_a_span_of_any_length_goes_on_with(vocabulary):
    codes, delay = codes_of_audio(vocabulary, 6), LAYOUTS[vocabulary.layout]
    spans = [[*stages_in_order(vocabulary.stages, frames, delay), "end"] for frames in range(1, 7)]
    following: dict[tuple, set] = {}
    for order in spans:
        for length in range(len(order)):
            following.setdefault(tuple(order[:length]), set()).add(order[length])
    # What only a seventh frame would tell is left out.
    prefixes = [prefix for prefix in following if sum(stage == 0 for stage, _ in prefix) < 6]
    sequences = [
        [1, vocabulary.begin_id, *(vocabulary.ranges[stage][codes[stage, frame]] for stage, frame in prefix)]
        for prefix in prefixes
    ]
    for prefix, mask in zip(prefixes, allowed(vocabulary, *sequences), strict=True):
        stages = {stage for stage, ids in enumerate(vocabulary.ranges) if mask[ids.start : ids.stop].any()}
        wanted = following[prefix]
        assert stages == {token[0] for token in wanted if token != "end"}, prefix
        assert mask[vocabulary.end_id] == ("end" in wanted), prefix
        # The very tokens of this clip are among those allowed, and nothing that is not speech is.
        assert all(mask[vocabulary.ranges[k][codes[k, t]]] for k, t in wanted - {"end"}), prefix
        speech = sum(mask[ids.start : ids.stop].sum() for ids in vocabulary.ranges)
        assert mask.sum() == speech + mask[vocabulary.end_id], prefix


@every_vocabulary
def test_the_grammar_has_the_last_word_where_others_forbid_all_that_it_allows(vocabulary):
    """As `min_new_tokens` does the end where a lagging stage has shown that no frame follows."""
    ids = [vocabulary.begin_id, *vocabulary.span(codes_of_audio(vocabulary, 3)).tolist()[1:-1]]
    grammar = SpeechGrammar(vocabulary, vocabulary.ranges[-1].stop)
    scores = torch.zeros(1, grammar.num_tokens)
    free = grammar(torch.tensor([ids]), scores)
    allowed_ids = free[0].isfinite().nonzero()[:, 0]
    scores[0, allowed_ids] = -torch.inf
    assert torch.equal(grammar(torch.tensor([ids]), scores)[0].isfinite().nonzero()[:, 0], allowed_ids)


@every_vocabulary
def test_the_grammar_lets_text_and_a_beginning_follow_nothing(vocabulary):
    """As where generation begins with embeddings."""
    assert torch.equal(allowed(vocabulary, []), allowed(vocabulary, [7]))


@every_vocabulary
def test_the_grammar_lets_text_and_a_beginning_follow_text(vocabulary):
    span = vocabulary.span(codes_of_audio(vocabulary, 2)).tolist()
    stop = vocabulary.ranges[-1].stop
    expected = [*range(FIRST_ID), vocabulary.begin_id, *range(stop, stop + LATER_TEXT)]
    for mask in allowed(vocabulary, [3], [3, *span], [*span, 4, 5], span, [vocabulary.end_id, 1]):
        assert mask.nonzero()[:, 0].tolist() == expected


@residual_vocabulary
def test_the_grammar_allows_exactly_the_codes_that_audio_can_go_on_with(vocabulary):
    codes = codes_of_audio(vocabulary, 3, seed=1)
    last = vocabulary.ranges[-1]
    ids = vocabulary.span(codes).tolist()
    place = max(index for index, token in enumerate(ids) if token in last)  # completes the third frame
    candidates = codes[:, -1:].repeat(1, len(last))
    candidates[-1] = torch.arange(len(last))
    (mask,) = allowed(vocabulary, ids[:place])
    assert torch.equal(mask[last.start : last.stop], vocabulary.valid_codes.contains(candidates))
    assert not mask[last.start : last.stop].all()


def test_the_grammar_goes_on_with_any_codes_after_such_as_audio_never_has():
    vocabulary = SpeechVocabulary("4x729_1000bps", first_id=FIRST_ID)
    # The lowest digits in two stages are -1 and -1/2 in every dimension, beyond the end of the range.
    prompt = [vocabulary.begin_id, *(ids[0] for ids in vocabulary.ranges[:2])]
    third, fourth = vocabulary.ranges[2:]
    for mask, ids in zip(allowed(vocabulary, prompt, [*prompt, third[5]]), (third, fourth), strict=True):
        assert mask.nonzero()[:, 0].tolist() == list(ids)


@every_vocabulary
def test_what_the_grammar_allows_is_read_without_complaint(vocabulary):
    generator = torch.Generator().manual_seed(0)
    ids = torch.arange(vocabulary.ranges[-1].stop + LATER_TEXT + 13)
    kinds = (
        (vocabulary.stages_of(ids) + 3)
        .masked_fill(ids == vocabulary.begin_id, 0)
        .masked_fill(ids == vocabulary.end_id, 1)
    )
    sequences = [[1, vocabulary.begin_id], [vocabulary.begin_id], [2, 3]]
    for _ in range(60):
        # First which kind of token is drawn, then which of that kind: else the markers hardly ever would be.
        scores = torch.rand(3, vocabulary.stages + 3, generator=generator)[:, kinds]
        scores += 0.01 * torch.rand(scores.shape, generator=generator)
        choices = scores.masked_fill(~allowed(vocabulary, *sequences), -1).argmax(dim=1).tolist()
        sequences = [[*sequence, choice] for sequence, choice in zip(sequences, choices, strict=True)]
    for sequence in sequences:
        stop = len(sequence) - sequence[::-1].index(vocabulary.end_id)
        pieces, _ = read(vocabulary, sequence[:stop])
        assert max(len(piece[0]) for kind, piece in pieces if kind == "speech") > 1


def test_the_grammar_stays_on_the_device_of_the_scores():
    vocabulary = SpeechVocabulary("4x729_1000bps", "delay", FIRST_ID)
    grammar = SpeechGrammar(vocabulary, 3000)
    ids = torch.zeros(2, 9, dtype=torch.int64, device="meta")
    assert grammar(ids, torch.zeros(2, 3100, device="meta")).device.type == "meta"


def test_the_grammar_wants_a_model_with_room_for_the_tokens():
    vocabulary = SpeechVocabulary("4x729_1000bps", first_id=FIRST_ID)
    with pytest.raises(ValueError, match="scores 3000 tokens, but the tokenizer has 3100.*resize_token_embeddings"):
        SpeechGrammar(vocabulary, 3100)(torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 3000))


def malformed(case: str, vocabulary: SpeechVocabulary, codes: torch.Tensor) -> tuple[list[int], str, list]:
    """Ids with something wrong, words of the error, and the pieces that a repair gives; codes (stages, 8)."""
    begin, *tokens, end = vocabulary.span(codes).tolist()
    order = stages_in_order(vocabulary.stages, 8, LAYOUTS[vocabulary.layout])
    speech, last_stage = ("speech", codes.tolist()), vocabulary.stages - 1
    less_last = ("speech", codes[:, :7].tolist())
    less_third = ("speech", codes[:, [0, 1, *range(3, 8)]].tolist())
    without = {
        stage: [token for place, token in zip(order, tokens, strict=True) if place != (stage, 2)]
        for stage in (0, last_stage)
    }
    half = vocabulary.span(codes[:, :4]).tolist()[1:-1], vocabulary.span(codes[:, 4:]).tolist()[1:-1]
    halves = [("speech", codes[:, :4].tolist()), ("speech", codes[:, 4:].tolist())]
    return {
        "no end": ([1, begin, *tokens], f"Position {2 + len(tokens)}: the sequence stops", [("text", [1]), speech]),
        "cut": ([begin, *tokens[:-1]], "the sequence stops within speech", [less_last]),
        "cut, ended": ([begin, *tokens[:-1], end, 9], f"where stage {last_stage} is due", [less_last, ("text", [9])]),
        "first stage lost": ([begin, *without[0], end], "where stage [01] is due", [less_third]),
        "last stage lost": ([begin, *without[last_stage], end], f"where stage {last_stage} is due", [less_third]),
        "wrong stage first": ([begin, tokens[-1], end], "Position 1: a token of stage . where another frame", []),
        "text within": ([begin, *tokens[:5], 7, 8, *tokens[5:], end], "Position 6: text within speech", [speech]),
        "text, no end": ([begin, *tokens, 7, 8], "text within speech, which has no end", [speech, ("text", [7, 8])]),
        "begun twice": ([begin, *half[0], begin, *half[1], end], "speech begins within speech", halves),
        "begun twice at once": ([begin, begin, *tokens, end], "Position 1: speech begins within speech", [speech]),
        "ended twice": (
            [begin, *tokens, end, end, 7],
            f"Position {len(tokens) + 2}: speech ends that has not",
            [speech, ("text", [7])],
        ),
        "no begin": ([5, *tokens, end], "Position 1: speech tokens outside", [("text", [5]), speech]),
        "only an end": ([5, end, 6], "Position 1: speech ends that has not begun", [("text", [5, 6])]),
        "empty": ([5, begin, end], "Position 2: speech without a frame", [("text", [5])]),
        "only a begin": ([begin], "the sequence stops within speech", []),
    }[case]


@residual_vocabulary
@pytest.mark.parametrize(
    "case",
    "no end|cut|cut, ended|first stage lost|last stage lost|wrong stage first|text within|text, no end|begun twice|"
    "begun twice at once|ended twice|no begin|only an end|empty|only a begin".split("|"),
)
def test_malformed_sequences_are_errors_or_repaired_and_reported(vocabulary, case):
    ids, message, pieces = malformed(case, vocabulary, codes_of_audio(vocabulary, 8))
    with pytest.raises(ValueError, match=message):
        read(vocabulary, ids)
    repaired, repairs = read(vocabulary, ids, "repair")
    assert repaired == pieces
    assert repairs and all(repair.startswith("Position ") for repair in repairs)


@every_vocabulary
def test_whatever_the_ids_repair_makes_something_well_formed_of_them(vocabulary):
    generator = random.Random(0)
    tokens = [vocabulary.begin_id, vocabulary.end_id, 1, *(ids[5] for ids in vocabulary.ranges)]
    for trial in range(60):
        ids = vocabulary.span(codes_of_audio(vocabulary, generator.randrange(1, 6), seed=trial)).tolist() * 2
        for _ in range(generator.randrange(4)):
            place = generator.randrange(len(ids))
            ids[place : place + generator.randrange(2)] = generator.choices(tokens, k=generator.randrange(3))
        pieces, repairs = read(vocabulary, ids, "repair")
        again = [
            token
            for kind, piece in pieces
            for token in (vocabulary.span(torch.tensor(piece)).tolist() if kind == "speech" else piece)
        ]
        assert read(vocabulary, again) == (pieces, [])
        if repairs:
            with pytest.raises(ValueError, match="Position"):
                read(vocabulary, ids)
        else:
            assert read(vocabulary, ids) == (pieces, [])
    assert read(vocabulary, []) == ([], [])


@every_vocabulary
def test_end_markers_behind_the_last_one_are_padding(vocabulary):
    span = vocabulary.span(codes_of_audio(vocabulary, 4)).tolist()
    assert read(vocabulary, [5, *span, *[vocabulary.end_id] * 3]) == read(vocabulary, [5, *span])
    with pytest.raises(ValueError, match="Position 0: speech ends that has not begun"):
        read(vocabulary, [vocabulary.end_id] * 3)


def test_errors_are_strict_or_repaired():
    with pytest.raises(ValueError, match="'ignore'"):
        SpeechReader(SpeechVocabulary("4x729_1000bps"), torch.zeros(0), errors="ignore")
