#!/usr/bin/env bash
# Set up a virtual environment and try Tango on a tiny model and a generated clip. Options: tango quickstart --help
source "$(dirname "$0")/environment.sh"
exec tango quickstart "$@"
