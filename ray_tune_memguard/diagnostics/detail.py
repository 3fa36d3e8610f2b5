"""How much of a large container is measured: in detail, or less of it if there is no time."""

from __future__ import annotations

from dataclasses import dataclass

WHOLE = 256
SAMPLE = 64


@dataclass(frozen=True)
class Detail:
    """Which containers are sampled, and by how many entries.

    The entries of a sampled container may be large containers themselves. There may be many of
    those, so that other limits apply to them.

    Attributes:
        whole: the number of entries up to which a container is measured completely.
        sample: about so many entries of a larger one are measured.
        whole_within, sample_within: the same, within a sampled container.
        is_estimate: whether the result is called an estimate.
    """

    whole: int
    sample: int
    whole_within: int
    sample_within: int
    is_estimate: bool = True

    def limits(self, is_within: bool) -> tuple[int, int]:
        """The limits for a container, which may be within a sampled one."""
        if is_within:
            return self.whole_within, self.sample_within
        return self.whole, self.sample


#: From the most detailed on. Small containers are measured completely as long as possible, because
#: the values of a configuration or of a result differ much in size.
DETAILS = (
    Detail(WHOLE, SAMPLE, WHOLE, SAMPLE, is_estimate=False),
    Detail(64, 32, 256, 16),
    Detail(32, 16, 64, 8),
)
