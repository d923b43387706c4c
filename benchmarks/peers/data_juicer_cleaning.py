"""Data-Juicer's nearest pipeline to the cleaning recipe. Runs in the peer's environment.

    python data_juicer_cleaning.py INPUT_FOLDER WORK_FOLDER

Reads INPUT_FOLDER/pages.jsonl (HTML in `text`), writes WORK_FOLDER/clean.jsonl, prints one line of JSON: processor
seconds of each part, and what was kept. Its rules are its own and not those of Gopher and C4; filters that download a
model or a list (language, perplexity, stop words, flagged words) are left out.
"""

import json
import os
import resource
import sys
from pathlib import Path

PARTS = {
    "extract": [{"clean_html_mapper": {}}],
    "rules": [
        {"fix_unicode_mapper": {}},
        {"whitespace_normalization_mapper": {}},
        {"alphanumeric_filter": {"tokenization": False, "min_ratio": 0.6}},
        {"average_line_length_filter": {"min_len": 10}},
        {"maximum_line_length_filter": {"min_len": 20}},
        {"character_repetition_filter": {"rep_len": 10, "max_ratio": 0.3}},
        {"word_repetition_filter": {"tokenization": False, "rep_len": 10, "max_ratio": 0.3}},
        {"special_characters_filter": {"max_ratio": 0.4}},
        {"words_num_filter": {"tokenization": False, "min_num": 50}},
        {"text_length_filter": {"min_len": 100}},
        {"clean_email_mapper": {}},
        {"clean_ip_mapper": {}},
    ],
    "dedup": [{"document_minhash_deduplicator": {"tokenization": "space", "jaccard_threshold": 0.8, "window_size": 5}}],
}


def processor_seconds() -> float:
    """Seconds of all processors that this process and its children used."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def main() -> None:
    """Run the parts one after another."""
    from data_juicer.config import init_configs
    from data_juicer.core import DefaultExecutor

    source, work = Path(sys.argv[1], "pages.jsonl"), Path(sys.argv[2])
    told, rows = {}, {}
    for name, process in PARTS.items():
        used = processor_seconds()
        target = work / name / "out.jsonl"
        target.parent.mkdir()
        recipe = {
            "project_name": name, "dataset_path": str(source), "export_path": str(target), "np": 1,
            "use_cache": False, "open_monitor": False, "process": process, "work_dir": str(work / name),
        }  # fmt: skip
        written = work / f"{name}.yaml"
        written.write_text(json.dumps(recipe))  # JSON is YAML
        DefaultExecutor(init_configs(["--config", str(written)])).run()
        told[name] = processor_seconds() - used
        rows[name] = sum(1 for _ in target.open(encoding="utf-8"))
        source = target
    # Data-Juicer has taken sys.stdout for its log.
    print("\n" + json.dumps({"processor_seconds": told, "rows": rows}), file=sys.__stdout__, flush=True)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
