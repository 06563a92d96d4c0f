"""Checks emitted manifests by schema; .ci/manifests says how. Prints what was checked."""

import collections
import sys

import kubernetes_validate
import yaml

VERSION = kubernetes_validate.latest_version()
# v1beta1 of Dynamo's request, the fields that are emitted.
DYNAMO = {
    "model": str,
    "backend": {"auto", "sglang", "trtllm", "vllm"},
    "hardware": {
        "gpuSku": {
            "gb200", "b300_sxm", "b200_sxm", "h200_sxm", "h100_sxm", "h100_pcie", "a100_sxm", "a100_pcie",
            "l40s", "mi300",
        },
        "totalGpus": int,
        "numGpusPerNode": int,
    },
    "workload": {"isl": int, "osl": int, "requestRate": (int, float)},
    "sla": {"ttft": (int, float), "itl": (int, float)},
    "searchStrategy": {"rapid", "thorough"},
    "autoApply": bool,
}
# v1 of LeaderWorkerSet, likewise; its templates are pod templates.
GROUP = {
    "replicas": int,
    "leaderWorkerTemplate": {
        "size": int,
        "restartPolicy": {"RecreateGroupOnPodRestart", "None"},
        "leaderTemplate": dict,
        "workerTemplate": dict,
    },
}


def fits(value, form, path):
    """Whether a value has a form: a type, a set of words, or the fields of a map."""
    if isinstance(form, dict):
        assert isinstance(value, dict), f"{path} is not a map"
        for key, inner in value.items():
            assert key in form, f"{path}.{key} is not a field"
            fits(inner, form[key], f"{path}.{key}")
    elif isinstance(form, set):
        assert value in form, f"{path}: {value} is none of {sorted(form)}"
    else:
        assert isinstance(value, form), f"{path}: {value!r} is not a {form}"


def check(document):
    kind = document["kind"]
    if kind == "DynamoGraphDeploymentRequest":
        assert document["apiVersion"] == "nvidia.com/v1beta1"
        fits(document["spec"], DYNAMO, "spec")
    elif kind == "LeaderWorkerSet":
        assert document["apiVersion"] == "leaderworkerset.x-k8s.io/v1"
        fits(document["spec"], GROUP, "spec")
        for name in ("leaderTemplate", "workerTemplate"):
            template = document["spec"]["leaderWorkerTemplate"][name]
            pods = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": template}
            kubernetes_validate.validate(pods, VERSION, strict=True)
    else:
        kubernetes_validate.validate(document, VERSION, strict=True)
    return kind


counts = collections.Counter()
for file in sys.argv[1:]:
    with open(file, encoding="utf-8") as text:
        documents = list(yaml.safe_load_all(text))
    assert documents, f"{file} is empty"
    for document in documents:
        try:
            counts[check(document)] += 1
        except Exception as error:
            sys.exit(f"{file}: {error}")
print("valid:", ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())), f"(Kubernetes {VERSION})")
for kind in ("Deployment", "DynamoGraphDeploymentRequest", "Job", "LeaderWorkerSet", "Service"):
    assert counts[kind], f"no {kind} was emitted, so none was checked"
