"""VLMEvalKit's runner with Tango's models: `python run.py --config run_config/llava_onevision_7b.json`; -h for more."""

import sys

from tango_vlmeval.launcher import main

if __name__ == "__main__":
    sys.exit(main())
