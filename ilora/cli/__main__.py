"""`python -m ilora.cli`, the same as `ilora`."""

from ilora.cli.app import main

main()
