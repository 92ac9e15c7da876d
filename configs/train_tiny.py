"""The recipe of the embedded model.

Command:  python -m jaxmem.experiments.train --config configs/train_tiny.py --out runs/tiny
Cost:     about 50 minutes on one CPU core, 3 GB of memory, no download.
Expected: accuracies on the test split as in jaxmem/assets/tiny.md (add --evaluate to measure).
"""

from jaxmem.training.loop import Stage, TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        difficulty="standard",
        stages=(
            Stage(seconds=8, streams=16, questions=20, steps=500, crowd=2.5, classes=4),
            Stage(seconds=16, streams=10, questions=24, steps=600, crowd=2.0, classes=4),
            Stage(seconds=32, streams=6, questions=32, steps=500, crowd=2.0, classes=6),
            Stage(seconds=64, streams=4, questions=40, steps=500, crowd=1.6),
            Stage(seconds=128, streams=2, questions=64, steps=400, crowd=1.8),
        ),
    )
