"""Tests of the operator run on a real control plane."""

from tests.control_plane.fixtures import control_plane, namespace, new_plane, pod_runner

__all__ = ["control_plane", "namespace", "new_plane", "pod_runner"]
