import sys

from lightkernels.cli import main

sys.exit(main())
