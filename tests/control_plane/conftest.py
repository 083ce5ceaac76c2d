"""Tests of the control plane itself, and of what runs its pods."""

from tests.control_plane.fixtures import control_plane, namespace, new_plane, pod_runner

__all__ = ["control_plane", "namespace", "new_plane", "pod_runner"]
