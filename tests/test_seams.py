"""Where parts meet: what enters is checked, a session is one stream, equal things are one program.

Every test stands for a kind of fault that was once found at a seam.
"""

import copy
import dataclasses
import threading
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

import jaxmem as jm
from jaxmem.bound import Bound
from jaxmem.decoder.program import init_carry, make_program, spec_of
from jaxmem.experiments.stream.segments import segments
from jaxmem.loop import advance, branch, stream
from jaxmem.memory.by_name import Budget, build, contestants
from jaxmem.memory.flash_vstream.flash_vstream_qwen import QwenSizes
from jaxmem.memory.flexmem.memindex import MemIndex
from jaxmem.models.base import Fitted
from jaxmem.models.tiny import tiny
from jaxmem.models.tiny.embedded import PRESETS, embedded
from jaxmem.programs import compile as program_of
from jaxmem.programs import model_spec
from jaxmem.report.compilations import count_compilations
from jaxmem.saving import fingerprint, restore, save

QUESTION = "what is the last shape?"
CFG = small.config(axes=1)
DEEP = small.config(axes=1, layers=3)
WEIGHTS = small.params(CFG)
PROGRAM = make_program(CFG, jm.Recent(12), spec_of(CFG, chunk=8))
ROWS = jax.tree.map(np.asarray, small.stream_rows(CFG, 4, 8, lengths=[8, 5, 8, 7]))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    config = tiny.TinyConfig(
        width=32, layers=2, heads=2, kv_heads=1, head_dim=16, mlp_width=32, stem_width=16
    )
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    params = tiny.init(config, jax.random.key(0))
    params["decoder"] = small.scored(params["decoder"], tiny.decoder_config(config))
    tiny.save(path, params, config)
    return path


@pytest.fixture(scope="module")
def model(weights):
    return embedded(weights)


def piece(seed=0, **more):
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 255, (1, 48, 48, 3), dtype=np.uint8)
    samples = 0.1 * rng.normal(size=16000).astype(np.float32)
    return SimpleNamespace(**({"frames": frames, "samples": samples} | more))


def plain(tree):
    return jax.tree.map(np.array, tree)


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, plain(a), plain(b))


# A stream is what was fed, whatever was asked.


@pytest.mark.parametrize("chunk_pieces", [2, 3])
def test_a_question_never_changes_a_stream(model, chunk_pieces):
    """At any moment, bit by bit: chunks that are open stay open, and the next ones are as ever."""
    asked, silent = (jm.Session(model, jm.Recent(32), chunk_pieces=chunk_pieces) for _ in range(2))
    for i in range(7):
        wrote = [session.feed(piece(i)) for session in (asked, silent)]
        assert wrote == [(i + 1) % chunk_pieces == 0] * 2
        asked.ask(QUESTION)
        assert asked.tokens == 20 * (i + 1) and asked.pieces == i + 1
        assert_same(asked.carry, silent.carry)
    # What is open is read, too.
    assert not np.array_equal(asked.ask(QUESTION).logits, _after(model, chunk_pieces, 6))


def _after(model, chunk_pieces, pieces):
    session = jm.Session(model, jm.Recent(32), chunk_pieces=chunk_pieces)
    return session.watch([piece(i) for i in range(pieces)]).ask(QUESTION).logits


def test_questions_never_change_where_chunks_end(model):
    """On the command line as well: the same chunks whenever and however often it is asked."""
    fed = [piece(i, start=float(i), valid_seconds=1.0) for i in range(9)]

    def chunks(times):
        found = []
        for segment in segments(fed, model, chunk_pieces=2, chunks=2, times=times):
            if segment.inputs is not None:
                real = segment.inputs.valid.any(axis=1)
                found.append(jax.tree.map(lambda x, real=real: x[real], segment.inputs))
        return jax.tree.map(lambda *x: np.concatenate(x), *found)

    want = chunks([])
    for times in ([0.5], [3.2, 3.4, 5.0], [i / 2 for i in range(20)]):
        assert_same(chunks(times), want)


def test_a_session_goes_on_where_it_was_saved(model, weights, tmp_path):
    """Pieces, open chunk, sound before the chunk, dialogue and number of answers included."""
    session = jm.Session(model, jm.Recent(32), chunk_pieces=3)
    for i in range(5):
        session.feed(piece(i))
    session.ask(QUESTION)
    session.save(tmp_path / "live")
    again = jm.Session.restore(tmp_path / "live", embedded(weights), jm.Recent(32))
    assert (again.pieces, again.chunk_pieces, again.dialogue) == (5, 3, session.dialogue)
    for i in range(5, 10):
        assert session.feed(piece(i)) == again.feed(piece(i))
    assert_same(session.carry, again.carry)
    assert_same(session.preprocessor.heard, again.preprocessor.heard)
    assert_same(session.ask(QUESTION).logits, again.ask(QUESTION).logits)
    assert session._answers == again._answers == 2
    for other in (jm.Uniform(32), jm.Recent(32, sinks=1), jm.Recent(33)):
        with pytest.raises(ValueError, match="made otherwise"):
            jm.Session.restore(tmp_path / "live", model, other)
    cut = jax.tree.map(lambda x: x, model.params)
    cut["decoder"]["norm"]["scale"] = cut["decoder"]["norm"]["scale"].at[3].add(1e-6)
    with pytest.raises(ValueError, match="weights is"):
        jm.Session.restore(tmp_path / "live", model._replace(params=cut), jm.Recent(32))
    with pytest.raises(ValueError, match="spec is"):
        jm.Session.restore(tmp_path / "live", model, jm.Recent(32), chunk_pieces=2)


def test_what_was_saved_knows_its_options_without_being_told(tmp_path):
    """Equal shapes are not enough: the carry itself knows what made it."""
    save(tmp_path / "live", init_carry(PROGRAM))
    other = dataclasses.replace(PROGRAM, memory=jm.Recent(12, sinks=1))
    with pytest.raises(ValueError, match="another program"):
        restore(tmp_path / "live", other)


def test_no_single_weight_changes_unnoticed():
    """One number anywhere, or two that change places, make another checkpoint."""
    seen = {fingerprint(WEIGHTS)}
    leaves, treedef = jax.tree.flatten(WEIGHTS)
    for number in (0, len(leaves) // 2, len(leaves) - 1):
        for place in (1, leaves[number].size // 3, leaves[number].size - 2):
            flat = np.array(leaves[number]).reshape(-1)
            assert flat[place] != flat[place - 1]
            swapped = flat.copy()
            swapped[[place - 1, place]] = flat[[place, place - 1]]
            flat[place] = np.nextafter(flat[place], np.inf)
            for changed in (flat, swapped):
                mine = [*leaves]
                mine[number] = changed.reshape(leaves[number].shape)
                seen.add(fingerprint(jax.tree.unflatten(treedef, mine)))
    assert len(seen) == 19
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), WEIGHTS)
    assert fingerprint(half) == fingerprint(jax.tree.map(np.asarray, half)) not in seen


def test_a_session_is_read_and_asked_while_it_is_fed(model):
    session, stop, errors = jm.Session(model, jm.Recent(32), chunk_pieces=2), threading.Event(), []
    session.feed(piece())
    looks = {
        "ask": lambda: session.ask(QUESTION),
        "answer": lambda: [*session.answer(QUESTION)],
        "tokens": lambda: session.tokens,
        "events": lambda: session.events,
        "layers": lambda: plain(session.layers()),
        "kept": session.kept,
    }
    for look in looks.values():
        look()  # compiles

    def feed():
        number = 0
        while not stop.is_set():
            session.feed(piece(number % 5))
            number += 1

    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        for _ in range(25):
            for name, look in looks.items():
                try:
                    look()
                except Exception as error:
                    errors.append((name, error))
    finally:
        stop.set()
        feeder.join()
    assert not errors and session.pieces > 1
    layers = session.layers()
    session.feed(piece())
    session.feed(piece())
    plain(layers)  # stays, although the stream went on


# Equal things are one program.

MORE = {
    "bank": lambda: jm.WithBank(jm.OmniMem(64), 200),
    "quantized": lambda: jm.Quantized(jm.Hermes(64), 8),
    "recorded": lambda: jm.Recorded(jm.Recent(64)),
    "table": lambda: jm.OmniMem(np.asarray([[8, 24], [9, 23]])),
    "index": lambda: jm.FlexMem(reader=MemIndex((1,), weights=(0.5,))),
}


def test_presets_fit_models_of_any_depth(model):
    """What a command line builds without options, on the shipped model and on one of two layers."""
    for each in (model, embedded()):
        spec = model_spec(each)
        chosen = contestants([*jm.MEMORIES], {}, Budget(64, None), spec, 200, presets=each.presets)
        for one in chosen:
            program_of(each, one.memory)
    assert embedded().presets == PRESETS


@pytest.mark.parametrize("name", [*jm.MEMORIES, *MORE])
def test_equal_memories_make_equal_programs(model, weights, name):
    """Models are loaded and memories are made twice; a program is its key in every cache."""
    options = {"capacity": 64} if name == "full" else None
    make = MORE.get(name) or (lambda: build(name, 64, model_spec(model), options))
    one, two = (program_of(m, make()) for m in (model, embedded(weights)))
    assert one == two and hash(one) == hash(two)


def test_a_program_is_hashed_once_and_anew_in_another_process(model):
    program = jm.compile(model, jm.Recent(16))
    assert hash(program) == hash(jm.compile(model, jm.Recent(16)))
    assert "_hash" in vars(program)  # `jax.jit` asks at every call
    again = copy.copy(program)  # as `pickle` does: texts have another hash in another process
    assert again == program and "_hash" not in vars(again)


def test_a_second_session_compiles_nothing(model, weights):
    count = lambda m: jm.Session(m, jm.Recent(32)).watch([piece(), piece(1)]).ask(QUESTION)
    first = count(model)
    with count_compilations() as counted:
        second = count(embedded(weights))
    assert counted.count == 0 and first.text == second.text


@pytest.mark.parametrize(
    "make",
    [
        lambda kind: jm.Hermes(64, shares=kind((0.1, 0.3)), smoothing=kind((0.1, 0.3, 0.4))),
        lambda kind: jm.InfiniPotV(64, grid=kind((2, 2))),
        lambda kind: jm.FlexMem(reader=MemIndex(kind((0, 1)), weights=kind((0.5, 0.5)))),
        lambda kind: jm.FlashVStreamQwen(QwenSizes(kind((4, 6)))),
        lambda kind: jm.OmniMem(kind([kind((8, 24)), kind((9, 23))])),
    ],
)
def test_lists_are_options_too(make):
    assert make(list) == make(tuple) and hash(make(list)) == hash(make(tuple))


# What enters is checked.


def test_rows_that_are_not_finite_are_left_out_and_told(model):
    """As if they had been padding, whatever they hold; the session says when."""
    x, kept = np.array(ROWS.x), [0, 1, 2, 4, 6, 7, 3, 5]
    x[2, 3, 1], x[2, 5, 0] = np.nan, -np.inf
    found = stream(WEIGHTS, init_carry(PROGRAM), ROWS._replace(x=x), program=PROGRAM)
    modality, x, pos = np.array(ROWS.modality), np.array(ROWS.x), np.array(ROWS.pos)
    x[2], pos[2], modality[2] = x[2, kept], pos[2, kept], modality[2, kept]
    modality[2, 6:] = 0
    rows = ROWS._replace(x=x, pos=pos, modality=modality)
    want = stream(WEIGHTS, init_carry(PROGRAM), rows, program=PROGRAM)
    assert_same(found._replace(rejected=want.rejected), want)
    assert plain(found.rejected) == (2, 2, 2) and plain(want.rejected) == (0, -1, -1)

    session = jm.Session(model, jm.Recent(32))
    for i in range(4):
        inputs, heard = session.preprocessor.peek([piece(i)])
        if i in (1, 2):
            inputs = jax.tree.map(lambda a: a * np.nan if a.dtype.kind == "f" else a, inputs)
        session.write(jax.tree.map(lambda a: np.asarray(a)[None], inputs), heard)
    (event,) = session.events
    assert (event.time, event.kind) == (1.0, "not_finite")
    assert "rows were not finite" in event.message and "from 1 s to 3 s" in event.message
    assert np.isfinite(session.ask(QUESTION).logits).all()


def test_chunks_that_were_not_full_count_what_they_held(model, tmp_path):
    """Each of three chunks of four pieces holds one: the fourth begins at 3 s, not at 12 s."""
    session = jm.Session(model, jm.Recent(32), chunk_pieces=4)
    for i in range(3):
        session.feed(piece(i))
        session.flush()
    inputs, heard = session.preprocessor.peek([piece(i) for i in range(3, 7)])
    inputs = jax.tree.map(lambda a: a * np.nan if a.dtype.kind == "f" else a, inputs)
    session.write(jax.tree.map(lambda a: np.asarray(a)[None], inputs), heard)
    (event,) = session.events
    assert event.time == 3.0 and "from 3 s to 7 s" in event.message
    session.save(tmp_path / "saved")
    restored = jm.Session.restore(tmp_path / "saved", model, jm.Recent(32))
    assert restored.events == session.events
    session.reset()
    assert session.events == []


@pytest.mark.parametrize("garbage", [1e4, np.nan, np.inf])
def test_padding_may_hold_anything(garbage):
    """In chunks and in questions."""
    question = jm.question_rows(WEIGHTS, [1, 2, 3], program=PROGRAM)
    answers = []
    for fill in (0.0, garbage):
        x = np.array(ROWS.x)
        x[1, 5:] = x[3, 7:] = fill
        carry = stream(WEIGHTS, init_carry(PROGRAM), ROWS._replace(x=x), program=PROGRAM)
        rows = question._replace(x=question.x.at[3:].set(fill))
        answers.append((carry, jm.ask(WEIGHTS, carry, rows, program=PROGRAM)))
    assert np.isfinite(answers[1][1].first).all()
    assert_same(*answers)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"x": ROWS.x[..., :7]}, "width=24"),
        ({"pos": np.zeros((4, 8, 3), np.int32)}, "axes=1"),
        ({"pos": ROWS.pos[:, :1]}, r"pos of \(1, 1\), expected \(8, 1\)"),
        ({"modality": ROWS.modality[:, :5]}, r"modality of \(5,\), expected \(8,\)"),
        ({"advance": np.zeros((4, 3), np.int32)}, r"advance of \(3,\), expected \(1,\)"),
        ({"deepstack": np.zeros((4, 1, 8, 7), np.float32)}, "deepstack of"),
        ({"pos": ROWS.pos / np.float32(2)}, r"float32 \(Embeds.pos\) but Spec.pos_dtype is int32"),
        ({"advance": ROWS.advance / np.float32(2)}, r"Embeds.advance\) but Spec.pos_dtype"),
    ],
    ids=["width", "axes", "pos", "modality", "advance", "deepstack", "half pos", "half advance"],
)
def test_rows_that_contradict_the_program_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        stream(WEIGHTS, init_carry(PROGRAM), ROWS._replace(**wrong), program=PROGRAM)


def test_chunks_prefixes_and_carries_that_contradict_the_program_are_refused():
    """Both sides are named, for the stream and for a question."""
    start, question = init_carry(PROGRAM), jm.question_rows(WEIGHTS, [1, 2], program=PROGRAM)
    long = jax.tree.map(lambda x: np.concatenate([x, x], axis=1), ROWS)
    long = long._replace(advance=ROWS.advance)
    other = init_carry(dataclasses.replace(PROGRAM, memory=jm.Recent(9)))
    pinned = jax.tree.map(lambda x: jnp.stack([x] * CFG.layers), PROGRAM.spec.empty(3))
    short = jax.tree.map(lambda x: x[:1], pinned)
    three = dataclasses.replace(PROGRAM, spec=dataclasses.replace(PROGRAM.spec, prefix=3))
    for bound, carry, program, rows, message in (
        (WEIGHTS, start, PROGRAM, long, "16 rows but Spec.chunk is 8"),
        (WEIGHTS, start, PROGRAM, small.chunk(ROWS, 0), "one leading axis"),
        (Bound(WEIGHTS, pinned), start, PROGRAM, ROWS, "prefix has 3 tokens but Spec.prefix is 0"),
        (WEIGHTS, start, three, ROWS, "prefix has 0 tokens but Spec.prefix is 3"),
        (Bound(WEIGHTS, short), start, three, ROWS, "prefix has 1 layers but Spec.layers is 2"),
        (small.params(DEEP), start, PROGRAM, ROWS, "weights have 3 layers .* decoder has 2"),
        (WEIGHTS, other, PROGRAM, ROWS, r"carry is of another program: its .* \(18, 1\)"),
    ):
        with pytest.raises(ValueError, match=message):
            stream(bound, carry, rows, program=program)
        if "chunk" not in message and "leading" not in message:
            with pytest.raises(ValueError, match=message):
                jm.ask(bound, carry, question, program=program)
    half = question._replace(start=jnp.asarray([0.5]))
    with pytest.raises(ValueError, match=r"Embeds\.start"):
        jm.ask(WEIGHTS, start, half, program=PROGRAM)
    with pytest.raises(ValueError, match="Spec.axes is 1 .* reads 3"):
        make_program(small.config(axes=3), jm.Recent(12), PROGRAM.spec)
    with pytest.raises(ValueError, match=r"Spec.step is \(1, 1, 1\)"):
        spec_of(CFG, chunk=8, step=(1, 1, 1))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"ids": []}, "question is empty"),
        ({"ids": [[1, 2]]}, "list of whole token ids"),
        ({"ids": [1.5]}, "list of whole token ids"),
        ({"ids": [1, 29]}, "29 is not in the vocabulary of 29"),
        ({"ids": [1, -1]}, "-1 is not in the vocabulary"),
        ({"ids": [1] * 9, "size": 8}, "9 tokens but size=8"),
        ({"ids": [1, 2], "steps": [1]}, r"steps has shape \(1,\), expected \(2,\)"),
        ({"ids": [1, 2], "start": np.zeros(3)}, r"start has shape \(3,\), expected \(1,\)"),
        ({"ids": [1, 2], "start": np.asarray([0.5])}, "starts at"),
    ],
    ids=["none", "nested", "half", "too large", "negative", "many", "steps", "start", "half start"],
)
def test_questions_that_are_none_are_refused(more, message):
    ids = more.pop("ids")
    with pytest.raises(ValueError, match=message):
        jm.question_rows(WEIGHTS, ids, program=PROGRAM, **more)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"max_new": 0}, "at least 1, got 0"),
        ({"max_new": 2.5}, "at least 1, got 2.5"),
        ({"key": jax.random.key(0)}, "key was given without sampling"),
        ({"sampling": jm.Sampling()}, "sampling needs a key"),
        ({"end": (3, 29)}, "end=29 would end no answer"),
    ],
    ids=["none", "half", "key", "sampling", "end"],
)
def test_answers_that_cannot_be_drawn_are_refused(more, message):
    question = jm.question_rows(WEIGHTS, [1, 2], program=PROGRAM)
    with pytest.raises(ValueError, match=message):
        jm.ask(WEIGHTS, init_carry(PROGRAM), question, program=PROGRAM, **more)


def test_scored_answers_are_checked():
    question = jm.question_rows(WEIGHTS, [1, 2], program=PROGRAM)
    for ids in ([29], [-1], [[1]]):
        with pytest.raises(ValueError, match=r"vocabulary of 29|list of whole"):
            jm.log_prob(WEIGHTS, init_carry(PROGRAM), question, np.asarray(ids), program=PROGRAM)


def test_a_carry_that_is_gone_says_so():
    carry = init_carry(PROGRAM)
    kept = branch(carry)
    question = jm.question_rows(WEIGHTS, [1, 2], program=PROGRAM)
    after = advance(WEIGHTS, carry, ROWS, program=PROGRAM)
    for use in (stream, advance):
        with pytest.raises(ValueError, match=r"this carry is gone.*branch"):
            use(WEIGHTS, carry, ROWS, program=PROGRAM)
    with pytest.raises(ValueError, match="this carry is gone"):
        jm.ask(WEIGHTS, carry, question, program=PROGRAM)
    assert_same(after, stream(WEIGHTS, kept, ROWS, program=PROGRAM))


def test_sessions_that_make_no_sense_are_refused(model):
    for more, message in (
        ({"memory": "recent"}, r"object such as jaxmem.OmniMem\(96\), got 'recent'"),
        ({"memory": jm.Recent}, "object such as"),
        ({"chunk_pieces": 1.5}, "whole and at least 1"),
        ({"key": jax.random.key(0)}, "key was given without sampling"),
        ({"sampling": jm.Sampling()}, "sampling needs a key"),
    ):
        with pytest.raises(ValueError, match=message):
            jm.Session(model, **({"memory": jm.Recent(8)} | more))


BLACK = np.zeros((1, 48, 48, 3), np.uint8)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"samples": np.zeros(1, np.float32)}, r"shape \(1,\), expected \(16000,\)"),
        ({"samples": np.zeros(8000, np.float32)}, "pad with zeros"),
        ({"samples": np.zeros((16000, 2), np.float32)}, "mono"),
        ({"samples": np.zeros(16000, np.int16)}, "divide 16-bit samples by 32768"),
        ({"samples": None}, "has no samples"),
        ({"frames": np.zeros((1, 48, 48, 3), np.float32)}, "multiply by 255"),
        ({"frames": np.zeros((1, 96, 96, 3), np.uint8)}, r"expected \(1, 48, 48, 3\)"),
        ({"frames": np.zeros((1, 3, 48, 48), np.uint8)}, "RGB"),
        ({"frames": np.zeros((1, 48, 48), np.uint8)}, "RGB"),
        ({"frames": np.zeros((2, 48, 48, 3), np.uint8)}, "1 frames a second"),
        ({"frames": np.zeros((0, 48, 48, 3), np.uint8)}, "1 frames a second"),
    ],
    ids=lambda x: x if isinstance(x, str) else " ",
)
def test_a_piece_of_another_format_is_refused_and_nothing_is_lost(model, wrong, message):
    session = jm.Session(model, jm.Recent(32), chunk_pieces=3)
    session.feed(piece(0))
    with pytest.raises(ValueError, match=f"piece 1.*{message}"):
        session.feed(piece(1, **wrong))
    assert session.pieces == 1
    session.feed(piece(1))
    assert session.pieces == 2


def test_a_wrong_first_piece_does_not_decide_the_size_of_a_model(model):
    """A model that is fitted to its first frames is fitted to frames, not to what is none."""
    asked = []

    def fitted(size):
        asked.append(size)
        return Fitted(20, None, (4, 4))

    media = dataclasses.replace(model.media, size=lambda h, w: (h, w))
    open_ = model._replace(tokens_per_piece=0, for_frames=fitted, media=media)
    session = jm.Session(open_, jm.Recent(32), chunk_pieces=2)
    for wrong in (np.zeros((1, 3, 48, 48), np.uint8), np.zeros((1, 48, 48), np.uint8)):
        with pytest.raises(ValueError, match="RGB"):
            session.feed(piece(frames=wrong))
    assert not asked
    session.feed(piece())
    assert asked == [(48, 48)] and session.pieces == 1


def test_pieces_may_be_lists_and_arrays_of_any_kind(model):
    """What numpy reads as the right shape and type is taken."""
    one = piece(3)
    want = jm.Session(model, jm.Recent(32)).watch([one]).carry
    double = {"samples": one.samples.astype(np.float64).tolist()}
    for more in (double, {"frames": jnp.asarray(one.frames), "samples": jnp.asarray(one.samples)}):
        assert_same(jm.Session(model, jm.Recent(32)).watch([piece(3, **more)]).carry, want)
