"""What is remembered of chains, jobs and pods between looks at the API server."""

import base64
import json
import secrets
import zlib

import pytest

from modelchain_operator.acceptance import Acceptance, Refused, accept
from modelchain_operator.informers.cache import DELETED_SECONDS, Cache, is_newer
from modelchain_operator.informers.slim import MAX_ITEMS, MAX_TEXT
from modelchain_operator.jobs import JOB_KINDS
from modelchain_operator.kubernetes.api import Object, ObjectVersion
from modelchain_operator.kubernetes.key import Key
from modelchain_operator.kubernetes.kinds import CHAIN, POD, PYTORCHJOB
from modelchain_operator.kubernetes.labels import CHAIN_UID, DIGEST_ANNOTATION, RETRAIN_MISSING_ANNOTATION

KEY = Key("team", "family")


def chain(version: int, *, uid: str = "u1", name: str = "family") -> Object:
    return {
        "apiVersion": CHAIN.api_version,
        "kind": CHAIN.kind,
        "metadata": {
            "namespace": "team",
            "name": name,
            "uid": uid,
            "resourceVersion": str(version),
            "managedFields": [{"manager": "kubectl"}],
            "annotations": {
                "kubectl.kubernetes.io/last-applied-configuration": "{}",
                RETRAIN_MISSING_ANNOTATION: "1",
            },
        },
        "spec": {"stages": [{"name": "a"}]},
        "status": {"phase": "Running"},
    }


def job(version: int, *, chain_uid: str = "u1", uid: str = "j1") -> Object:
    return {
        "metadata": {
            "namespace": "team",
            "name": f"job-{uid}",
            "uid": uid,
            "resourceVersion": str(version),
            "labels": {CHAIN_UID: chain_uid},
        },
        "spec": {
            "runPolicy": {"suspend": True},
            "pytorchReplicaSpecs": {"Master": {"replicas": 1, "template": {"spec": "long"}}},
        },
        "status": {"conditions": []},
    }


def test_a_chain_comes_back_without_what_nobody_reads() -> None:
    cache = Cache()
    assert cache.show_chain(chain(1)) == KEY
    known = cache.chain(KEY)
    assert known is not None
    body = known.body()
    assert body["spec"] == chain(1)["spec"]
    assert body["status"] == {"phase": "Running"}
    assert body["metadata"] == {
        "namespace": "team",
        "name": "family",
        "uid": "u1",
        "resourceVersion": "1",
        "annotations": {RETRAIN_MISSING_ANNOTATION: "1"},
    }


def test_only_a_newer_state_is_news() -> None:
    cache = Cache()
    cache.show_chain(chain(5))
    assert cache.show_chain(chain(5)) is None
    assert cache.show_chain(chain(4)) is None
    assert cache.show_chain(chain(10)) == KEY


def test_a_chain_of_the_same_name_takes_the_place_of_a_deleted_one() -> None:
    cache = Cache()
    cache.show_chain(chain(50))
    assert cache.show_chain(chain(60, uid="u2")) == KEY
    assert not cache.drop_chain(KEY, "u1"), "a late word of the old one's deletion"
    assert cache.drop_chain(KEY, "u2")
    assert cache.chain(KEY) is None


def test_jobs_belong_to_the_chain_whose_label_they_carry() -> None:
    cache = Cache()
    assert cache.show(PYTORCHJOB, job(1)) is None, "its chain was not seen yet"
    cache.show_chain(chain(1))
    assert cache.show(PYTORCHJOB, job(2)) == KEY
    assert cache.show(PYTORCHJOB, job(2)) is None
    assert cache.show(PYTORCHJOB, job(9, chain_uid="other")) is None
    (kept,) = cache.objects(PYTORCHJOB, "team", "u1")
    assert kept["spec"] == {
        "runPolicy": {"suspend": True},
        "pytorchReplicaSpecs": {"Master": {"replicas": 1}},
    }
    assert cache.show(PYTORCHJOB, job(3), deleted=True) == KEY
    assert cache.objects(PYTORCHJOB, "team", "u1") == []


def test_an_answer_from_before_a_deletion_brings_nothing_back() -> None:
    now = 0.0
    cache = Cache(clock=lambda: now)
    cache.show_chain(chain(1))
    cache.show(PYTORCHJOB, job(2))
    cache.show(PYTORCHJOB, job(4), deleted=True)
    assert cache.show(PYTORCHJOB, job(3)) is None, "a listing that began before, and was read after"
    assert cache.objects(PYTORCHJOB, "team", "u1") == []
    assert cache.show(PYTORCHJOB, job(5)) == KEY, "it had only lost its label"

    late = job(7, uid="j2")  # created, and gone before the answer to its creation was read
    cache.show(PYTORCHJOB, job(8, uid="j2"), deleted=True)
    assert cache.show(PYTORCHJOB, late) is None

    cache.drop_absent(PYTORCHJOB, set(), {"j1"})
    assert cache.show(PYTORCHJOB, job(5)) is None, "a listing has shown that it is gone"

    cache.drop_chain(KEY, "u1", "9")
    assert cache.show_chain(chain(8)) is None
    assert cache.chain(KEY) is None
    assert cache.show_chain(chain(10, uid="u2")) == KEY


def test_deletions_are_remembered_for_a_short_while() -> None:
    now = 0.0
    cache = Cache(clock=lambda: now)
    cache.show_chain(chain(1))
    for second in range(2000):
        now = float(second)
        cache.show(PYTORCHJOB, job(second, uid=f"j{second}"), deleted=True)
    assert len(cache._deleted._versions) <= DELETED_SECONDS + 2
    assert cache.show(PYTORCHJOB, job(1990, uid="j1990")) is None


def test_objects_without_our_label_are_not_kept() -> None:
    cache = Cache()
    foreign = job(1)
    foreign["metadata"]["labels"] = {"app": "other"}
    assert cache.show(PYTORCHJOB, foreign) is None


def test_a_listing_shows_what_no_watch_has_told() -> None:
    cache = Cache()
    for name in ("family", "gone", "same"):
        cache.show_chain(chain(5, uid=f"u-{name}", name=name))
    before = cache.chain_uids()
    cache.show_chain(chain(9, uid="u-late", name="late"))
    listed = [
        ObjectVersion("team", "family", "u-family", "7"),
        ObjectVersion("team", "same", "u-same", "5"),
        ObjectVersion("team", "new", "u-new", "6"),
    ]
    stale, gone = cache.stale_chains(listed, before)
    assert stale == [KEY, Key("team", "new")]
    assert gone == [Key("team", "gone")], "not the one that came while the listing was under way"


def test_a_listing_takes_away_jobs_whose_deletion_was_missed() -> None:
    cache = Cache()
    cache.show_chain(chain(1))
    cache.show(PYTORCHJOB, job(1, uid="kept"))
    cache.show(PYTORCHJOB, job(1, uid="gone"))
    before = cache.uids(PYTORCHJOB)
    cache.show(PYTORCHJOB, job(3, uid="late"))
    assert cache.drop_absent(PYTORCHJOB, {"kept"}, before) == {KEY}
    assert {item["metadata"]["uid"] for item in cache.objects(PYTORCHJOB, "team", "u1")} == {"kept", "late"}
    assert cache.drop_absent(PYTORCHJOB, {"kept", "late"}, before) == set()


def test_a_listing_shows_whose_jobs_have_changed() -> None:
    cache = Cache()
    cache.show_chain(chain(1))
    cache.show(PYTORCHJOB, job(3, uid="known"))
    listed = [
        ObjectVersion("team", "same", "known", "3", chain_uid="u1"),
        ObjectVersion("team", "labelled", "foreign", "9"),
    ]
    assert cache.stale_owners(PYTORCHJOB, listed) == set()
    newer = ObjectVersion("team", "changed", "known", "4", chain_uid="u1")
    of_another = ObjectVersion("other", "made", "new", "2", chain_uid="u2")
    assert cache.stale_owners(PYTORCHJOB, [*listed, newer, of_another]) == {("team", "u1"), ("other", "u2")}
    assert cache.stale_owners(POD, listed) == {("team", "u1")}, "a pod is no job"


def test_what_names_a_chain_from_another_namespace_neither_wakes_nor_hides_it() -> None:
    cache = Cache()
    cache.show_chain(chain(1))
    foreign = job(9, uid="foreign")
    foreign["metadata"]["namespace"] = "other"
    assert cache.show(PYTORCHJOB, foreign) is None
    assert cache.objects(PYTORCHJOB, "team", "u1") == []
    listed = [
        ObjectVersion("team", "own", "own", "3", chain_uid="u1"),
        ObjectVersion("other", "foreign", "foreign", "10", chain_uid="u1"),
    ]
    assert ("team", "u1") in cache.stale_owners(PYTORCHJOB, listed), "its own are read again all the same"
    assert cache.show(PYTORCHJOB, foreign, deleted=True) is None


@pytest.mark.parametrize(
    ("version", "than", "newer"),
    [("10", "9", True), ("9", "10", False), ("9", "9", False), ("abc", "9", True), ("abc", "abc", False)],
)
def test_versions_are_compared_as_numbers(version: str, than: str, *, newer: bool) -> None:
    assert is_newer(version, than) is newer


def test_what_others_write_into_jobs_and_pods_by_the_megabyte_is_not_kept() -> None:
    """Whoever may create jobs in a namespace may do so by the hundred, for chains that do not exist too."""
    long, many = "x" * 240_000, {f"example.com/{i}": "x" * 63 for i in range(2000)}
    condition = {"type": "Failed", "status": "True", "reason": long, "message": long, "unknown": long}
    container = {"name": "pytorch", "image": long, "state": {"terminated": {"exitCode": 1, "message": long}}}
    metadata = {
        "namespace": "team",
        "name": "j",
        "uid": "j",
        "resourceVersion": "1",
        "annotations": {"a": long, DIGEST_ANNOTATION: long},
        "labels": {CHAIN_UID: "x", "other": long, **many},
        "finalizers": [long] * 50,
        "ownerReferences": [{"apiVersion": "v1", "kind": "K", "name": long, "uid": "u", "controller": True}]
        * 50,
        "unknown": long,
    }
    status = {
        "phase": "Running",
        "unknown": long,
        "message": long,
        "conditions": [condition] * 100,
        "containerStatuses": [container] * 100,
        "jobsStatus": [{"name": long, "ready": 1}] * 100,
    }
    replicas = {role: {"replicas": 1, "template": long} for role in ("Master", *many)}
    spec = {
        "runPolicy": {"suspend": True, "managedBy": long, "schedulingPolicy": long},
        "pytorchReplicaSpecs": replicas,
        "completions": 1,
        "managedBy": long,
        "parallelism": 1,
        "selector": long,
        "trainer": {"numNodes": 2, "image": long},
        "labels": many,
        "nodeName": long,
        "hostname": long,
    }
    for kind in (*JOB_KINDS, POD):
        cache = Cache()
        cache.show(kind, {"metadata": metadata, "spec": spec, "status": status})
        (kept,) = cache.objects(kind, "team", "x")
        size = len(json.dumps(kept))
        most = MAX_ITEMS * (2 * MAX_TEXT + 1024) * 2 + 2**16
        assert size < most, (kind, size)
        without_status = len(json.dumps({**kept, "status": None}))
        assert without_status < 2**15, (kind, without_status)


def test_a_container_that_trains_is_kept_however_many_others_there_are() -> None:
    others = [{"name": f"c{i}", "state": {"running": {}}} for i in range(100)]
    trainer = {"name": "pytorch", "state": {"terminated": {"exitCode": 65, "message": "{}"}}}
    pod = {"metadata": job(1)["metadata"], "status": {"containerStatuses": [*others, trainer]}}
    cache = Cache()
    cache.show(POD, pod)
    (kept,) = cache.objects(POD, "team", "u1")
    assert trainer in kept["status"]["containerStatuses"]


def too_large() -> Object:
    body = chain(1)
    body["spec"]["job"] = {"podTemplate": {"x": base64.b64encode(secrets.token_bytes(600_000)).decode()}}
    body["spec"] |= {"suspend": True, "store": {"uri": "s3://bucket", "secretRef": {"name": "s3"}}}
    return body


def test_of_a_chain_that_is_too_large_what_its_jobs_need_is_kept_and_it_is_refused_with_words() -> None:
    body = too_large()
    cache = Cache()
    cache.show_chain(body)
    known = cache.chain(KEY)
    assert known is not None
    assert len(known.packed) < 1024
    refused = accept(known.body(), default_image="x:1")
    assert isinstance(refused, Refused)
    assert "larger than the operator keeps" in refused.problems[0]
    assert known.body()["status"] == {"phase": "Running"}
    assert known.body()["spec"] == {"suspend": True, "store": body["spec"]["store"]}
    for first, then in ((body, known.body()), (known.body(), body)):
        acceptance = Acceptance("x:1")
        assert acceptance.validate(first) == refused, "whether it was read from the cache or not"
        assert acceptance.validate(then) == refused


def test_of_a_chain_that_is_too_large_no_large_store_is_kept() -> None:
    body = too_large()
    body["spec"]["store"]["uri"] += base64.b64encode(secrets.token_bytes(600_000)).decode()
    body["spec"]["suspend"] = "x" * 600_000
    cache = Cache()
    cache.show_chain(body)
    known = cache.chain(KEY)
    assert known is not None
    assert known.body()["spec"] == {"suspend": False}


def test_a_chain_is_compressed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compressed: list[bytes] = []
    compress = zlib.compress

    def counting(data: bytes, level: int) -> bytes:
        compressed.append(data)
        return compress(data, level)

    monkeypatch.setattr(zlib, "compress", counting)
    Cache().show_chain(chain(1))
    assert len(compressed) == 1
