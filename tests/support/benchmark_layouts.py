"""Every benchmark's layout by its name."""

from benchmark_streams import ovbench, ovo_bench, rvs, streamingbench, vstream_qa
from benchmark_videos import (
    avut,
    daily_omni,
    egoschema,
    longvideobench,
    lvbench,
    lvomnibench,
    mlvu,
    mvbench,
    omnivideobench,
    timescope,
    video_mme,
    worldsense,
)

LAYOUTS = {
    "streamingbench": streamingbench,
    "ovo-bench": ovo_bench,
    "rvs-ego": lambda folder: rvs(folder, "ego", "v1.mp4"),
    "rvs-movie": lambda folder: rvs(folder, "movie", "v1.npy"),
    "vstream-qa": vstream_qa,
    "video-mme": video_mme,
    "mlvu": mlvu,
    "longvideobench": longvideobench,
    "egoschema": egoschema,
    "lvbench": lvbench,
    "mvbench": mvbench,
    "timescope": timescope,
    "worldsense": worldsense,
    "daily-omni": daily_omni,
    "omnivideobench": omnivideobench,
    "lvomnibench": lvomnibench,
    "ovbench": ovbench,
    "odv-bench": ovbench,
    "avut": avut,
}
