"""The fields of a JobSet that we use, as the `v1alpha2` schema of kubernetes-sigs/jobset has them.

Source: https://github.com/kubernetes-sigs/jobset, in August 2026. The Jobs within have Kubernetes'
own schema.
"""

TEXT, COUNT = {"type": "string"}, {"type": "integer", "minimum": 0}


def _only(required, **properties):
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


def _several(of):
    return {"type": "array", "items": of}


_RULE = _only(
    "name action",
    name={"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
    action={
        "enum": [
            "FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts", "RestartJob",
            "RestartJobAndIgnoreMaxRestarts",
        ]
    },
    onJobFailureReasons=_several(TEXT),
    onJobFailureMessagePatterns=_several(TEXT),
    targetReplicatedJobs=_several(TEXT),
)  # fmt: skip
JOBSET = _only(
    "apiVersion kind metadata spec",
    apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
    kind={"const": "JobSet"},
    metadata=_only(
        "name",
        name={"type": "string", "pattern": "^[a-z]([a-z0-9-]*[a-z0-9])?$", "maxLength": 40},
        annotations={"type": "object", "additionalProperties": TEXT},
    ),
    spec=_only(
        "replicatedJobs",
        network=_only("", enableDNSHostnames={"type": "boolean"}, subdomain=TEXT),
        failurePolicy=_only("", maxRestarts=COUNT, rules=_several(_RULE)),
        replicatedJobs=_several(
            _only("name template", name=TEXT, replicas=COUNT, template={"type": "object"})
        ),
    ),
)
