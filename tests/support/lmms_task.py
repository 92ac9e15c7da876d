"""A task of lmms-eval with videos and questions of ours, and lmms-eval run on it."""

import json
import os
import re
import subprocess
import sys

TASK = """
task: shapes
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: OUTPUT
doc_to_visual: !function utils.visual
doc_to_text: !function utils.text
doc_to_target: answer
generation_kwargs: {max_new_tokens: 4, until: ["\\n"]}
process_results: !function utils.results
metric_list: [{metric: right, aggregation: mean, higher_is_better: true}]
"""
UTILS = """
def visual(doc):
    return [doc["video"]]

def text(doc, lmms_eval_specific_kwargs=None, previous_output=None, round_idx=None,
         previous_round_info=None):
    if round_idx is None:
        return doc["question"]
    return None, doc["question"], round_idx == 2, previous_output, None

def results(doc, replies):
    said = replies[0] if isinstance(replies[0], (list, tuple)) else replies
    return {"right": float(all(one == doc["answer"] for one in said))}
"""


def write_task(folder, docs, output="generate_until"):
    """Write the task `shapes` of records with `video`, `question` and `answer`."""
    (folder / "docs.json").write_text(json.dumps(docs))
    task = TASK.replace("FILE", str(folder / "docs.json")).replace("OUTPUT", output)
    (folder / "tasks").mkdir()
    (folder / "tasks" / "shapes.yaml").write_text(task)
    (folder / "tasks" / "utils.py").write_text(UTILS)


def evaluated(folder, *argv):
    """Run lmms-eval on the task from its command line; return the share that was right, and what
    was said to each record."""
    line = (*("--tasks", "shapes", "--include_path", folder / "tasks"), "--log_samples")
    words = [sys.executable, "-m", "lmms_eval", *argv, *line, "--output_path", folder / "out"]
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(words, capture_output=True, text=True, cwd=folder, env=offline)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads(next((folder / "out").rglob("*_results.json")).read_text())
    share = next(v for k, v in found["results"]["shapes"].items() if re.match("right,", k))
    samples = next((folder / "out").rglob("*_samples_shapes.jsonl")).read_text().splitlines()
    rows = sorted((json.loads(line) for line in samples), key=lambda row: row["doc_id"])
    return share, [row["filtered_resps"] for row in rows]
