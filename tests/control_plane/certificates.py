"""Certificates for webhooks of controllers that run as processes of this machine."""

from __future__ import annotations

import base64
import contextlib
import shutil
import subprocess
from pathlib import Path

FILES = ("ca.crt", "ca.key", "tls.crt", "tls.key")


def make_certificates(folder: Path, host: str, *, organization: str, authority: str) -> None:
    """A certificate authority and a webhook's pair, as cert-controller's rotator would make them: it takes keys of the
    traditional form only, and an authority whose name is among its DNS names.
    https://github.com/open-policy-agent/cert-controller
    """
    (folder / "tls.ext").write_text(
        f"extendedKeyUsage=serverAuth\nkeyUsage=digitalSignature,keyEncipherment\nsubjectAltName=DNS:{host},IP:127.0.0.1\n"
    )
    days = ("-days", "3650")
    with contextlib.chdir(folder):
        for name in ("ca", "tls"):
            openssl("genrsa", "-traditional", "-out", f"{name}.key", "2048")
        name = ("-subj", f"/O={organization}/CN={authority}", "-addext", f"subjectAltName=DNS:{authority}")
        openssl("req", "-x509", "-new", "-key", "ca.key", *days, *name, "-out", "ca.crt")
        openssl("req", "-new", "-key", "tls.key", "-subj", f"/CN={host}", "-out", "tls.csr")
        signing = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial")
        openssl("x509", "-req", "-in", "tls.csr", *signing, *days, "-out", "tls.crt", "-extfile", "tls.ext")


def certificate_secret(name: str, namespace: str, folder: Path) -> dict[str, object]:
    """The Secret in which a rotator looks for the pair. One that holds a valid pair is left alone."""
    content = {file: base64.b64encode((folder / file).read_bytes()).decode() for file in FILES}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace},
        "data": content,
    }


def service_on_this_machine(name: str, namespace: str, port: int) -> dict[str, object]:
    """A Service that leads to a port of this machine, under the name that is in the webhook's certificate."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"type": "ExternalName", "externalName": "localhost", "ports": [{"port": port}]},
    }


def openssl(*arguments: str) -> None:
    """Run openssl. Raises RuntimeError with what it says."""
    command = [shutil.which("openssl") or "openssl", *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"openssl {arguments[0]}: {done.stderr.strip()}")
