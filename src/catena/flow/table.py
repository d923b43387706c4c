"""Every stage's name and where it lives: the platform on one page.

A stage of another package registers the same way, by an entry point `stage:<name>` in the group `catena.plugins`.
"""

from catena.core.registry import Registry

STAGES = Registry(
    "stage",
    {
        # raw material to samples
        "data.crawl": "catena.data.collect.crawl:crawl",
        "data.extract": "catena.data.extract:extract",
        "data.filter": "catena.data.filter:filter_documents",
        "data.dedup": "catena.data.dedup:dedup",
        "data.mask": "catena.data.privacy:mask",
        "data.language": "catena.data.language:language",
        "data.split": "catena.data.split:split",
        "data.definitions": "catena.data.definitions:definitions",
        "data.converse": "catena.data.converse:converse",
        # samples to models
        "train.tokenizer": "catena.train.tokenizer:tokenizer",
        "train.pretrain": "catena.train.pretrain:pretrain",
        "train.sft": "catena.train.sft:sft",
        "compress.quantize": "catena.compress.quantize:quantize",
        # models to scores and decisions
        "evaluate.perplexity": "catena.evaluate.perplexity:perplexity",
        "evaluate.answers": "catena.evaluate.answers:answers",
        "govern.gate": "catena.govern.gate:gate",
        "govern.promote": "catena.govern.gate:promote",
    },
)
