"""Every mistake has its own message: field, what is wrong, what to do."""

from __future__ import annotations

import json
from pathlib import Path as FilePath
from typing import Any

import pytest

from modelchain.validation import Problem, check_file
from tests.modelchain.documents import REMOVED, Path, document

INLINE = {
    "embedDim": 512,
    "vision": {"width": 768, "layers": 12},
    "text": {"width": 512, "layers": 12, "heads": 8},
}
LAST = ("stages", 2, "modelConfig")
PETS = ("evaluation", 1)
SHA = "ab" * 32
SOURCE = {"shards": ["more.tar"], "samples": 1000}
OTHER = {"shards": ["other.tar"], "samples": 1000}


def problems(tmp_path: FilePath, changes: dict[Path, Any]) -> list[Problem]:
    path = tmp_path / "chain.yaml"
    path.write_text(json.dumps(document(changes)))
    (checked,) = check_file(path)
    assert (checked.chain is None) == bool(checked.problems)
    return list(checked.problems)


# (what is changed below spec, the field named, words of the message, words of the remedy)
MISTAKES: list[tuple[dict[Path, Any], str, str, str]] = [
    # names that the cluster gives
    (
        {("store", "endpointUrl"): "minio:9000"},
        "spec.store.endpointUrl",
        '"minio:9000" is no address',
        "start it with http:// or https://",
    ),
    (
        {("store", "secretRef"): {"name": "S3 credentials"}},
        "spec.store.secretRef.name",
        "not allowed",
        "name of a Kubernetes object",
    ),
    (
        {("store", "secretRef"): {"name": "s3", "keys": {"accessKeyId": "access key"}}},
        "spec.store.secretRef.keys.accessKeyId",
        "not allowed",
        "a key of that object",
    ),
    (
        {("store", "caBundleRef"): {"name": "ca", "key": "tls/ca.crt"}},
        "spec.store.caBundleRef.key",
        "not allowed",
        "a key of that object",
    ),
    ({("store", "secretName"): "s3"}, "spec.store.secretName", "no field", "secretRef"),
    ({("job", "queueName"): "team_a"}, "spec.job.queueName", "not allowed", "name of a Kubernetes object"),
    (
        {("job", "nodeSelector"): {"zone": "eu/west"}},
        "spec.job.nodeSelector.zone",
        "not allowed",
        "at most 63 letters",
    ),
    # pod templates
    (
        {("job", "podTemplate"): {"containers": []}},
        "spec.job.podTemplate.containers",
        "no field",
        "known here: metadata, spec",
    ),
    (
        {("job", "podTemplate"): {"spec": []}},
        "spec.job.podTemplate.spec",
        "a mapping is needed",
        "write fields under it",
    ),
    (
        {("job", "podTemplate"): {"spec": {"containers": {"name": "pytorch"}}}},
        "spec.job.podTemplate.spec.containers",
        "a list is needed",
        "each item with a name",
    ),
    (
        {("job", "podTemplate"): {"spec": {"volumes": [{"emptyDir": {}}]}}},
        "spec.job.podTemplate.spec.volumes[0]",
        "has no name",
        "give it one",
    ),
    (
        {("job", "podTemplate"): {"metadata": {"labels": {"team": 7}}}},
        "spec.job.podTemplate.metadata.labels.team",
        "is 7, a text is needed",
        'put it in quotes: "7"',
    ),
    (
        {("job", "podTemplate"): {"metadata": {"annotations": {"note": "x" * 70000}}}},
        "spec.job.podTemplate",
        "bytes as JSON",
        "in a ConfigMap",
    ),
    (
        {("job", "affinity"): {"nodeAfinity": {}}},
        "spec.job.affinity.nodeAfinity",
        "no field",
        "did you mean nodeAffinity?",
    ),
    # unknown fields
    ({("trainning",): {}}, "spec.trainning", 'no field "trainning"', "did you mean training?"),
    (
        {("training", "global_batch_size"): 8},
        "spec.training.global_batch_size",
        "no field",
        "globalBatchSize",
    ),
    ({("training", "lr"): 1}, "spec.training.lr", 'no field "lr"', "known here: epochs"),
    (
        {("globalBatchSize",): 8},
        "spec.globalBatchSize",
        "here",
        "it belongs at spec.training.globalBatchSize",
    ),
    ({("stages", 1, "seed"): 8}, "spec.stages[1].seed", "here", "it belongs at spec.stages[1].training.seed"),
    (
        {(*LAST, "vision", "image_size"): 8},
        "spec.stages[2].modelConfig.vision.image_size",
        "no field",
        "imageSize",
    ),
    ({("stages", 1, "model_config_"): INLINE}, "spec.stages[1].model_config_", "no field", "modelConfig"),
    (
        {("job", "tolerations"): [{"keys": "a"}]},
        "spec.job.tolerations[0].keys",
        "no field",
        "did you mean key?",
    ),
    (
        {("job", "labels"): {"modelchain.dev/stage": "b"}},
        "spec.job.labels.modelchain.dev/stage",
        "knows its jobs by",
        "choose another name",
    ),
    (
        {("job", "labels"): {"kueue.x-k8s.io/queue-name": "research"}},
        "spec.job.labels.kueue.x-k8s.io/queue-name",
        "set by the operator",
        "write the queue under job.queueName",
    ),
    (
        {("job", "annotations"): {"Example.com/team": "a"}},
        "spec.job.annotations.Example.com/team",
        "no name that Kubernetes allows",
        "example.com/name",
    ),
    (
        {("stages", 0, "job"): {"annotations": {"a b": "c"}}},
        "spec.stages[0].job.annotations.a b",
        "no name that Kubernetes allows",
        "63 characters",
    ),
    ({("job", "resources"): {"limit": {}}}, "spec.job.resources.limit", "no field", "did you mean limits?"),
    # types, units, ranges
    ({("training", "epochs"): 1.5}, "spec.training.epochs", "1.5, a whole number", "write 1 or 2"),
    ({("training", "epochs"): "4"}, "spec.training.epochs", 'the text "4"', "remove the quotes: epochs: 4"),
    ({("data", "samples"): "12k"}, "spec.data.samples", 'the text "12k"', "samples: 12000"),
    ({("data", "samples"): "2.9M"}, "spec.data.samples", 'the text "2.9M"', "samples: 2900000"),
    ({("data", "samples"): "many"}, "spec.data.samples", 'the text "many"', "write a whole number"),
    ({("data", "blockMebibytes"): "8Mi"}, "spec.data.blockMebibytes", "8Mi", "the unit is MiB"),
    (
        {("data", "maxCorruptFraction"): "1%"},
        "spec.data.maxCorruptFraction",
        "1%",
        "maxCorruptFraction: 0.01",
    ),
    ({("data", "maxCorruptFraction"): 2}, "spec.data.maxCorruptFraction", "2 is out of range", "at most 1"),
    ({("retry",): {"backoffSeconds": "30s"}}, "spec.retry.backoffSeconds", "30s", "backoffSeconds: 30"),
    ({("retry",): {"stallSeconds": "1.5h"}}, "spec.retry.stallSeconds", "1.5h", "stallSeconds: 5400"),
    ({("retry",): {"limit": -1}}, "spec.retry.limit", "-1 is out of range", "at least 0"),
    ({("training", "learningRate"): "1e-3"}, "spec.training.learningRate", '"1e-3"', "remove the quotes"),
    ({("training", "learningRate"): 0}, "spec.training.learningRate", "0 is out of range", "more than 0"),
    ({("training", "compile"): "yes"}, "spec.training.compile", '"yes", true or false', "without quotes"),
    ({("training", "compile"): 1}, "spec.training.compile", "is 1, true or false", "write true or false"),
    (
        {("training", "precision"): "BF16"},
        "spec.training.precision",
        "none of Fp32, Bf16",
        "did you mean Bf16?",
    ),
    (
        {("training", "precision"): "int4"},
        "spec.training.precision",
        "none of Fp32, Bf16",
        "write Fp32 or Bf16",
    ),
    ({("training",): 5}, "spec.training", "is 5, a mapping", "write fields under it"),
    ({("data", "shards"): "a.tar"}, "spec.data.shards", "a list is needed", 'shards: ["a.tar"]'),
    ({("data", "shards"): []}, "spec.data.shards", "has 0 entries", "at least 1 entry"),
    (
        {("data", "captionKeys"): ["a b"]},
        "spec.data.captionKeys[0]",
        '"a b" is not allowed',
        "file extension",
    ),
    ({("data", "captionKeys"): ["json:"]}, "spec.data.captionKeys[0]", "is not allowed", "json:caption"),
    ({("data", "imageKeys"): ["json:url"]}, "spec.data.imageKeys[0]", "is not allowed", "input.jpg"),
    ({("data", "captionKeys"): [1]}, "spec.data.captionKeys[0]", "is 1, a text", 'put it in quotes: "1"'),
    ({("data", "randomCropScale"): [1]}, "spec.data.randomCropScale", "has 1 entries", "at least 2 entries"),
    ({("job", "nodeSelector"): {"gpu": True}}, "spec.job.nodeSelector.gpu", "is true, a text", '"true"'),
    ({("store",): REMOVED}, "spec.store", "is missing", "where weights, checkpoints and metrics are kept"),
    ({("store", "uri"): ""}, "spec.store.uri", "is empty", "write a text"),
    ({("stages",): []}, "spec.stages", "has 0 entries", "at least 1 entry"),
    ({("stages", 1, "name"): "Vit_S"}, "spec.stages[1].name", '"Vit_S" is not allowed', "lower-case letters"),
    ({("stages", 1, "name"): "a" * 31}, "spec.stages[1].name", "too long", "at most 30"),
    ({("stages", 1, "name"): REMOVED}, "spec.stages[1].name", "is missing", "add name"),
    # stages
    ({("stages", 1, "name"): "tiny"}, "spec.stages[1].name", "the name of spec.stages[0] too", "of its own"),
    ({("stages", 1, "from"): "small"}, "spec.stages[1].from", "can't grow out of itself", "before it: tiny"),
    ({("stages", 0, "from"): "tiny"}, "spec.stages[0].from", "can't grow out of itself", "remove it"),
    (
        {("stages", 1, "from"): "base"},
        "spec.stages[1].from",
        "trained later",
        "name one of the stages before it: tiny",
    ),
    (
        {("stages", 1, "from"): "tinny"},
        "spec.stages[1].from",
        'no stage is named "tinny"',
        "did you mean tiny?",
    ),
    ({("stages", 1, "from"): "other"}, "spec.stages[1].from", 'no stage is named "other"', "before it: tiny"),
    (
        {("stages", 1, "model"): "ViT-S16"},
        "spec.stages[1].model",
        "no model 'ViT-S16'",
        "did you mean ViT-S-16?",
    ),
    ({("stages", 1, "model"): REMOVED}, "spec.stages[1].model", "has no model", "`modelchain models`"),
    (
        {("stages", 2, "model"): "ViT-B-16"},
        "spec.stages[2].modelConfig",
        "both model and modelConfig",
        "one of the two",
    ),
    (
        {("stages", 1, "fromWeights"): {"uri": "s3://a", "sha256": SHA}},
        "spec.stages[1].fromWeights",
        'grows out of "tiny"',
        "keep fromWeights to the first stage",
    ),
    (
        {("stages", 0, "fromWeights"): {"uri": "hf-hub:laion/CLIP", "sha256": SHA}},
        "spec.stages[0].fromWeights.uri",
        "is open_clip's way to name a repository of a hub",
        "write hf://laion/CLIP",
    ),
    (
        {("stages", 0, "fromWeights"): {"uri": "hf://a/b/last.ckpt", "sha256": SHA}},
        "spec.stages[0].fromWeights.uri",
        "names no file of weights that can be read",
        "write a folder, or a file that ends in .safetensors, .bin, .pt or .pth",
    ),
    (
        {("stages", 0, "fromWeights"): {"uri": "https://b/w.gguf?download=true", "sha256": SHA}},
        "spec.stages[0].fromWeights.uri",
        "names no file of weights that can be read",
        "write a folder, or a file that ends in .safetensors, .bin, .pt or .pth",
    ),
    (
        {("stages", 0, "training"): {"loss": "Sigmoid"}},
        "spec.stages[1].model",
        "the bias of the logits (training.loss: Sigmoid) is false, not true",
        "write training.loss: Sigmoid",
    ),
    (
        {("stages", 0, "fromWeights"): {"uri": "s3://a", "sha256": "ab"}},
        "spec.stages[0].fromWeights.sha256",
        '"ab" is not allowed',
        "64 lower-case hexadecimal digits",
    ),
    (
        {("stages", 0, "distillation"): {"weight": 1}},
        "spec.stages[0].distillation",
        "learn from",
        "set spec.distillation",
    ),
    ({("stages", 0, "expansion"): {}}, "spec.stages[0].expansion", "grow out of", "remove it"),
    # models that can't be built
    (
        {(*LAST, "vision", "width"): 800},
        "spec.stages[2].modelConfig.vision.headWidth",
        "do not divide",
        "768 or 832",
    ),
    (
        {(*LAST, "vision", "patchSize"): 15},
        "spec.stages[2].modelConfig.vision.patchSize",
        "do not divide",
        "210 or 225",
    ),
    (
        {(*LAST, "text", "heads"): 7},
        "spec.stages[2].modelConfig.text.heads",
        "7 heads do not divide",
        "511 or 518",
    ),
    (
        {(*LAST, "vision", "mlpRatio"): 0.001},
        "spec.stages[2].modelConfig.vision.mlpRatio",
        "without units",
        "4",
    ),
    (
        {(*LAST, "text", "vocabSize"): 1000},
        "spec.stages[2].modelConfig.text.vocabSize",
        "1000",
        "at least 49408",
    ),
    ({(*LAST, "text"): REMOVED}, "spec.stages[2].modelConfig.text", "is missing", "the text tower"),
    # models that can't grow out of their predecessor
    (
        {(*LAST, "vision", "width"): 320},
        "spec.stages[2].modelConfig.vision.width",
        "from 384 to 320",
        "at least 384",
    ),
    (
        {(*LAST, "vision", "layers"): 11},
        "spec.stages[2].modelConfig.vision.layers",
        "from 12 to 11",
        "at least 12",
    ),
    ({(*LAST, "text", "layers"): 6}, "spec.stages[2].modelConfig.text.layers", "from 12 to 6", "at least 12"),
    (
        {(*LAST, "text", "width"): 320, (*LAST, "text", "heads"): 5},
        "spec.stages[2].modelConfig.text.width",
        'can\'t grow out of "small": the text width shrinks from 384 to 320',
        "at least 384",
    ),
    ({(*LAST, "embedDim"): 256}, "spec.stages[2].modelConfig.embedDim", "from 512 to 256", "at least 512"),
    (
        {(*LAST, "vision", "headWidth"): 32},
        "spec.stages[2].modelConfig.vision.headWidth",
        "vision head width shrinks from 64 to 32",
        "make it at least 64",
    ),
    (
        {(*LAST, "text", "heads"): 16},
        "spec.stages[2].modelConfig.text.heads",
        "text head width shrinks from 64 to 32",
        "make it at least 64",
    ),
    (
        {(*LAST, "vision", "mlpRatio"): 1},
        "spec.stages[2].modelConfig.vision.mlpRatio",
        "from 1536 to 768",
        "at least 2",
    ),
    (
        {(*LAST, "quickGelu"): True},
        "spec.stages[2].modelConfig.quickGelu",
        "quickGelu is true, not false",
        "write false",
    ),
    (
        {(*LAST, "text", "contextLength"): 32},
        "spec.stages[2].modelConfig.text.contextLength",
        "contextLength is 32, not 77",
        "77",
    ),
    (
        {("stages", 2, "modelConfig"): REMOVED, ("stages", 2, "model"): "ViT-T-16"},
        "spec.stages[2].model",
        "the vision width shrinks from 384 to 192, the text width shrinks from 384 to 256",
        "name a model that is as large",
    ),
    # data
    ({("data", "shards"): REMOVED}, "spec.data.shards", "is missing", "list the tars"),
    (
        {("data",): REMOVED, ("stages", 1, "data"): {"samples": 9999, "shards": ["a"]}},
        "*",
        "is missing",
        "in spec.data",
    ),
    ({("data", "samples"): REMOVED}, "spec.data.samples", "is missing", "how many samples"),
    ({("data", "shards"): ["{3..1}.tar"]}, "spec.data.shards[0]", "stands for no shard", "write {1..3}"),
    ({("data", "shards"): ["a", "{}.tar"]}, "spec.data.shards[1]", "stands for no shard", "a range such as"),
    ({("data", "shards"): ["{0..9.tar"]}, "spec.data.shards[0]", "not closed", "a pair"),
    (
        {("data", "shards"): ["{0..99999999}"]},
        "spec.data.shards",
        "100000000 shards in all",
        "check the ranges",
    ),
    (
        {("data", "shards"): ["{0..3}.tar", "2.tar"]},
        "spec.data.shards",
        '"2.tar" occurs twice',
        "list it once",
    ),
    (
        {("data", "sources"): [SOURCE]},
        "spec.data.shards",
        "given beside sources",
        "make them a source",
    ),
    (
        {("stages", 1, "data"): {"sources": [SOURCE]}},
        "spec.stages[1].data.sources",
        "a stage has those of spec.data too",
        "give all stages sources",
    ),
    (
        {("data",): {"sources": [SOURCE]}, ("stages", 1, "data"): {"samples": 9999, "shards": ["a"]}},
        "spec.stages[1].data.shards",
        "a stage has those of spec.data too",
        "give all stages sources",
    ),
    (
        {("data",): {"sources": [SOURCE, SOURCE]}},
        "spec.data.sources",
        '"more.tar" occurs in two sources',
        "with a higher repeat",
    ),
    (
        {("data",): {"sources": [SOURCE | {"repeat": 0.0001}, OTHER]}},
        "spec.data.sources[0].repeat",
        "0.0001 times 1000 samples are none",
        "at least 0.001",
    ),
    (
        {("data",): {"sources": [SOURCE | {"repeat": 0}, OTHER]}},
        "spec.data.sources[0].repeat",
        "0 is out of range",
        "more than 0",
    ),
    (
        {("data",): {"sources": [SOURCE | {"shards": ["{5..1}.tar"]}]}},
        "spec.data.sources[0].shards[0]",
        "runs backwards",
        "{1..5}",
    ),
    (
        {("data",): {"sources": [SOURCE | {"repeat": 0.1}]}},
        "spec.data.sources",
        "100 samples do not fill one batch",
        "globalBatchSize: 100",
    ),
    ({("data", "shards"): ["ftp://b/a.tar"]}, "spec.data.shards[0]", "ftp:// can't be read", "s3://bucket"),
    ({("data", "shards"): ["gs:///a.tar"]}, "spec.data.shards[0]", "names no bucket", "gs://bucket"),
    ({("data", "shards"): ["https:///a.tar"]}, "spec.data.shards[0]", "names no server", "https://server"),
    ({("data", "shards"): ["https://me:key@b/a.tar"]}, "spec.data.shards[0]", "holds a user", "remove it"),
    (
        {("data", "shards"): ["https://b/a.tar\x1b[2J"]},
        "spec.data.shards[0]",
        "control characters",
        "without",
    ),
    ({("data", "shards"): ["abfs://me:key@b/a.tar"]}, "spec.data.shards[0]", "holds a user", "secretRef"),
    ({("data", "shards"): ["s3://ID:a/key@b/a.tar"]}, "spec.data.shards[0]", "or a key", "store.secretRef"),
    ({("data", "shards"): ["https://b/a.tar?sig=0"]}, "spec.data.shards[0]", "or a key", "remove it"),
    (
        {("store", "endpointUrl"): "http://b?X-Amz-Signature=0"},
        "spec.store.endpointUrl",
        "or a key",
        "secretRef",
    ),
    ({("store", "uri"): "s3://ID:key@b/chains"}, "spec.store.uri", "or a key", "store.secretRef"),
    ({("store", "uri"): "s3://b/chains\x85"}, "spec.store.uri", "control characters", "without"),
    (
        {("store", "endpointUrl"): "http://a\n:9000"},
        "spec.store.endpointUrl",
        "control characters",
        "without",
    ),
    ({("store", "region"): "us-east-1\x1b[2J"}, "spec.store.region", "not allowed", "such as us-east-1"),
    ({("job", "gpuResourceName"): "a b"}, "spec.job.gpuResourceName", "not allowed", "nvidia.com/gpu"),
    ({("job", "gpuResourceName"): "gpu"}, "spec.job.gpuResourceName", "not allowed", "nvidia.com/gpu"),
    (
        {("job", "schedulingPolicy"): {"queue": "a b"}},
        "spec.job.schedulingPolicy.queue",
        "not allowed",
        "Kubernetes object",
    ),
    ({("store", "uri"): "https://b/chains"}, "spec.store.uri", "can't be used as a store", "s3://bucket"),
    ({("data", "captionKeys"): ["txt", "txt"]}, "spec.data.captionKeys[1]", "listed twice", "one of the two"),
    ({("data", "captionKeys"): ["json"]}, "spec.data.captionKeys[0]", "would be learnt", "json:caption"),
    (
        {("evaluation", 0, "data", "captionKeys"): ["txt", "a.JSON"]},
        "spec.evaluation[0].data.captionKeys[1]",
        "is a file of JSON",
        "a.JSON:caption",
    ),
    ({("data", "imageKeys"): ["jpg", "jpg"]}, "spec.data.imageKeys[1]", "listed twice", "one of the two"),
    (
        {("data", "randomCropScale"): [1, 0.5]},
        "spec.data.randomCropScale",
        "above the largest",
        "write [0.5, 1]",
    ),
    (
        {("data", "samples"): 100},
        "spec.data.samples",
        "do not fill one batch of 256",
        "globalBatchSize: 100 or less",
    ),
    ({("store", "uri"): "s3://"}, "spec.store.uri", "names no bucket", "s3://bucket/prefix"),
    ({("store", "uri"): "s3:bucket"}, "spec.store.uri", "lacks slashes", "s3://bucket/prefix"),
    ({("store", "uri"): "~/runs"}, "spec.store.uri", "only known to a shell", "write the path itself"),
    ({("store", "uri"): "~me/runs"}, "spec.store.uri", "only known to a shell", "write the path itself"),
    ({("store", "uri"): "file://~/runs"}, "spec.store.uri", "only known to a shell", "write the path itself"),
    ({("store", "uri"): "$HOME/runs"}, "spec.store.uri", "only known to a shell", "write the path itself"),
    ({("store", "uri"): "s3://${BUCKET}/runs"}, "spec.store.uri", "only known to a shell", "the path itself"),
    (
        {("data", "shards"): ["~/data/a.tar"]},
        "spec.data.shards[0]",
        "only known to a shell",
        "the path itself",
    ),
    ({("store", "uri"): "file://runs"}, "spec.store.uri", "no absolute path", "file:///runs"),
    # numbers that must fit each other
    (
        {("training", "epochs"): REMOVED},
        "*",
        "is missing",
        "write how many times each sample is seen, here or in",
    ),
    (
        {("job", "nodes"): 3},
        "spec.training.globalBatchSize",
        "among 6 processes (3 x 2)",
        "multiple of 6, e.g. 258",
    ),
    (
        {("stages", 1, "job"): {"nodes": 3}, ("stages", 1, "training"): {"globalBatchSize": 250}},
        "spec.stages[1].training.globalBatchSize",
        "a batch of 250 does not divide among 6 processes",
        "e.g. 252",
    ),
    (
        {("training", "microBatchSize"): 48},
        "spec.training.microBatchSize",
        "128 samples of each of 2",
        "e.g. 32",
    ),
    (
        {("training", "sharding"): "Full", ("training", "compile"): True},
        "spec.training.compile",
        "(sharding: Full) are not compiled",
        "write sharding: Optimizer",
    ),
    (
        {("training", "sharding"): "Full", ("stages", 1, "training"): {"compile": True}},
        "spec.stages[1].training.compile",
        "(sharding: Full) are not compiled",
        "remove it",
    ),
    (
        {("training", "microBatchSize"): "auto"},
        "spec.training.microBatchSize",
        'the text "auto"',
        "write Auto",
    ),
    ({("training", "microBatchSize"): 0}, "spec.training.microBatchSize", "out of range", "at least 1"),
    (
        {("training", "sharding"): "Full", ("stages", 1, "training"): {"lockedTower": "Image"}},
        "spec.stages[1].training.lockedTower",
        "are all trained, none locked",
        "write sharding: Optimizer",
    ),
    (
        {("stages", 0, "training"): {"lockedTower": "Text"}},
        "spec.stages[0].training.lockedTower",
        "its text tower would stay random",
        "give it fromWeights",
    ),
    ({("training", "microBatchSize"): 256}, "spec.training.microBatchSize", "do not divide", "e.g. 128"),
    (
        {("training", "minimumLearningRate"): 0.1},
        "spec.training.minimumLearningRate",
        "would rise",
        "at most 0.001",
    ),
    (
        {("training", "warmupSteps"): 10**6},
        "spec.training.warmupSteps",
        "does not end within",
        "for the default",
    ),
    ({("job", "processesPerNode"): 4}, "spec.job.processesPerNode", "4 processes share 2 GPUs", "at most 2"),
    # evaluation
    (
        {(*PETS, "classes"): REMOVED},
        "spec.evaluation[1].classes",
        "needs the names of its classes",
        "classesUri",
    ),
    (
        {(*PETS, "classesUri"): "names.txt"},
        "spec.evaluation[1].classesUri",
        "both classes and classesUri",
        "one of",
    ),
    (
        {(*PETS, "templates"): ["a photo"]},
        "spec.evaluation[1].templates[0]",
        '"a photo" has no place',
        "write {}",
    ),
    ({(*PETS, "name"): "val"}, "spec.evaluation[1].name", "the name of another set", "a name of its own"),
    ({(*PETS, "type"): "Retrieval"}, "*", "sets have", "remove it"),
    (
        {(*PETS, "type"): "zero-shot"},
        "spec.evaluation[1].type",
        "none of ZeroShot, Retrieval",
        "did you mean ZeroShot?",
    ),
    (
        {(*PETS, "data", "captionKeys"): ["txt"]},
        "spec.evaluation[1].data.captionKeys",
        "only Retrieval sets have captionKeys, this one is ZeroShot",
        "type: Retrieval",
    ),
    ({(*PETS, "data", "shards"): ["{2..1}"]}, "spec.evaluation[1].data.shards[0]", "no shard", "{1..2}"),
    # distillation
    (
        {("distillation", "schedule", "type"): "cosine"},
        "spec.distillation.schedule.type",
        "none of",
        "Constant or Linear",
    ),
    (
        {("distillation", "schedule"): {"until": 0.5}},
        "spec.distillation.schedule.until",
        "Constant schedule",
        "Linear",
    ),
    (
        {("distillation", "schedule"): {"endWeight": 0}},
        "spec.distillation.schedule.endWeight",
        "Constant",
        "Linear",
    ),
    (
        {("distillation", "schedule", "until"): 0},
        "spec.distillation.schedule.until",
        "out of range",
        "more than 0",
    ),
    ({("distillation", "weight"): -1}, "spec.distillation.weight", "out of range", "at least 0"),
    # the teacher
    (
        {("distillation", "teacher"): "tiny"},
        "spec.distillation.teacher",
        "the stages before the teacher could not learn from it",
        "in the distillation of each stage",
    ),
    (
        {("stages", 1, "distillation"): {"teacher": "base"}},
        "spec.stages[1].distillation.teacher",
        '"base" is spec.stages[2], which is trained later',
        "move it up, or name one of the stages before it: tiny",
    ),
    (
        {("stages", 1, "distillation"): {"teacher": "small"}},
        "spec.stages[1].distillation.teacher",
        "a stage can't be its own teacher",
        "name one of the stages before it: tiny",
    ),
    (
        {("stages", 2, "distillation"): {"teacher": "smal"}},
        "spec.stages[2].distillation.teacher",
        'no stage is named "smal"',
        "did you mean small?",
    ),
    (
        {("stages", 2, "distillation"): {"teacher": "giant"}},
        "spec.stages[2].distillation.teacher",
        'no stage is named "giant"',
        "name one of the stages before it: tiny, small",
    ),
    (
        {("stages", 2, "distillation"): {"teacher": "Small_1"}},
        "spec.stages[2].distillation.teacher",
        'no stage is named "Small_1"',
        "did you mean small?",
    ),
    (
        {("stages", 2, "from"): "the biggest one of all that there are"},
        "spec.stages[2].from",
        'no stage is named "the biggest',
        "name one of the stages before it: tiny, small",
    ),
    (
        {("distillation", "teacher"): "Tiny"},
        "spec.distillation.teacher",
        "the stages before the teacher could not learn from it",
        "in the distillation of each stage",
    ),
    (
        {("distillation", "surpassWindowSteps"): 0},
        "spec.distillation.surpassWindowSteps",
        "out of range",
        "at least 1",
    ),
    # a stage that is only taught
    (
        {("stages", 2, "expansion"): {"width": "Fresh", "weights": "Trunk"}},
        "spec.stages[2].expansion.weights",
        "nothing grows under width: Fresh, so weights is never used",
        "remove it, or write another width",
    ),
    (
        {("expansion",): {"width": "Fresh", "depth": "Stack"}},
        "spec.expansion.depth",
        "nothing grows under width: Fresh, so depth is never used",
        "remove it",
    ),
    (
        {("stages", 2, "expansion"): {"width": "Fresh"}, ("distillation", "weight"): 0},
        "spec.distillation.weight",
        '"base" starts fresh and would not learn from "small" either',
        "baseline.train",
    ),
    (
        {("stages", 2, "expansion"): {"width": "Fresh"}, ("stages", 2, "training"): {"epochs": 0}},
        "spec.stages[2].training.epochs",
        '"base" is not trained and has no weights to hold',
        "at least 1 epoch",
    ),
    (
        {
            ("stages", 2, "expansion"): {"width": "Fresh"},
            ("stages", 2, "modelConfig", "text", "contextLength"): 32,
        },
        "spec.stages[2].modelConfig.text.contextLength",
        'the stage can\'t learn from "small": contextLength is 32, not 77',
        "write 77",
    ),
    # the trunk
    (
        {("stages", 2, "expansion"): {"weights": "Trunk"}},
        "spec.stages[2].expansion.weights",
        '"small" has no trunk to start from',
        "training.schedule.type: WarmupStableDecay",
    ),
    (
        {
            ("expansion", "weights"): "Trunk",
            ("training", "schedule"): {"type": "WarmupStableDecay"},
            ("stages", 0, "training"): {"epochs": 8, "schedule": {"type": "Cosine"}},
        },
        "spec.expansion.weights",
        '"tiny" has no trunk to start from',
        "or write weights: Published",
    ),
    (
        {
            ("stages", 2, "expansion"): {"weights": "Trunk"},
            ("training", "schedule"): {"type": "WarmupStableDecay", "decayFraction": 1},
        },
        "spec.stages[2].expansion.weights",
        '"small" has no trunk to start from',
        "a decayFraction below 1",
    ),
    (
        {
            ("stages", 2, "expansion"): {"weights": "Trunk"},
            ("training", "schedule"): {"type": "WarmupStableDecay"},
            ("stages", 1, "training"): {"epochs": 0},
        },
        "spec.stages[2].expansion.weights",
        '"small" has no trunk to start from',
        "give it epochs",
    ),
    (
        {("expansion", "optimizerState"): "Carried"},
        "spec.expansion.optimizerState",
        "the optimizer's state is kept with the trunk",
        "write weights: Trunk beside it",
    ),
    (
        {("training", "schedule"): {"decayFraction": 0.1}},
        "spec.training.schedule.decayFraction",
        "Cosine schedule has no decayFraction",
        "WarmupStableDecay",
    ),
    (
        {("training", "schedule"): {"type": "WarmupStableDecay"}, ("training", "warmupSteps"): 1300},
        "spec.training.warmupSteps",
        'does not end within the 1248 of "small" before its decay',
        "write fewer",
    ),
    ({("training", "emaDecay"): 1}, "spec.training.emaDecay", "out of range", "less than 1"),
    # stages that are not trained
    (
        {("stages", 0, "training"): {"epochs": 0}},
        "spec.stages[0].training.epochs",
        '"tiny" is not trained and has no weights to hold',
        "give it fromWeights, or at least 1 epoch",
    ),
    (
        {
            ("training", "epochs"): 0,
            ("stages", 0, "training"): {},
            ("stages", 0, "fromWeights"): {"uri": "s3://a/b", "sha256": SHA},
        },
        "spec.training.epochs",
        "no stage is trained",
        "at least one of them 1 epoch",
    ),
    # quantities of Kubernetes
    (
        {("job", "resources"): {"limits": {"memory": "64GB"}}},
        "spec.job.resources.limits.memory",
        '"64GB" is no quantity',
        "64Gi (powers of 1024) or 64G",
    ),
    (
        {("job", "resources"): {"requests": {"cpu": "four"}}},
        "spec.job.resources.requests.cpu",
        "no quantity",
        "500m",
    ),
    (
        {("job", "annotations"): {f"a{i}": "x" for i in range(300)}},
        "spec.job.annotations",
        "has 300 entries",
        "at most 32 entries",
    ),
    (
        {("job", "annotations"): {"note": "\x1b[2J"}},
        "spec.job.annotations.note",
        "control characters",
        "write it without",
    ),
    (
        {("store", "endpointUrl"): "https://[::1"},
        "spec.store.endpointUrl",
        "no address of a server",
        "a port from 1 to 65535",
    ),
    (
        {("store", "endpointUrl"): "https://minio:9000/?x=1"},
        "spec.store.endpointUrl",
        "a query or a fragment is none",
        "a path or none",
    ),
    *(
        ({("data", "shards"): [shard]}, "spec.data.shards[0]", message, remedy)
        for shard, message, remedy in (
            ("s3://data/{000..003}.tar.gz", "is compressed", "unpack it"),
            ("s3://data/a.TGZ", "is compressed", "unpack it"),
            ("s3://data/{a,b}.jsonl", "is no tar", "write the data as webdataset tars"),
            ("https://host/a.parquet", "is no tar", "write the data as webdataset tars"),
            ("shards/index.json", "is one JSON document", "write what `modelchain samples` prints"),
            ("pipe:curl host/a.tar", "way to run a program", "name the files themselves"),
        )
    ),
    (
        {("evaluation", 0, "data", "shards"): ["a.zip"]},
        "spec.evaluation[0].data.shards[0]",
        "is no tar",
        "webdataset tars",
    ),
    (
        {("data", "samples"): "Auto"},
        "spec.data.samples",
        "a whole number is needed",
        "run `modelchain samples`",
    ),
    ({("job", "resources"): {"limits": 4}}, "spec.job.resources.limits", "is 4, a mapping", "{cpu: 8"),
    (
        {("job", "resources"): {"limits": {"nvidia.com/gpu": 8}}},
        "spec.job.resources.limits.nvidia.com/gpu",
        "set by job.gpusPerNode",
        "gpusPerNode: 8",
    ),
]


@pytest.mark.parametrize(("changes", "path", "message", "remedy"), MISTAKES, ids=lambda _: None)
def test_mistake_has_its_own_message(
    tmp_path: FilePath, changes: dict[Path, Any], path: str, message: str, remedy: str
) -> None:
    found = problems(tmp_path, changes)
    if path == "*":  # one problem for each of several fields
        assert len(found) >= 2
    else:
        assert [problem.path for problem in found] == [path]
    for problem in found:
        assert message in problem.message
        assert remedy in problem.remedy
        assert "\n" not in str(problem)


def test_a_key_in_an_address_is_never_repeated(tmp_path: FilePath) -> None:
    address = "s3://ID:CANARY@bucket/{2..1}.tar"  # wrong in several ways, and twice
    found = problems(tmp_path, {("data", "shards"): [address, address], ("store", "uri"): address})
    assert len(found) == 3
    assert not any("CANARY" in str(problem) for problem in found)


def test_the_chain_these_mistakes_are_made_in_is_valid(tmp_path: FilePath) -> None:
    assert problems(tmp_path, {}) == []


@pytest.mark.parametrize(
    "changes",
    [
        {(*LAST, "vision", "imageSize"): 192},  # images and patches may change either way
        {(*LAST, "vision", "patchSize"): 32},
        {(*LAST, "vision", "mlpRatio"): 2},  # as many units as before
        {("stages", 1, "model"): "ViT-T-16"},  # the same model again
        {("stages", 1, "model"): "open_clip/ViT-B-32", ("stages", 2, "modelConfig"): INLINE},
        {("stages", 2, "from"): "tiny"},
        {("data", "shards"): ["data/{0..1}.tar", "/d/a.tar", "file:///d/b.tar", "s3://d/c.tar"]},
        {  # an @ that is no key's
            ("data", "shards"): [
                "data@2/a.tar",
                "data/12:30@2/a.tar",
                "s3://b/a@1.tar",
                "https://b:80/a@1.tar",
                "abfs://box@b.example.com/a.tar",
                "hf://datasets/a/b@main/c.tar",
                "http://[::1]/a@2.tar",
                "https://b?at=a@b",
            ]
        },
        {("training", "microBatchSize"): 64},
        {("training", "microBatchSize"): "Auto"},
        {
            ("training", "epochs"): None,
            ("stages", 1, "training"): {"epochs": 1},
            ("stages", 2, "training"): {"epochs": 1},
        },
        {("stages", 0, "fromWeights"): {"uri": "s3://a/b", "sha256": SHA}},
        {
            ("job", "resources"): {
                "requests": {"cpu": 0.5, "memory": "1e9", "example.com/nic": 1},
                "claims": [],
            }
        },
        {("job", "podTemplate"): {"spec": {"anything": None}}},
        {(*PETS, "classes"): ["crane", "crane"]},  # ImageNet has such a pair
        {("job",): {"gpusPerNode": 0, "processesPerNode": 4}},
        {("distillation",): {"weight": 0, "schedule": {"type": "Linear", "endWeight": 1}}},
        {("suspend",): None, ("retry",): None, ("expansion", "width"): None},
        {  # weights from elsewhere, held and polished downwards: every lever at once
            ("stages", 0, "training"): {"epochs": 0},
            ("stages", 0, "fromWeights"): {"uri": "s3://a/b", "sha256": SHA},
            ("stages", 2, "distillation"): {"teacher": "tiny", "surpassWindowSteps": 10},
            ("stages", 2, "expansion"): {"weights": "Trunk", "optimizerState": "Carried"},
            ("training", "schedule"): {"type": "WarmupStableDecay", "decayFraction": 0.97},
            ("training", "emaDecay"): 0.999,
        },
        {("training", "schedule"): {"type": "WarmupStableDecay", "decayFraction": 1}},
        {  # only taught, by a model that is larger
            ("stages", 2, "expansion"): {"width": "Fresh"},
            ("stages", 2, "modelConfig", "embedDim"): 64,
            ("stages", 2, "distillation"): {"teacher": "small", "weight": 2},
        },
        {  # what the chain says of growth is for the other stages
            ("expansion",): {"depth": "Stack"},
            ("stages", 2, "expansion"): {"width": "Fresh"},
        },
        {("stages", 1, "training"): {"epochs": 0}},  # holds what it has grown
    ],
    ids=lambda _: None,
)
def test_what_is_unusual_but_right_passes(tmp_path: FilePath, changes: dict[Path, Any]) -> None:
    assert [str(problem) for problem in problems(tmp_path, changes)] == []


@pytest.mark.parametrize(
    "path",
    [
        ("data", "textKey"),
        ("job", "labels", "team"),
        ("job", "managedBy"),
        ("job", "nodeSelector", "disk"),
        ("job", "runtime"),
        ("job", "schedulingPolicy", "priorityClass"),
    ],
)
def test_what_a_text_must_be_like_is_said_in_words(tmp_path: FilePath, path: Path) -> None:
    (problem,) = problems(tmp_path, {path: "no such thing?"})
    assert problem.message == '"no such thing?" is not allowed'
    assert problem.remedy.startswith("write ")


def test_a_stage_whose_name_is_wrong_is_called_so_by_others(tmp_path: FilePath) -> None:
    """Renaming it is the remedy, and not to look for another stage."""
    wrong: dict[Path, Any] = {("stages", 1, "name"): "Small_1", ("stages", 2, "from"): "Small_1"}
    assert {problem.path: problem.message for problem in problems(tmp_path, wrong)} == {
        "spec.stages[1].name": '"Small_1" is not allowed',
        "spec.stages[2].from": '"Small_1" is not allowed',
    }


def test_a_resolved_stage_too_large_for_its_job_names_the_stage(tmp_path: FilePath) -> None:
    classes = [f"class number {index} with a rather long name" for index in range(1900)]
    (problem,) = problems(tmp_path, {(*PETS, "classes"): classes})
    assert problem.path == "spec.stages[0]"
    assert "classesUri" in problem.remedy


def test_one_mistake_is_not_reported_again_as_its_consequence(tmp_path: FilePath) -> None:
    """Whoever misspells epochs is not told that epochs are missing, nor that the batch is 1024."""
    typos: dict[Path, Any] = {
        ("training",): {"epoch": 4, "globalBatch": 256},
        ("data", "samples"): "600",
        ("stages", 0, "training"): REMOVED,
    }
    paths = {problem.path for problem in problems(tmp_path, typos)}
    assert paths == {"spec.training.epoch", "spec.training.globalBatch", "spec.data.samples"}


def test_all_mistakes_are_found_at_once(tmp_path: FilePath) -> None:
    """Wrong types do not hide what the rules find elsewhere."""
    wrong: dict[Path, Any] = {
        ("retries",): {},
        ("training", "seed"): "x",
        ("data", "shards"): ["{3..1}"],
        ("job", "nodes"): 3,
        ("stages", 1, "name"): "Small",
        ("stages", 1, "from"): "base",
        (*LAST, "text", "heads"): 7,
        (*PETS, "templates"): ["none"],
        ("evaluation", 0, "type"): "retrieval",
    }
    assert {problem.path for problem in problems(tmp_path, wrong)} == {
        "spec.retries",
        "spec.training.seed",
        "spec.data.shards[0]",
        "spec.training.globalBatchSize",
        "spec.stages[1].name",
        "spec.stages[1].from",
        "spec.stages[2].modelConfig.text.heads",
        "spec.evaluation[0].type",
    }
