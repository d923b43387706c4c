"""datatrove's MinHash job, all four stages, as its own example runs it. Runs in the peer's virtual environment.

    python datatrove_minhash.py INPUT_FOLDER WORK_FOLDER TASKS

Reads INPUT_FOLDER/*.jsonl, writes WORK_FOLDER/{kept,removed}, and prints one line of JSON: seconds and processor
seconds of each stage.
"""

import json
import os
import resource
import sys
import time

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import (
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers.jsonl import JsonlWriter


def processor_seconds() -> float:
    """Seconds of all processors that this process and its children used."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def main() -> None:
    """Run the stages one after another."""
    source, work, tasks = sys.argv[1], sys.argv[2], int(sys.argv[3])
    config = MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8)
    reader = JsonlReader(source, glob_pattern="*.jsonl")
    stages = [
        ("sign", tasks, [reader, MinhashDedupSignature(output_folder=f"{work}/signatures", config=config)]),
        (
            "buckets",
            config.num_buckets,
            [MinhashDedupBuckets(input_folder=f"{work}/signatures", output_folder=f"{work}/buckets", config=config)],
        ),
        (
            "cluster",
            1,
            [
                MinhashDedupCluster(
                    input_folder=f"{work}/buckets",
                    output_folder=f"{work}/remove",
                    config=config,
                    save_cluster_id=True,
                )
            ],
        ),
        (
            "write",
            tasks,
            [
                reader,
                MinhashDedupFilter(
                    input_folder=f"{work}/remove",
                    exclusion_writer=JsonlWriter(f"{work}/removed", compression=None),
                    load_cluster_ids=True,
                ),
                JsonlWriter(f"{work}/kept", compression=None),
            ],
        ),
    ]
    told = {}
    for name, count, pipeline in stages:
        started, used = time.monotonic(), processor_seconds()
        LocalPipelineExecutor(
            pipeline=pipeline,
            tasks=count,
            workers=min(count, tasks),
            logging_dir=f"{work}/logs/{name}",
            start_method="fork",  # a fork server's children would not be counted
        ).run()
        told[name] = {"seconds": time.monotonic() - started, "processor_seconds": processor_seconds() - used}
    told["peak_bytes"] = max(
        resource.getrusage(who).ru_maxrss * 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    print("\n" + json.dumps(told))


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
