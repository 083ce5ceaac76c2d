"""What an administrator may ask of the operator, and how a mistake is answered."""

from __future__ import annotations

import subprocess
import sys

import pytest

from modelchain.errors import ExitCode, UsageError
from modelchain_operator.__main__ import main
from modelchain_operator.settings import LogFormat, OwnIdentityStore, Settings, build_parser, read_settings


def test_without_flags_and_variables_the_defaults_hold() -> None:
    settings = read_settings([], {})
    assert settings == Settings(identity=settings.identity)
    assert (settings.namespaces, settings.resync_seconds, settings.log_format) == ((), 180.0, LogFormat.TEXT)


def test_the_name_of_the_pod_is_the_identity_unless_another_is_given() -> None:
    assert read_settings([], {"POD_NAME": "operator-7"}).identity == "operator-7"
    assert read_settings(["--identity", "mine"], {"POD_NAME": "operator-7"}).identity == "mine"


def test_a_flag_wins_over_its_variable() -> None:
    environment = {"MODELCHAIN_RESYNC_SECONDS": "90", "MODELCHAIN_NAMESPACES": "a, b"}
    assert read_settings([], environment).resync_seconds == 90
    assert read_settings([], environment).namespaces == ("a", "b")
    both = read_settings(["--resync-seconds=30", "--namespace", "c", "--namespace", "d"], environment)
    assert (both.resync_seconds, both.namespaces) == (30, ("c", "d"))


def test_an_empty_variable_is_as_none() -> None:
    """A Helm chart sets what its values leave empty."""
    assert read_settings([], {"MODELCHAIN_NAMESPACES": "", "MODELCHAIN_HTTP_PORT": " "}).http_port == 8080


def test_every_field_of_the_settings_has_a_flag() -> None:
    flags = {action.dest for action in build_parser()._actions} - {"help", "version"}
    assert flags == set(Settings.__dataclass_fields__)


@pytest.mark.parametrize(
    ("flag", "text"),
    [
        ("--namespace", "Upper"),
        ("--namespace", "a_b"),
        ("--namespace", "a" * 64),
        ("--resync-seconds", "1m"),
        ("--resync-seconds", "nan"),
        ("--resync-seconds", "inf"),
        ("--resync-seconds", "0"),
        ("--progress-seconds", "-1"),
        ("--artifact-check-seconds", "3"),
        ("--workers", "0"),
        ("--workers", "2.5"),
        ("--max-running-chains", "0"),
        ("--store-threads", "1"),
        ("--metrics-max-chains", "all"),
        ("--store-requests-per-second", "none"),
        ("--http-port", "65536"),
        ("--http-host", "example.com"),
        ("--log-format", "xml"),
        ("--log-level", "trace"),
        ("--default-image", "two words"),
        ("--own-identity-store", "bucket/prefix"),
        ("--own-identity-store", "s3://"),
        ("--own-identity-store", "s3://key@bucket"),
        ("--own-identity-store", "s3://bucket/../other"),
        ("--own-identity-store", "s3://bucket=minio:9000"),
        ("--own-identity-store", "s3://bucket=https://user:word@minio"),
        ("--own-identity-store", "file:///"),
        ("--own-identity-store", "file:///folder=http://minio"),
        ("--allowed-endpoint", "minio:9000"),
        ("--allowed-endpoint", "ftp://minio"),
        ("--lease", "modelchain"),
        ("--lease", "a/b/c"),
    ],
)
def test_what_cannot_be_is_refused_with_the_name_under_which_it_was_asked(
    flag: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([flag, text]) == ExitCode.USAGE
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert flag in lines[0]
    assert text in lines[0]
    assert " is not " in lines[0]


@pytest.mark.parametrize(("duration", "deadline", "period"), [(10, 10, 2), (15, 16, 2), (15, 10, 5)])
def test_a_leader_has_to_give_up_before_others_begin_and_to_try_more_than_once(
    duration: int, deadline: int, period: int
) -> None:
    times = (f"--lease-duration-seconds={duration}", f"--renew-deadline-seconds={deadline}")
    with pytest.raises(UsageError, match=f"{duration}, {deadline} and {period} are not"):
        read_settings([*times, f"--retry-period-seconds={period}"], {})


def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="MODELCHAIN_WORKERS: 'many' is not a whole number"):
        read_settings([], {"MODELCHAIN_WORKERS": "many"})


def test_an_unknown_flag_and_a_shortened_one_are_refused() -> None:
    for flag in ("--resync", "--no-such-flag"):
        with pytest.raises(UsageError, match="see python -m modelchain_operator --help"):
            read_settings([flag, "1"], {})


@pytest.mark.parametrize(
    ("listed", "uri", "endpoint", "covered"),
    [
        ("s3://models/teams", "s3://models/teams", None, True),
        ("s3://models/teams", "s3://models/teams/", None, True),
        ("s3://models/teams/", "s3://models/teams/red/blue", None, True),
        ("s3://models/teams", "s3://models/teams-secret", None, False),
        ("s3://models/teams", "s3://models", None, False),
        ("s3://models/teams", "s3://models/teams/../secret", None, False),
        ("s3://models/teams", "s3://models/teams", "http://minio:9000", False),
        ("s3://models=http://minio:9000", "s3://models/a", "http://minio:9000/", True),
        ("s3://models=http://minio:9000", "s3://models/a", None, False),
        ("s3://models=http://minio:9000", "s3://models/a", "", False),
        ("s3://models=http://minio:9000", "s3://models/a", "http://minio:9000.evil.example", False),
        ("s3://models=http://minio:9000", "s3://models/a", "https://minio:9000", False),
        ("file:///mnt/models", "file:///mnt/models/a", None, True),
        ("file:///mnt/models", "file:///mnt/models2", None, False),
        ("file:///mnt/models", "file:///mnt/models/../../etc", None, False),
    ],
)
def test_the_operators_own_rights_reach_as_far_as_the_listed_prefix_and_endpoint(
    listed: str, uri: str, endpoint: str | None, covered: bool
) -> None:
    (store,) = read_settings(["--own-identity-store", listed], {}).own_identity_stores
    assert isinstance(store, OwnIdentityStore)
    assert store.covers(uri, endpoint) is covered


def test_help_and_version_answer_without_a_cluster() -> None:
    for flag, expected in (("--help", "MODELCHAIN_NAMESPACES"), ("--version", "modelchain-operator 0.")):
        ended = subprocess.run(
            [sys.executable, "-m", "modelchain_operator", flag],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        assert expected in ended.stdout
