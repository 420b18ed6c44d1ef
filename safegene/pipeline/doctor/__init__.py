"""What must hold before anything is computed, found all at once; each finding has the command that mends it."""

from safegene.pipeline.doctor.examine import Report, examine, require_ready
from safegene.pipeline.doctor.finding import Finding

__all__ = ["Finding", "Report", "examine", "require_ready"]
