"""lmms-eval's model `async_openai` as a client of the server, both from their command lines."""

import browsers
import pytest
from lmms_task import evaluated, write_task

from jaxmem.data.world.files import held_out

pytestmark = pytest.mark.lmms
SEEN = ("order", "colour", "where", "count")
"""Types of questions about pictures: lmms-eval sends no sound of a video."""


@pytest.mark.parametrize("stamps", [False, True], ids=["plain", "time stamps"])
def test_lmms_eval_asks_the_server(stamps, tmp_path):
    """Its pictures of each video become a session, whose answers to what was seen are right."""
    pytest.importorskip("lmms_eval", reason="lmms-eval is not installed")
    pytest.importorskip("qwen_vl_utils", reason="lmms-eval reads videos with qwen-vl-utils")
    pytest.importorskip("uvicorn")
    docs = []
    for seed in range(2):
        path, asked = held_out(seed, 8, tmp_path, count=40)
        last = {q.text: q for q in asked if q.time == 8 and q.type in SEEN}.values()
        docs += [{"video": str(path), "question": q.text, "answer": q.answer} for q in last]
    assert len(docs) >= 4
    write_task(tmp_path, docs)
    with browsers.serving("--memory", "recent", "--budget", "200", cwd=tmp_path) as address:
        how = f"model_version=tiny,base_url={address}/v1,api_key=none,fps=2,is_qwen3_vl={stamps}"
        right, said = evaluated(tmp_path, "--model", "async_openai", "--model_args", how)
    assert not any("FAILED" in one for one in said), said
    assert right >= 0.75, list(zip(docs, said, strict=True))
