"""The old name of `boxsup_dist.tracking.models`, which models published before the move name as their loader."""

from boxsup_dist.tracking.models import _load_pyfunc as _load_pyfunc
