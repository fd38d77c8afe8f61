"""Runs one of the programs: MODULE FUNCTION ARGUMENTS, the last as a JSON array."""

from __future__ import annotations

import importlib
import json
import sys

if __name__ == "__main__":
    module, function, arguments = sys.argv[1:]
    print(json.dumps(getattr(importlib.import_module(module), function)(*json.loads(arguments))))
