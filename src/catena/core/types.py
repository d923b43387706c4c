"""The stored things: artifacts (datasets, models, reports) and runs. Frozen values without I/O.

An artifact's digest covers what it is (content, splits, licence, files), not when or how it was made: the same content
made twice is one artifact, and everything downstream of it is taken from the store. What made it stands in its runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from catena.core.digest import digest_of

Shape = Literal["document", "conversation", "example", "media"]
ModelForm = Literal["full", "adapter", "quantized", "gguf", "onnx", "tokenizer", "filter"]
RunStatus = Literal["running", "done", "cached", "failed", "cancelled", "interrupted"]
ENDED: frozenset[str] = frozenset({"done", "cached", "failed", "cancelled", "interrupted"})


class Value(BaseModel):
    """A frozen value: two with equal fields are equal."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class File(Value):
    """One stored file of an artifact."""

    path: str
    """Relative, with `/`, inside the artifact's folder."""
    size: int
    """Bytes."""
    sha256: str


class Split(Value):
    """How much one split of a dataset holds."""

    rows: int
    bytes: int
    """Of the rows' canonical JSON."""


class Score(Value):
    """One measured value with its confidence interval."""

    value: float
    low: float | None = None
    """Lower end of the interval (95 % unless the report says otherwise)."""
    high: float | None = None
    n: int | None = None
    """How many samples it was measured on."""
    unit: str = ""
    better: Literal["higher", "lower"] = "higher"


class Funnel(Value):
    """What a data stage took in, let out, and why it kept the rest back."""

    rows_in: int
    rows_out: int
    rejected: Mapping[str, int] = Field(default_factory=dict)
    """Reason to number of rows; `rows_in - sum(rejected)` went on."""
    changed: Mapping[str, int] = Field(default_factory=dict)
    """What was done to rows that went on, for example `masked_email`."""


class ArtifactBase(Value):
    """What every artifact has. `created`, `made_by` and `parents` are provenance and not part of the digest."""

    PROVENANCE: ClassVar[frozenset[str]] = frozenset({"digest", "created", "made_by", "parents"})

    digest: str = ""
    created: datetime | None = None
    made_by: str | None = None
    """Id of the run that first made it."""
    parents: tuple[str, ...] = ()
    """Digests of the artifacts that run was given."""
    license: str | None = None
    labels: Mapping[str, str] = Field(default_factory=dict)

    def identity(self) -> dict[str, Any]:
        """Return the fields that the digest covers."""
        return self.model_dump(mode="json", exclude=set(self.PROVENANCE))

    def compute_digest(self) -> str:
        """Return the content address: 64 hexadecimal digits."""
        return digest_of(self.identity())


UNDIVIDED = "all"
"""The split of samples that belong to none."""


class DatasetVersion(ArtifactBase):
    """An immutable set of samples, with splits, profile and licence."""

    # The table's files have random names and its profile tells how it came about: `content` is what it is.
    PROVENANCE: ClassVar[frozenset[str]] = ArtifactBase.PROVENANCE | {"files", "table", "revision", "profile"}

    kind: Literal["dataset"] = "dataset"
    shape: Shape
    rows: int
    rejects: int = 0
    """Rows in the table of rejects."""
    content: str
    """SHA-256 over the rows and the rejects, in order."""
    splits: Mapping[str, Split] = Field(default_factory=dict)
    profile: Mapping[str, Any] = Field(default_factory=dict)
    """`funnel` (see `Funnel`) and whatever else the stage found out: languages, licences, duplicates."""
    table: str = ""
    """Folder of the Lance tables, relative to the store. Versions that share their rows share it."""
    revision: int = 1
    """Which Lance version of the samples' table this is."""
    files: tuple[File, ...] = ()

    @property
    def funnel(self) -> Funnel | None:
        """The funnel that the stage left in the profile, if any."""
        found = self.profile.get("funnel")
        return Funnel.model_validate(found) if found else None

    def split_of(self, name: str) -> str:
        """Return the split that is meant: `train` of a dataset that was never divided is all of it."""
        return UNDIVIDED if name == "train" and set(self.splits) == {UNDIVIDED} else name


class ModelVersion(ArtifactBase):
    """An immutable checkpoint folder that plain `transformers` loads (or a tokenizer, adapter, GGUF, ONNX, filter)."""

    kind: Literal["model"] = "model"
    form: ModelForm
    architecture: str = ""
    """The class name in `config.json`, for example LlamaForCausalLM."""
    parameters: int = 0
    dtype: str = ""
    quantization: str | None = None
    context: int = 0
    """Longest sequence, in tokens."""
    base: str | None = None
    """Digest of the model that this one needs (adapters) or was made smaller from."""
    files: tuple[File, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


class Report(ArtifactBase):
    """An immutable set of scores about one artifact."""

    kind: Literal["report"] = "report"
    subject: str
    """Digest of the artifact that was measured."""
    suite: str
    scores: Mapping[str, Score]
    details: Mapping[str, Any] = Field(default_factory=dict)
    files: tuple[File, ...] = ()
    """For example `samples.jsonl`: one line for each question, with the answer and its score."""


Artifact = DatasetVersion | ModelVersion | Report
ArtifactKind = Literal["dataset", "model", "report"]
ARTIFACT: TypeAdapter[Artifact] = TypeAdapter(Annotated[Artifact, Field(discriminator="kind")])
KINDS: dict[str, type[ArtifactBase]] = {"dataset": DatasetVersion, "model": ModelVersion, "report": Report}


class Run(Value):
    """One execution of a stage: the only record that changes while it goes on."""

    id: str
    group: str
    """Id that all runs of one `catena run` share; names their folder of events."""
    step: str
    stage: str
    recipe: str = ""
    name: str = ""
    """What the output is called."""
    status: RunStatus = "running"
    config: Mapping[str, Any] = Field(default_factory=dict)
    seed: int = 0
    inputs: Mapping[str, str] = Field(default_factory=dict)
    """Input name to the artifact's digest."""
    uses: Mapping[str, str] = Field(default_factory=dict)
    """Input name to the step of the same group, or the reference, that it came from."""
    output: str | None = None
    key: str = ""
    """Content address of (stage, code, config, seed, inputs): equal keys have equal outputs."""
    code: str = ""
    machine: Mapping[str, Any] = Field(default_factory=dict)
    metrics: Mapping[str, Any] = Field(default_factory=dict)
    profile: Mapping[str, Any] = Field(default_factory=dict)
    """What the stage said of the dataset it made, the funnel too. Two steps may make the same rows in two ways."""
    started: datetime | None = None
    ended: datetime | None = None
    error: str | None = None

    @property
    def seconds(self) -> float | None:
        """Wall time, once it has ended."""
        if self.started is None or self.ended is None:
            return None
        return (self.ended - self.started).total_seconds()
