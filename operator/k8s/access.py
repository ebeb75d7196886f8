"""How the API server is reached: address and credentials, in the cluster or by kubeconfig."""

from __future__ import annotations

import ssl
from collections.abc import Callable

import msgspec
from kubernetes import config as kube_config
from kubernetes.client import Configuration

from ...logbook.errors import ConfigError


class Access(msgspec.Struct, frozen=True):
    """Where the API server is and how we show who we are. Files are paths of PEM.

    header: returns the Authorization header of the moment, None where a certificate is shown.
    """

    server: str
    header: Callable[[], str | None] = lambda: None
    ca_path: str | None = None
    certificate_path: str | None = None
    key_path: str | None = None
    is_insecure: bool = False

    def context(self) -> ssl.SSLContext | bool:
        """Return what TLS connections to the server are checked by."""
        if self.is_insecure:
            return False
        context = ssl.create_default_context(cafile=self.ca_path)
        if self.certificate_path:
            context.load_cert_chain(self.certificate_path, self.key_path)
        return context


def load_access() -> Access:
    """Return the access of the pod's service account, else that of the kubeconfig.

    Raises: ConfigError[no-cluster].
    """
    found = Configuration()
    try:
        kube_config.load_incluster_config(client_configuration=found)
    except kube_config.ConfigException:
        try:
            kube_config.load_kube_config(client_configuration=found)
        except (kube_config.ConfigException, OSError) as error:
            raise ConfigError(
                "no-cluster",
                f"there is neither a service account nor a usable kubeconfig: {error}.",
                remedy="Run it in a pod, or set KUBECONFIG.",
            ) from error

    def header() -> str | None:
        # The library renews what expires, and has moved the key from one name to the other.
        for key in ("BearerToken", "authorization"):
            value = found.get_api_key_with_prefix(key)
            if value:
                return str(value)
        return None

    return Access(
        server=found.host,
        header=header,
        ca_path=found.ssl_ca_cert,
        certificate_path=found.cert_file,
        key_path=found.key_file,
        is_insecure=not found.verify_ssl,
    )
