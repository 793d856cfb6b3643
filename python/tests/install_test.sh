#!/bin/bash
# `pip install ./python` after make gives a package that needs nothing else, in a new virtual
# environment, without a network, and leaves the source tree as it was. So does a bundle's wheel.
here=$(dirname "$(realpath "$0")")
. "$here/../../tests/checks.sh"
python=$(tools/find_python.sh)

if ! "$python" -c 'import ensurepip, setuptools, wheel' 2> "$scratch/missing.log"; then
    skip "$python lacks venv, setuptools or wheel: $(tail -n 1 "$scratch/missing.log")"
    finish
fi
export PIP_DISABLE_PIP_VERSION_CHECK=1 QUERN_BUILD=$build
unset QUERN_LIBRARY PYTHONPATH
venv=$scratch/venv
install=("$venv/bin/python" -m pip install --no-build-isolation --no-index --no-cache-dir
    --force-reinstall ./python)
tree_state() {
    find python -not -path '*/__pycache__*' | sort | xargs -d '\n' ls -ld --time-style=+
}
before=$(tree_state)

check "a virtual environment is made" "$python" -m venv --system-site-packages "$venv"
mkdir "$scratch/nothing" "$scratch/empty"
check "without a build the install fails" refuses env QUERN_BUILD="$scratch/nothing" \
    "${install[@]}"
check "and says what is missing" grep -q "libquern.so.0: not in $scratch/nothing: run make first" \
    <(QUERN_BUILD=$scratch/nothing "${install[@]}" 2>&1)
check "pip install works" "${install[@]}"
check "the source tree is as it was" test "$before" = "$(tree_state)"

cd "$scratch/empty" || exit 1
package=$("$venv/bin/python" -c 'import quern; print(quern.__path__[0])')
check "the package is the installed one" test "${package#"$venv"}" != "$package"
for file in libquern.so.0 LICENSE py.typed _families/gemm.py; do
    check "$file is in it" test -f "$package/$file"
done
check "its library is the bundled one" test "$package/libquern.so.0" = \
    "$("$venv/bin/python" -c 'import quern; print(quern.library_path())')"
version=$(sed -n 's/^#define QUERN_VERSION "\(.*\)"/\1/p' "$OLDPWD/include/quern.h")
about=$package-$version.dist-info
check "its version is the header's" grep -qx "Version: $version" "$about/METADATA"
check "its tag is of any Python 3 on this platform" grep -q '^Tag: py3-none-linux_' "$about/WHEEL"
sed -n '/^```python$/,/^```$/p;/^```$/q' "$OLDPWD/python/README.md" | sed '/^```/d' > example.py
check "the example has a program" grep -q 'quern.gemm' example.py
check "the README's example runs from an empty folder" "$venv/bin/python" example.py

# A bundle as a package, in the same environment: pip must leave it as a context takes it.
gemm='import numpy as np, quern, sys
with quern.Context("cpu", cache="", mode="sealed") as context:
    call = context.prepare("gemm", np.ones((5, 9), "f"), np.ones((7, 9), "f"))
    call()
    sys.exit(call.artifact != "disk" or context.stats().compiles != 0)'
wheel=$scratch/wheels/some_kernels-1.0-py3-none-any.whl
check "a bundle is made" "$build/quern" build gemm m=5 n=7 k=9 --device cpu --cache "$scratch/b.qdb"
check "and packed in a wheel" "$venv/bin/python" -m quern.bundle "$scratch/b.qdb" some-kernels \
    --version 1.0 -o "$scratch/wheels"
check "without it a sealed program fails" refuses "$venv/bin/python" -c "$gemm"
[[ $(id -u) == $(id -g) ]] && umask 002 # as where each user has a group of his own
check "pip installs the wheel" "$venv/bin/python" -m pip install --no-deps --no-index "$wheel"
check "with it a sealed program runs and compiles nothing" "$venv/bin/python" -c "$gemm"
check "pip uninstalls it" "$venv/bin/python" -m pip uninstall --yes some-kernels
check "and it is gone" refuses "$venv/bin/python" -c "$gemm"
finish
