"""The command line. Thin: it parses, calls, prints; nothing heavy is imported before it must."""

from ilora.cli.app import app, main

__all__ = ["app", "main"]
