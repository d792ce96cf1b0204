"""Settings of a run of several processes; see docs/tpu-vm.md."""

from dataclasses import dataclass
from typing import ClassVar

from lumina_jax.config.section import Section, require


@dataclass(frozen=True, kw_only=True)
class HostsConfig(Section):
    """How the processes of one job find each other. TPU VMs need none of these settings.

    Elsewhere the command differs between processes by the index alone. The variables JAX_COORDINATOR_ADDRESS,
    JAX_NUM_PROCESSES and JAX_PROCESS_ID replace flags that are not given.
    """

    called: ClassVar[str] = "hosts."

    coordinator: str = ""
    """Address of process 0, such as 10.0.0.2:8476 (the port above it is used, too); 'auto' under Slurm or Open MPI."""
    count: int | None = None
    """Processes of the job; 1: this one alone, also on a TPU VM that is part of a slice."""
    index: int | None = None
    """Index of this process, from 0."""
    start_timeout: int = 300
    """Seconds within which all processes must have started."""
    silence: int = 60
    """Seconds without a message after which a host counts as lost, and the job ends. A killed process is noticed at
    once."""
    stopped_status: int = 0
    """Exit status of a run that is asked to stop (SIGTERM) before its last step. Launchers that restart failed jobs,
    such as JobSet, need a status other than 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.count is None or self.count >= 1, f"hosts.count={self.count} must be at least 1")
        require(
            self.index is None or (self.index >= 0 and (self.count is None or self.index < self.count)),
            f"hosts.index={self.index} must be from 0 to hosts.count - 1",
        )
        for name in ("start_timeout", "silence"):
            require(getattr(self, name) >= 1, f"hosts.{name}={getattr(self, name)} must be at least 1")
        require(0 <= self.stopped_status <= 255, f"hosts.stopped_status={self.stopped_status} must be from 0 to 255")
