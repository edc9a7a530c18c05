"""nbval runs the one page with little data and few updates; `make notebooks`, all."""

import os

os.environ.setdefault("MINIDALLE_SHARE", "0.01")
