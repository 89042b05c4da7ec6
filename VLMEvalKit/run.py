"""VLMEvalKit's runner with Tango's models: `python run.py --config run_config/llava_onevision_7b.json`; -h for more."""

import sys

if __name__ == "__main__":
    try:
        from tango_vlmeval.launcher import main

        sys.exit(main())
    except KeyboardInterrupt:
        print("run.py: interrupted; the same command again goes on from here", file=sys.stderr)
        sys.exit(130)
