#!/bin/sh
# Installs the clients of other languages, which the tests use unmodified, into
# DIR/python and DIR/node. It says in one line for each whether it is there, and
# never fails: what cannot be installed is left out of the tests, and said.
#
# usage: install.sh DIR
set -u
here=$(cd "$(dirname "$0")" && pwd) || exit 0
dir=${1:?usage: install.sh DIR}
mkdir -p "$dir" 2>/dev/null
dir=$(cd "$dir" 2>/dev/null && pwd) || {
	echo "python clients: MISSING ($1 cannot be made)"
	echo "node clients: MISSING ($1 cannot be made)"
	exit 0
}

# stamp FILE... is what an installation was made from.
stamp() { cat "$@" | cksum; }

# reason is the first line of a log that speaks of a fault, and where the rest is.
reason() {
	line=$(grep -iE '^(npm )?error|not found|not available|denied' "$1" | head -n 1)
	[ -n "$line" ] || line=$(tail -n 1 "$1")
	printf '%.160s; see %s' "$line" "$1"
}

# part NAME STAMP installs one part, unless it is there as it should be.
part() {
	name=$1 want=$2
	if [ "$(cat "$dir/$name/.stamp" 2>/dev/null)" = "$want" ]; then
		echo "$name clients: ready"
		return
	fi
	rm -rf "${dir:?}/$name"
	if "install_$name" >"$dir/$name.log" 2>&1; then
		echo "$want" >"$dir/$name/.stamp"
		echo "$name clients: ready"
	else
		echo "$name clients: MISSING ($(reason "$dir/$name.log"))"
		rm -rf "${dir:?}/$name" # half of it would pass for all of it
	fi
}

# A machine without a network should learn of it soon, so there are few retries.

install_python() {
	command -v python3 || { echo "python3: not found"; return 1; }
	python3 -m venv "$dir/python" &&
		"$dir/python/bin/python" -m pip install --disable-pip-version-check --no-input --retries 2 --timeout 20 \
			-r "$here/python/requirements.txt"
}

install_node() {
	command -v node || { echo "node: not found"; return 1; }
	command -v npm || { echo "npm: not found"; return 1; }
	mkdir -p "$dir/node" && cp "$here/node/package.json" "$here/node/.npmrc" "$dir/node/" &&
		(cd "$dir/node" && npm install --no-progress --loglevel=error --fetch-retries=1)
}

# Another interpreter makes an installation worthless, so it is part of the stamp.
part python "$(stamp "$here/python/requirements.txt") $(python3 --version 2>&1)"
part node "$(stamp "$here/node/package.json" "$here/node/.npmrc")"
exit 0
