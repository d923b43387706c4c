"""What every training is told: learning rate, schedule, batch, where and how precisely. Free of torch."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from catena.core.config import Config
from catena.train.guard import GuardConfig
from catena.train.parallel.settings import ParallelConfig

Schedule = Literal["cosine", "wsd", "constant"]
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "float32", "bfloat16", "float16", "float8"]
OptimizerName = Literal["adamw", "sgd", "lion", "muon", "adafactor"]
Compile = Literal["auto", "on", "off"]


HOW = frozenset({"micro_batch_size", "gradient_checkpointing", "checkpoint_seconds", "checkpoint_keep"})
"""Fields of a training's config that change how it is done, and nothing that it does."""


class TrainConfig(Config):
    """Base of the training stages' configs."""

    batch_size: int = Field(default=16, ge=1)
    """Sequences in one optimizer step."""
    micro_batch_size: int = Field(default=0, ge=0)
    """Sequences in one forward and backward; the rest of the batch is accumulated. 0: the whole batch at once."""
    optimizer: OptimizerName = "adamw"
    """`adamw`; `sgd` with momentum; `lion` (arXiv 2302.06675; wants a rate 3 to 10 times lower); `muon` for matrices
    with AdamW for the rest; `adafactor` (arXiv 1804.04235), which keeps the least state."""
    learning_rate: float = Field(default=2e-3, gt=0, le=1)
    """Highest learning rate."""
    warmup_steps: int = Field(default=20, ge=0)
    """Steps in which the rate rises from nothing to the highest."""
    schedule: Schedule = "cosine"
    """How the rate falls: `cosine`; `wsd` (level, then down in a straight line); `constant`."""
    decay_share: float = Field(default=0.3, ge=0, le=1)
    """Share of all steps, at the end, in which `wsd` falls."""
    final_rate: float = Field(default=0.1, ge=0, le=1)
    """Rate at the end, as a share of the highest."""
    weight_decay: float = Field(default=0.05, ge=0)
    """Decoupled decay of weight matrices; embeddings and norms have none."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """The optimizer's memory of gradients (beta1 of AdamW and Lion)."""
    beta2: float = Field(default=0.95, gt=0, lt=1)
    """AdamW's memory of squared gradients, and Lion's of gradients."""
    clip: float = Field(default=1.0, gt=0)
    """Longest gradient, in the 2-norm over all weights."""
    eval_every: int = Field(default=200, ge=1)
    """Steps between two measurements on the validation split."""
    eval_batches: int = Field(default=16, ge=1)
    """Batches of the validation split that one measurement reads."""
    log_every: int = Field(default=10, ge=1)
    """Steps between two entries in the loss curve."""
    checkpoint_seconds: float = Field(default=10.0, ge=0)
    """Training time between two checkpoints to go on from; 0 writes one at each step. The result is the same."""
    checkpoint_every: int = Field(default=1000, ge=1)
    """Steps between two checkpoints that are written in any case: a spike sends the training back to such a one."""
    checkpoint_keep: int = Field(default=2, ge=1)
    """Newest checkpoints that are kept; the best one, and the one to go back to, are kept besides."""
    precision: Precision = "auto"
    """Number format of matrix products; weights are float32. `auto`: what a short measurement finds faster;
    `float8` needs a GPU of compute capability 8.9 or more."""
    compile: Compile = "auto"
    """Whether layers are compiled (`torch.compile`). `auto`: on a GPU, where the training is long enough to pay."""
    gradient_checkpointing: bool = False
    """Keep a layer's input alone and compute the rest again in the backward pass (arXiv 1604.06174): a third more
    computing, far less memory. The result is the same."""
    device: Device = "auto"
    """`auto`: the first CUDA GPU, else the CPU."""
    guard: GuardConfig = GuardConfig()
    """What is watched, and what is done about it."""
    parallel: ParallelConfig = ParallelConfig()
    """How several processes share the work; one process needs nothing of it."""

    def deciding(self) -> dict[str, Any]:
        """Return the values that decide what is learnt: a run that is stopped may go on with the others changed."""
        return self.model_dump(mode="json", exclude={*HOW, *(("parallel",) if self.parallel.exact else ())})


class SplitConfig(TrainConfig):
    """Base for those who learn from one split of a dataset and measure on another."""

    split: str = "train"
    """Split to train on."""
    validation_split: str = "validation"
    """Split to measure on; a dataset without it is trained without measuring."""


class BudgetConfig(SplitConfig):
    """Base for those whose length is told in steps or in times through the data; each says what neither means."""

    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps."""
    epochs: float | None = Field(default=None, gt=0)
    """Times to go through the data."""

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give steps or epochs, not both")
        return self
