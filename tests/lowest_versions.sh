#!/usr/bin/env bash
# The fast tests with the lowest version of every package that pyproject.toml allows, what those need in turn as new as
# it comes, on the oldest Python (PYTHON). In an environment of its own of about 10 GB, which is removed. Arguments go
# to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
unset PYTHONPATH VIRTUAL_ENV
export UV_CACHE_DIR="$home/cache"

"${PYTHON:-python3}" -m venv "$home/tools"
"$home/tools/bin/python" -m pip install --quiet uv
uv="$home/tools/bin/uv"
"$uv" venv --quiet --python "${PYTHON:-python3}" "$home/env"
"$uv" pip compile --quiet --python "$home/env/bin/python" --resolution lowest-direct --extra all --extra dev \
    pyproject.toml --output-file "$home/lowest.txt" > /dev/null
grep -v '^ ' "$home/lowest.txt"
"$uv" pip install --quiet --python "$home/env/bin/python" --requirement "$home/lowest.txt"
"$uv" pip install --quiet --python "$home/env/bin/python" --no-deps --editable .

# Old packages call new ones by names that these deprecate: no fault of ours.
OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 "$home/env/bin/python" -m pytest -W ignore::DeprecationWarning -p no:cacheprovider \
    --numprocesses 2 --dist worksteal "$@"
