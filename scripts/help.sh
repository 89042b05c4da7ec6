# Sourced by scripts whose help is the comment at their head: prints it and ends, if -h or --help is among the arguments.
for flag in "$@"; do
    case $flag in
        -h | --help) sed -n '2,${/^#/!q; s/^# \{0,1\}//p}' "$0"; exit 0 ;;
    esac
done
