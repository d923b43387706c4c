"""Every stage's name and where it lives: the platform on one page.

A stage of another package registers the same way, by an entry point `stage:<name>` in the group `catena.plugins`.
"""

from catena.core.registry import Registry

STAGES = Registry(
    "stage",
    {
        # raw material to samples
        "data.crawl": "catena.data.collect.crawl:crawl",
        "data.collect_api": "catena.data.collect.api:collect_api",
        "data.collect_feed": "catena.data.collect.feed:collect_feed",
        "data.collect_mediawiki": "catena.data.collect.mediawiki:collect_mediawiki",
        "data.collect_warc": "catena.data.collect.warc:collect_warc",
        "data.collect_sql": "catena.data.collect.sql:collect_sql",
        "data.collect_objects": "catena.data.collect.objects:collect_objects",
        "data.collect_hf": "catena.data.collect.hf:collect_hf",
        "data.collect_feedback": "catena.data.collect.feedback:collect_feedback",
        "data.ingest": "catena.data.ingest:ingest",
        "data.extract": "catena.data.extract:extract",
        "data.repair": "catena.data.repair:repair_texts",
        "data.lines": "catena.data.lines:clean_lines",
        "data.filter": "catena.data.filter:filter_documents",
        "data.perplexity": "catena.data.perplexity:perplexity",
        "data.quality": "catena.data.quality_model:quality",
        "data.confidence": "catena.data.confidence:confidence",
        "data.label_errors": "catena.data.label_errors:label_errors",
        "data.dedup": "catena.data.dedup:dedup",
        "data.dedup_semantic": "catena.data.semantic:dedup_semantic",
        "data.mask": "catena.data.privacy:mask",
        "data.language": "catena.data.language:language",
        "data.licences": "catena.data.licences:licences",
        "data.select": "catena.data.select:select",
        "data.align_parallel": "catena.data.parallel:align_parallel",
        "data.align_labels": "catena.data.labels:align_labels",
        "data.split": "catena.data.split:split",
        "data.split_text": "catena.data.split_text:split_text",
        "data.decontaminate": "catena.data.decontaminate:decontaminate",
        "data.balance": "catena.data.balance:balance",
        "data.definitions": "catena.data.definitions:definitions",
        "data.converse": "catena.data.converse:converse",
        # samples to models
        "train.tokenizer": "catena.train.tokenizer:tokenizer",
        "train.plan": "catena.train.planner:plan",
        "train.pretrain": "catena.train.pretrain:pretrain",
        "train.masked": "catena.train.masked:masked",
        "train.sft": "catena.train.sft:sft",
        "train.classify": "catena.train.classify:classify",
        "train.seq2seq": "catena.train.seq2seq:seq2seq",
        "train.merge": "catena.train.merge:merge",
        "compress.quantize": "catena.compress.quantize:quantize",
        "compress.prune": "catena.compress.prune:prune",
        "compress.fuse": "catena.compress.fuse:fuse",
        "compress.report": "catena.compress.report:report",
        "compress.export": "catena.compress.export:export",
        # models to scores and decisions
        "evaluate.perplexity": "catena.evaluate.perplexity:perplexity",
        "evaluate.answers": "catena.evaluate.answers:answers",
        "evaluate.tasks": "catena.evaluate.suite:tasks",
        "evaluate.compare": "catena.evaluate.compare:compare",
        "evaluate.classification": "catena.evaluate.classification:classification",
        "govern.gate": "catena.govern.gate:gate",
        "govern.promote": "catena.govern.gate:promote",
        "govern.train_filter": "catena.govern.moderation.train:train_filter",
        "govern.measure_filter": "catena.govern.moderation.train:measure_filter",
    },
)
