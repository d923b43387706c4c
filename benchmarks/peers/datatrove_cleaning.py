"""datatrove's nearest pipeline to the cleaning recipe, after its example for FineWeb. Runs in the peer's environment.

    python datatrove_cleaning.py INPUT_FOLDER WORK_FOLDER

Reads INPUT_FOLDER/*.jsonl (HTML in `text`), writes WORK_FOLDER/clean, prints one line of JSON: processor seconds of
each part, and what was kept. Its language filter downloads a model and is left out.
"""

import json
import os
import resource
import sys
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import (
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.extractors import Trafilatura
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.pipeline.formatters import PIIFormatter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers.jsonl import JsonlWriter


class DirectTrafilatura(Trafilatura):
    """The same extractor without its sandbox process, in whose fork every page ran into the time limit here."""

    def run(self, data, rank=0, world_size=1):
        """Yield the documents that have a main text."""
        for document in data:
            document.text = self.extract(document.text) or ""
            if document.text:
                yield document


def processor_seconds() -> float:
    """Seconds of all processors that this process and its children used."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def main() -> None:
    """Run the parts one after another."""
    source, work = sys.argv[1], sys.argv[2]
    config = MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8)
    extracted = JsonlReader(f"{work}/extracted", glob_pattern="*.jsonl")
    cleaned = JsonlReader(f"{work}/filtered", glob_pattern="*.jsonl")
    parts = [
        (
            "extract",
            1,
            [
                JsonlReader(source, glob_pattern="*.jsonl"),
                DirectTrafilatura(favour_precision=False),
                JsonlWriter(f"{work}/extracted", compression=None),
            ],
        ),
        (
            "rules",
            1,
            [
                extracted,
                GopherRepetitionFilter(),
                GopherQualityFilter(),
                C4QualityFilter(),
                FineWebQualityFilter(),
                PIIFormatter(),
                JsonlWriter(f"{work}/filtered", compression=None),
            ],
        ),
        ("dedup", 1, [cleaned, MinhashDedupSignature(output_folder=f"{work}/signatures", config=config)]),
        (
            "dedup",
            14,
            [MinhashDedupBuckets(input_folder=f"{work}/signatures", output_folder=f"{work}/buckets", config=config)],
        ),
        (
            "dedup",
            1,
            [
                MinhashDedupCluster(
                    input_folder=f"{work}/buckets", output_folder=f"{work}/remove", config=config, save_cluster_id=True
                )
            ],
        ),
        (
            "dedup",
            1,
            [
                cleaned,
                MinhashDedupFilter(input_folder=f"{work}/remove", load_cluster_ids=True),
                JsonlWriter(f"{work}/clean", compression=None),
            ],
        ),
    ]
    told: dict[str, float] = {}
    for number, (name, tasks, pipeline) in enumerate(parts):
        used = processor_seconds()
        LocalPipelineExecutor(
            pipeline=pipeline,
            tasks=tasks,
            workers=1,
            logging_dir=f"{work}/logs/{number}",
            start_method="fork",  # a fork server's children would not be counted
        ).run()
        told[name] = told.get(name, 0.0) + processor_seconds() - used
    rows = {
        name: sum(len(path.read_text().splitlines()) for path in Path(work, name).glob("*.jsonl"))
        for name in ("extracted", "filtered", "clean")
    }
    print("\n" + json.dumps({"processor_seconds": told, "rows": rows}))


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
