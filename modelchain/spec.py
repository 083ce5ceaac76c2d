"""The `ModelChain` resource (modelchain.dev/v1alpha1) as pydantic types: what a user writes.

One type serves a block at chain level and the same block inside a stage. So every field of a block that may
be overridden is optional and has no default here: a default would hide the chain's value in a stage, and one
that decides weights would be frozen into stored resources. `modelchain.resolve` merges stage over chain over
defaults.

The CRD in crds/ is generated from these types: descriptions, bounds and list lengths included.
"""

from __future__ import annotations

from enum import StrEnum
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    StringConstraints,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    create_model,
)
from pydantic.alias_generators import to_camel, to_snake

from modelchain.block import Block
from modelchain.endpoint import ENDPOINT_PATTERN
from modelchain.families import FAMILIES, AnyConfig, LockedTower
from modelchain.uri import CREDENTIALS_PATTERN, URI_PATTERN

GROUP = "modelchain.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "ModelChain"

MAX_STAGES = 32
MAX_BASELINES = 32  # runs of models alone: as many stages more in a chain's status
MAX_SOURCES, MAX_SOURCE_PATTERNS = 32, 64
MAX_SHARD_PATTERNS = 256
MAX_CAPTION_KEYS = 32
# Besides s3 and file, where data and weights may lie; but for http and https with libraries of fsspec in the image.
READABLE_SCHEMES = ("https", "http", "gs", "az", "abfs", "hf")
MAX_MISSING_SHARDS = 1_000_000
MAX_EVALUATIONS = 16
MAX_CLASSES = 2000
MAX_TEMPLATES = 200

STAGE_NAME = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
StageName = Annotated[str, StringConstraints(pattern=STAGE_NAME, max_length=30)]
# The patterns are the CRD's alone: what is wrong is said by validation/blocks.py, which does not repeat a key.
Uri = Annotated[
    str,
    StringConstraints(min_length=1, max_length=1024),
    Field(json_schema_extra={"pattern": URI_PATTERN, "not": {"pattern": CREDENTIALS_PATTERN}}),
]
EndpointUrl = Annotated[
    str,
    StringConstraints(min_length=1, max_length=1024),
    Field(json_schema_extra={"pattern": ENDPOINT_PATTERN}),
]
# https://github.com/distribution/reference: a host or not, a path in lower case, a tag, a digest
_IMAGE_PATTERN = (
    r"^([A-Za-z0-9.\-]+(:[0-9]+)?/|\[[0-9a-fA-F:]+\](:[0-9]+)?/)?"
    r"[a-z0-9]+([._\-]+[a-z0-9]+)*(/[a-z0-9]+([._\-]+[a-z0-9]+)*)*"
    r"(:[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127})?(@[A-Za-z0-9_+.\-]+:[0-9a-fA-F]{32,})?$"
)
Image = Annotated[str, StringConstraints(pattern=_IMAGE_PATTERN, min_length=1, max_length=256)]
# botocore takes no other: a part of a host's name
Region = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]([-A-Za-z0-9]*[A-Za-z0-9])?$", max_length=63)]
ExtendedResource = Annotated[  # its name without a domain would be one of Kubernetes' own
    str,
    StringConstraints(
        pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$", max_length=256
    ),
]
ShortText = Annotated[str, StringConstraints(min_length=1, max_length=256)]
ObjectName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)]
DataKey = Annotated[
    str, StringConstraints(pattern=r"^[-._a-zA-Z0-9]+$", max_length=253)
]  # of a Secret or ConfigMap
LabelValue = Annotated[
    str, StringConstraints(pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$", max_length=63)
]
AnnotationValue = Annotated[str, StringConstraints(max_length=4096)]
ControllerName = Annotated[
    str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[-A-Za-z0-9._/]+$", max_length=63)
]
MetricName = Annotated[str, StringConstraints(pattern=r"^[a-z][-a-z0-9]*/[A-Za-z0-9@]+$", max_length=64)]
Template = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
FileKey = Annotated[  # an extension, or a field of JSON files: `txt`, `json:caption`
    str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}(:[A-Za-z0-9_.-]{1,64})?$")
]
Extension = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
Count = Annotated[int, Field(ge=1, le=2**40)]
SmallCount = Annotated[int, Field(ge=1, le=65536)]
Seconds = Annotated[int, Field(ge=0, le=10**8)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


AUTO = "Auto"  # as a user writes it
FOUND_BY_TRAINER = 0  # what Auto is in here: a number is none of a user's


def _auto_or_number(value: object, number: ValidatorFunctionWrapHandler) -> int:
    return FOUND_BY_TRAINER if value == AUTO else number(value)


def _written_size(value: int | None) -> int | str | None:
    return AUTO if value == FOUND_BY_TRAINER else value


# A number, or Auto. Not a union: what is wrong with the value is then said of the field, once.
MicroBatchSize = Annotated[SmallCount, WrapValidator(_auto_or_number)]


class TaskName(StrEnum):
    CLIP = "Clip"
    CLASSIFICATION = "Classification"
    LANGUAGE_MODEL = "LanguageModel"


class WidthExpansion(StrEnum):
    EXACT = "Exact"
    PADDED = "Padded"
    SLICE = "Slice"
    FRESH = "Fresh"


class DepthExpansion(StrEnum):
    IDENTITY = "Identity"
    INTERLEAVE = "Interleave"
    STACK = "Stack"


class InitialWeights(StrEnum):
    PUBLISHED = "Published"
    TRUNK = "Trunk"


class OptimizerState(StrEnum):
    RESET = "Reset"
    CARRIED = "Carried"


class Precision(StrEnum):
    FP32 = "Fp32"
    BF16 = "Bf16"


class Sharding(StrEnum):
    NONE = "None"
    OPTIMIZER = "Optimizer"
    FULL = "Full"


class LearningRateScheduleType(StrEnum):
    COSINE = "Cosine"
    WARMUP_STABLE_DECAY = "WarmupStableDecay"


class DistillationScheduleType(StrEnum):
    CONSTANT = "Constant"
    LINEAR = "Linear"


class LossName(StrEnum):
    CONTRASTIVE = "Contrastive"
    SIGMOID = "Sigmoid"


class EvaluationType(StrEnum):
    ZERO_SHOT = "ZeroShot"
    RETRIEVAL = "Retrieval"
    ACCURACY = "Accuracy"
    PERPLEXITY = "Perplexity"
    LINEAR_PROBE = "LinearProbe"
    FINE_TUNE = "FineTune"


class JobBackend(StrEnum):
    PYTORCH_JOB = "PyTorchJob"
    JOB = "Job"
    TRAIN_JOB = "TrainJob"


class QueuePolicy(StrEnum):
    REQUIRED = "Required"
    IF_PRESENT = "IfPresent"


class BundleKind(StrEnum):
    CONFIG_MAP = "ConfigMap"
    SECRET = "Secret"  # noqa: S105  a kind of object


class CredentialKeys(Block):
    access_key_id: Annotated[DataKey, Field(description="Key with the access key's ID.")] = (
        "AWS_ACCESS_KEY_ID"
    )
    secret_access_key: Annotated[  # names of variables, no secrets
        DataKey, Field(description="Key with the secret access key.")
    ] = "AWS_SECRET_ACCESS_KEY"  # noqa: S105
    session_token: Annotated[
        DataKey, Field(description="Key with the session token of temporary credentials; it may be missing.")
    ] = "AWS_SESSION_TOKEN"  # noqa: S105


class CredentialsReference(Block):
    """One Secret for all keys, so that a rotation is one write and no reader sees half of it."""

    name: Annotated[ObjectName, Field(description="Name of the Secret.")]
    keys: Annotated[
        CredentialKeys,
        Field(description="Where the Secret has what. Default: the names of AWS' variables."),
    ] = CredentialKeys()


class BundleReference(Block):
    kind: Annotated[BundleKind, Field(description="Kind of the object.")] = BundleKind.CONFIG_MAP
    name: Annotated[ObjectName, Field(description="Name of the object.")]
    key: Annotated[DataKey, Field(description="Key with the certificates, in PEM.")] = "ca.crt"


class StoreSpec(Block):
    uri: Annotated[
        Uri,
        Field(
            description="Where artifacts are kept: s3://bucket/prefix, file:///folder, or (local runs) "
            "a relative path."
        ),
    ]
    endpoint_url: Annotated[
        EndpointUrl | None, Field(description="S3 endpoint, e.g. http://minio:9000. Default: AWS.")
    ] = None
    region: Annotated[Region | None, Field(description="S3 region. Default: from the environment.")] = None
    secret_ref: Annotated[
        CredentialsReference | None,
        Field(
            description="Secret in the chain's namespace with the keys of the store. "
            "Default: the service account's identity."
        ),
    ] = None
    ca_bundle_ref: Annotated[
        BundleReference | None,
        Field(
            description="ConfigMap or Secret in the chain's namespace with the certificate authority of the S3 "
            "endpoint. Default: those that the image trusts."
        ),
    ] = None
    allow_unconditional_writes: Annotated[
        bool | None,
        Field(
            description="Accept a store without conditional writes (If-None-Match). Two trainers of "
            "one stage could "
            "then overwrite each other's manifest. Default: false."
        ),
    ] = None


class TokenizerSpec(Block):
    """How documents become tokens, as a file of the tokenizers library."""

    uri: Annotated[Uri, Field(description="A tokenizer.json, as the tokenizers library writes it.")]
    sha256: Annotated[Sha256, Field(description="SHA-256 of that file.")]
    end_of_text: Annotated[
        ShortText,
        Field(description="The token that stands before each document and after the last one."),
    ] = "<|endoftext|>"


class DataSourceSpec(Block):
    shards: Annotated[
        list[Uri],
        Field(
            min_length=1, max_length=MAX_SOURCE_PATTERNS, description="Webdataset tars, as in data.shards."
        ),
    ]
    samples: Annotated[Count, Field(description="Samples in all shards of the source together.")]
    repeat: Annotated[
        Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)] | None,
        Field(
            description="How often an epoch sees each sample: 2.5 is each twice and half of them once more, 0.1 a "
            "tenth, another one in each epoch. Default: 1."
        ),
    ] = None


class DataSpec(Block):
    shards: Annotated[
        list[Uri] | None,
        Field(
            min_length=1,
            max_length=MAX_SHARD_PATTERNS,
            description="Webdataset tars (of documents also .jsonl files): s3://, https:// or file:// URIs or (local "
            "runs) paths, with brace ranges such as {00000..00331}. S3 shards are read from the store's endpoint with "
            "the store's credentials; gs://, az:// and hf:// need their fsspec package in the image.",
        ),
    ] = None
    samples: Annotated[
        Count | None, Field(description="Samples in all shards together; an epoch is one pass over them.")
    ] = None
    sources: Annotated[
        list[DataSourceSpec] | None,
        Field(
            min_length=1,
            max_length=MAX_SOURCES,
            description="In place of shards and samples: several sources, each seen as often per epoch as its `repeat` "
            "says.",
        ),
    ] = None
    caption_keys: Annotated[
        list[FileKey] | None,
        Field(
            min_length=1,
            max_length=MAX_CAPTION_KEYS,
            description="Extensions of a sample's caption files, or fields of its JSON file (json:caption). "
            "Each is a contrastive term of its own; terms are averaged. Default: [txt].",
        ),
    ] = None
    image_keys: Annotated[
        list[Extension] | None,
        Field(
            min_length=1,
            max_length=MAX_CAPTION_KEYS,
            description="Extensions of image files; the first that a sample has is its image. Default: jpg, png, "
            "jpeg, webp and others.",
        ),
    ] = None
    class_key: Annotated[
        FileKey | None,
        Field(
            description="Task Classification: extension of the file with a sample's class number, or a field of a JSON "
            "file (json:label). Default: cls.",
        ),
    ] = None
    tokens: Annotated[
        Count | None,
        Field(
            description="Task LanguageModel, in place of samples: tokens in all shards together, one more for each "
            "document than its text has. One epoch sees each once, in sequences of contextLength tokens.",
        ),
    ] = None
    text_key: Annotated[
        FileKey | None,
        Field(
            description="Task LanguageModel: extension of the file with a document's text, or a field of a JSON file "
            "(json:text). Default: txt; of shards that end in .jsonl, the field text of each line.",
        ),
    ] = None
    tokenizer: Annotated[
        TokenizerSpec | None,
        Field(
            description="Task LanguageModel: how text becomes tokens. Default: bytes, 257 of them with the end of text."
        ),
    ] = None
    block_mebibytes: Annotated[
        int | None,
        Field(
            ge=1,
            le=1024,
            description="Bytes read at once, in MiB; blocks are permuted each epoch. Default: 4.",
        ),
    ] = None
    window_blocks: Annotated[
        int | None,
        Field(ge=1, le=4096, description="Blocks that a batch is drawn from. Default: 128."),
    ] = None
    random_crop_scale: Annotated[
        list[Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]] | None,
        Field(
            min_length=2,
            max_length=2,
            description="Smallest and largest area of the random resized crop. Default: [0.9, 1.0].",
        ),
    ] = None
    draft_decoding: Annotated[
        bool | None,
        Field(
            description="Decode JPEGs that are large enough at a half, a quarter or an eighth of their size, which is "
            "faster and moves pixels a little; false decodes all of them whole. Default: true."
        ),
    ] = None
    max_corrupt_fraction: Annotated[
        Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None,
        Field(description="Share of samples that may be unreadable before the stage fails. Default: 0.01."),
    ] = None
    max_missing_shards: Annotated[
        int | None,
        Field(
            ge=0,
            le=MAX_MISSING_SHARDS,
            description="Shards that may be missing, empty or damaged; a stage settles once which ones it does "
            "without. Default: 0.",
        ),
    ] = None


class EvaluationDataSpec(Block):
    shards: Annotated[
        list[Uri],
        Field(min_length=1, max_length=MAX_SHARD_PATTERNS, description="Webdataset tars, as in data.shards."),
    ]
    samples: Annotated[
        Count | None, Field(description="Use only the first this many samples. Default: all.")
    ] = None
    caption_keys: Annotated[
        list[FileKey] | None,
        Field(
            min_length=1,
            max_length=MAX_CAPTION_KEYS,
            description="Retrieval: captions to retrieve by. Default: data.captionKeys.",
        ),
    ] = None
    image_keys: Annotated[
        list[Extension] | None,
        Field(
            min_length=1,
            max_length=MAX_CAPTION_KEYS,
            description="Extensions of image files, as in data.imageKeys. Default: jpg, png, jpeg, webp and others.",
        ),
    ] = None
    class_key: Annotated[
        FileKey | None,
        Field(
            description="ZeroShot, Accuracy, LinearProbe and FineTune: extension of the file with the class number, or "
            "a field of a JSON file (json:label). Default: cls.",
        ),
    ] = None
    text_key: Annotated[
        FileKey | None,
        Field(description="Perplexity: where a document's text is. Default: data.textKey."),
    ] = None


class FineTuneSpec(Block):
    epochs: Annotated[int | None, Field(ge=1, le=1000, description="Passes over trainData. Default: 10.")] = (
        None
    )
    batch_size: Annotated[
        int | None, Field(ge=1, le=2**20, description="Samples a step, over all processes. Default: 128.")
    ] = None
    learning_rate: Annotated[
        Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)] | None,
        Field(
            description="Peak learning rate of tower and head, after a warm-up of a tenth of the steps; down to 0 "
            "along a half cosine. Default: 3e-5."
        ),
    ] = None
    weight_decay: Annotated[
        Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)] | None,
        Field(description="AdamW weight decay, as in training.weightDecay. Default: 0.1."),
    ] = None


class EvaluationSpec(Block):
    name: Annotated[
        StageName, Field(description="Name of the set; its metrics are <name>/top1, <name>/imageToText@5 ...")
    ]
    type: Annotated[
        EvaluationType,
        Field(
            description="ZeroShot: accuracy over classes. Retrieval: loss and recall@1/5/10. Accuracy: loss and "
            "accuracy of a classifier. Perplexity: loss a token and perplexity of a language model. "
            "LinearProbe: accuracy of a logistic regression on frozen features. FineTune: "
            "accuracy of the image tower and a new head after a short training. The last two are done at the end of a "
            "stage."
        ),
    ]
    data: Annotated[EvaluationDataSpec, Field(description="The samples.")]
    classes: Annotated[
        list[ShortText] | None,
        Field(
            min_length=2,
            max_length=MAX_CLASSES,
            description="ZeroShot, Accuracy, LinearProbe and FineTune: class names, in the order of their numbers. "
            "Needed by ZeroShot alone.",
        ),
    ] = None
    classes_uri: Annotated[
        Uri | None, Field(description="A text file with one class name a line, instead of classes.")
    ] = None
    templates: Annotated[
        list[Template] | None,
        Field(
            min_length=1,
            max_length=MAX_TEMPLATES,
            description="ZeroShot: prompts with {} for the class name. Default: 'a photo of a {}.'.",
        ),
    ] = None
    every_steps: Annotated[
        Count | None, Field(description="Evaluate every this many steps, besides the start and the end.")
    ] = None
    train_data: Annotated[
        EvaluationDataSpec | None,
        Field(
            description="LinearProbe and FineTune: labelled samples to train on; data is what is measured."
        ),
    ] = None
    seeds: Annotated[
        int | None,
        Field(
            ge=1,
            le=100,
            description="LinearProbe and FineTune: how often it is done, each time with another seed; top1 is the mean "
            "and top1Std the standard deviation. Default: 1.",
        ),
    ] = None
    fine_tune: Annotated[FineTuneSpec | None, Field(description="FineTune: the recipe, field by field.")] = (
        None
    )


class LearningRateSchedule(Block):
    type: Annotated[
        LearningRateScheduleType,
        Field(
            description="Cosine: down to minimumLearningRate along a half cosine. WarmupStableDecay: constant "
            "after the warm-up, then down along a line; the weights before the decay, the trunk, are kept for "
            "stages that start from them."
        ),
    ] = LearningRateScheduleType.COSINE
    decay_fraction: Annotated[
        Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None,
        Field(description="WarmupStableDecay: share of the stage's steps that decay. Default: 0.2."),
    ] = None


class TrainingSpec(Block):
    epochs: Annotated[
        Annotated[int, Field(ge=0, le=100000)] | None,
        Field(description="Passes over the data. 0 holds the weights that the stage starts from, untrained."),
    ] = None
    global_batch_size: Annotated[
        Annotated[int, Field(ge=2, le=2**24)] | None,
        Field(description="Samples a step, over all nodes and GPUs. Default: 1024."),
    ] = None
    micro_batch_size: Annotated[
        MicroBatchSize | None,
        PlainSerializer(_written_size),
        Field(
            description="Samples of one forward pass of one process; the rest of its share is accumulated, with the "
            "gradient of the whole batch. Auto: as many as a GPU's memory holds, found by a trial when the stage first "
            "starts on such GPUs; at most 64 on a CPU, 16 where weights lie in parts (sharding Full). "
            "Default: the whole share."
        ),
    ] = None
    learning_rate: Annotated[
        Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)] | None,
        Field(description="Peak learning rate. Default: 1e-3."),
    ] = None
    minimum_learning_rate: Annotated[
        Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)] | None,
        Field(description="Learning rate at the last step. Default: 3e-6."),
    ] = None
    warmup_steps: Annotated[
        Annotated[int, Field(ge=0, le=10**7)] | None,
        Field(
            description="Steps of linear warm-up. Default: 8000 for a stage without predecessor, 1000 "
            "for others, at most a tenth of the stage; none where expansion.optimizerState is Carried."
        ),
    ] = None
    loss: Annotated[
        LossName | None,
        Field(
            description="Task Clip: Contrastive (CLIP's softmax over the batch) or Sigmoid (SigLIP's: each pair by "
            "itself, with a learnt bias). Default: Contrastive."
        ),
    ] = None
    schedule: Annotated[
        LearningRateSchedule | None,
        Field(description="How the learning rate changes after the warm-up. Default: Cosine."),
    ] = None
    ema_decay: Annotated[
        Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] | None,
        Field(
            description="Publish and evaluate an exponential moving average of the weights with this decay a "
            "step, rather than the weights themselves. Default: no averaging."
        ),
    ] = None
    weight_decay: Annotated[
        Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)] | None,
        Field(
            description="AdamW weight decay, not applied to tensors of fewer than two dimensions. "
            "Default: 0.1."
        ),
    ] = None
    beta1: Annotated[
        Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] | None,
        Field(description="AdamW beta1. Default: 0.9."),
    ] = None
    beta2: Annotated[
        Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] | None,
        Field(description="AdamW beta2. Default: 0.98."),
    ] = None
    epsilon: Annotated[
        Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None,
        Field(description="AdamW epsilon. Default: 1e-6."),
    ] = None
    gradient_clip_norm: Annotated[
        Annotated[float, Field(gt=0, allow_inf_nan=False)] | None,
        Field(description="Clip the gradient to this norm. Default: no clipping."),
    ] = None
    patch_dropout: Annotated[
        Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] | None,
        Field(
            description="Tasks with images: share of each picture's patches that the student does not see in a step "
            "(FLIP). The teacher and evaluations see all. Default: 0."
        ),
    ] = None
    locked_tower: Annotated[
        LockedTower | None,
        Field(
            description="Task Clip: the tower, with its projection into the embedding, that stays as the stage's first "
            "weights have it (LiT). Of stages that start from weights; it has no optimizer state and costs no backward "
            "pass. Default: none."
        ),
    ] = None
    precision: Annotated[
        Precision | None,
        Field(description="Fp32, or Bf16 (autocast; master weights stay fp32). Default: Fp32."),
    ] = None
    seed: Annotated[
        Annotated[int, Field(ge=0, lt=2**31)] | None,
        Field(description="Seed of initialisation, growth, data order and crops. Default: 0."),
    ] = None
    checkpoint_every_steps: Annotated[
        Count | None,
        Field(description="Steps between checkpoints. Default: a twentieth of the stage, at most 2000."),
    ] = None
    keep_checkpoints: Annotated[
        Annotated[int, Field(ge=1, le=1000)] | None,
        Field(description="Latest checkpoints to keep. Default: 2."),
    ] = None
    log_every_steps: Annotated[
        Annotated[int, Field(ge=1, le=100000)] | None,
        Field(description="Steps between lines of metrics. Default: 10."),
    ] = None
    gradient_checkpointing: Annotated[
        bool | None,
        Field(description="Recompute activations in the backward pass to save memory. Default: false."),
    ] = None
    sharding: Annotated[
        Sharding | None,
        Field(
            description="What is kept in parts on the processes of a stage, for less memory and more to send. "
            "Optimizer: each parameter's moments on one of them (ZeRO stage 1). Full: the weights too, the teacher's "
            "among them, gathered block by block (FSDP2). Default: Optimizer where moments would take more than an "
            "eighth of a GPU's memory, Full where that still leaves less than half of it."
        ),
    ] = None
    compile: Annotated[bool | None, Field(description="Use torch.compile. Default: false.")] = None
    data_workers: Annotated[
        Annotated[int, Field(ge=0, le=256)] | None,
        Field(
            description="Threads of each process that read and decode; beside a GPU, processes that decode for it. "
            "Default: 4."
        ),
    ] = None


class DistillationSchedule(Block):
    type: Annotated[
        DistillationScheduleType, Field(description="Constant, or Linear: from weight to endWeight.")
    ] = DistillationScheduleType.CONSTANT
    until: Annotated[
        Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None,
        Field(description="Linear: share of the stage after which the weight is endWeight. Default: 1."),
    ] = None
    end_weight: Annotated[
        Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)] | None,
        Field(description="Linear: the weight reached. Default: 0."),
    ] = None


class DistillationSpec(Block):
    weight: Annotated[
        Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)] | None,
        Field(
            description="Weight of the squared distance between the normalised embeddings of the stage "
            "and of its teacher, summed over dimensions. 0.98 is the paper's 500 on the mean at "
            "512 dimensions. 0 turns distillation off and saves the teacher's forward pass. Default: 1."
        ),
    ] = None
    schedule: Annotated[
        DistillationSchedule | None,
        Field(description="How the weight changes over the stage. Default: Constant."),
    ] = None
    logits_weight: Annotated[
        Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)] | None,
        Field(
            description="Tasks Classification and LanguageModel: weight of the divergence of the stage's probabilities "
            "of classes or tokens from its teacher's, beside that of the features; both are multiplied with `weight`. "
            "Default: 1."
        ),
    ] = None
    teacher: Annotated[
        StageName | None,
        Field(
            description="The stage whose published weights teach this one; it may be larger. "
            "Default: the stage's predecessor."
        ),
    ] = None
    surpass_window_steps: Annotated[
        Count | None,
        Field(
            description="End distillation once the mean loss of the stage over this many steps is below its "
            "teacher's on the same batches. Default: never."
        ),
    ] = None


class ExpansionSpec(Block):
    width: Annotated[
        WidthExpansion | None,
        Field(
            description="Exact: copies that keep the function. Padded: the same function in a stream with "
            "room for more, whose new units and heads start without effect. Slice: the paper's leading slice. "
            "Fresh: nothing grows; the model starts from its seed, of any shape, and its predecessor only teaches. "
            "Default: Exact."
        ),
    ] = None
    depth: Annotated[
        DepthExpansion | None,
        Field(
            description="Identity: new blocks start as identities. Interleave: each block is followed by its "
            "copies, as in the paper. Stack: the whole tower is repeated. Default: Identity."
        ),
    ] = None
    weights: Annotated[
        InitialWeights | None,
        Field(
            description="Published: grow out of the predecessor's published weights. Trunk: out of its weights "
            "before the decay of a WarmupStableDecay schedule. Default: Published."
        ),
    ] = None
    optimizer_state: Annotated[
        OptimizerState | None,
        Field(
            description="Reset: AdamW's moments start at zero. Carried: they are grown with the weights of the "
            "Trunk. Default: Reset."
        ),
    ] = None


class BaselineSpec(Block):
    epochs: Annotated[
        Annotated[int, Field(ge=1, le=100000)] | None,
        Field(
            description="Epochs a model of the family would take alone, for the cost comparison. "
            "Default: the first stage's."
        ),
    ] = None
    train: Annotated[
        list[StageName] | None,
        Field(
            max_length=MAX_STAGES,
            description="Stages whose models are trained alone too, for those epochs, once the chain is "
            "complete: what the chain saves at equal quality is then measured. [all] names all. Default: none.",
        ),
    ] = None
    budget_matched: Annotated[
        bool | None,
        Field(
            description="Train each of them once more, for as much compute as the chain spends up to and with "
            "its stage, the learning rate decayed to that (whole epochs). Default: false."
        ),
    ] = None
    metric: Annotated[
        MetricName | None,
        Field(
            description="What equal quality is measured by, e.g. digits/top1; a loss is better when lower. "
            "Default: the first of these that the sets give: top1 (ZeroShot), top1 (Accuracy), imageToText@1 "
            "(Retrieval), perplexity (Perplexity), top1 (LinearProbe), top1 (FineTune)."
        ),
    ] = None


class SchedulingPolicySpec(Block):
    """As runPolicy.schedulingPolicy of a PyTorchJob: for clusters whose training operator schedules in gangs."""

    queue: Annotated[ObjectName | None, Field(description="Queue of the PodGroup (Volcano).")] = None
    priority_class: Annotated[
        ObjectName | None, Field(description="PriorityClass of the PodGroup (Volcano).")
    ] = None
    min_available: Annotated[
        Annotated[int, Field(ge=1, le=4096)] | None,
        Field(description="Pods that are scheduled together or not at all. Default: all of the job."),
    ] = None
    schedule_timeout_seconds: Annotated[
        Annotated[int, Field(ge=1, le=10**7)] | None,
        Field(description="How long the gang may wait to be scheduled (scheduler-plugins)."),
    ] = None


class JobSpec(Block):
    backend: Annotated[
        JobBackend | None,
        Field(
            description="PyTorchJob (kubeflow.org/v1), TrainJob (trainer.kubeflow.org) or Job (Indexed batch/v1). "
            "Default: PyTorchJob."
        ),
    ] = None
    runtime: Annotated[
        ObjectName | None,
        Field(
            description="ClusterTrainingRuntime of a TrainJob. Default: modelchain, which the chart installs."
        ),
    ] = None
    nodes: Annotated[
        Annotated[int, Field(ge=1, le=4096)] | None, Field(description="Pods of a stage. Default: 1.")
    ] = None
    gpus_per_node: Annotated[
        Annotated[int, Field(ge=0, le=64)] | None,
        Field(description="GPUs of each pod; 0 trains on the CPU. Default: 1."),
    ] = None
    processes_per_node: Annotated[
        Annotated[int, Field(ge=1, le=256)] | None,
        Field(description="Processes of each pod. Default: gpusPerNode, at least 1."),
    ] = None
    gpu_resource_name: Annotated[
        ExtendedResource | None, Field(description="Extended resource of a GPU. Default: nvidia.com/gpu.")
    ] = None
    resources: Annotated[
        dict[str, Any] | None,
        Field(description="Requests and limits of the trainer's container, as in a pod."),
    ] = None
    node_selector: Annotated[
        dict[str, LabelValue] | None, Field(max_length=64, description="Labels of the nodes to run on.")
    ] = None
    tolerations: Annotated[
        list[dict[str, Any]] | None, Field(max_length=64, description="Taints that the pods tolerate.")
    ] = None
    affinity: Annotated[dict[str, Any] | None, Field(description="Affinity of the pods.")] = None
    queue_name: Annotated[
        ObjectName | None, Field(description="Kueue LocalQueue: written as label kueue.x-k8s.io/queue-name.")
    ] = None
    queue_policy: Annotated[
        QueuePolicy | None,
        Field(
            description="Where Kueue would not hold the job in queueName (it is not installed, the LocalQueue does not "
            "exist, it does not manage this kind of job). Required: no job is made, and the chain says why. IfPresent: "
            "the job runs without a queue. Default: Required."
        ),
    ] = None
    labels: Annotated[
        dict[str, LabelValue] | None,
        Field(
            max_length=32,
            description="Labels of the job object, beside ours; not of its pods (podTemplate). Kueue reads its "
            "WorkloadPriorityClass there: kueue.x-k8s.io/priority-class.",
        ),
    ] = None
    annotations: Annotated[
        dict[str, AnnotationValue] | None,
        Field(max_length=32, description="Annotations of the job object, beside ours; not of its pods."),
    ] = None
    managed_by: Annotated[
        ControllerName | None,
        Field(
            description="Controller that runs the job in place of the cluster's own, e.g. "
            "kueue.x-k8s.io/multikueue. Default: the cluster's own."
        ),
    ] = None
    ttl_seconds_after_finished: Annotated[
        Annotated[int, Field(ge=60, le=2**31 - 1)] | None,
        Field(
            description="Delete the job, and its pods and logs with it, this long after it ended; at least 60, in "
            "which the operator learns how it ended. Default: it stays until its chain or the next attempt."
        ),
    ] = None
    priority_class_name: Annotated[ObjectName | None, Field(description="PriorityClass of the pods.")] = None
    scheduling_policy: Annotated[
        SchedulingPolicySpec | None,
        Field(
            description="Gang scheduling of a PyTorchJob: pods start together or not at all. The training operator has "
            "to be told which scheduler does it (--gang-scheduler-name)."
        ),
    ] = None
    service_account_name: Annotated[
        ObjectName | None, Field(description="ServiceAccount of the pods (IRSA, workload identity).")
    ] = None
    start_deadline_seconds: Annotated[
        Annotated[int, Field(ge=1, le=10**7)] | None,
        Field(
            description="A job whose pods do not all run this long after it was made, or its queue let it go, is "
            "ended: as failed only if all of its pods had a node. Default: none."
        ),
    ] = None
    active_deadline_seconds: Annotated[
        Seconds | None,
        Field(description="A job running longer than this is ended and counts as failed. Default: none."),
    ] = None
    termination_grace_period_seconds: Annotated[
        Annotated[int, Field(ge=5, le=86400)] | None,
        Field(description="Time for a checkpoint between SIGTERM and SIGKILL. Default: 120."),
    ] = None
    pod_template: Annotated[
        dict[str, Any] | None, Field(description="A pod template merged over the generated one.")
    ] = None


class RetrySpec(Block):
    limit: Annotated[
        Annotated[int, Field(ge=0, le=1000)] | None,
        Field(description="Failures of a stage after which the chain fails. Default: 3."),
    ] = None
    backoff_seconds: Annotated[
        Seconds | None,
        Field(description="Wait before the first retry; doubled each time, at most 600 s. Default: 30."),
    ] = None
    disruption_limit: Annotated[
        Annotated[int, Field(ge=0, le=10000)] | None,
        Field(
            description="Attempts in a row that may end without failing (evicted, preempted, deleted, their node "
            "lost) and without a new checkpoint, before the stage is given up. Default: 100."
        ),
    ] = None
    stall_seconds: Annotated[
        Annotated[int, Field(ge=1, le=10**7)] | None,
        Field(description="A stage without progress for this long is stopped and retried. Default: 1800."),
    ] = None
    lease_seconds: Annotated[
        Annotated[int, Field(ge=2, le=3600)] | None,
        Field(description="A lease on a stage not renewed for this long is taken over. Default: 30."),
    ] = None


WEIGHTS_SUFFIXES: Final = (".safetensors", ".bin", ".pt", ".pth")  # of files that hold weights


class WeightsSpec(Block):
    uri: Annotated[
        Uri,
        Field(
            description="A folder with the weights and configuration that a stage of the task publishes: for Clip "
            "open_clip_model.safetensors and open_clip_config.json (open_clip loads it as local-dir:), for "
            "the others model.safetensors and config.json (timm loads it as local-dir:, or transformers as GPT-2). For "
            "Clip also these two as transformers writes a CLIPModel. Where there is no safetensors file, "
            "open_clip_pytorch_model.bin or pytorch_model.bin. Or one .safetensors, .bin, .pt or .pth file with a "
            "state dict, of the model that the configuration beside it describes, or else of the stage's own."
        ),
    ]
    sha256: Annotated[Sha256, Field(description="SHA-256 of the .safetensors, .bin, .pt or .pth file.")]


class NamedModel(Block):
    name: Annotated[
        StageName, Field(description="Name of the stage: lower-case letters, digits and dashes, at most 30.")
    ]
    model: Annotated[
        ShortText | None,
        Field(
            description="A model by name, e.g. ViT-B-16 (`modelchain models` lists them). Either this "
            "or modelConfig or openClipConfig."
        ),
    ] = None


@cache  # of a few fields, asked for with every chain that is read
def _attribute(field: str) -> str:
    """The attribute of a field: model_config belongs to pydantic."""
    name = to_snake(field)
    return f"{name}_" if name == "model_config" else name


if TYPE_CHECKING:

    class WrittenModel(NamedModel):
        """A field for each family of models, which `StageSpec.written` reads."""
else:
    WrittenModel = create_model(
        "WrittenModel",
        __base__=NamedModel,
        **{
            _attribute(family.field): (
                Annotated[family.config | None, Field(alias=family.field, description=family.description)],
                None,
            )
            for family in FAMILIES
        },
    )


class StageSpec(WrittenModel):
    from_: Annotated[
        StageName | None,
        Field(alias="from", description="The stage this one grows out of. Default: the stage before it."),
    ] = None
    from_weights: Annotated[
        WeightsSpec | None,
        Field(
            description="Start from existing weights instead of from a stage; only for a stage without "
            "predecessor."
        ),
    ] = None
    image: Annotated[Image | None, Field(description="The trainer's image for this stage.")] = None
    data: Annotated[DataSpec | None, Field(description="Overrides spec.data, field by field.")] = None
    evaluation: Annotated[
        list[EvaluationSpec] | None,
        Field(max_length=MAX_EVALUATIONS, description="Replaces spec.evaluation."),
    ] = None
    training: Annotated[
        TrainingSpec | None, Field(description="Overrides spec.training, field by field.")
    ] = None
    distillation: Annotated[
        DistillationSpec | None, Field(description="Overrides spec.distillation, field by field.")
    ] = None
    expansion: Annotated[
        ExpansionSpec | None, Field(description="Overrides spec.expansion, field by field.")
    ] = None
    job: Annotated[JobSpec | None, Field(description="Overrides spec.job, field by field.")] = None
    retry: Annotated[RetrySpec | None, Field(description="Overrides spec.retry, field by field.")] = None

    def written(self, field: str) -> AnyConfig | None:
        """The model written out under that field (modelConfig, classifierConfig), if it is."""
        return getattr(self, _attribute(field))


class ModelChainSpec(Block):
    task: Annotated[
        TaskName | None,
        Field(
            description="What is trained: Clip (images and captions), Classification (images and labels) or "
            "LanguageModel (documents). Default: Clip."
        ),
    ] = None
    image: Annotated[
        Image | None, Field(description="The trainer's image. Default: the operator's setting.")
    ] = None
    store: Annotated[StoreSpec, Field(description="Where weights, checkpoints and metrics are kept.")]
    data: Annotated[DataSpec | None, Field(description="What the chain is trained on.")] = None
    evaluation: Annotated[
        list[EvaluationSpec] | None,
        Field(max_length=MAX_EVALUATIONS, description="What the models are evaluated on."),
    ] = None
    training: Annotated[TrainingSpec | None, Field(description="How the models are trained.")] = None
    distillation: Annotated[
        DistillationSpec | None, Field(description="How a stage learns from its teacher.")
    ] = None
    expansion: Annotated[
        ExpansionSpec | None, Field(description="How a predecessor's weights become a stage's first weights.")
    ] = None
    baseline: Annotated[BaselineSpec | None, Field(description="What the chain is compared with.")] = None
    job: Annotated[JobSpec | None, Field(description="How a stage runs on the cluster.")] = None
    retry: Annotated[RetrySpec | None, Field(description="What happens when a stage fails.")] = None
    suspend: Annotated[
        bool | None,
        Field(description="Stop the running stage at a checkpoint and start no other. Default: false."),
    ] = None
    max_parallel_stages: Annotated[
        Annotated[int, Field(ge=1, le=MAX_STAGES)] | None,
        Field(
            description="Stages that train at the same time, where the chain has branches. Default: all that can."
        ),
    ] = None
    stages: Annotated[
        list[StageSpec], Field(min_length=1, max_length=MAX_STAGES, description="The models, smallest first.")
    ]


class ObjectMeta(BaseModel):
    """The part of Kubernetes' ObjectMeta that the core reads; the rest is accepted and ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True, alias_generator=to_camel)

    name: ObjectName
    namespace: Annotated[
        str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)
    ] = "default"
    uid: str | None = None
    generation: int | None = None
    resource_version: str | None = None


class ModelChain(BaseModel):
    """One `kind: ModelChain` document."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, alias_generator=to_camel)

    api_version: Literal["modelchain.dev/v1alpha1"]
    kind: Literal["ModelChain"]
    metadata: ObjectMeta
    spec: ModelChainSpec
    status: dict[str, Any] | None = None
