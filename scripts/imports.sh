# Sourced by scripts that run the tango command, which reads no environment: packages that TANGO_IMPORT names, with commas
# between, become its flags, imports=(--import PKG ...).
imports=()
IFS=, read -ra packages <<<"${TANGO_IMPORT:-}"
for package in "${packages[@]}"; do imports+=("--import=$package"); done
