"""``python -m ilora_kernels``: which backends run here, and what was built of the CUDA kernels."""

from __future__ import annotations

import sys

from ilora_kernels import backends, build_record
from ilora_kernels.backends import drawbacks


def main() -> None:
    """Print both."""
    remarks = drawbacks()
    for name, reason in backends().items():
        usable = f"usable; {remarks[name]}" if name in remarks else "usable"
        print(f"{name:<8}{usable if reason is None else f'not usable: {reason}'}")
    try:
        print(f"CUDA kernels: {build_record.summary()}")
    except ValueError as error:  # somebody else's file in the place of the record
        sys.exit(str(error))


if __name__ == "__main__":
    main()
