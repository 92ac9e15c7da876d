"""The face of the package: its names, their words, and what importing it costs."""

import inspect
import subprocess
import sys

import pytest

import jaxmem
from jaxmem.memory import CLASSES

NAMES = """
AdaKV Answer Attention Bank BankSpec Bound Candidates Carry Chunk CriticalKV DSCache Embeds Event
ExpectedAttention FeatureMemory FlashVStream FlashVStreamQwen FlexMem Full H2O Hermes InfiniPotV KV
KeyDiff Knorm LastCopy LastFrames LiveVLM MALMM MEMORIES MediaFormat Memory MemoryVLA Mixer Modality
Model MovieChat OmniMem Prioritized Probed Probes Program Prompt Pyramid Quantized Question
RandomSample ReKV Received Recent Recorded Reply Requires Retention Rope Sampling Scored Session
SimpleStream Sinks SnapKV Spec State StreamMem StreamingLLM StreamingVLM TOVA Uniform View WithAudio
WithBank advance ask ask_all ask_stack attend attend_question attend_stack bind branch compile
embeds footprint for_frames init_bank init_stack load log_prob memory_for model_spec
mrope_interleaved mrope_sectioned nbytes question_rows restore rope_1d save slots start stream tick
with_scorer within yarn
""".split()  # fmt: skip


def test_public_names_are_these():
    """A name that comes or goes is a decision, written here and in the changelog."""
    assert [name for name in dir(jaxmem) if not name.startswith("_")] == NAMES


def test_every_memory_has_a_public_class():
    assert set(CLASSES) <= set(dir(jaxmem))


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_is_there_and_documented(name):
    assert inspect.getdoc(getattr(jaxmem, name))


def test_an_unknown_name_is_refused():
    with pytest.raises(AttributeError, match="elephant"):
        jaxmem.elephant  # noqa: B018


def test_importing_the_package_imports_nothing_heavy():
    program = (
        "import sys, jaxmem; sys.exit(any(m in sys.modules for m in "
        "('jax', 'flax', 'optax', 'orbax', 'av', 'matplotlib', 'transformers', 'torch')))"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
