"""Where the files of an instance are, below its two roots.

Owns the paths of core §3, and opens none of them. `Config` is made of settings and of this.
"""

from __future__ import annotations

DEFAULT_ETC_DIR = "/etc/ctrl-exec"
DEFAULT_STATE_DIR = "/var/lib/ctrl-exec"


class Locations:
    """Paths derived from the settings; a setting that names a file comes before its usual place."""

    etc_dir: str
    state_dir: str
    cert: str
    key: str
    ca: str
    ca_dir: str

    @property
    def is_private(self) -> bool:
        """Whether this is an instance of its own, not the one of the system (core §3.1)."""
        return self.etc_dir != DEFAULT_ETC_DIR

    @property
    def cert_path(self) -> str:
        """The dispatcher's certificate in PEM."""
        return self.cert or self.etc_dir + "/dispatcher.crt"

    @property
    def key_path(self) -> str:
        """The dispatcher's private key in PEM."""
        return self.key or self.etc_dir + "/dispatcher.key"

    @property
    def ca_cert_path(self) -> str:
        """The CA's certificate in PEM."""
        return self.ca or (self.ca_dir or self.etc_dir) + "/ca.crt"

    @property
    def ca_key_path(self) -> str:
        """The CA's private key, which only root may read."""
        return (self.ca_dir or self.etc_dir) + "/ca.key"

    @property
    def identity_dir(self) -> str:
        """The dispatcher's identities, `<serial>.pem` and the link `current`."""
        return self.etc_dir + "/identity"

    @property
    def secrets_key_path(self) -> str:
        """The key that the task layer's stored secrets are encrypted with."""
        return self.etc_dir + "/secrets.key"

    @property
    def agents_dir(self) -> str:
        """The registry, a file for each agent."""
        return self.state_dir + "/agents"

    @property
    def revoked_path(self) -> str:
        """The revoked keys."""
        return self.state_dir + "/revoked.json"

    @property
    def contacts_dir(self) -> str:
        """What was last heard of each agent."""
        return self.state_dir + "/state"

    @property
    def pairing_dir(self) -> str:
        """The queue of pairing requests."""
        return self.state_dir + "/pairing"

    @property
    def locks_dir(self) -> str:
        """The lock files, `<host>/<script>`."""
        return self.state_dir + "/locks"

    @property
    def runs_dir(self) -> str:
        """The run records."""
        return self.state_dir + "/runs"

    @property
    def workers_dir(self) -> str:
        """Where the API daemon's fan-out workers listen."""
        return self.state_dir + "/workers"

    @property
    def rotation_path(self) -> str:
        """The state of the rotation of the dispatcher's certificate."""
        return self.state_dir + "/rotation.json"

    @property
    def tasks_db_path(self) -> str:
        """The task layer's database."""
        return self.state_dir + "/tasks.db"

    @property
    def metrics_dir(self) -> str:
        """What the other daemons publish for `/metrics`."""
        return self.state_dir + "/metrics"

    @property
    def executions_dir(self) -> str:
        """The logs and locks of the task layer's executions."""
        return self.state_dir + "/executions"
